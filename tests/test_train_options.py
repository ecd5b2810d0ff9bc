"""What the options of a training do, on runs inside this process."""

import contextlib
import json
import shutil

import pytest
import torch
from training_fixture import ADVERSARIAL, ROOT, Workplace, differences, make_images, train_here

from basicsr.utils.checkpoint import CheckpointError, read_checkpoint
from basicsr.utils.options import load_options
from basicsr.utils.registry import OptionError, UserError

POISON = {'train:pixel_opt': {'type': 'PoisonedLoss', 'calls': [3]}}


@pytest.fixture
def place(tmp_path) -> Workplace:
    return Workplace(tmp_path)


def records(place: Workplace, name: str = 'run') -> list[dict]:
    path = place.folder / 'experiments' / name / 'metrics.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_accumulated_small_batches_equal_one_large_batch(place):
    changes = {'network_g:dropout': 0.0, 'train:grad_clip': 0.05, 'train:optim_g': {'type': 'SGD', 'lr': 0.1}}
    place.train('large', {**changes, 'datasets:train:batch_size_per_gpu': 6})
    place.train('small', {**changes, 'train:gradient_accumulation_steps': 3})
    large, small = place.saved('large'), place.saved('small')
    assert differences(large, small, tolerance=1e-7) == []
    assert records(place, 'small')[-1]['l_pix'] == pytest.approx(records(place, 'large')[-1]['l_pix'], abs=1e-6)


def test_clipping_keeps_the_norm_of_an_update_at_its_limit(place):
    changes = {
        'train:grad_clip': 0.05,
        'train:optim_g': {'type': 'SGD', 'lr': 1.0},
        'train:warmup_iter': -1,
        'train:scheduler': None,
        'logger:save_checkpoint_freq': 1,
        'train:total_iter': 2,
    }
    place.train('run', changes)
    one, two = (place.saved('run', n)[f'net_g_{n}.pth']['params'] for n in (1, 2))
    moved = torch.cat([(two[key] - one[key]).flatten() for key in one])
    assert moved.norm() == pytest.approx(0.05, rel=1e-4)


def test_the_average_follows_the_weights_by_its_decay(place):
    place.train('run', {'logger:save_checkpoint_freq': 1, 'train:total_iter': 2})
    one, two = (place.saved('run', n)[f'net_g_{n}.pth'] for n in (1, 2))
    for key, before in one['params_ema'].items():
        torch.testing.assert_close(two['params_ema'][key], 0.9 * before + 0.1 * two['params'][key])


def test_bf16_trains_close_to_fp32_with_fp32_weights(place):
    for precision in ('no', 'bf16'):
        place.train(precision, {'train:mixed_precision': precision, 'val:val_freq': 8})
    assert {t.dtype for t in place.saved('bf16')['net_g_8.pth']['params'].values()} == {torch.float32}
    exact, coarse = (records(place, name)[7]['l_pix'] for name in ('no', 'bf16'))
    assert coarse != exact
    assert coarse == pytest.approx(exact, rel=0.02)


def test_fp16_trains_or_is_refused_in_one_line(place):
    try:
        assert place.train('run', {'train:mixed_precision': 'fp16'}) == 0
    except OptionError as error:
        assert 'train:mixed_precision' in str(error) and len(str(error).splitlines()) == 1
    else:
        assert records(place)[-1]['iter'] == 8


@pytest.mark.parametrize('gradient_only', [False, True])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_files(gradient_only, place):
    changes = {
        'train:pixel_opt': {'type': 'PoisonedLoss', 'calls': [3], 'gradient_only': gradient_only},
        'logger:save_checkpoint_freq': 1,
    }
    with pytest.raises(
        UserError, match=r'iteration 3: the (loss|gradient) of network_g is nan.*gt/\d\.png, gt/\d\.png'
    ):
        place.train('run', changes)
    states = {path.name for path in (place.folder / 'experiments/run/training_states').glob('*.state')}
    assert states == {'1.state', '2.state'}


def test_max_nonfinite_skips_a_bad_batch_and_nothing_of_it_remains(place):
    """The step that follows uses the next batch: the same as a run whose third batch never existed."""
    place.train('run', {'train:pixel_opt': {'type': 'PoisonedLoss', 'calls': [3, 4]}, 'train:max_nonfinite': 2})
    assert [record['iter'] for record in records(place)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert place.log('run').count('the step is skipped') == 2
    state = place.saved('run')['state']
    assert state['samples'] == 2 * (8 + 2)
    with pytest.raises(UserError, match='3 in a row'):
        place.train(
            'three', {'train:pixel_opt': {'type': 'PoisonedLoss', 'calls': [3, 4, 5]}, 'train:max_nonfinite': 2}
        )


def test_a_bad_batch_inside_an_accumulated_step_gives_the_whole_step_up(place):
    changes = {'train:gradient_accumulation_steps': 2, 'train:total_iter': 3, 'network_g:dropout': 0.0}
    place.train('run', {**changes, 'train:pixel_opt': {'type': 'PoisonedLoss', 'calls': [3]}, 'train:max_nonfinite': 1})
    saved = (
        place.saved('run', 3) if False else read_checkpoint(place.folder / 'experiments/run/training_states/3.state')
    )
    # Iterations 1 and 3 of four batches each, and the single batch that was given up.
    assert saved['samples'] == 2 * (3 * 2 + 1)


def test_weights_that_are_not_finite_are_never_saved(place):
    with pytest.raises((CheckpointError, UserError), match=r'not finite|is (nan|inf)'):
        place.train(
            'run',
            {
                'train:optim_g': {'type': 'SGD', 'lr': 1e38},
                'train:total_iter': 3,
                'train:warmup_iter': -1,
                'logger:save_checkpoint_freq': 1,
            },
        )
    for path in (place.folder / 'experiments/run/models').glob('*.pth'):
        for state in read_checkpoint(path).values():
            assert all(value.isfinite().all() for value in state.values())


def test_the_last_checkpoints_and_the_best_are_kept(place):
    changes = {
        'logger:keep_last': 2,
        'logger:save_checkpoint_freq': 2,
        'val:val_freq': 1,
        'logger:use_tb_logger': True,
        'logger:save_safetensors': True,
        'val:save_img': True,
    }
    place.train('run', changes)
    models, states = place.folder / 'experiments/run/models', place.folder / 'experiments/run/training_states'
    expected = {
        'net_g_6.pth',
        'net_g_8.pth',
        'net_g_6.safetensors',
        'net_g_8.safetensors',
        'net_g_best.pth',
        'net_g_latest.pth',
        'manifest.json',
    }
    assert {path.name for path in models.iterdir()} == expected
    assert set(json.loads((models / 'manifest.json').read_text())) == expected - {'manifest.json'}
    assert {path.name for path in states.iterdir()} == {'6.state', '8.state', 'manifest.json'}
    saved = read_checkpoint(models / 'net_g_8.pth')
    assert differences(read_checkpoint(models / 'net_g_8.safetensors'), saved['params_ema']) == []
    scores = {record['iter']: record['psnr'] for record in records(place) if 'psnr' in record}
    assert sorted(scores) == [1, 2, 3, 4, 5, 6, 7, 8]
    best = max(scores, key=scores.get)
    assert f'Best: {scores[best]:.4f} @ {best} iter' in place.log('run')
    assert place.saved('run')['state']['best']['held out']['psnr'] == {
        'better': 'higher',
        'val': scores[best],
        'iter': best,
    }
    events = list((place.folder / 'tb_logger/run').glob('events.out.tfevents.*'))
    assert len(events) == 1 and events[0].stat().st_size > 0
    assert len(list((place.folder / 'experiments/run/visualization').rglob('*_8.png'))) == 6


def test_the_best_network_is_the_one_of_its_iteration(place):
    """Learning raises PSNR: where lower is called better, the first is the best."""
    metric = {'psnr': {'type': 'psnr', 'better': 'lower'}}
    place.train('run', {'val:val_freq': 4, 'val:protocol': None, 'val:metrics': metric})
    scores = {record['iter']: record['psnr'] for record in records(place) if 'psnr' in record}
    assert scores[4] < scores[8]
    models = place.folder / 'experiments/run/models'
    assert differences(read_checkpoint(models / 'net_g_best.pth'), read_checkpoint(models / 'net_g_4.pth')) == []


def test_an_older_run_of_the_name_is_put_aside_and_faulty_data_leave_it_alone(place):
    for _ in range(2):
        place.train('run', {'train:total_iter': 1})
    names = sorted(path.name for path in (place.folder / 'experiments').iterdir())
    assert len(names) == 2 and names[0] == 'run' and names[1].startswith('run_archived_')
    (place.folder / 'lq/3.png').write_bytes(b'no picture')
    with pytest.raises(UserError, match=r'lq/3\.png'):
        place.train('run', {'train:total_iter': 1})
    assert sorted(path.name for path in (place.folder / 'experiments').iterdir()) == names


def test_a_full_disk_costs_the_records_but_not_the_run(place):
    (place.folder / 'experiments/run').mkdir(parents=True)
    (place.folder / 'experiments/run/metrics.jsonl').symlink_to('/dev/full')
    assert place.train('run', {}, resume=True) == 0
    assert place.log('run').count('metrics.jsonl: No space left on device; the run goes on without it') == 1


def test_a_dry_run_prints_the_costs_and_writes_nothing(place, capsys):
    changes = {'train:gradient_accumulation_steps': 2, 'val:val_freq': 4, 'logger:use_tb_logger': True}
    before = sorted(place.folder.rglob('*'))
    place.options('run', changes)
    text = place.process('run', flags=('--dry-run',))
    for word in ('parameters', 'FLOPs', 'peak memory', 'iterations per second', 'time', 'disk', 'l_pix'):
        assert word in text
    convolutions = 2 * 8 * 8 * 9 * (3 * 8 + 8 * 12)  # of an 8x8 lq; a multiplication and an addition count two
    assert f'{convolutions / 1e9:,.2f} G' in text and '1,100 parameters' in text
    assert sorted(place.folder.rglob('*')) == sorted([*before, place.folder / 'run.yml'])


def test_a_dry_run_lists_every_fault_of_the_data_at_once(place):
    shutil.copy(place.folder / 'gt/0.png', place.folder / 'gt/alone.png')
    (place.folder / 'lq/2.png').write_bytes(b'')
    data = (place.folder / 'gt/4.png').read_bytes()
    (place.folder / 'gt/4.png').write_bytes(data[: len(data) // 2])
    make_images(place.folder / 'other', count=2, size=(5, 5))
    shutil.copy(place.folder / 'other/lq/1.png', place.folder / 'lq/5.png')
    shutil.rmtree(place.folder / 'other/gt')
    (place.folder / 'other/gt').mkdir()
    shutil.copy(place.folder / 'other/lq/0.png', place.folder / 'other/gt/0.png')
    text = place.process(
        'run',
        {'datasets:val:dataroot_gt': 'other/gt', 'datasets:val:dataroot_lq': 'other/lq'},
        flags=('--dry-run',),
        status=2,
    )
    assert text.startswith('Error: ') and 'Traceback' not in text
    for fault in ('gt/alone.png', 'lq/2.png', 'gt/4.png', 'gt/5.png', 'other/gt/0.png', 'other/lq/1.png'):
        assert fault in text, text
    assert not (place.folder / 'experiments').exists()


def test_every_loss_has_a_gradient_to_g_and_d_is_left_alone_by_it(place):
    from basicsr.launch import build_accelerator
    from basicsr.models import build_model

    losses = {
        'train:perceptual_opt': {'type': 'PerceptualLoss', 'layer_weights': {'relu1_1': 1}, 'vgg_type': 'vgg11',
                                 'style_weight': 1.0, 'pretrained': False},
        'train:lpips_opt': {'type': 'LPIPSLoss', 'net': 'squeeze', 'pretrained': False},
    }  # fmt: skip
    with contextlib.chdir(place.folder):
        opt = load_options(place.options('run', {**ADVERSARIAL, **losses}), True)
    model = build_model(opt).prepare(build_accelerator(opt))
    g, d, lq, gt = model.nets['g'], model.nets['d'], torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32)
    distances = dict(model._distances(g(lq), dict.fromkeys(model.sharpened, gt))) | {
        'gan': model.adversary.fool(g(lq), gt)
    }
    assert distances.keys() == {'pix', 'percep', 'style', 'lpips', 'gan'}
    for name, loss in distances.items():
        g.zero_grad()
        loss.backward(retain_graph=True)
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in g.parameters()), name
        assert all(p.grad is None for p in d.parameters()), name
    model.before_step(1)
    before = {label: [p.detach().clone() for p in model.nets[label].parameters()] for label in 'gd'}
    logged = model.training_step({'lq': lq, 'gt': gt})
    assert {'l_g_gan', 'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake'} <= logged.keys()
    for label in 'gd':
        assert any(not torch.equal(a, b) for a, b in zip(before[label], model.nets[label].parameters(), strict=True))


def test_an_adversarial_run_resumes_exactly(place):
    changes = {**ADVERSARIAL, 'train:net_d_iters': 2, 'train:net_d_init_iters': 1, 'model_type': 'ESRGANModel'}
    place.train('unbroken', changes)
    place.train('run', {**changes, 'train:total_iter': 4})
    place.train('run', changes, resume=True)
    assert differences(place.saved('run'), place.saved('unbroken')) == []
    first, second = records(place, 'unbroken')[:2]
    assert 'l_g_gan' not in first and 'l_g_gan' in second


def test_channels_last_changes_the_layout_and_not_the_result(place):
    descent = {'network_g:dropout': 0.0, 'train:optim_g': {'type': 'SGD', 'lr': 0.1}}
    place.train('plain', descent)
    place.train('last', {**descent, 'train:channels_last': True})
    assert differences(place.saved('plain')['net_g_8.pth'], place.saved('last')['net_g_8.pth'], tolerance=1e-6) == []


@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile needs a C++ compiler')
def test_a_compiled_network_learns_the_same_and_keeps_its_names(place, monkeypatch):
    from torch._inductor import config

    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(place.folder / 'cache'))
    changes = {'network_g:dropout': 0.0, 'train:optim_g': {'type': 'SGD', 'lr': 0.1}, 'train:total_iter': 2}
    place.train('plain', changes)
    with config.patch(compile_threads=1):
        place.train('fast', {**changes, 'train:compile': True})
    assert list((place.folder / 'cache').rglob('*.so')), 'something was compiled'
    assert (
        differences(place.saved('plain', 2)['net_g_2.pth'], place.saved('fast', 2)['net_g_2.pth'], tolerance=1e-6) == []
    )


SMALL = {
    'device': 'cpu', 'train:total_iter': 2, 'train:mixed_precision': 'no', 'val:val_freq': 1,
    'path:pretrain_network_g': '~',
    'logger:save_checkpoint_freq': 1, 'logger:use_tb_logger': 'false', 'logger:print_freq': 1,
    'datasets:train:batch_size_per_gpu': 1, 'datasets:train:num_worker_per_gpu': 0, 'network_g:embed_dim': 12,
    'network_g:depths': '[2]', 'network_g:num_heads': '[2]', 'network_g:window_size': 4, 'network_g:category_size': 16,
    'network_g:num_tokens': 8, 'network_g:reducted_dim': 4, 'network_g:img_size': 8,
}  # fmt: skip


@pytest.mark.parametrize('file', sorted((ROOT / 'options/train/ATD').glob('*.yml')), ids=lambda path: path.stem)
def test_every_option_file_of_atd_trains_resumes_and_equals_the_unbroken_run(file, tmp_path, monkeypatch):
    """Its own parts at a small size, on noise; the run is broken by damage to its last state."""
    monkeypatch.chdir(tmp_path)
    opt = load_options(file, True, check_files=False)
    folders = {f'datasets:{label}:{key}': value for label in opt.datasets
               for key, value in (('dataroot_gt', 'gt'), ('dataroot_lq', 'lq'), ('filename_tmpl', '{}'))}  # fmt: skip
    changes = {**SMALL, **folders, 'name': 'run', 'datasets:train:gt_size': 8 * opt.scale}
    opt = load_options(file, True, [f'{key}={value}' for key, value in changes.items()], check_files=False)
    place = Workplace(tmp_path, count=3, scale=opt.scale)
    assert train_here(opt) == 0
    unbroken = place.saved('run', 2)
    (tmp_path / 'experiments/run/training_states/2.state').unlink()
    assert train_here(opt, resume=True) == 0
    assert '1.state, iteration 1' in place.log('run')
    assert differences(place.saved('run', 2), unbroken) == []
    assert any('psnr' in record for record in records(place)) == (len(opt.datasets) > 1)
