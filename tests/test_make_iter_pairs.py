import json
import sys
from pathlib import Path

import numpy as np
import pytest
from data_files import pixels

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
from make_iter_pairs import main
from pipelines import number_of

from basicsr.data.degradations.bsrgan import BSRGANDegradation
from basicsr.utils.image import read_image, write_image
from basicsr.utils.seeding import derived_seed


def test_pairs_have_equal_names_and_lq_are_the_truncated_bsrgan_images_of_the_seed(tmp_path, capsys):
    write_image(tmp_path / 'in' / 'a.png', pixels(0, 80, 64))
    write_image(tmp_path / 'in' / 'b.png', pixels(1, 64, 64))
    arguments = ['--input', str(tmp_path / 'in'), '--output', str(tmp_path / 'out'), '--crop', '64', '--workers', '1']
    main(arguments)
    assert '3 pairs for each of x2, x4' in capsys.readouterr().out
    hq = tmp_path / 'out' / 'HQ_sub_samename'
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*.png')}
    assert len(files) == 9
    for scale in (2, 4):
        lq = tmp_path / 'out' / f'LQ_sub_samename_X{scale}'
        head = json.loads((tmp_path / 'out' / f'{lq.name}.jsonl').read_text().splitlines()[0])
        assert head['recipe']['seed'] == 123 and head['recipe']['levels'] == 'truncated'
        for name in ('a_s001.png', 'a_s002.png', 'b_s001.png'):
            degradation = BSRGANDegradation(scale)
            plan = degradation.draw(64, 64, np.random.default_rng(derived_seed(123, number_of(name))))
            _, expected = degradation.apply(read_image(hq / name), plan)
            made = np.rint(read_image(lq / name) * 255)
            np.testing.assert_array_equal(made, (expected * np.float32(255)).astype(np.uint8))
    main(arguments)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*.png')}


def test_small_and_unreadable_images_are_listed_before_work_starts(tmp_path, capsys):
    write_image(tmp_path / 'in' / 'small.png', pixels(0, 30, 64))
    write_image(tmp_path / 'in' / 'good.png', pixels(0, 64, 64))
    (tmp_path / 'in' / 'torn.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    with pytest.raises(SystemExit) as stopped:
        main(['--input', str(tmp_path / 'in'), '--output', str(tmp_path / 'out'), '--crop', '63'])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and 'small.png' in said and 'torn.png' in said and 'multiple of the scale 4' in said
    assert not (tmp_path / 'out').exists()
