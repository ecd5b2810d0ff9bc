import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TESTSET = ROOT / 'testset'
sys.path.insert(0, str(ROOT / 'scripts'))
import make_demo_data  # noqa: E402 - scripts/ is no package
import make_lq  # noqa: E402 - as above

from basicsr.data.degradations.resize import imresize  # noqa: E402 - as above


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert('RGB'))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.png'))


@pytest.mark.parametrize('scale', [2, 4])
@pytest.mark.parametrize('folder', [TESTSET, TESTSET / 'train'], ids=['test', 'train'])
def test_every_lq_is_matlabs_bicubic_of_its_gt_bit_for_bit(folder, scale):
    assert names(folder / f'lq_x{scale}') == names(folder / 'gt') != []
    for name in names(folder / 'gt'):
        gt = read(folder / 'gt' / name)
        assert gt.shape[0] % 12 == gt.shape[1] % 12 == 0
        expected = np.rint(imresize(gt.astype(np.float64), 1 / scale).clip(0, 255))
        assert np.array_equal(read(folder / f'lq_x{scale}' / name), expected), name


def test_lq_levels_equal_those_of_a_resize_in_the_unit_range_but_for_ties():
    gt = read(TESTSET / 'gt' / 'coffee_left.png').astype(np.float64) / 255
    in_unit_range = (255 * imresize(gt, 1 / 3)).clip(0, 255)
    made = make_lq.bicubic_lq(gt.astype(np.float32), 3)
    assert np.abs(made - in_unit_range).max() < 0.5 + 1e-6


def test_no_photograph_is_in_both_tables():
    assert not {Path(name).stem for name in make_demo_data.TEST_CROPS} & {
        Path(name).stem for name in make_demo_data.TRAIN_SCALES
    }
    crops = [crop for table in make_demo_data.TEST_CROPS.values() for crop in table]
    assert names(TESTSET / 'gt') == sorted(f'{crop}.png' for crop in crops)
    assert names(TESTSET / 'train' / 'gt') == sorted(f'{Path(n).stem}.png' for n in make_demo_data.TRAIN_SCALES)


def best_match(patch: np.ndarray, image: np.ndarray) -> float:
    return float(cv2.matchTemplate(image, patch, cv2.TM_CCOEFF_NORMED).max())


def test_no_part_of_a_test_picture_is_found_in_a_training_photograph_at_any_size():
    """Correlation of fine details of 60-pixel patches, which two pictures share only if one was cut from the other."""

    def details(gray: np.ndarray, scale: float = 1) -> np.ndarray:
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return gray - cv2.GaussianBlur(gray, (0, 0), 3)

    def gray(path: Path) -> np.ndarray:
        return cv2.cvtColor(read(path), cv2.COLOR_RGB2GRAY).astype(np.float32)

    def patches(image: np.ndarray) -> list[np.ndarray]:
        found = [
            image[top : top + 60, left : left + 60]
            for top in range(0, image.shape[0] - 59, 60)
            for left in range(0, image.shape[1] - 59, 60)
        ]
        return [patch for patch in found if patch.std() > 2]  # flat patches look like any other flat patch

    tests = {path: patches(details(gray(path))) for path in (TESTSET / 'gt').glob('*.png')}
    for train_path in (TESTSET / 'train' / 'gt').glob('*.png'):
        for scale in (1, 0.75, 0.5):
            image = details(gray(train_path), scale)
            for path, parts in tests.items():
                worst = max(best_match(part, image) for part in parts)
                assert worst < 0.8, f'{path.name} looks like {train_path.name} at x{scale}: {worst:.2f}'
    for path, parts in tests.items():  # what the search would see: a part cut out, enlarged by 4/3 and found again
        enlarged = cv2.resize(gray(path), None, fx=4 / 3, fy=4 / 3, interpolation=cv2.INTER_CUBIC)
        assert np.median([best_match(part, details(enlarged, 0.75)) for part in parts]) > 0.9


def test_the_readme_lists_every_picture_with_its_origin_and_status():
    text = (TESTSET / 'README.md').read_text(encoding='utf-8')
    rows = [line for line in text.splitlines() if line.startswith('| `')]
    for heading, folder in (('Test set', TESTSET / 'gt'), ('Training photographs', TESTSET / 'train' / 'gt')):
        section = text.split(f'## {heading}\n')[1].split('\n## ')[0]
        listed = [
            name
            for row in section.splitlines()
            if row.startswith('| `')
            for name in re.findall(r'`([\w.]+\.png)`', row.split('|')[1])
        ]
        assert sorted(listed) == names(folder)
    assert all(re.search(r'\| (public domain|CC0|no known restrictions) \|$', row) for row in rows)


def test_the_pictures_are_small_enough_for_a_repository():
    assert sum(path.stat().st_size for path in TESTSET.rglob('*.png')) < 6e6


def test_the_testset_is_what_scikit_image_gives(tmp_path):
    pytest.importorskip('skimage')
    make_demo_data.make_testset(tmp_path)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob('*.png'))
    assert made == sorted(path.relative_to(TESTSET) for path in TESTSET.rglob('*.png'))
    for path in made:
        assert np.abs(read(tmp_path / path).astype(int) - read(TESTSET / path)).max() <= 1, path  # JPEG decoders differ


def test_the_training_set_has_equal_names_and_right_sizes_and_a_second_run_changes_nothing(tmp_path):
    photographs = tmp_path / 'photographs'
    photographs.mkdir()
    gray = read(TESTSET / 'train' / 'gt' / 'coins.png')
    Image.fromarray(gray[:288, :360]).save(photographs / 'coins.png')
    Image.fromarray(gray[:120, :120]).save(photographs / 'too_small.png')
    make_demo_data.make_train(tmp_path / 'set', photographs, 2, 1)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / 'set').rglob('*.png')}
    for scale in (1, 2, 4):
        folder = tmp_path / 'set' / ('gt' if scale == 1 else f'lq_x{scale}')
        assert len(names(folder)) == 2 * 3 + 2  # 2 rows of 3 sub-images at full size, and the procedural ones
        assert all(read(folder / name).shape == (256 // scale, 256 // scale, 3) for name in names(folder))
    assert np.array_equal(read(tmp_path / 'set' / 'gt' / 'coins_100_s006.png'), gray[32:288, 104:360])
    make_demo_data.make_train(tmp_path / 'set', photographs, 2, 1)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / 'set').rglob('*.png')}


def test_lq_of_a_changed_gt_and_a_torn_lq_are_made_again(tmp_path):
    gt, lq = tmp_path / 'gt', tmp_path / 'lq'
    gt.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)
    for number, image in enumerate(noise):
        Image.fromarray(image).save(gt / f'{number}.png')
    make_lq.make_folder(gt, lq, 3)
    torn, changed, kept = (lq / f'{number}.png' for number in range(3))
    stamp, good = kept.stat().st_mtime_ns, read(torn)
    torn.write_bytes(torn.read_bytes()[:60])
    Image.fromarray(noise[2]).save(gt / '1.png')
    make_lq.make_folder(gt, lq, 3, workers=2)
    assert np.array_equal(read(torn), good)
    assert np.array_equal(read(changed), read(kept))
    assert kept.stat().st_mtime_ns == stamp


def test_odd_sides_need_a_folder_for_the_cropped_gt(tmp_path, capsys):
    (tmp_path / 'gt').mkdir()
    image = np.random.default_rng(0).integers(0, 256, (26, 31, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / 'gt' / 'odd.png')
    options = ['--gt', str(tmp_path / 'gt'), '--lq', str(tmp_path / 'lq'), '--scale', '4', '--workers', '1']
    with pytest.raises(SystemExit) as exit_status:
        make_lq.main(options)
    message = capsys.readouterr().err
    assert exit_status.value.code == 2
    assert 'odd.png' in message and '--cropped-gt' in message and message.count('\n') == 1
    assert not (tmp_path / 'lq').exists()
    make_lq.main([*options, '--cropped-gt', str(tmp_path / 'cropped')])
    assert np.array_equal(read(tmp_path / 'cropped' / 'odd.png'), image[:24, :28])
    assert read(tmp_path / 'lq' / 'odd.png').shape == (6, 7, 3)


def test_results_may_not_replace_the_gt(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_status:
        make_lq.main(['--gt', str(tmp_path), '--lq', str(tmp_path), '--scale', '2'])
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_demo_data_without_a_task_or_without_scikit_image_is_one_line(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        make_demo_data.main([])
    assert '--train' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'skimage', None)
    with pytest.raises(SystemExit) as exit_status:
        make_demo_data.main(['--testset', str(tmp_path)])
    message = capsys.readouterr().err
    assert exit_status.value.code == 2
    assert 'pip install scikit-image' in message and message.count('\n') == 1
