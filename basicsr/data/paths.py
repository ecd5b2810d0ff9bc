"""Which lq image belongs to which gt image: by name, never by position."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from basicsr.data.storage import FolderStorage, LmdbStorage
from basicsr.utils.registry import OptionError

Storage = FolderStorage | LmdbStorage


def read_meta_info(path: str) -> list[str]:
    """The image names of a list file: `NAME (h,w,c)` or `NAME` in each line; names may hold spaces."""
    lines = Path(path).read_text(encoding='utf-8').splitlines()
    return [line.rpartition(' (')[0] or line.strip() for line in lines if line.strip()]


def paired_names(
    gt: Storage, lq: Storage, template: str, listed: Iterable[str] | None = None
) -> tuple[list[tuple[str, str]], list[str]]:
    """(gt name, lq name) of every pair, sorted by gt name unless a list gives the order; what is wrong with the others.

    The lq of `a/b.png` is `a/` + template.format('b') with any image suffix (for lists also without `a/`, as in BasicSR).
    An image without a partner is a fault on either side. Raises OptionError if there are no images.
    """
    gt_names, lq_names = gt.names() if listed is None else list(listed), lq.names()
    by_stem = {_stem(name): name for name in lq_names}
    pairs, alone = [], []
    for name in gt_names:
        stem = PurePosixPath(_stem(name))
        wanted = template.format(stem.name)
        partner = by_stem.get(str(stem.with_name(wanted))) or (by_stem.get(wanted) if listed is not None else None)
        if partner is None:
            alone.append(f'{gt.path(name)}: without a partner, there is no {wanted}.* in {lq.root}')
        else:
            pairs.append((name, partner))
    if listed is None:
        used = {partner for _, partner in pairs}
        alone += [f'{lq.path(name)}: without a partner in {gt.root}' for name in lq_names if name not in used]
    if not pairs and not alone:
        raise OptionError(f'{gt.root}: holds no images')
    return pairs, alone


def _stem(name: str) -> str:
    """A relative path without its image suffix; LMDB keys have none and may contain dots."""
    path = PurePosixPath(name)
    known = path.suffix.lower() in ('.png', '.jpg', '.jpeg', '.webp', '.tif', '.tiff', '.bmp')
    return str(path.with_suffix('')) if known else name
