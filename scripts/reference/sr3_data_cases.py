"""Cases of `sr3` about data: Pillow-exact resizing, the prepared folders and database, and their tensors."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from make_sr3_data import Sizes, make_data

from basicsr.data.storage import open_storage
from basicsr.utils.image import scaled_to_float, to_tensor, write_image
from reference.case import Case
from reference.checking import checks


@checks('sr3', 'resize_multiple')
def resized(case: Case) -> Iterator[tuple]:
    sizes = Sizes(*case.args['sizes'], case.args['resample'], published_width_test=True)
    yield from zip(('lr', 'hr', 'sr'), sizes.images(case.inputs['image'].astype(np.uint8)), strict=True)


@checks('sr3', 'prepare + LRHRDataset')
def prepared(case: Case) -> Iterator[tuple]:
    """Both layouts are made by our script and read by our storages; SR3's network sees 2 * image - 1."""
    sizes = Sizes(case.args['l_resolution'], case.args['r_resolution'], case.args['resample'])
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(case.inputs['images'].astype(np.uint8)):
            write_image(Path(folder, 'source', f'{number}.png'), image)
        for backend in ('disk', 'sr3_lmdb'):
            root, _ = make_data(Path(folder, 'source'), Path(folder, backend), sizes, lmdb=backend == 'sr3_lmdb')
            if backend == 'disk':
                files = sorted(path.relative_to(root).as_posix() for path in root.rglob('*.png'))
                yield 'files', files, case.spec['files']
            else:
                keys, length = _content(root)
                yield 'lmdb_keys', keys, case.spec['lmdb_keys']
                yield 'lmdb_length', length, case.spec['lmdb_length']
            for kind, label in zip(sizes.kinds, ('LR', 'HR', 'SR'), strict=True):
                storage = open_storage(str(root / kind), {'type': backend})
                for number, name in enumerate(storage.names()):
                    yield f'{number}.{label}', 2 * to_tensor(scaled_to_float(storage.pixels(name))) - 1


def _content(root: Path) -> tuple[list[str], str]:
    """All keys of a database, and the number under `length`."""
    import lmdb

    with lmdb.open(str(root), readonly=True, lock=False) as environment, environment.begin() as transaction:
        keys = [key.decode() for key, _ in transaction.cursor()]
        return keys, transaction.get(b'length').decode()
