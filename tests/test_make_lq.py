"""make_lq.py with option files; its bicubic form is tested by test_testset.py."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_files import pixels

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
import make_lq
from pipelines import Pipeline, number_of

from basicsr.data.degradations.bsrgan import BSRGANDegradation
from basicsr.utils.image import read_image, write_image
from basicsr.utils.seeding import derived_seed

BSRGAN = """
scale: 2
datasets:
  train: {type: DegradedImageDataset, dataroot_gt: anywhere, gt_size: 16, degradation: {type: BSRGANDegradation}}
"""
REALESRGAN = """
scale: 2
datasets:
  train:
    type: KernelImageDataset
    dataroot_gt: anywhere
    kernel_list: &kinds [iso, plateau_aniso]
    kernel_prob: &shares [0.5, 0.5]
    sinc_prob: 0.1
    blur_sigma: &sigma [0.2, 3]
    betag_range: &betag [0.5, 4]
    betap_range: &betap [1, 2]
    kernel_list2: *kinds
    kernel_prob2: *shares
    sinc_prob2: 0.1
    blur_sigma2: *sigma
    betag_range2: *betag
    betap_range2: *betap
    final_sinc_prob: 1.0
degradation:
  type: RealESRGANDegradation
  gt_usm: true
  resize_range: [0.5, 1.5]
  resize_range2: [0.8, 1.2]
  noise_range: [1, 9]
  queue_size: 4
"""


@pytest.fixture
def gt(tmp_path):
    """Six images of 48x36, one of them in a sub-folder."""
    for number in range(6):
        write_image(tmp_path / 'gt' / ('sub' if number == 5 else '') / f'{number}.png', pixels(number, 36, 48))
    return tmp_path / 'gt'


@pytest.fixture
def run(tmp_path, gt, capsys):
    """Calls the script as a user does; returns (status, what it said)."""

    def call(options: str, *arguments: str, lq: str = 'lq') -> tuple[int, str]:
        (tmp_path / 'options.yml').write_text(options)
        status = 0
        try:
            make_lq.main(
                ['--gt', str(gt), '--lq', str(tmp_path / lq), '--opt', str(tmp_path / 'options.yml'), *arguments]
            )
        except SystemExit as stopped:
            status = stopped.code
        said = capsys.readouterr()
        return status, said.out + said.err

    return call


def images(folder: Path) -> dict[str, np.ndarray]:
    return {path.relative_to(folder).as_posix(): read_image(path) for path in sorted(folder.rglob('*.png'))}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def recorded(folder: Path) -> list[dict]:
    return [json.loads(line) for line in folder.with_name(f'{folder.name}.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('options', [BSRGAN, REALESRGAN], ids=['of_samples', 'of_batches'])
def test_an_lq_depends_on_seed_and_name_whatever_the_workers_and_the_other_images(tmp_path, gt, run, options):
    assert run(options, '--recursive', '--workers', '1', '--seed', '7')[0] == 0
    assert run(options, '--recursive', '--workers', '2', '--seed', '7', lq='two')[0] == 0
    assert run(options, '--workers', '1', '--seed', '8', lq='other')[0] == 0
    one, two, other = images(tmp_path / 'lq'), images(tmp_path / 'two'), images(tmp_path / 'other')
    assert list(one) == ['0.png', '1.png', '2.png', '3.png', '4.png', 'sub/5.png'] and equal(one, two)
    assert all(image.shape == (18, 24, 3) for image in one.values())
    assert not any(np.array_equal(one[name], other[name]) for name in other)
    assert recorded(tmp_path / 'lq') == recorded(tmp_path / 'two')
    (gt / '0.png').unlink()
    assert run(options, '--workers', '1', '--seed', '7', lq='fewer')[0] == 0
    fewer = images(tmp_path / 'fewer')
    assert equal(fewer, {name: one[name] for name in fewer}) and len(fewer) == 4


def test_what_was_drawn_is_recorded_and_makes_the_image_again(tmp_path, gt, run):
    assert run(BSRGAN, '--workers', '1', '--seed', '3')[0] == 0
    head, *lines = recorded(tmp_path / 'lq')
    assert head['recipe']['seed'] == 3 and head['recipe']['pipeline']['degradation'] == {'type': 'BSRGANDegradation'}
    degradation = BSRGANDegradation(scale=2)
    for line in lines:
        plan = degradation.draw(36, 48, np.random.default_rng(derived_seed(3, number_of(line['name']))))
        assert line == {'name': line['name'], **json.loads(json.dumps(degradation.parameters(plan)))}
        _, lq = degradation.apply(read_image(gt / line['name']), plan)
        np.testing.assert_array_equal(read_image(tmp_path / 'lq' / line['name']) * 255, np.rint(lq * 255))


def test_truncated_levels_are_those_below(tmp_path, run):
    """Real-ESRGAN's rounded output has whole levels; S3Diff's, which is not rounded, shows the difference."""
    options = REALESRGAN.replace('RealESRGANDegradation', 'S3DiffDegradation')
    options = options.replace('  gt_usm: true\n', '').replace('  queue_size: 4\n', '')
    assert run(options, '--workers', '1')[0] == run(options, '--workers', '1', '--truncate', lq='cut')[0] == 0
    rounded, cut = images(tmp_path / 'lq'), images(tmp_path / 'cut')
    difference = np.concatenate([(rounded[name] - cut[name]).ravel() * 255 for name in rounded]).round()
    assert set(difference.tolist()) == {0.0, 1.0} and 0.3 < difference.mean() < 0.7


def test_the_gt_that_was_degraded_is_kept_beside(tmp_path, gt, run):
    write_image(gt / '0.png', pixels(0, 37, 49))
    status, said = run(REALESRGAN, '--workers', '1')
    assert status == 2 and '49x37' in said and '--cropped-gt' in said and not (tmp_path / 'lq').exists()
    assert run(REALESRGAN, '--workers', '1', '--cropped-gt', str(tmp_path / 'sharp'))[0] == 0
    sharp, plain = read_image(tmp_path / 'sharp' / '0.png'), read_image(gt / '0.png')[:36, :48]
    assert sharp.shape == plain.shape and not np.array_equal(sharp, plain)
    assert np.abs(np.diff(sharp, axis=1)).mean() > np.abs(np.diff(plain, axis=1)).mean()


def test_another_recipe_in_the_same_folder_is_refused_and_the_same_one_changes_nothing(tmp_path, run):
    assert run(BSRGAN, '--workers', '1')[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'lq').iterdir()}
    assert run(BSRGAN, '--workers', '1')[0] == 0
    for arguments in (('--seed', '1'), ('--truncate',), ('datasets:train:degradation:type=BSRGANLightDegradation',)):
        status, said = run(BSRGAN, *arguments)
        assert status == 2 and 'was made otherwise' in said
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / 'lq').iterdir()}
    with pytest.raises(SystemExit):
        make_lq.main(['--gt', str(tmp_path / 'gt'), '--lq', str(tmp_path / 'lq'), '--scale', '2'])


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path, gt, run):
    for number in range(40):
        write_image(gt / f'more_{number}.png', pixels(100 + number, 120, 120))
    (tmp_path / 'options.yml').write_text(BSRGAN)
    command = [sys.executable, make_lq.__file__, '--gt', str(gt), '--lq', str(tmp_path / 'lq'),
               '--opt', str(tmp_path / 'options.yml'), '--workers', '1']  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / 'lq').glob('*.png'))) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    made = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / 'lq').glob('*.png'))}
    assert 5 <= len(made) < 45
    assert run(BSRGAN, '--workers', '1')[0] == run(BSRGAN, '--workers', '2', lq='whole')[0] == 0
    assert equal(images(tmp_path / 'lq'), images(tmp_path / 'whole'))
    assert recorded(tmp_path / 'lq') == recorded(tmp_path / 'whole')
    assert sum(path.stat().st_mtime_ns == stamp for path, stamp in made.items()) >= len(made) - 1


@pytest.mark.parametrize(
    ('options', 'arguments', 'word'),
    [
        ('scale: 2\n', (), 'datasets:train'),
        (BSRGAN.replace('scale: 2', 'scale: two'), (), 'whole number'),
        (BSRGAN.replace('BSRGANDegradation', 'BSRGAN'), (), 'BSRGANDegradation'),
        (BSRGAN.replace('DegradedImageDataset', 'PairedImageDataset'), (), 'has no degradation'),
        (REALESRGAN.replace('KernelImageDataset', 'DegradedImageDataset'), (), 'draws no kernels'),
        (REALESRGAN.replace('final_sinc_prob: 1.0', 'final_sinc_prob: 2.0'), (), 'probability'),
        (REALESRGAN.replace('[1, 9]', '[9, 1]'), (), 'degradation:noise_range'),
        (BSRGAN, ('datasets:train:degradation:jpeg_rang=[3,4]',), 'datasets:train:degradation:jpeg_rang'),
        (BSRGAN, ('--scale', '4'), 'has the scale 2'),
        (BSRGAN, ('--seed', '-1'), '--seed'),
        (BSRGAN, ('scale',), 'scale'),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_made(tmp_path, run, options, arguments, word):
    status, said = run(options, *arguments)
    assert status == 2 and word in said and said.count('\n') == 1
    assert not (tmp_path / 'lq').exists() and not (tmp_path / 'lq.jsonl').exists()


def test_bicubic_takes_no_options_of_pipelines(tmp_path, capsys):
    for arguments in ((), ('--scale', '2', '--truncate'), ('--scale', '2', '--seed', '1')):
        with pytest.raises(SystemExit) as stopped:
            make_lq.main(['--gt', str(tmp_path), '--lq', str(tmp_path / 'lq'), *arguments])
        assert stopped.value.code == 2 and capsys.readouterr().err.count('\n') == 1


def test_an_image_too_small_for_the_pipeline_is_named_and_the_others_are_made(tmp_path, gt, run):
    write_image(gt / 'small.png', pixels(0, 12, 12))
    status, said = run(REALESRGAN, '--workers', '1')
    assert status == 2 and 'small.png' in said and 'the other 5 are done' in said
    assert len(list((tmp_path / 'lq').glob('*.png'))) == 5


def test_basicsrs_own_files_say_what_is_degraded(tmp_path):
    """Their options of the degradation stand at the top of the file."""
    options = REALESRGAN[: REALESRGAN.index('degradation:')].replace('KernelImageDataset', 'RealESRGANDataset')
    top = 'model_type: RealESRNetModel\njpeg_range: [90, 95]\n'
    (tmp_path / 'published.yml').write_text(top + options.replace('scale: 2', 'scale: 4').replace('0.2, 3', '0.2, 0.3'))
    pipeline = Pipeline.load(str(tmp_path / 'published.yml'))
    assert pipeline.sections['degradation']['jpeg_range'] == [90, 95]
    _, lq, drawn = pipeline.degrade(np.random.default_rng(0).random((64, 80, 3), np.float32), 1, 2)
    assert lq.shape == (16, 20, 3) and 90 <= drawn['jpeg_quality'] <= 95 and drawn['sinc_kernel'] == 'sinc'
