"""What a place on disk holds, so that reading it as something else ends in a sentence that helps."""

from pathlib import Path

from basicsr.utils.registry import OptionError

KINDS = {
    'disk': 'a folder',
    'lmdb': 'an LMDB',
    'sr3_lmdb': "an LMDB in SR3's layout",
    'packed': 'a packed store',
}
INDEX, PIXELS = 'index.jsonl', 'pixels.bin'  # the files of a packed store


def kind_of(root: Path) -> str | None:
    """The io_backend that reads `root`; None if there is nothing that one could read.

    For SR3's layout, `root` is the environment's folder and, as if that were a folder too, the start of the keys.
    """
    if (root / INDEX).is_file():
        return 'packed'
    if (root / 'meta_info.txt').is_file() and (root / 'data.mdb').is_file():
        return 'lmdb'
    if (root / 'data.mdb').is_file() or (not root.exists() and (root.parent / 'data.mdb').is_file()):
        return 'sr3_lmdb'
    return 'disk' if root.is_dir() else None


def refuse_other_kind(root: Path, wanted: str) -> None:
    """Raise OptionError, with the io_backend to use, if `root` is of another kind than a folder and than `wanted`."""
    found = kind_of(root)
    if found not in (None, 'disk', wanted):
        raise OptionError(f'{root}: is {KINDS[found]}, which io_backend: {{type: {found}}} reads')
