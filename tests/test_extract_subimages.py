import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))

from data_files import pixels
from extract_subimages import extract_folder, main, windows
from preparing import UserError, read_pixels

from basicsr.utils.image import read_image, write_image


def test_windows_cover_every_pixel_and_stay_inside():
    for height, width, crop, step in ((31, 20, 8, 5), (8, 9, 8, 4), (50, 50, 16, 16)):
        covered = np.zeros((height, width), bool)
        for top, left in windows(height, width, crop, step):
            assert top + crop <= height and left + crop <= width
            covered[top : top + crop, left : left + crop] = True
        assert covered.all()


def test_a_rest_up_to_the_threshold_is_left_out():
    assert list(windows(10, 8, 8, 8, thresh=2)) == [(0, 0)]
    assert list(windows(10, 8, 8, 8, thresh=1)) == [(0, 0), (2, 0)]


@pytest.mark.parametrize('workers', [1, 2])
def test_lq_and_gt_get_equal_names_and_matching_pixels(tmp_path, workers):
    lq = np.random.default_rng(0).integers(0, 256, (13, 11, 3), dtype=np.uint8)
    write_image(tmp_path / 'lq' / 'ax2bx4.png', lq)
    write_image(tmp_path / 'gt' / 'ax2b.png', lq.repeat(4, 0).repeat(4, 1))
    count = extract_folder(tmp_path / 'lq', tmp_path / 'lq_sub', 6, 3, workers=workers)
    assert extract_folder(tmp_path / 'gt', tmp_path / 'gt_sub', 24, 12, workers=workers) == count == 12
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ('lq_sub', 'gt_sub')]
    assert names[0] == names[1] == [f'ax2b_s{number:03d}.png' for number in range(1, 13)]
    for name in names[0]:
        small, large = (read_image(tmp_path / folder / name) for folder in ('lq_sub', 'gt_sub'))
        np.testing.assert_array_equal(large, small.repeat(4, 0).repeat(4, 1))


def test_small_images_are_kept_whole(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 30, 3), dtype=np.uint8)
    write_image(tmp_path / 'in' / 'a.png', image)
    assert extract_folder(tmp_path / 'in', tmp_path / 'out', 20, 10) == 2
    np.testing.assert_array_equal(read_image(tmp_path / 'out' / 'a_s002.png') * 255, image[:, 10:])


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_depth_and_channels_stay_as_they_are(tmp_path, channels, dtype):
    image = pixels(0, 9, 9, channels, dtype).reshape(9, 9, channels)
    write_image(tmp_path / 'in' / 'a.png', image)
    extract_folder(tmp_path / 'in', tmp_path / 'out', 6, 3, compression=0)
    part = read_pixels(tmp_path / 'out' / 'a_s004.png').array
    assert part.dtype == dtype
    np.testing.assert_array_equal(part, image[3:, 3:])


def test_a_second_run_keeps_right_files_and_mends_torn_missing_and_wrong_ones(tmp_path):
    write_image(tmp_path / 'in' / 'a.png', pixels(0, 24, 24))
    extract_folder(tmp_path / 'in', tmp_path / 'out', 12, 4)
    files = sorted((tmp_path / 'out').iterdir())
    good, stamp = {path: path.read_bytes() for path in files}, files[0].stat().st_mtime_ns
    files[1].write_bytes(good[files[1]][:-20])
    files[2].unlink()
    write_image(files[3], pixels(9, 12, 12))
    extract_folder(tmp_path / 'in', tmp_path / 'out', 12, 4)
    assert good == {path: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    assert files[0].stat().st_mtime_ns == stamp


def test_sub_images_of_another_cut_are_refused(tmp_path):
    write_image(tmp_path / 'in' / 'a.png', pixels(0, 24, 24))
    extract_folder(tmp_path / 'in', tmp_path / 'out', 12, 4)
    with pytest.raises(UserError, match=r'a_s010\.png: there from another crop or step'):
        extract_folder(tmp_path / 'in', tmp_path / 'out', 8, 8)
    assert extract_folder(tmp_path / 'in', tmp_path / 'out', 12, 4) == 16


def test_sources_with_one_stem_are_refused(tmp_path):
    for name in ('a.png', 'ax4.png'):
        write_image(tmp_path / 'in' / name, pixels(0, 8, 8))
    with pytest.raises(UserError, match=r'ax4\.png.*would be written to the same place'):
        extract_folder(tmp_path / 'in', tmp_path / 'out', 4, 4)


def test_bad_calls_are_one_line(tmp_path, capsys):
    other = tmp_path / 'other'
    for arguments in ((tmp_path, other, '8', '0'), (tmp_path, tmp_path, '8', '8'), (tmp_path, other, '8', '8')):
        options = zip(('--input', '--output', '--crop', '--step'), map(str, arguments), strict=True)
        with pytest.raises(SystemExit) as stopped:
            main([part for option in options for part in option])
        assert stopped.value.code != 0
        assert capsys.readouterr().err.strip().splitlines()[-1].count(':') >= 1
