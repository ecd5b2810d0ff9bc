import sys
from pathlib import Path

import numpy as np
import pytest
from data_files import pixels
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
from make_meta_info import main

from basicsr.data.paths import read_meta_info
from basicsr.utils.image import write_image


def test_the_list_has_basicsrs_lines_and_what_is_left_out_is_said(tmp_path, capsys):
    folder, output = tmp_path / 'images', tmp_path / 'list.txt'
    write_image(folder / 'b 2.png', pixels(0, 5, 7))
    write_image(folder / 'a' / 'gray.png', pixels(0, 6, 4, 1))
    write_image(folder / 'a' / 'gray16.png', pixels(0, 6, 4, 1, np.uint16))
    write_image(folder / 'color16.png', pixels(0, 3, 4, 3, np.uint16))
    write_image(folder / 'alpha.png', pixels(0, 5, 5, 4))
    Image.new('CMYK', (4, 4)).save(folder / 'print.jpg')
    main(['--input', str(folder), '--output', str(output)])
    lines = ['a/gray.png (6,4,1)', 'a/gray16.png (6,4,1)', 'b 2.png (5,7,3)', 'color16.png (3,4,3)']
    assert output.read_text() == '\n'.join(lines) + '\n'
    assert read_meta_info(str(output)) == ['a/gray.png', 'a/gray16.png', 'b 2.png', 'color16.png']
    said = capsys.readouterr().out
    assert 'alpha.png is left out' in said and 'RGBA' in said
    assert 'print.jpg is left out' in said and '4 images' in said


def test_faults_are_listed_and_nothing_is_written(tmp_path, capsys):
    write_image(tmp_path / 'good.png', pixels(0, 5, 7))
    for name in ('one.png', 'two.png'):
        (tmp_path / name).write_bytes(b'')
    with pytest.raises(SystemExit) as stopped:
        main(['--input', str(tmp_path), '--output', str(tmp_path / 'list.txt')])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and 'one.png' in said and 'two.png' in said
    assert not (tmp_path / 'list.txt').exists()
