"""inference.py as users run it, with a tiny network: pictures in, pictures out, clear words for what is wrong."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import inference
from basicsr.models import build_model
from basicsr.models.restorer import Restorer
from basicsr.restoring import load_model
from basicsr.utils.cli import run
from basicsr.utils.image import read_image, to_tensor, to_uint8
from basicsr.utils.image_codec import decode, encode
from basicsr.utils.messages import LOGGER
from basicsr.utils.options import load_options

SCRIPT = Path(inference.__file__)
OPTIONS = """
name: tiny
model_type: ATDModel
scale: 2
network_g: {type: ATD, upscale: 2, embed_dim: 12, depths: [2], num_heads: [2], window_size: 4, category_size: 16,
            num_tokens: 8, reducted_dim: 4, convffn_kernel_size: 3, mlp_ratio: 1, upsampler: pixelshuffledirect}
"""


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(array, path.suffix))
    return path


@pytest.fixture(scope='session')
def tiny(tmp_path_factory) -> list[str]:
    """Arguments that name a tiny ATD with random weights."""
    folder = tmp_path_factory.mktemp('tiny')
    (folder / 'tiny.yml').write_text(OPTIONS)
    torch.manual_seed(0)
    model = build_model(load_options(folder / 'tiny.yml', is_train=False))
    torch.save({'params': model.nets['g'].state_dict()}, folder / 'tiny.pth')
    return ['--opt', str(folder / 'tiny.yml'), '--weights', str(folder / 'tiny.pth'), '--device', 'cpu']


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    """Runs inference.py in this process; gives its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, 'argv', ['inference.py', *map(str, arguments)])
        monkeypatch.setattr(LOGGER, 'handlers', [])  # those of an earlier test write to its captured stderr
        with pytest.raises(SystemExit) as stopped:
            run(inference.main)
        captured = capfd.readouterr()
        return stopped.value.code, captured.out + captured.err

    return run_it


def restored(tiny: list[str], path: Path) -> np.ndarray:
    """By another way: the network itself."""
    model = load_model(None, tiny[1], tiny[3], offline=True)
    with torch.no_grad():
        return to_uint8(model.eval_net('g').eval()(to_tensor(read_image(path))[None]))


def test_a_folder_becomes_a_folder_of_restored_pictures(call, tiny, tmp_path):
    for name in ('a.png', 'b.png'):
        write(tmp_path / 'in' / name, noise(9, 11, 3))
    (tmp_path / 'in' / 'notes.txt').write_text('not a picture')
    status, text = call('-i', tmp_path / 'in', *tiny)
    assert status == 0 and '2 of 2 pictures restored' in text
    assert 'tiny.yml (x2) on cpu in fp32: 2 pictures' in text
    folder = tmp_path / 'results' / 'inference' / 'tiny'
    assert sorted(path.name for path in folder.iterdir()) == ['a.png', 'b.png']
    result = np.asarray(Image.open(folder / 'a.png')).astype(int)
    assert np.abs(result - restored(tiny, tmp_path / 'in' / 'a.png')).max() <= 1


def test_every_kind_of_picture_keeps_its_kind(call, tiny, tmp_path):
    folder = tmp_path / 'in'
    kinds = {
        'gray.png': noise(8, 6), 'gray_alpha.png': noise(8, 6, 2), 'rgb.png': noise(8, 6, 3),
        'rgba.png': noise(8, 6, 4), 'gray16.png': noise(8, 6, dtype=np.uint16),
        'rgb16.png': noise(8, 6, 3, dtype=np.uint16), 'rgba16.png': noise(8, 6, 4, dtype=np.uint16),
        'rgb16.tif': noise(8, 6, 3, dtype=np.uint16), 'gray.jpg': noise(8, 6), 'rgb.jpeg': noise(8, 6, 3),
        'rgb.webp': noise(8, 6, 3), 'rgba.webp': noise(8, 6, 4), 'rgb.bmp': noise(8, 6, 3), 'rgba.tif': noise(8, 6, 4),
    }  # fmt: skip
    for name, array in kinds.items():
        write(folder / f'{name.replace(".", "_")}.{name.split(".")[1]}', array)
    Image.fromarray(noise(8, 6)).convert('1').save(folder / 'one_bit.png')
    Image.fromarray(noise(8, 6, 3)).quantize(8).save(folder / 'palette.png')
    Image.fromarray(noise(8, 6, 4), 'CMYK').save(folder / 'cmyk.tif')
    cv2.imwrite(str(folder / 'float.tif'), np.random.default_rng(0).random((8, 6, 3)).astype(np.float32))
    Image.fromarray(noise(6, 8, 3)).save(folder / 'turned.jpg', exif=turned_exif())
    status, text = call('-i', folder, '-o', tmp_path / 'out', *tiny)
    assert status == 0, text
    expected = {path.name: decode(path.read_bytes(), '').array for path in folder.iterdir()}
    assert {path.name for path in (tmp_path / 'out').iterdir()} == expected.keys()
    for name, array in expected.items():
        result = decode((tmp_path / 'out' / name).read_bytes(), '').array
        assert result.shape == (16, 12, array.shape[2]), name
        assert result.dtype == (np.uint16 if name == 'float.tif' else array.dtype), name


def turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


@pytest.mark.parametrize('extra', [[], ['--tile', '8', '--overlap', '2'], ['--self-ensemble', '--dtype', 'bf16']])
def test_any_size_comes_out_at_its_scale(call, tiny, tmp_path, extra):
    sizes = [(1, 1), (1, 13), (7, 1), (13, 17), (4, 8)]
    for height, width in sizes:
        write(tmp_path / 'in' / f'{height}_{width}.png', noise(height, width, 3))
    status, text = call('-i', tmp_path / 'in', '-o', tmp_path / 'out', *tiny, *extra)
    assert status == 0, text
    for height, width in sizes:
        assert Image.open(tmp_path / 'out' / f'{height}_{width}.png').size == (2 * width, 2 * height)


def test_files_globs_and_folders_are_taken_once_each(call, tiny, tmp_path):
    for name in ('in/a.png', 'in/b.jpg', 'in/deep/c.png', 'd.png'):
        write(tmp_path / name, noise(4, 4, 3))
    status, text = call(
        '-i',
        tmp_path / 'in',
        str(tmp_path / 'in' / '*.png'),
        '-i',
        str(tmp_path / '**' / 'c.png'),
        '-i',
        tmp_path / 'd.png',
        '-o',
        tmp_path / 'out',
        '--ext',
        'png',
        '--suffix',
        '_x2',
        *tiny,
    )
    assert status == 0, text
    names = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert names == ['a_x2.png', 'b_x2.png', 'c_x2.png', 'd_x2.png']


def test_results_can_have_the_colours_of_the_input(call, tiny, tmp_path):
    write(tmp_path / 'in' / 'a.png', noise(24, 20, 3) // 3 + 90)
    status, text = call('-i', 'in', '-o', 'out', '--color-fix', 'adain', *tiny)
    assert status == 0, text
    before, after = (np.asarray(Image.open(tmp_path / folder / 'a.png'), float) for folder in ('in', 'out'))
    np.testing.assert_allclose(after.mean((0, 1)), before.mean((0, 1)), atol=2)
    assert np.abs(restored(tiny, tmp_path / 'in' / 'a.png').mean((0, 1)) - before.mean((0, 1))).max() > 5


def test_results_of_one_name_get_numbers(call, tiny, tmp_path):
    for name in ('one/photo.png', 'two/photo.png', 'one/photo.jpg', 'two/PHOTO.bmp'):
        write(tmp_path / name, noise(4, 4, 3))
    status, text = call('-i', tmp_path / 'one', tmp_path / 'two', '-o', tmp_path / 'out', '--ext', 'png', *tiny)
    assert status == 0 and 'is written as photo_2.png' in text
    names = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert len(names) == 4 and len({name.casefold() for name in names}) == 4


def test_the_input_is_never_overwritten(call, tiny, tmp_path):
    source = write(tmp_path / 'in' / 'a.png', noise(4, 4, 3))
    before = source.read_bytes()
    (tmp_path / 'link').symlink_to(tmp_path / 'in')
    for folder in (tmp_path / 'in', tmp_path / 'link', tmp_path / 'in' / '..' / 'in'):
        status, text = call('-i', tmp_path / 'in', '-o', folder, *tiny)
        assert status == 2 and '--suffix or another output folder' in text
    (tmp_path / 'out').mkdir()
    os.link(source, tmp_path / 'out' / 'a.png')
    assert call('-i', source, '-o', tmp_path / 'out', *tiny)[0] == 2
    assert source.read_bytes() == before
    assert call('-i', source, '-o', tmp_path / 'in', '--suffix', '_x2', *tiny)[0] == 0
    assert source.read_bytes() == before and (tmp_path / 'in' / 'a_x2.png').is_file()


def test_a_link_in_the_output_folder_leads_nowhere(call, tiny, tmp_path):
    source = write(tmp_path / 'in' / 'a.png', noise(4, 4, 3))
    (tmp_path / 'secret').write_text('secret')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'a.png').symlink_to(tmp_path / 'secret')
    assert call('-i', source, '-o', tmp_path / 'out', *tiny)[0] == 0
    assert (tmp_path / 'secret').read_text() == 'secret'
    assert not (tmp_path / 'out' / 'a.png').is_symlink()


def test_existing_results_are_replaced_skipped_or_kept_beside(call, tiny, tmp_path):
    source, old = write(tmp_path / 'a.png', noise(4, 4, 3)), tmp_path / 'out' / 'a.png'
    old.parent.mkdir()
    old.write_text('old')
    status, text = call('-i', source, '-o', 'out', '--existing', 'skip', *tiny)
    assert status == 0 and old.read_text() == 'old' and 'skipped' in text
    assert call('-i', source, '-o', 'out', '--existing', 'rename', *tiny)[0] == 0
    assert old.read_text() == 'old' and (tmp_path / 'out' / 'a_2.png').is_file()
    assert call('-i', source, '-o', 'out', *tiny)[0] == 0
    assert Image.open(old).size == (8, 8)


def test_a_broken_picture_is_reported_and_the_others_go_on(tiny, tmp_path):
    write(tmp_path / 'in' / 'a.png', noise(8, 8, 3))
    (tmp_path / 'in' / 'b.png').write_bytes(encode(noise(8, 8, 3), '.png')[:60])
    (tmp_path / 'in' / 'c.jpg').write_bytes(b'')
    (tmp_path / 'in' / 'd.png').write_text('no picture')
    write(tmp_path / 'in' / 'e.png', noise(8, 8, 3))
    done = subprocess.run(
        [sys.executable, SCRIPT, '-i', 'in', '-o', 'out', *tiny], cwd=tmp_path, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert '2 of 5 pictures restored' in done.stdout
    for name in ('b.png', 'c.jpg', 'd.png'):
        assert sum(f'in/{name}' in line for line in done.stderr.replace('\r', '\n').split('\n')) == 1
    assert 'Traceback' not in done.stderr
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['a.png', 'e.png']


def test_a_picture_bomb_is_refused_and_the_limit_can_be_set(call, tiny, tmp_path):
    write(tmp_path / 'a.png', noise(20, 20, 3))
    status, text = call('-i', 'a.png', '-o', 'out', '--max-pixels', '399', *tiny)
    assert status == 1 and 'beyond the limit of 399' in text and not list((tmp_path / 'out').iterdir())


def test_scores_stand_beside_those_of_bicubic(call, tiny, tmp_path):
    structural_similarity = pytest.importorskip('skimage.metrics').structural_similarity
    gt = cv2.GaussianBlur(noise(41, 36, 3), (5, 5), 1.5)  # one row more than 2x
    write(tmp_path / 'gt' / 'a.png', gt)
    write(tmp_path / 'lq' / 'a.png', cv2.resize(gt[:40], (18, 20), interpolation=cv2.INTER_AREA))
    status, text = call('-i', 'lq', '--gt', 'gt', '-o', 'out', *tiny)
    assert status == 0, text
    line, mean = (row for row in text.splitlines() if row.startswith(('a.png ', 'mean of 1')))
    assert line.split()[1:] == mean.split()[3:]
    sr = cv2.imread(str(tmp_path / 'out' / 'a.png'))[..., ::-1]
    weights = np.array([65.481, 128.553, 24.966]) / 255
    ours, truth = (image[2:-2, 2:-2] @ weights + 16 for image in (sr, gt[:40]))
    psnr = 10 * np.log10(255**2 / ((ours - truth) ** 2).mean())
    ssim = structural_similarity(ours, truth, data_range=255, gaussian_weights=True, use_sample_covariance=False)
    shown = [float(value) for value in line.split()[1:]]
    assert shown[0] == pytest.approx(psnr, abs=6e-4)
    assert shown[1] == pytest.approx(ssim, abs=2e-2)  # scikit-image averages over another border
    assert shown[4] == pytest.approx(shown[0] - shown[2], abs=2e-3)


def test_ground_truth_that_does_not_match_is_named(call, tiny, tmp_path):
    for name in ('lq/a.png', 'lq/b.png', 'gt/a.png'):
        write(tmp_path / name, noise(8, 8, 3))
    status, text = call('-i', 'lq', '--gt', 'gt', '-o', 'out', *tiny)
    assert status == 2 and 'gt has no image of the same name for b.png' in text and not Path('out').exists()
    status, text = call('-i', 'lq/a.png', '--gt', 'gt', '-o', 'out', *tiny)
    assert status == 1 and 'gt/a.png is 8x8, the restored picture would be 16x16: this model enlarges x2' in text
    assert not Path('out/a.png').exists(), 'said before the work'


@pytest.mark.parametrize(('arguments', 'reason'), [
    ([], 'name at least one picture'),
    (['-i', 'none.png'], 'none.png: no such file'),
    (['-i', '*.tif'], 'no image matches'),
    (['-i', 'empty'], 'empty: no images in this folder'),
    (['-i', 'a.png', '-o', 'a.png'], 'the output is a folder'),
    (['-i', 'a.png', '-o', 'a.png/out'], 'cannot write to the output folder'),
    (['-i', 'a.png', '--ext', 'gif'], "'.gif' is not a known image suffix"),
    (['-i', 'a.png', '--suffix', '/../x'], 'no slashes'),
    (['-i', 'a.png', '--dtype', 'int8'], 'invalid choice'),
    (['-i', 'a.png', '--tile', '-1'], 'tile and overlap are 0 or more'),
    (['-i', 'a.png', '--tile', 'big'], 'invalid int value'),
    (['-i', 'a.png', '--color-fix', 'adain', '--color-strength', '2'], 'color_strength is from 0 to 1, got 2.0'),
    (['-i', 'a.png', '--color-strength', '0.5'], 'color_strength 0.5 is of a color_fix, and there is none'),
    (['-i', 'a.png', '--outscale', 'big'], 'is a number, more than 0 and at most 64, got big'),
    (['-i', 'a.png', '--device', 'abacus'], '--device abacus'),
    (['-i', 'a.png', '--weight'], '--weight'),
    (['-i', 'a.png', '-m', 'x'], '-m excludes --opt and --weights'),
    (['m.safetensors', 'a.png'], 'm.safetensors is a model, and another one is named too'),
    (['-i', 'a.png', '--gt', 'none'], 'no such folder of ground truth'),
])  # fmt: skip
def test_bad_usage_is_one_line_and_status_two(call, tiny, tmp_path, arguments, reason):
    write(tmp_path / 'a.png', noise(4, 4, 3))
    (tmp_path / 'empty').mkdir()
    status, text = call(*tiny, *arguments)
    assert status == 2 and reason in text
    assert len(text.strip().splitlines()) == 1


@pytest.mark.parametrize(('arguments', 'reason'), [
    (['-m', '001_ATD_SRx2_finetun'], "did you mean '001_ATD_SRx2_finetune'?"),
    (['--weights', 'other.pth'], 'does not describe its network: name an option file that does with --opt'),
    (['--opt', 'none.yml'], 'none.yml: no such option file'),
    (['--opt', 'tiny.yml'], 'names no weights'),
    (['--opt', 'tiny.yml', '--weights', 'none.pth'], 'none.pth: no such file'),
    (['--opt', 'tiny.yml', '--weights', 'other.pth'], 'belongs to another network'),
    (['--opt', 'tiny.yml', '--weights', 'https://127.0.0.1/w.pth', '--offline'], 'downloads are off'),
])  # fmt: skip
def test_a_model_that_cannot_be_had_is_one_line(call, tmp_path, monkeypatch, arguments, reason):
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('BASICSR_OFFLINE', '0')
    write(tmp_path / 'a.png', noise(4, 4, 3))
    (tmp_path / 'tiny.yml').write_text(OPTIONS)
    torch.save({'params': {'weight': torch.ones(2)}}, tmp_path / 'other.pth')
    status, text = call('-i', 'a.png', *arguments)
    assert status == 2 and reason in text
    assert len(text.strip().splitlines()) == 1
    assert not Path('results').exists()


def test_a_full_disk_stops_the_run_in_one_line(call, tiny, tmp_path, monkeypatch):
    for name in ('a', 'b', 'c'):
        write(tmp_path / 'in' / f'{name}.png', noise(4, 4, 3))

    def full(_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    status, text = call('-i', 'in', '-o', 'out', *tiny)
    assert status == 1 and text.count('cannot write out/a.png: No space left on device') == 1
    assert '0 of 3 pictures restored' in text and 'b.png: ' not in text
    assert not list((tmp_path / 'out').iterdir())


def test_a_file_too_large_for_the_disk_leaves_nothing_half_written(tiny, tmp_path):
    write(tmp_path / 'in' / 'a.png', noise(40, 40, 3))
    done = subprocess.run(
        [sys.executable, SCRIPT, '-i', 'in', '-o', 'out', *tiny],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900)),
    )
    assert done.returncode == 1 and 'cannot write out/a.png: File too large' in done.stderr
    assert 'Traceback' not in done.stderr and not list((tmp_path / 'out').iterdir())


def test_processes_share_a_folder_and_the_main_one_sums_up(call, tiny, tmp_path):
    for index in range(5):
        write(tmp_path / 'in' / f'{index}.png', noise(12 + index, 16, 3))
        write(tmp_path / 'gt' / f'{index}.png', noise(24 + 2 * index, 32, 3))
    (tmp_path / 'in' / '3.png').write_bytes(b'')
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--nproc_per_node',
            '2',
            '--standalone',
            SCRIPT,
            '-i',
            'in',
            '--gt',
            'gt',
            '-o',
            'out',
            *tiny,
        ],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=environment,
        timeout=120,
    )
    assert '4 of 5 pictures restored' in done.stdout, done.stderr
    assert done.returncode != 0 and 'in/3.png is empty' in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:5]] == ['0.png', '1.png', '2.png', '4.png']
    assert done.stdout.count('mean of 4') == 1
    assert 'destroy_process_group' not in done.stderr
    call('-i', 'in', '-o', 'alone', *tiny)
    for path in (tmp_path / 'out').iterdir():
        assert path.read_bytes() == (tmp_path / 'alone' / path.name).read_bytes()


def test_another_basicsr_does_not_get_in_the_way(tmp_path):
    (tmp_path / 'basicsr').mkdir()
    (tmp_path / 'basicsr' / '__init__.py').write_text('raise ImportError("another basicsr")')
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path), 'TORCH_DEVICE_BACKEND_AUTOLOAD': '0'}
    done = subprocess.run([sys.executable, SCRIPT, '--list'], cwd=tmp_path, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_alpha_is_restored_by_the_network(call, tiny, tmp_path):
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, 4:] = 255
    picture = np.dstack([np.full((8, 8, 3), 90, np.uint8), alpha])
    write(tmp_path / 'a.png', picture)
    assert call('-i', 'a.png', '-o', 'out', *tiny)[0] == 0
    result = np.asarray(Image.open(tmp_path / 'out' / 'a.png'))[..., 3]
    assert (result[:, :6] == 0).all() and (result[:, 10:] == 255).all()
    model = load_model(None, tiny[1], tiny[3], offline=True)
    plane = Restorer(model)(torch.tensor(alpha / np.float32(255)).expand(1, 3, 8, 8)).mean(1)[0]
    assert np.abs(result[:, 6:10] - (255 * plane[:, 6:10]).round().numpy()).max() <= 1


def test_the_list_names_every_model(call):
    status, text = call('--list')
    assert status == 0
    for name in ('ATD-demo_x2', 'ATD-demo_x4', '001_ATD_SRx2_finetune', '103_ATD_light_SRx4_finetune'):
        assert text.count(f'{name} ') == 1
