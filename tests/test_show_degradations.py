"""scripts/show_degradations.py: what it shows is what training does, and its pictures are legible."""

import sys
from pathlib import Path

import numpy as np
import pytest
from data_files import make_pairs, pixels

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
import show_degradations
from contact_sheet import Tile, contact_sheet, font, wrapped
from drawn_parameters import by_parameter, caption, edges, histograms, table
from pipelines import Pipeline
from show_degradations import Cropper, draw_only, row_of, spread, training_section

from basicsr.utils.image import read_image, write_image

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ROOT / 'options/train/degradations'
FILES = sorted(OPTIONS.glob('*.yml'))


def shown(*arguments: object) -> np.ndarray:
    """The sheet that a command writes, uint8."""
    show_degradations.main(['-o', 'sheet.png', '--number-of-draws', '0', *map(str, arguments)])
    return np.rint(read_image('sheet.png') * 255).astype(np.uint8)


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        show_degradations.main(list(map(str, arguments)))
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert text.count('\n') == 1 and 'Traceback' not in text
    return text


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- what is shown


@pytest.mark.parametrize('name', ['bsrgan_x2', 'realesrnet_x4'])
def test_a_row_is_a_crop_of_the_image_and_what_the_pipeline_makes_of_it(name):
    write_image('image.png', pixels(0, 460, 500))
    options = training_section(str(OPTIONS / f'{name}.yml'), [])
    pipeline = Pipeline.load(str(OPTIONS / f'{name}.yml'))
    cropper = Cropper(options, pipeline.scale, pipeline.sections['degradation'].get('gt_size'), 64)
    (gt, *lqs), drawn = row_of(pipeline, cropper, Path('image.png'), 2, 7, 0)
    assert gt.image.shape == (64, 64, 3) and [lq.image.shape for lq in lqs] == 2 * [(64, 64, 3)]
    assert [lq.caption for lq in lqs] == [caption(parameters) for parameters in drawn]
    assert gt.caption[0] == 'image.png' and ('sharpened' in gt.caption[1]) == (name == 'realesrnet_x4')
    if name == 'bsrgan_x2':
        windows = np.lib.stride_tricks.sliding_window_view(read_image('image.png')[..., 0], (1, 64))[..., 0, :]
        assert (windows == gt.image[0, :, 0]).all(-1).any(), 'gt is a piece of the image'
    blocks = lqs[0].image.reshape(64 // pipeline.scale, pipeline.scale, 64 // pipeline.scale, pipeline.scale, 3)
    assert (blocks == blocks[:, :1, :, :1]).all(), 'each lq pixel is a square'
    source = cropper.gt(pixels(0, 460, 500), np.random.default_rng(show_degradations.derived_seed(7, 0)))
    lq = pipeline.degrade(source, 7, 0, 1)[1]
    small = lqs[1].image[:: pipeline.scale, :: pipeline.scale]
    windows = np.lib.stride_tricks.sliding_window_view(lq[..., 0], small.shape[:2])
    assert (windows == small[..., 0]).all((-1, -2)).any(), 'lq is the same square of what the pipeline gives'


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_drawing_alone_gives_what_degrading_draws_and_captions_fit(path):
    pipeline = Pipeline.load(str(path))
    gt = pixels(0, 96, 96).astype(np.float32) / 255
    for number in range(3):
        drawn = pipeline.degrade(gt, 5, number)[2]
        assert draw_only(pipeline, 96, 5, number) == drawn
        assert 1 <= len(caption(drawn)) <= 3
    assert ('nothing' in caption(drawn)[0]) == path.stem.startswith('bicubic')


def test_a_sheet_depends_on_the_seed_and_on_overrides_wherever_they_stand():
    write_image('images/a.png', pixels(0, 80, 90))
    common = '-opt', OPTIONS / 'bsrgan_x4.yml', '-i', 'images', '--count', '2'
    plain = shown(*common)
    assert np.array_equal(shown(*common), plain)
    assert not np.array_equal(shown(*common, '--seed', '1'), plain)
    cut = shown('-opt', OPTIONS / 'bsrgan_x4.yml', 'datasets:train:gt_size=40', '-i', 'images', '--count', '2')
    assert np.array_equal(shown('-opt', OPTIONS / 'bsrgan_x4.yml', '--count', '2', '-i', 'images',
                                'datasets:train:gt_size=40'), cut)  # fmt: skip
    assert not np.array_equal(cut, plain)


@pytest.mark.parametrize('name', ['bicubic_x3', 'realesrgan_x2', 's3diff_x4'])
@pytest.mark.parametrize('size', [(30, 33), (150, 40), (7, 5)])
def test_images_smaller_than_the_crop_are_shown_as_far_as_they_reach(name, size, capsys):
    write_image('small.png', pixels(0, *size))
    sheet = shown('-opt', OPTIONS / f'{name}.yml', '-i', 'small.png', '--count', '1')
    assert sheet.shape[1] > 480 and 'sheet.png' in capsys.readouterr().out


def test_sixteen_bits_gray_and_alpha_are_shown():
    write_image('deep.png', pixels(0, 64, 64, dtype=np.uint16))
    write_image('gray.png', pixels(0, 64, 64, channels=1))
    write_image('alpha.png', pixels(0, 64, 64, channels=4))
    sheet = shown('-opt', OPTIONS / 'bicubic_x2.yml', '-i', 'deep.png', 'gray.png', 'alpha.png', '--count', '1')
    assert sheet.shape[0] > 3 * 240


def test_pairs_on_disk_are_shown():
    make_pairs(Path(), ['a.png', 'b.png'], height=20, width=24)
    roots = 'datasets:train:dataroot_gt=gt', 'datasets:train:dataroot_lq=lq'
    sheet = shown('-opt', ROOT / 'options/train/ATD/ATD-quick_x2.yml', *roots, 'datasets:train:gt_size=16')
    gt = pixels(0, 40, 48)[::2, ::2].reshape(-1, 3)
    colors = {tuple(color) for color in sheet.reshape(-1, 3).tolist()}
    assert len(colors & set(map(tuple, gt.tolist()))) > 20 and sheet.shape[0] > 2 * 240


def test_sr3s_pairs_are_shown():
    for part, side in (('lr_4', 4), ('hr_16', 16), ('sr_4_16', 16)):
        for number in range(2):
            write_image(f'faces_4_16/{part}/{number:05}.png', pixels(number, side, side))
    sizes = 'scale=4', 'datasets:train:l_resolution=4', 'datasets:train:r_resolution=16'
    place = 'datasets:train:dataroot=faces_4_16', 'datasets:train:datatype=img'
    sheet = shown('-opt', ROOT / 'options/train/SR3/sr_sr3_16_128.yml', *sizes, *place)
    assert tuple(pixels(0, 4, 4)[0, 0]) in set(map(tuple, sheet.reshape(-1, 3)))


# ---- mistakes


def test_mistakes_are_one_line(capsys):
    quick, bsrgan = ROOT / 'options/train/ATD/ATD-quick_x2.yml', OPTIONS / 'bsrgan_x4.yml'
    make_pairs(Path(), ['a.png'])
    absent = 'datasets:train:dataroot_gt=gt', 'datasets:train:dataroot_lq=nowhere'
    assert 'nowhere: no such folder' in refused(capsys, '-opt', quick, *absent)
    assert 'nothing to degrade' in refused(capsys, '-opt', quick, '-i', 'a.png')
    assert 'no such option file' in refused(capsys, '-opt', 'none.yml')
    assert 'nothing.png: no such file' in refused(capsys, '-opt', bsrgan, '-i', 'nothing.png')
    assert "did you mean 'BSRGANDegradation'" in refused(
        capsys, '-opt', bsrgan, 'datasets:train:degradation:type=BSRGANDegradatio'
    )
    Path('broken.png').write_bytes((ROOT / 'testset/gt/coffee_left.png').read_bytes()[:999])
    assert 'broken.png' in refused(capsys, '-opt', bsrgan, '-i', 'broken.png')
    write_image('tiny.png', pixels(0, 3, 9))
    assert 'tiny.png: 9x3' in refused(capsys, '-opt', bsrgan, '-i', 'tiny.png')


# ---- captions, tables, histograms


def test_captions_say_what_was_drawn():
    drawn = {'order': 'blur noise blur resize_to_lq final_jpeg', 'blur_kind': 'isotropic', 'blur_size': 7,
             'blur_sigma': 1.234, 'noise_kind': 'gray', 'noise_level': 9, 'blur2_kind': 'anisotropic', 'blur2_size': 9,
             'blur2_theta': 1.0, 'blur2_variance1': 4.0, 'blur2_variance2': 0.25, 'resize_to_lq_factor': 0.25,
             'resize_to_lq_interpolation': 'area', 'final_jpeg_quality': 61}  # fmt: skip
    assert caption(drawn) == ['blur 1.23, gray noise 9, blur 2.00 x 0.50, to lq area, jpeg 61']
    assert caption({}) == ['nothing is drawn']
    assert caption({'length': 7, 'angle': 12.3456}) == ['length 7, angle 12.3']
    many = caption({f'p{n}': n for n in range(30)})[0]
    assert many.endswith('...') and 'p9' in many and 'p10' not in many


def test_long_lines_are_broken_at_blanks_within_the_width():
    text = 'generalized aniso blur 2.29 x 0.29, bilinear by 1.18, color noise 2.79, jpeg 84'
    lines = wrapped([text, 'short'], 200, 13)
    assert ' '.join(lines[:-1]) == text and lines[-1] == 'short'
    assert len(lines) > 2 and all(font(13).getlength(line) <= 200 for line in lines)


def test_tiles_stand_in_columns_below_one_another():
    red, blue = (np.broadcast_to(np.float32(color), (250, 250, 3)) for color in ((1, 0, 0), (0, 0, 1)))
    sheet = contact_sheet(['title'], [[Tile(red, ['a']), Tile(blue, ['b'])], [Tile(red, ['c']), Tile(blue, ['d'])]])
    for color in ((255, 0, 0), (0, 0, 255)):
        rows, columns = np.nonzero((sheet == color).all(-1))
        assert len(np.unique(columns)) == 250 and len(np.unique(rows)) == 500 and len(rows) == 2 * 250 * 250


def test_parameters_are_counted_of_the_draws_that_have_them():
    draws = [{'kind': 'a', 'width': 1.0}, {'kind': 'b'}, {'kind': 'a', 'width': 3.0, 'size': 7}]
    assert by_parameter(draws) == {'kind': ['a', 'b', 'a'], 'width': [1.0, 3.0], 'size': [7]}
    lines = {line.split()[0]: line for line in table(draws).splitlines()}
    assert 'a 67%, b 33%' in lines['kind'] and lines['width'].split()[1:5] == ['67%', '1', '2', '3']
    assert '33%' in lines['size']


def test_bins_hold_all_values_and_whole_numbers_are_in_their_middle():
    for values in ([7, 9, 11, 21], [3], [2, 3, 4], list(range(30, 96)), [0.2, 0.9, 3.0], [1.5]):
        bounds = edges(values)
        heights, _ = np.histogram(values, bounds)
        assert heights.sum() == len(values) and (np.diff(bounds) > 0).all()
    assert edges([7, 9, 11, 21])[:2].tolist() == [6, 8] and edges([2, 3, 4]).tolist() == [1.5, 2.5, 3.5, 4.5]


@pytest.mark.parametrize('name', ['bsrgan_plus_x4', 'realesrnet_x4'])
def test_histograms_have_a_panel_for_each_parameter(name):
    pytest.importorskip('matplotlib')
    pipeline = Pipeline.load(str(OPTIONS / f'{name}.yml'))
    picture = histograms(name, [draw_only(pipeline, 64, n) for n in range(30)])
    assert picture.dtype == np.uint8 and picture.shape[1] == 1500 and picture.shape[0] > 600
    one = histograms('one', [{'width': float(n)} for n in range(5)])
    assert one.shape[0] < 300, 'a single panel'


def test_without_matplotlib_the_sheet_is_written_and_the_rest_printed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    monkeypatch.setitem(sys.modules, 'matplotlib.backends.backend_agg', None)
    write_image('a.png', pixels(0, 64, 64))
    arguments = ['-opt', str(OPTIONS / 'bsrgan_x2.yml'), '-i', 'a.png', '--count', '1', '--number-of-draws', '40']
    show_degradations.main(arguments)
    printed = capsys.readouterr()
    assert Path('results/degradations/bsrgan_x2.png').is_file()
    assert "pip install -e '.[plots]'" in printed.err and 'final_jpeg_quality' in printed.out


def test_images_are_taken_evenly():
    assert spread(range(9), 3) == [0, 4, 8] and spread(range(2), 5) == [0, 1] and spread('ab', 1) == ['a']
