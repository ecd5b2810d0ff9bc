"""An option file as a checked, frozen object: every key is declared here or by the component that it configures."""

from collections.abc import Collection
from pathlib import Path

from basicsr.utils.option_parser import OptionParser, optimizer_class
from basicsr.utils.option_sections import (
    DatasetOptions,
    LoggerOptions,
    Options,
    PathOptions,
    PretrainedOptions,
    RestorerOptions,
    TrainOptions,
    ValOptions,
)
from basicsr.utils.registry import OptionError
from basicsr.utils.yaml_loader import Lines, apply_override, load_yaml

__all__ = [
    'DatasetOptions',
    'LoggerOptions',
    'Options',
    'PathOptions',
    'PretrainedOptions',
    'RestorerOptions',
    'TrainOptions',
    'ValOptions',
    'load_options',
    'optimizer_class',
    'parse_options',
]

COMMAND_LINE = 0  # the line of a key that was given there


def load_options(
    path: str | Path, is_train: bool, overrides: Collection[str] = (), check_files: bool = True
) -> Options:
    """Read and check a whole option file; nothing is built and no image is read.

    Args:
        overrides: `section:key=value` entries that replace values of the file.
        check_files: whether data folders and checkpoints that the file names must exist.
    Raises OptionError, whose message names file, line and key, for the first fault found.
    """
    tree, lines = load_yaml(path)
    for entry in overrides:
        where = apply_override(tree, entry)
        lines = {key: line for key, line in lines.items() if key[: len(where)] != where} | {where: COMMAND_LINE}
    text = Path(path).read_text(encoding='utf-8')
    return parse_options(tree, is_train, str(path), lines, text, check_files)


def parse_options(
    tree: dict,
    is_train: bool,
    file: str = 'options',
    lines: Lines | None = None,
    text: str = '',
    check_files: bool = False,
) -> Options:
    """As `load_options`, from a dictionary."""
    try:
        options = OptionParser(tree, is_train).options(file, text)
        if check_files:
            _check_files(options)
        return options
    except OptionError as error:
        raise OptionError(f'{_place(file, error.key, lines or {})}: {error}', error.key) from None


def _place(file: str, key: tuple[str, ...], lines: Lines) -> str:
    """Where a key is written, or else the section that it would be in."""
    nearest = next((key[:n] for n in range(len(key), 0, -1) if key[:n] in lines), None)
    if nearest is not None and lines[nearest] == COMMAND_LINE:
        file = 'command line'
    elif nearest is not None:
        file = f'{file}:{lines[nearest]}'
    return f'{file}: {":".join(key)}' if key else file


def _lies_in_lmdb(path: Path) -> bool:
    """SR3's LMDB ROOT holds several sets of images, which are named as if they were folders: ROOT/hr_128."""
    return (path.parent / 'data.mdb').is_file()


def _check_files(options: Options) -> None:
    here = f'does not exist (seen from {Path.cwd()})'
    for label, dataset in options.datasets.items():
        for key, value in dataset.options.items():
            names_files = key.startswith(('dataroot', 'meta_info', 'pair_list'))
            for name in value if isinstance(value, list) else [value]:
                if names_files and isinstance(name, str) and not Path(name).exists() and not _lies_in_lmdb(Path(name)):
                    raise OptionError(f'{name!r} {here}', ('datasets', label, key))
    for label, pretrained in options.path.pretrained.items():
        if '://' not in pretrained.path and not Path(pretrained.path).is_file():
            raise OptionError(f'{pretrained.path!r} {here}', ('path', f'pretrain_network_{label}'))
    if options.path.resume_state and not Path(options.path.resume_state).is_file():
        raise OptionError(f'{options.path.resume_state!r} {here}', ('path', 'resume_state'))
