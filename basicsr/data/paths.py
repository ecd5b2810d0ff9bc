"""Which lq image belongs to which gt image: by name, never by position."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from basicsr.data.storage import FolderStorage, Storage
from basicsr.utils.image import IMAGE_SUFFIXES
from basicsr.utils.registry import OptionError


def read_meta_info(path: str) -> list[str]:
    """The image names of a list file: `NAME (h,w,c)` or `NAME` in each line; names may hold spaces.

    Raises OptionError for a file that is no such list.
    """
    try:
        lines = Path(path).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f'{path}: cannot be read as a list of images: {error}', ('meta_info_file',)) from None
    names = [re.fullmatch(r'\s*(.*?)( \(\d[\d, ]*\)( \d+)?)?\s*', line)[1] for line in lines if line.strip()]
    if not names:
        raise OptionError(f'{path}: lists no images', ('meta_info_file',))
    return names


PairOrder = Literal['lq gt', 'gt lq', 'gt, lq']


class ListedPair(NamedTuple):
    """A line of a list of pairs; the paths are as they are written there."""

    gt: str
    lq: str
    line: int


def read_pair_list(path: str, order: PairOrder = 'lq gt') -> list[ListedPair]:
    """The pairs of a list file, one in each line, in its order; empty lines are skipped.

    A tab parts the two paths, or else the first run of blanks: only with tabs may the first path hold blanks.

    Args:
        order: 'lq gt' as D2C-SR lists them, 'gt lq' as S3Diff does, or 'gt, lq' (with comma) as Real-ESRGAN does.
    Raises OptionError with the number of every line that does not name two paths.
    """
    try:
        lines = Path(path).read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f'{path}: cannot be read as a list of pairs: {error}', ('pair_list',)) from None
    pairs, faults = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        between = ', ' if order == 'gt, lq' else '\t' if '\t' in line.strip() else None
        fields = [field.strip() for field in line.strip().split(between, 1)]
        if len(fields) == 2 and all(fields):
            lq, gt = fields if order == 'lq gt' else fields[::-1]
            pairs.append(ListedPair(gt, lq, number))
        else:
            faults.append(f'{path}:{number}: {line.strip()!r} should be two paths: {order}')
    if faults or not pairs:
        raise OptionError('\n  '.join(faults[:50]) or f'{path}: lists no pairs', ('pair_list',))
    return pairs


def listed_pairs(
    gt: Storage, lq: Storage, path: str, order: PairOrder
) -> tuple[list[tuple[str, str]], list[str], dict[tuple[str, str], str]]:
    """(gt name, lq name) of every pair of a list file, in its order, and what is wrong with the others.

    The third part says where each pair is written: 'FILE:LINE'. Relative paths are seen from the storages' roots.
    Names in LMDBs and packed stores may differ in their suffix.
    Raises OptionError as of `read_pair_list`.
    """
    pairs, faults, places = [], [], {}
    find_gt, find_lq = _finder(gt), _finder(lq)
    for listed in read_pair_list(path, order):
        names = find_gt(listed.gt), find_lq(listed.lq)
        for storage, written, name in ((gt, listed.gt, names[0]), (lq, listed.lq, names[1])):
            if name is None:
                faults.append(f'{path}:{listed.line}: {storage.path(written)} is not there')
        if None not in names:
            pairs.append(names)
            places.setdefault(names, f'{path}:{listed.line}')
    return pairs, faults, places


def present_names(storage: Storage, listed: Iterable[str] | None) -> tuple[list[str], list[str]]:
    """The names to use, sorted or in the order of a list, and what is wrong with those that are listed but not there.

    A list may name images with another suffix than theirs, as LMDB keys have none. Raises OptionError if there are no
    images.
    """
    names = storage.names()
    if not names:
        raise OptionError(f'{storage.root}: holds no images')
    if listed is None:
        return names, []
    find = _among(names)
    found = {name: find(name) for name in listed}
    present = [name for name in found.values() if name is not None]
    return present, [f'{storage.path(name)}: listed, but not there' for name, there in found.items() if there is None]


def paired_names(
    gt: Storage, lq: Storage, template: str, listed: Iterable[str] | None = None, without: str | None = None
) -> tuple[list[tuple[str, str]], list[str]]:
    """(gt name, lq name) of every pair, sorted by gt name unless a list gives the order; what is wrong with others.

    The lq of `a/b.png` is `a/` + template.format('b') with any image suffix (for lists also without `a/`, as BasicSR
    has it). An image without a partner is a fault on either side, and so are two with one name but for the suffix.
    Images whose names hold the text `without` are passed over. Raises OptionError if there are no images.
    """
    _check_template(template)
    gt_names, faults = present_names(gt, listed)
    lq_names, _ = present_names(lq, None)
    if without is not None:
        gt_names, lq_names = ([name for name in names if without not in name] for names in (gt_names, lq_names))
    by_stem, pairs = {_stem(name): name for name in lq_names}, []
    for name in gt_names:
        folder, _, stem = _stem(name).rpartition('/')
        wanted = template.format(stem)
        partner = by_stem.get(f'{folder}/{wanted}' if folder else wanted) or (
            by_stem.get(wanted) if listed is not None else None
        )
        if partner is None:
            faults.append(f'{gt.path(name)}: without a partner, there is no {wanted}.* in {lq.root}')
        else:
            pairs.append((name, partner))
    stems = {_stem(partner) for _, partner in pairs}
    faults += [*_twins(gt, gt_names), *_twins(lq, [name for name in lq_names if _stem(name) in stems])]
    if listed is None:
        faults += [f'{lq.path(name)}: without a partner in {gt.root}' for name in lq_names if _stem(name) not in stems]
    return pairs, faults


def _check_template(template: str) -> None:
    try:
        useful = template.format('a') != template.format('b')
    except (ValueError, LookupError, AttributeError):
        useful = False
    if not useful:
        raise OptionError(
            f"{template!r}: a template holds '{{}}' for the gt's name, as in '{{}}x4'", ('filename_tmpl',)
        )


def _finder(storage: Storage) -> Callable[[str], str | None]:
    """From a name as it is written in a list to that in the storage; None for what is not there."""
    if isinstance(storage, FolderStorage):
        return lambda name: name if (storage.root / name).is_file() else None
    return _among(storage.names())


def _among(names: list[str]) -> Callable[[str], str | None]:
    exact, by_stem = set(names), {_stem(name): name for name in names}
    return lambda name: name if name in exact else by_stem.get(_stem(name))


def _twins(storage: Storage, names: list[str]) -> list[str]:
    """Images that the pairing by stems cannot tell apart."""
    first = {}
    return [
        f'{storage.path(name)}: {storage.path(first[_stem(name)])} has the same name but for the suffix'
        for name in dict.fromkeys(names)
        if first.setdefault(_stem(name), name) != name
    ]


def _stem(name: str) -> str:
    """A relative path without its image suffix; LMDB keys have none and may contain dots."""
    path = PurePosixPath(name)
    return str(path.with_suffix('')) if path.suffix.lower() in IMAGE_SUFFIXES else name
