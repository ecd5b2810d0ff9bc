"""Images without ground truth."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import PositiveInt
from torch.utils.data import Dataset

from basicsr.data.paired_image_dataset import check_normalisation, finished_tensor
from basicsr.data.paths import present_names, read_meta_info
from basicsr.data.storage import DISK, IoBackend, open_storage
from basicsr.utils.registry import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class SingleImageDataset(Dataset):
    """lq images of a folder, a list or an LMDB. Item: lq (c, h, w), RGB in [0, 1]; lq_path.

    Args: as of PairedImageDataset.
    """

    def __init__(
        self,
        dataroot_lq: str,
        scale: int = 1,
        phase: str = 'test',
        io_backend: IoBackend = DISK,
        meta_info_file: str | None = None,
        color: Literal['rgb', 'y'] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        max_num: PositiveInt | None = None,
    ):
        self.lq = open_storage(dataroot_lq, io_backend)
        names, self.absent = present_names(self.lq, read_meta_info(meta_info_file) if meta_info_file else None)
        self.names = names[:max_num]
        self.color, self.mean, self.std, self.scale, self.phase = color, mean, std, scale, phase
        check_normalisation(color, mean, std)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict:
        name = self.names[index]
        lq = finished_tensor(self.lq.pixels(name), self.color, self.mean, self.std)
        return {'lq': lq, 'lq_path': self.lq.path(name)}

    def faults(self, thorough: bool) -> list[str]:
        """What is wrong with each image that cannot be used; `thorough` decodes whole images, else headers are read."""
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda name: self._fault(name, thorough), self.names)
            return [*self.absent, *(fault for fault in found if fault)]

    def _fault(self, name: str, thorough: bool) -> str:
        try:
            self.lq.size(name, thorough)
        except ValueError as error:
            return str(error)
        return ''
