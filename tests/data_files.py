"""Image files for tests: folders and LMDBs of lq and gt noise."""

from pathlib import Path

import cv2
import lmdb
import numpy as np

from basicsr.utils.image import write_image


def pixels(seed: int, height: int, width: int, channels: int = 3, dtype=np.uint8) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def make_pairs(root: Path, names: list[str], scale: int = 2, height: int = 8, width: int = 10) -> tuple[str, str]:
    """Write root/gt/NAME and root/lq/NAME for each name; returns both folders."""
    for seed, name in enumerate(names):
        write_image(root / 'gt' / name, pixels(seed, height * scale, width * scale))
        write_image(root / 'lq' / name, pixels(1000 + seed, height, width))
    return str(root / 'gt'), str(root / 'lq')


def make_lmdb(path: Path, images: dict[str, np.ndarray]) -> Path:
    """An LMDB as BasicSR writes it: PNG of compression level 1 under the name without `.png`, and meta_info.txt."""
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for key, image in images.items():
            bgr = image[..., ::-1] if image.ndim == 3 else image
            png = cv2.imencode('.png', bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
            transaction.put(key.encode(), png)
    lines = [
        f'{key}.png ({image.shape[0]},{image.shape[1]},{1 if image.ndim == 2 else 3}) 1\n'
        for key, image in images.items()
    ]
    (path / 'meta_info.txt').write_text(''.join(lines), encoding='utf-8')
    return path


def make_sr3_lmdb(path: Path, images: dict[str, np.ndarray], length: str | None = None) -> Path:
    """An LMDB as SR3's prepare_data.py writes it: PNG files under keys such as hr_128_00000, and their number."""
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for key, image in images.items():
            transaction.put(key.encode(), cv2.imencode('.png', image[..., ::-1])[1].tobytes())
        if length is not None:
            transaction.put(b'length', length.encode())
    return path
