"""Code outside the tree: networks, data sets, losses or models that register themselves when they are imported."""

import importlib
import importlib.util
import sys
from pathlib import Path

from basicsr.utils.registry import OptionError


def import_plugins(names: list[str]) -> None:
    """Import each once: a Python file (its path ends in `.py`) or an installed module.

    Raises OptionError if it is not there; what the code itself raises is its author's to see.
    """
    for name in names:
        if name.endswith('.py'):
            _import_file(Path(name).expanduser().resolve())
        elif importlib.util.find_spec(name.partition('.')[0]) is None:
            raise OptionError(f'{name!r} is neither a Python file nor an installed module', ('custom_imports',))
        else:
            importlib.import_module(name)


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise OptionError(f'{str(path)!r} does not exist', ('custom_imports',))
    if any(getattr(module, '__file__', None) == str(path) for module in list(sys.modules.values())):
        return
    spec = importlib.util.spec_from_file_location(
        path.stem if path.stem not in sys.modules else f'custom_{path.stem}', path
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # workers that are spawned, and pickle, look it up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
