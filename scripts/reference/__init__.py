"""The reference cases of the published implementations, and how each kind of them is run against this project."""
