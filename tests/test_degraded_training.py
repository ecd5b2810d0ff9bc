"""Training on batches that are degraded on the device: option files, runs, and going on with a pair pool."""

import json

import pytest
import torch
from option_files import fault, load
from training_fixture import TORCHRUN, Workplace, differences

from basicsr.data.loaders import CountedBatches, build_degradation, build_train_loader
from basicsr.utils.options import load_options
from basicsr.utils.registry import UserError

KERNELS = {
    'kernel_list': ['iso', 'aniso'],
    'kernel_prob': [0.6, 0.4],
    'sinc_prob': 0.1,
    'blur_sigma': [0.2, 3],
    'betag_range': [0.5, 4],
    'betap_range': [1, 2],
    'final_sinc_prob': 0.8,
}
KERNELS |= {f'{key}2': value for key, value in KERNELS.items() if key != 'final_sinc_prob'}
DATA = {
    'name': 'noise',
    'type': 'KernelImageDataset',
    'dataroot_gt': 'gt',
    'crop_size': 40,
    'use_hflip': True,
    **KERNELS,
}
MILD = {'resize_range': [0.6, 1.5], 'resize_range2': [0.6, 1.2]}
DEGRADATION = {'type': 'RealESRGANDegradation', 'gt_size': 16, 'queue_size': 4, 'gt_usm': False, **MILD}
CHANGES = {
    'datasets:train': {**DATA, 'batch_size_per_gpu': 2},
    'degradation': DEGRADATION,
    'train:total_iter': 6,
    'logger:save_checkpoint_freq': 3,
}


@pytest.fixture
def place(tmp_path):
    return Workplace(tmp_path, count=5, size=(24, 22))


def test_a_run_goes_on_exactly_with_its_pair_pool(place):
    """Three iterations fill the pool of two batches and exchange one: what leaves it later was put there before."""
    assert place.train('unbroken', CHANGES) == 0
    assert place.train('run', {**CHANGES, 'train:total_iter': 3}) == 0
    assert place.train('run', CHANGES, resume=True) == 0
    assert differences(place.saved('run', 6), place.saved('unbroken', 6)) == []
    pools = [place.folder / f'experiments/{name}/training_states/process_0/6.pth' for name in ('run', 'unbroken')]
    run, unbroken = (torch.load(path, weights_only=True) for path in pools)
    assert run['pool']['lq'].shape == (4, 3, 8, 8) and differences(run, unbroken) == []


def test_a_degradation_of_ones_own_needs_forward_only(place):
    changes = {**CHANGES, 'degradation': {'type': 'AveragingDegradation'}}
    assert place.train('unbroken', changes) == 0
    assert place.train('run', {**changes, 'train:total_iter': 3}) == 0
    assert place.train('run', changes, resume=True) == 0
    assert differences(place.saved('run', 6), place.saved('unbroken', 6)) == []


def test_without_its_pool_a_run_does_not_go_on(place, caplog):
    assert place.train('run', {**CHANGES, 'train:total_iter': 3}) == 0
    (place.folder / 'experiments/run/training_states/process_0/3.pth').unlink()
    assert place.train('run', CHANGES, resume=True) == 0
    assert '3.pth is missing' in place.log('run') or '3.pth is missing' in caplog.text


def test_two_processes_go_on_with_a_pool_each(place):
    changes = {**CHANGES, 'datasets:train': {**CHANGES['datasets:train'], 'batch_size_per_gpu': 1}}
    place.process('unbroken', changes, launcher=TORCHRUN)
    place.process('run', {**changes, 'train:total_iter': 3}, launcher=TORCHRUN)
    place.process('run', changes, launcher=TORCHRUN, flags=('--auto_resume',))
    assert differences(place.saved('run', 6), place.saved('unbroken', 6)) == []
    states = place.folder / 'experiments/run/training_states'
    assert sorted(path.name for path in states.glob('process_*/*.pth')) == ['3.pth', '3.pth', '6.pth', '6.pth']


@pytest.mark.parametrize('groups', [0, 1, 3])
@pytest.mark.parametrize('workers', [0, 2])
def test_what_a_sample_becomes_depends_on_its_number_only(place, groups, workers, monkeypatch):
    """One process with batches of four, and two processes with batches of two and data workers."""
    monkeypatch.chdir(place.folder)

    def batches(rank: int, world: int, batch: int, workers: int) -> list[dict]:
        train = {**DATA, 'batch_size_per_gpu': batch, 'num_worker_per_gpu': workers}
        degradation = {**DEGRADATION, 'queue_size': 0, 'groups': groups}
        opt = load_options(place.options('x', {'datasets:train': train, 'degradation': degradation}), True)
        cpu = torch.device('cpu')
        stream = CountedBatches(build_train_loader(opt, rank, world)[0], cpu, 0, build_degradation(opt, cpu, world))
        return [next(stream) for _ in range(3)]

    one, two = batches(0, 1, 4, 0), [batches(rank, 2, 2, workers) for rank in range(2)]
    for whole, *shares in zip(one, *two, strict=True):
        for rank, share in enumerate(shares):
            assert list(share['gt_path']) == list(whole['gt_path'][rank::2])
            assert torch.equal(share['gt'], whole['gt'][rank::2])
            # Sums over another batch may be rounded otherwise, and so may a level here and there.
            difference = (share['lq'] - whole['lq'][rank::2]).abs()
            assert difference.max() < 1.01 / 255 and (difference > 1e-6).float().mean() < 0.01


PAIRS = {'name': 'n', 'type': 'PairedImageDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq', 'gt_size': 16}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'datasets:train': CHANGES['datasets:train']}, 'gt only: the option file needs a section `degradation:`'),
        (
            {'datasets:train': {**PAIRS, 'batch_size_per_gpu': 2}, 'degradation': DEGRADATION},
            'gives lq already: the section `degradation:` is for sets that give gt only',
        ),
        (
            {**CHANGES, 'datasets:train': {**CHANGES['datasets:train'], 'kernel_list': ['isotropic', 'aniso']}},
            "datasets:train: 'isotropic' in kernel_list is not",
        ),
        (
            {**CHANGES, 'datasets:train': {**CHANGES['datasets:train'], 'crop_size': 14}},
            'degrading gt/.*png, gt/.*png: .*smaller than the crop of gt_size 16',
        ),
        ({**CHANGES, 'model': {'l1_gt_usm': True}}, 'need a degradation with `gt_usm: both`'),
        ({**CHANGES, 'degradation': {**DEGRADATION, 'queue_size': 1}}, 'queue_size 1 is smaller than the batch of 2'),
    ],
)
def test_parts_that_do_not_fit_together_are_said_in_one_line(place, changes, message):
    with pytest.raises(UserError, match=message):
        place.train('run', changes)


TEXT = """\
name: x
model_type: SRModel
scale: 4
datasets: {train: {type: KernelImageDataset, dataroot_gt: gt, batch_size_per_gpu: 1, kernel_list: [iso],
  kernel_prob: [1], sinc_prob: 0, blur_sigma: [1, 2], betag_range: [1, 2], betap_range: [1, 2], kernel_list2: [iso],
  kernel_prob2: [1], sinc_prob2: 0, blur_sigma2: [1, 2], betag_range2: [1, 2], betap_range2: [1, 2],
  final_sinc_prob: 0}}
network_g: {type: ATD, upscale: 4}
train: {total_iter: 1, optim_g: {type: Adam}, pixel_opt: {type: L1Loss}}
degradation: {type: RealESRGANDegradation}
"""


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('degradation: {type: RealESRGANDegradation}', 'degradation: {type: RealESRGANDegradatoin}',
         "degradation:type: 'RealESRGANDegradatoin' is not a known degradation"),
        ('RealESRGANDegradation}', 'RealESRGANDegradation, jpeg_rnage: [1, 2]}',
         "'jpeg_rnage' is not a known option of RealESRGANDegradation; did you mean 'jpeg_range'?"),
        ('RealESRGANDegradation}', 'RealESRGANDegradation, resize_prob: [1, 2]}',
         'degradation:resize_prob: the list has too many or too few values'),
        ('RealESRGANDegradation}', 'BSRGANDegradation}',
         'degradation:type: BSRGANDegradation degrades single images: name it in datasets:train:degradation'),
        ('RealESRGANDegradation}', 'RealESRGANDegradation, noise_range: [30, 1]}', 'degradation:noise_range: '),
        ('RealESRGANDegradation}', 'RealESRGANDegradation, gt_size: 30}', 'degradation:gt_size: gt_size should be'),
    ],
)  # fmt: skip
def test_a_mistake_in_a_degradation_is_named(tmp_path, old, new, message):
    assert TEXT.count(old) == 1
    load(tmp_path, TEXT)
    assert message in fault(tmp_path, TEXT.replace(old, new))


BASICSR = """\
name: train_RealESRGANx4plus_400k_B12G4
model_type: RealESRGANModel
scale: 4
num_gpu: auto
manual_seed: 0
l1_gt_usm: True
percep_gt_usm: True
gan_gt_usm: False
resize_prob: [0.2, 0.7, 0.1]
resize_range: [0.15, 1.5]
gaussian_noise_prob: 0.5
noise_range: [1, 30]
poisson_scale_range: [0.05, 3]
gray_noise_prob: 0.4
jpeg_range: [30, 95]
second_blur_prob: 0.8
resize_prob2: [0.3, 0.4, 0.3]
resize_range2: [0.3, 1.2]
gaussian_noise_prob2: 0.5
noise_range2: [1, 25]
poisson_scale_range2: [0.05, 2.5]
gray_noise_prob2: 0.4
jpeg_range2: [30, 95]
gt_size: 256
queue_size: 180
datasets:
  train:
    name: DF2K+OST
    type: RealESRGANDataset
    dataroot_gt: datasets/DF2K
    meta_info: datasets/meta_info.txt
    io_backend:
      type: disk
    blur_kernel_size: 21
    kernel_list: ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
    kernel_prob: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    sinc_prob: 0.1
    blur_sigma: [0.2, 3]
    betag_range: [0.5, 4]
    betap_range: [1, 2]
    blur_kernel_size2: 21
    kernel_list2: ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
    kernel_prob2: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    sinc_prob2: 0.1
    blur_sigma2: [0.2, 1.5]
    betag_range2: [0.5, 4]
    betap_range2: [1, 2]
    final_sinc_prob: 0.8
    gt_size: 256
    use_hflip: True
    use_rot: False
    use_shuffle: true
    num_worker_per_gpu: 5
    batch_size_per_gpu: 12
    dataset_enlarge_ratio: 1
    prefetch_mode: ~
network_g: {type: ATD, upscale: 4}
network_d: {type: UNetDiscriminatorSN, num_in_ch: 3, num_feat: 64, skip_connection: True}
train:
  ema_decay: 0.999
  optim_g: {type: Adam, lr: !!float 1e-4, weight_decay: 0, betas: [0.9, 0.99]}
  optim_d: {type: Adam, lr: !!float 1e-4, weight_decay: 0, betas: [0.9, 0.99]}
  scheduler: {type: MultiStepLR, milestones: [400000], gamma: 0.5}
  total_iter: 400000
  warmup_iter: -1
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
  gan_opt: {type: GANLoss, gan_type: vanilla, real_label_val: 1.0, fake_label_val: 0.0, loss_weight: !!float 1e-1}
  net_d_iters: 1
  net_d_init_iters: 0
"""


def test_basicsrs_own_files_of_real_esrgan_load_but_for_the_network(tmp_path):
    opt = load(tmp_path, BASICSR)
    assert opt.model_type == 'SRModel' and opt.degradation['gt_usm'] == 'both' and opt.degradation['queue_size'] == 180
    assert opt.model == {'l1_gt_usm': True, 'percep_gt_usm': True, 'gan_gt_usm': False, 'net_d_iters': 1,
                         'net_d_init_iters': 0}  # fmt: skip
    net = BASICSR.replace('RealESRGANModel', 'RealESRNetModel').replace('l1_gt_usm: True', 'gt_usm: True')
    net = net.replace('percep_gt_usm: True\ngan_gt_usm: False\n', '')
    assert load(tmp_path, net).degradation['gt_usm'] is True
    assert 'high_order_degradation' in fault(
        tmp_path, net.replace('gt_size: 256\nq', 'high_order_degradation: false\nq')
    )


def test_the_losses_compare_with_the_gt_that_they_are_told(place):
    changes = {**CHANGES, 'degradation': {**DEGRADATION, 'gt_usm': 'both'}, 'train:total_iter': 1}
    weights = []
    for name, model in (('plain', {}), ('sharp', {'l1_gt_usm': True})):
        assert place.train(name, {**changes, 'model': model}) == 0
        weights.append(place.saved(name, 1)['net_g_1.pth']['params'])
    assert differences(*weights) != []


def test_a_set_of_gt_alone_validates_too_always_on_the_same_lq(place):
    """Between the two validations the training draws other random numbers; without learning, the scores are equal."""
    val = {
        'name': 'v',
        'type': 'DegradedImageDataset',
        'dataroot_gt': 'gt',
        'degradation': {'type': 'BSRGANDegradation'},
    }
    changes = {
        'datasets:val': val,
        'val:val_freq': 1,
        'train:total_iter': 2,
        'train:optim_g': {'type': 'SGD', 'lr': 0.0},
    }
    assert place.train('run', {**changes, 'train:ema_decay': 0}) == 0
    records = [json.loads(line) for line in (place.folder / 'experiments/run/metrics.jsonl').read_text().splitlines()]
    scores = [record['psnr'] for record in records if 'psnr' in record]
    assert len(scores) == 2 and scores[0] == scores[1]
