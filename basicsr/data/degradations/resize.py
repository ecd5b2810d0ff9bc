"""The resizing that degrades: MATLAB's bicubic, which also NIQE needs and which therefore lives in utils."""

from basicsr.utils.resize import imresize

__all__ = ['imresize']
