"""A PyTorch framework for super-resolution research. Importing it loads nothing else."""

__version__ = '0.1.0'
