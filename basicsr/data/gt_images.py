"""The images of data sets that read gt only: of one folder or database, or of several."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from basicsr.data.paths import present_names, read_meta_info
from basicsr.data.storage import open_storage
from basicsr.utils.registry import OptionError


class GtImages:
    """Images by number: sorted by name within each root, root after root, or in the order of a list.

    Args:
        roots: a folder or database, or several.
        meta_info_file: a list of the names to use, of a single root.
        max_num: use only the first images.
    Raises OptionError for a root without images and for a list that cannot be read.
    """

    def __init__(self, roots: str | list[str], io_backend: dict, meta_info_file: str | None, max_num: int | None):
        roots = [roots] if isinstance(roots, str) else roots
        if not roots:
            raise OptionError('dataroot_gt names no folder', ('dataroot_gt',))
        if meta_info_file and len(roots) > 1:
            raise OptionError(f'a list names the images of one dataroot_gt, here are {len(roots)}', ('meta_info_file',))
        listed = read_meta_info(meta_info_file) if meta_info_file else None
        self.entries, self.absent = [], []
        for root in roots:
            storage = open_storage(root, io_backend)
            names, absent = present_names(storage, listed)
            self.entries += [(storage, name) for name in names]
            self.absent += absent
        self.entries = self.entries[:max_num]

    def __len__(self) -> int:
        return len(self.entries)

    def path(self, index: int) -> str:
        """Where the image is, for messages."""
        storage, name = self.entries[index]
        return storage.path(name)

    def pixels(self, index: int) -> np.ndarray:
        """(h, w, 3) RGB, integer or float32, perhaps read-only. Raises ValueError that names the image."""
        storage, name = self.entries[index]
        return storage.pixels(name)

    def faults(self, thorough: bool, check: Callable[[int, int], object]) -> list[str]:
        """What is wrong with each image that is absent, unreadable or refused by `check(width, height)`.

        Args:
            thorough: decode whole images; else headers are read.
            check: raises ValueError for a size that cannot be used.
        """

        def fault(entry: tuple) -> str:
            storage, name = entry
            try:
                size = storage.size(name, thorough)
            except ValueError as error:
                return str(error)
            try:
                check(*size)
            except ValueError as error:
                return f'{storage.path(name)}: {error}'
            return ''

        with ThreadPoolExecutor() as pool:
            return [*self.absent, *filter(None, pool.map(fault, self.entries))]
