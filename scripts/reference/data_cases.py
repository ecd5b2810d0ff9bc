"""Cases of `data`: crops and flips, LMDB, sub-images."""

import random
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from extract_subimages import windows
from make_lmdb import make_lmdb

from basicsr.data.storage import open_storage
from basicsr.data.transforms import augment, crop, draw_flips, mod_crop, paired_random_crop
from basicsr.utils.image import write_image
from reference.case import Case
from reference.checking import checks


@checks('data', 'paired_random_crop')
def crops_and_flips(case: Case) -> Iterator[tuple]:
    lq, gt = case.inputs['lq'], case.inputs['gt']
    scale, side, top, left = (case.args[key] for key in ('scale', 'gt_patch', 'top', 'left'))
    yield 'crop_lq', crop(lq, top, left, side // scale)
    yield 'crop_gt', crop(gt, top * scale, left * scale, side)
    image = lq.astype(np.float32)
    image = image / 255 if 'aug_000' in case.arrays and case.arrays['aug_000'].max() <= 1 else image
    for h, v, r in product((0, 1), repeat=3):
        yield f'aug_{h}{v}{r}', augment(image, bool(h), bool(v), bool(r))
    yield 'rng', [drawn(lq, side, scale, seed) for seed in range(len(case.arrays.get('rng', ())))]
    if 'mod_crop' in case.arrays:
        size = case.arrays['mod_crop'].shape
        moduli = (m for m in range(1, max(gt.shape) + 1) if mod_crop(gt, m).shape == size)
        yield 'mod_crop', next((mod_crop(gt, modulus) for modulus in moduli), gt)


def drawn(lq: np.ndarray, side: int, scale: int, seed: int) -> list[int]:
    """Top, left and the flips that follow, from a generator seeded with `seed`: read off an image of coordinates."""
    rng = random.Random(seed)
    places = np.stack(np.mgrid[: lq.shape[0], : lq.shape[1]], axis=-1)
    large = places.repeat(scale, axis=0).repeat(scale, axis=1)
    small, _ = paired_random_crop(places, large, side, scale, rng)
    return [*small[0, 0].tolist(), *map(int, draw_flips(True, True, rng))]


@checks('data', 'extract_subimages')
def sub_images(case: Case) -> Iterator[tuple]:
    for k, image in enumerate(case.args['images']):
        yield f'tl_{k}', list(windows(image['h'], image['w'], image['crop'], image['step'], image['thresh']))


@checks('data', 'make_lmdb_from_imgs')
def lmdb_layout(case: Case) -> Iterator[tuple]:
    """Files become a database by our script, which our storage reads; gray comes back with three equal channels.

    The published list is in the order that the files were given in and loses what follows a dot; ours is sorted.
    """
    listed = [line.rpartition('.png (')[0] for line in case.spec['meta_info.txt'].splitlines()]
    level = int(case.spec['meta_info.txt'].split()[-1])
    with tempfile.TemporaryDirectory() as folder:
        for k, key in enumerate(listed):
            write_image(Path(folder, 'files', f'{key}.png'), case.inputs[f'image_{k}'].astype(np.uint8))
        root = Path(folder, 'images.lmdb')
        make_lmdb(Path(folder, 'files'), root, level)
        yield 'files', sorted(path.name for path in root.iterdir()), sorted(case.spec['files'])
        lines = (root / 'meta_info.txt').read_text(encoding='utf-8').splitlines()
        yield 'meta_info.txt', sorted(lines), sorted(case.spec['meta_info.txt'].splitlines())
        yield 'keys_in_database', _keys(root), sorted(case.spec['keys_in_database'], key=str.encode)
        storage = open_storage(str(root), {'type': 'lmdb'})
        read = [name.split('.')[0] for name in storage.names()]
        yield 'keys_from_meta_info', sorted(read), sorted(case.spec['keys_from_meta_info'])
        for k, key in enumerate(listed):
            yield f'read_bgr_{k}', storage.pixels(key)[..., ::-1]


def _keys(root: Path) -> list[str]:
    import lmdb

    with lmdb.open(str(root), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return [key.decode() for key, _ in transaction.cursor()]
