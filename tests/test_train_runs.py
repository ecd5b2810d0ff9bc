"""Real training processes, killed, stopped, damaged and resumed."""

import resource
import signal
import time

import pytest
import torch
from training_fixture import ACCELERATE, ADVERSARIAL, TORCHRUN, Workplace, differences, iterations_logged

MOMENTS = (
    'iteration 3 is logged',  # before anything was saved
    'iteration 5 is logged',
    'half of net_g_4.pth is written',
    'net_g_4.pth is written but not listed',
    'net_g_4.pth is listed but not renamed',
    'net_g_4.pth is complete',  # between the networks and the state
    'half of 8.state is written',
    '8.state is listed but not renamed',
)


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory) -> dict:
    """What an uninterrupted run of eight iterations saves."""
    place = Workplace(tmp_path_factory.mktemp('unbroken'))
    place.process('unbroken', {})
    return place.saved('unbroken')


@pytest.fixture
def place(tmp_path) -> Workplace:
    return Workplace(tmp_path)


@pytest.mark.parametrize('moment', MOMENTS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(moment, place, unbroken):
    place.process('run', {}, env={'SIGNAL_AT': moment, 'SIGNAL': '9'}, status=-signal.SIGKILL)
    assert not (place.folder / 'experiments/run/training_states/8.state').exists() or moment.startswith('8.state')
    assert place.train('run', resume=True) == 0
    assert differences(place.saved('run'), unbroken) == []
    records = [line for line in (place.folder / 'experiments/run/metrics.jsonl').read_text().splitlines() if line]
    assert len(records) == 8, 'iterations that were done twice are recorded once'
    assert not list((place.folder / 'experiments').rglob('*.tmp')), 'what a killed run left over is removed'


def test_a_process_killed_from_outside_goes_on_in_another_process_with_other_workers(place, unbroken):
    process = place.start(
        'run',
        {'train:total_iter': 200, 'logger:save_checkpoint_freq': 2},
        flags=('train:total_iter=8', 'datasets:train:num_worker_per_gpu=1'),
        env={'PYTHONUNBUFFERED': '1'},
    )
    folder = place.folder / 'experiments/run/training_states'
    while process.poll() is None and not list(folder.glob('*.state')):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    text = place.process('run', flags=('--auto_resume', 'train:total_iter=8', 'datasets:train:num_worker_per_gpu=2'))
    assert iterations_logged(text)[-1:] in ([8], [])
    assert differences(place.saved('run'), unbroken) == []


def test_resuming_twice_within_an_epoch_changes_nothing(place, unbroken):
    """Three iterations are an epoch: the second stop is inside the second one, as is the third."""
    for last in (4, 5):
        assert place.train('run', {'train:total_iter': last}, resume=True) == 0
    assert place.train('run', resume=True) == 0
    assert iterations_logged(place.log('run')) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert differences(place.saved('run'), unbroken) == []


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_ends_with_its_status(number, place, unbroken):
    """Ctrl-C and cluster managers reach the data workers as well."""
    changes = {'datasets:train:num_worker_per_gpu': 2}
    text = place.process(
        'run',
        changes,
        env={'SIGNAL_AT': 'iteration 3 is logged', 'SIGNAL': str(-number)},
        status=128 + number,
        start_new_session=True,
    )
    assert f'stopped by signal {int(number)} after iteration 3' in text
    assert 'Traceback' not in text
    assert place.train('run', {}, resume=True) == 0
    assert iterations_logged(place.log('run')) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert differences(place.saved('run'), unbroken) == []


def test_the_end_of_accelerate_launch_is_a_signal_to_stop(place):
    """It passes no signal on to a single process, which would train on unseen."""
    process = place.start('run', {'train:total_iter': 100000}, launcher=ACCELERATE)
    records = place.folder / 'experiments/run/metrics.jsonl'
    while process.poll() is None and not records.exists():
        time.sleep(0.01)
    process.terminate()
    output, errors = process.communicate(timeout=120)  # its output ends when the training does
    assert 'stopped by signal 15' in output + errors
    assert list((place.folder / 'experiments/run/training_states').glob('*.state'))


def test_a_second_signal_ends_at_once(place):
    place.process('run', {}, env={'SIGNAL_AT': 'iteration 3 is logged', 'SIGNAL': '15,15'}, status=143)
    assert not list((place.folder / 'experiments/run/training_states').glob('*.state'))


def test_a_stop_in_the_middle_of_an_accumulated_step_waits_for_its_end(place):
    """Gradients are not saved: a state between two batches of a step could not be exact."""
    changes = {'train:gradient_accumulation_steps': 4, 'train:total_iter': 4}
    assert place.train('unbroken', changes) == 0
    place.process('run', changes, env={'SIGNAL_AT': 'iteration 2 is logged', 'SIGNAL': '15'}, status=143)
    assert place.train('run', changes, resume=True) == 0
    assert differences(place.saved('run', 4), place.saved('unbroken', 4)) == []


@pytest.mark.parametrize('damage', ['truncated', 'one byte changed', 'network truncated', 'network gone'])
def test_a_damaged_newest_state_is_named_and_the_one_before_it_used(damage, place, unbroken):
    assert place.train('run', {}) == 0
    folder = place.folder / 'experiments/run'
    victim = folder / ('models/net_g_8.pth' if damage.startswith('network') else 'training_states/8.state')
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == 'network gone':
        victim.unlink()
    else:
        victim.write_bytes(data if damage == 'one byte changed' else data[:-100])
    before = place.log('run')
    assert place.train('run', resume=True) == 0
    text = place.log('run').removeprefix(before)
    assert '8.state is not used to resume: ' in text and 'resumed from experiments/run/training_states/4.state' in text
    assert 'net_g_8.pth' in text or not damage.startswith('network')
    assert iterations_logged(text) == [5, 6, 7, 8]
    assert differences(place.saved('run'), unbroken) == []


def test_two_processes_train_and_validate_as_one(tmp_path):
    place = Workplace(tmp_path, count=8)
    changes = {
        'datasets:train:type': 'RecordingDataset',
        'train:total_iter': 4,
        'val:val_freq': 4,
        'network_g:dropout': 0.0,
        'logger:save_checkpoint_freq': 2,
    }
    text = place.process('two', changes, launcher=TORCHRUN, env={'SAVE_EVERY_RANK': '1'})
    assert 'destroy_process_group' not in text and 'Warning' not in text
    first, second = (torch.load(tmp_path / f'rank{rank}_4.pth') for rank in (0, 1))
    assert differences(first, second) == []
    reads = [(tmp_path / f'reads_{rank}.txt').read_text().split() for rank in (0, 1)]
    for epoch in (0, 1):
        images = [name for share in reads for name in share[4 * epoch : 4 * epoch + 4]]
        assert sorted(images) == [f'{n}.png' for n in range(8)], 'each image once per epoch'
    assert place.train('one', {**changes, 'datasets:train:batch_size_per_gpu': 4}) == 0
    assert differences(place.saved('two', 4), place.saved('one', 4), tolerance=1e-6) == []

    place.options(
        'score',
        {
            'datasets:train': None,
            'train': None,
            'logger': None,
            'network_g:dropout': 0.0,
            'path': {'pretrain_network_g': 'experiments/two/models/net_g_4.pth', 'param_key_g': 'params_ema'},
        },
    )
    place.process('score', launcher=TORCHRUN, script='test')
    two = (tmp_path / 'results/score/scores.csv').read_bytes()
    place.process('score', script='test')
    assert (tmp_path / 'results/score/scores.csv').read_bytes() == two
    psnr = [
        float(line.split(',')[2])
        for line in two.decode().splitlines()
        if line.startswith('held out,') and '.png' in line
    ]
    assert f'# psnr: {sum(psnr) / len(psnr):.4f}' in text, 'validation of two processes is test.py of one'


def test_an_adversarial_run_on_two_processes_resumes_after_a_signal_to_one_of_them(place):
    changes = {
        **ADVERSARIAL,
        'train:total_iter': 3,
        'logger:save_checkpoint_freq': 3,
        'train:gradient_accumulation_steps': 2,
    }
    env = {'SAVE_EVERY_RANK': '1'}
    place.process('unbroken', changes, launcher=TORCHRUN, env=env)
    first, second = (torch.load(place.folder / f'rank{rank}_3.pth') for rank in (0, 1))
    assert first.keys() == {'g', 'd'} and differences(first, second) == []
    text = place.process(
        'run',
        changes,
        launcher=TORCHRUN,
        status=1,
        env={**env, 'SIGNAL_AT': 'iteration 1 is logged', 'SIGNAL': '15', 'SIGNAL_RANK': '1'},
    )
    assert 'stopped by signal 15 after iteration 1' in text
    place.process('run', launcher=TORCHRUN, flags=('--auto_resume',))
    assert differences(place.saved('run', 3), place.saved('unbroken', 3)) == []


def test_one_failing_process_ends_the_others(place):
    changes = {'datasets:train:type': 'FailingDataset', 'train:total_iter': 1000, 'logger:save_checkpoint_freq': 1}
    started = time.perf_counter()
    text = place.process('run', changes, launcher=TORCHRUN, status=1)
    assert 'a fault in the code of a data set' in text and time.perf_counter() - started < 120
    assert not list((place.folder / 'experiments').rglob('*.tmp'))


def test_an_exception_is_shown_and_ends_with_a_failure(place):
    text = place.process(
        'run', {'datasets:train:type': 'FailingDataset', 'datasets:train:num_worker_per_gpu': 1}, status=1
    )
    assert 'ZeroDivisionError: a fault in the code of a data set' in text and 'Traceback' in text


def without_privileges() -> None:
    """Root, too, is refused by the permission bits of files."""
    import ctypes

    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def one_line(text: str) -> str:
    """The single line of an error message; a traceback or a second line fails."""
    lines = [line for line in text.splitlines() if 'INFO' not in line and line.strip()]
    assert len(lines) == 1 and lines[0].startswith('Error: '), text
    return lines[0]


@pytest.mark.parametrize('folder', ['experiments', 'experiments/run/models'])
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(folder, place):
    (place.folder / folder).mkdir(parents=True)
    (place.folder / folder).chmod(0o555)
    text = place.process('run', {}, flags=('--auto_resume',), status=2, preexec_fn=without_privileges)
    assert 'Permission denied' in one_line(text) and 'experiments/run' in text


def test_a_full_disk_leaves_the_old_checkpoint_and_says_so_in_one_line(place, unbroken):
    limit = 4000  # bytes: more than a log, less than a checkpoint

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    assert place.train('run', {'train:total_iter': 4}) == 0
    names = {'net_g_4.pth', 'net_g_latest.pth', 'manifest.json'}
    text = place.process('run', {}, flags=('--auto_resume', 'logger:print_freq=0'), status=2, preexec_fn=small_files)
    assert 'net_g_8.pth: could not be written: File too large' in one_line(text)
    assert {path.name for path in (place.folder / 'experiments/run/models').iterdir()} == names
    assert place.train('run', resume=True) == 0
    assert differences(place.saved('run'), unbroken) == []


@pytest.mark.parametrize('launcher', ['python', 'accelerate', 'torchrun'])
def test_every_launcher_trains_with_this_checkout_whatever_else_is_installed(launcher, place):
    other = place.folder / 'other'
    (other / 'basicsr').mkdir(parents=True)
    (other / 'basicsr/__init__.py').write_text("raise SystemExit('the wrong basicsr')\n")
    command = {'python': {}, 'accelerate': {'launcher': ACCELERATE}, 'torchrun': {'launcher': TORCHRUN}}[launcher]
    text = place.process('run', {'train:total_iter': 2}, env={'PYTHONPATH': str(other)}, **command)
    assert 'finished 2 iterations' in text
    assert 'wrong basicsr' not in text
