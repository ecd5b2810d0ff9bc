"""Every option file of options/train/degradations trains, on noise and a shrunken network."""

from pathlib import Path

import numpy as np
import pytest
from training_fixture import ROOT, iterations_logged, train_here

from basicsr.utils.image import write_image
from basicsr.utils.options import load_options

FILES = sorted((ROOT / 'options/train/degradations').glob('*.yml'))
SHRUNKEN = (
    'network_g:embed_dim=12', 'network_g:depths=[1]', 'network_g:num_heads=[2]', 'network_g:window_size=4',
    'network_g:category_size=16', 'network_g:num_tokens=8', 'train:total_iter=2', 'logger:use_tb_logger=false',
    'logger:print_freq=1', 'datasets:train:num_worker_per_gpu=0', 'datasets:train:batch_size_per_gpu=2', 'device=cpu',
)  # fmt: skip
BATCH = ('datasets:train:crop_size=128', 'degradation:gt_size=48')
GAN = ('network_d:num_feat=4', 'train:perceptual_opt=~', 'path:pretrain_network_g=~', 'model:percep_gt_usm=false')


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_an_option_file_trains_two_iterations(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(3):
        write_image(Path(f'gt/{number}.png'), rng.integers(0, 256, (136, 130, 3), dtype=np.uint8))
    several = path.stem.startswith('s3diff')
    overrides = [*SHRUNKEN, f'datasets:train:dataroot_gt={"[gt, gt]" if several else "gt"}']
    if path.stem.startswith(('real', 's3diff')):
        overrides += [*BATCH, *(['degradation:queue_size=2'] if not several else [])]
    else:
        overrides += [
            'datasets:train:gt_size=48',
            'val:val_freq=0',
            *(f'datasets:val:dataroot_{k}=gt' for k in ('gt', 'lq')),
        ]
    overrides += GAN if path.stem.startswith('realesrgan') else ()
    assert train_here(load_options(path, True, overrides)) == 0
    log = next(Path('experiments', path.stem).glob('train_*.log')).read_text()
    assert iterations_logged(log) == [1, 2] and 'nan' not in log
