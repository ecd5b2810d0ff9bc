"""Packages that only some systems need: imported where they are used, and named in one line where they are missing."""

import importlib
from types import ModuleType

from basicsr.utils.registry import UserError

# Extra of pyproject.toml -> what needs it.
_SYSTEMS = {'s3diff': 'S3Diff', 'hub': 'The Hugging Face hub', 'onnx': 'ONNX'}


def optional(module: str, extra: str) -> ModuleType:
    """Import a module of a package that comes with one of our extras.

    Raises UserError with the command that installs it.
    """
    package = module.partition('.')[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or '').partition('.')[0] != package:
            raise  # the package is there, and something that it needs itself is not
        raise UserError(
            f"{_SYSTEMS.get(extra, extra)} needs the package {package}: pip install -e '.[{extra}]' in the checkout"
        ) from None
