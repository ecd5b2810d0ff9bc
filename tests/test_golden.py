import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from golden_case import GOLDEN
from reference import checkers  # noqa: F401 (it registers them)
from reference.case import load
from reference.checking import error_in_tolerances, judge

SCRIPT = GOLDEN.parents[1] / 'scripts' / 'check_reference.py'
CASES = sorted(path.relative_to(GOLDEN).with_suffix('').as_posix() for path in GOLDEN.rglob('*.json'))


@pytest.mark.parametrize('name', CASES)
def test_equals_the_published_implementation(name):
    verdict = judge(load(GOLDEN / f'{name}.json'))
    assert verdict.status == 'pass', verdict


def test_the_cases_are_there():
    assert {'core/psnr_ssim', 'core/checkpoint_format', 'data/crop_augment'} <= set(CASES)


def run_script(*paths) -> tuple[int, list[str]]:
    command = [sys.executable, str(SCRIPT), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, (result.stdout or result.stderr).splitlines()


def copied(folder, name: str, spec=None, **arrays):
    """A copy of a core case with some entries of its JSON and NPZ replaced."""
    case = load(GOLDEN / 'core' / f'{name}.json')
    folder.mkdir(exist_ok=True)
    (folder / f'{name}.json').write_text(json.dumps(case.spec | (spec or {})))
    np.savez(folder / f'{name}.npz', **case.arrays | arrays)
    return folder / f'{name}.json'


def test_one_command_checks_a_folder_and_counts(tmp_path):
    for name in ('color', 'fid'):
        for suffix in ('json', 'npz'):
            shutil.copy(GOLDEN / 'core' / f'{name}.{suffix}', tmp_path)
    status, lines = run_script(tmp_path)
    assert (status, lines[-1]) == (0, '2 passed, 0 failed')
    assert lines[0].split()[0] == 'core/color' and lines[0].split()[2] == 'pass'


def test_wrong_values_unknown_kinds_and_other_files_fail(tmp_path):
    fid = load(GOLDEN / 'core' / 'fid.json').arrays['fid']
    copied(tmp_path / 'wrong', 'fid', fid=fid + 0.01)
    copied(tmp_path / 'unknown', 'fid', spec={'function': 'something_new'})
    (tmp_path / 'no_case.json').write_text('{"name": "something else"}')
    (tmp_path / 'no_json.json').write_text('{')
    status, lines = run_script(tmp_path, GOLDEN / 'core' / 'fid.json')
    verdicts = [line.split()[2] for line in lines[:-1]]
    assert (status, lines[-1]) == (1, '1 passed, 4 failed')
    assert sorted(verdicts) == ['FAIL', 'FAIL', 'FAIL', 'pass', 'unsupported']


@pytest.mark.parametrize(
    ('name', 'output'),
    [
        ('psnr_ssim', 'ssim'),
        ('imresize', 'aa_3'),
        ('gan_losses', 'hinge'),
        ('unet_discriminator_sn', 'conv3_u'),
        ('ema', 'ema_bn.bias'),
        ('lr_schedules', 'out_2'),
        ('enlarged_sampler', 'stream_1'),
    ],
)
def test_an_output_that_is_off_by_more_than_its_tolerance_fails(tmp_path, name, output):
    case = load(GOLDEN / 'core' / f'{name}.json')
    allowed = case.spec['tolerance']['atol'] + case.spec['tolerance']['rtol'] * np.abs(case.arrays[output]).max()
    changed = case.arrays[output].astype(np.float64)
    changed.flat[-1] += max(4 * allowed, 1e-9)
    verdict = judge(load(copied(tmp_path, name, **{output: changed})))
    assert verdict.status == 'FAIL' and output in verdict.note


def test_text_and_structure_are_compared_too(tmp_path):
    for name, key, old, new in (
        ('log_format', 'training_lines', 'lr:(', 'rate:('),
        ('options_parse', 'values', '"int"', '"float"'),
        ('checkpoint_format', 'files', 'params_ema', 'params_average'),
    ):
        spec = load(GOLDEN / 'core' / f'{name}.json').spec
        changed = json.loads(json.dumps(spec[key]).replace(old, new))
        assert judge(load(copied(tmp_path, name, {key: changed}))).status == 'FAIL'


def test_an_output_that_nobody_computed_fails(tmp_path):
    verdict = judge(load(copied(tmp_path, 'fid', extra=np.zeros(3))))
    assert (verdict.status, verdict.note) == ('FAIL', 'not compared: extra')


def test_errors_are_counted_in_tolerances():
    tolerance = {'atol': 0.1, 'rtol': 0.1}
    assert error_in_tolerances([1.0, 2.0], np.array([1.0, 2.3]), tolerance) == pytest.approx(0.3 / 0.33)
    assert error_in_tolerances([np.nan, np.inf], np.array([np.nan, np.inf]), tolerance) == 0
    for ours, published in (([np.nan], [1.0]), ([1.0], [np.inf]), ([1.0, 1.0], [[1.0, 1.0]]), ([1.0], [1.0, 1.0])):
        assert error_in_tolerances(ours, np.array(published), tolerance) == np.inf
    assert error_in_tolerances('a', 'b', tolerance) == np.inf
    assert error_in_tolerances(1, True, tolerance) == np.inf


def test_paths_without_cases_are_an_error(tmp_path):
    status, lines = run_script(tmp_path)
    assert status == 1 and 'no case file' in lines[-1]
    status, lines = run_script(tmp_path / 'missing')
    assert status == 1 and 'does not exist' in lines[-1]
