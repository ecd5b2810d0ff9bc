"""A PyTorch framework for super-resolution research. Importing it loads nothing: names are resolved when they are used."""

__version__ = '0.1.0'
