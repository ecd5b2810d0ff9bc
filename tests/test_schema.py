"""The JSON schema of option files: made of the code, true of every option file here, and as strict as the programs."""

import json
import re
import subprocess
import sys
from copy import deepcopy
from functools import reduce
from pathlib import Path

import jsonschema
import pytest
import yaml
from training_fixture import ROOT

from basicsr.utils.options import load_options
from basicsr.utils.registry import OptionError
from basicsr.utils.yaml_loader import apply_override, load_yaml

FILES = sorted((ROOT / 'options').rglob('*.yml'))
SCHEMA = json.loads((ROOT / 'options/schema.json').read_text(encoding='utf-8'))
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
TRAIN, TEST = 'options/train/ATD/ATD-demo_x4.yml', 'options/test/ATD/ATD-demo_x4.yml'
MISTAKES = {
    'an unknown key at the top': (TRAIN, 'modle=1'),
    'a misspelt network': (TRAIN, 'network_g:type=ATDD'),
    'a misspelt option of a network': (TRAIN, 'network_g:embed_dims=60'),
    'text for a number': (TRAIN, 'network_g:embed_dim=wide'),
    'a misspelt model': (TRAIN, 'model_type=SRModell'),
    'an option that the model does not have': (TRAIN, 'model:seed=1'),
    'a loss that the model does not have': (TRAIN, 'train:codebook_opt:type=CodebookLoss'),
    'a misspelt loss': (TRAIN, 'train:pixel_opt:type=L1'),
    'a misspelt option of a loss': (TRAIN, 'train:pixel_opt:weight=1'),
    'a misspelt option of training': (TRAIN, 'train:total_iters=5'),
    'no iteration': (TRAIN, 'train:total_iter=0'),
    'an unknown precision': (TRAIN, 'train:mixed_precision=fp8'),
    'a misspelt scheduler': (TRAIN, 'train:scheduler:type=MultiStep'),
    'a misspelt option of a data set': (TRAIN, 'datasets:train:dataroot=x'),
    'a misspelt option of logging': (TRAIN, 'logger:print_frequency=5'),
    'a negative number of images': (TRAIN, 'datasets:train:batch_size_per_gpu=0'),
    'a misspelt path': (TRAIN, 'path:pretrained_network_g=x.pth'),
    'an unknown protocol': (TEST, 'val:protocol=y'),
    'a misspelt metric': (TEST, 'val:metrics:psnr:type=snr'),
    'a misspelt option of restoring': (TEST, 'val:restorer:tiles=64'),
    'a list that is too long': ('options/train/ITER/ITER-demo_hq.yml', 'network_g:ddconfig:resolution=[64, 64, 64]'),
    'text in a list of numbers': (
        'options/train/ITER/ITER-demo_hq.yml',
        'network_g:ddconfig:resolution=[64, wide]',
    ),
    'a degradation of single images for batches': (
        'options/train/degradations/realesrgan_x2.yml',
        'degradation:type=BicubicDegradation',
    ),
    'a degradation of batches for single images': (
        'options/train/degradations/bsrgan_x2.yml',
        'datasets:train:degradation:type=RealESRGANDegradation',
    ),
    'a misspelt place of images': (TRAIN, 'datasets:train:io_backend:type=dsik'),
    'no place of images': (TRAIN, 'datasets:train:io_backend:lock=true'),
    'a misspelt backbone': ('options/train/D2C/D2C-RCAN_RealSR_x4.yml', 'network_g:backbone:type=RCANN'),
    'options of another kind of token net': ('options/train/ITER/ITER-demo_x4.yml', 'network_g:demask_net=unet'),
}
# Sections inside the options of components: where one is, what the file is given for that, and an option that such a
# section may hold with a value that it takes and one of a wrong type.
ITER, SR3 = 'options/train/ITER/ITER-demo_x4.yml', 'options/train/SR3/SR3-demo_x4.yml'
VQGAN, D2C = 'options/train/ITER/ITER-demo_hq.yml', 'options/train/D2C/D2C-ATD-light_RealSR_x4.yml'
GT, KERNELS = (f'options/train/degradations/{name}_x2.yml' for name in ('bsrgan', 'realesrgan'))
CHAIN = {'schedule': 'linear', 'n_timestep': 9, 'linear_start': 0.1, 'linear_end': 0.5}
BLUR = {'kernel_list': ['iso'], 'kernel_prob': [1], 'sinc_prob': 0, 'blur_sigma': [1, 2]}
BLUR |= {'betag_range': [0.5, 2], 'betap_range': [1, 2]}
BLURS = BLUR | {f'{name}2': value for name, value in BLUR.items()} | {'final_sinc_prob': 0}
SHARDS = {'type': 'ShardedImageDataset', 'shards': 'a.tar', 'gt_size': 64, 'batch_size_per_gpu': 1}
UNET = {'network_g:demask_net': 'unet', 'network_g:demask_opt': {'ch': 32}}
TRAINED = 'datasets:train'
NESTED = {
    'model.ITERModel.refinement': (ITER, 'model:refinement', {}, 'threshold', 0.5, 'high'),
    'model.SR3Model.schedule': (SR3, 'model:schedule', {}, 'n_timestep', 500, [500]),
    'model.SR3Model.val_schedule': (SR3, 'model:val_schedule', {'model:val_schedule': CHAIN}, 'n_timestep', 9, 9.5),
    'model.SR3Model.sampler': (SR3, 'model:sampler', {}, 'steps', 5, 0),
    'model.D2CModel.divergence_schedule': (D2C, 'model:divergence_schedule', {}, 'every', 50, 0),
    'arch.ITER.vqgan_opt': (ITER, 'network_g:vqgan_opt', {}, 'beta', 0.25, True),
    'arch.ITER.vqgan_opt, deeper': (ITER, 'network_g:vqgan_opt:ddconfig', {}, 'num_heads', 8, 'many'),
    'arch.ITER.demask_opt': (ITER, 'network_g:demask_opt', {}, 'swin_blk_num', 2, 2.5),
    'arch.ITER.demask_opt, of another net': (ITER, 'network_g:demask_opt', UNET, 'ch_mult', [1, 2], 2),
    'arch.SwinVQGAN.ddconfig': (VQGAN, 'network_g:ddconfig', {}, 'ch_mult', [1, 2], [1, 'two']),
    'arch.D2CBackboneBranches.backbone': (D2C, 'network_g:backbone', {}, 'embed_dim', 48, 'wide'),
    'dataset.DegradedImageDataset.degradation': (GT, f'{TRAINED}:degradation', {}, 'jpeg_range', [30, 95], 30),
    'dataset.BSRGANTrainDataset.degradation': (
        GT,
        f'{TRAINED}:degradation',
        {f'{TRAINED}:type': 'BSRGANTrainDataset'},
        'noise_range',
        [2, 25],
        [2, 25, 50],
    ),
    'dataset.ShardedImageDataset.degradation': (
        GT,
        f'{TRAINED}:degradation',
        {TRAINED: SHARDS | {'degradation': {'type': 'BicubicDegradation'}}},
        'round_to_8_bit',
        True,
        1,
    ),
    'dataset.ShardedImageDataset.kernels': (
        GT,
        f'{TRAINED}:kernels',
        {TRAINED: SHARDS | {'kernels': BLURS}},
        'blur_sigma',
        [0.2, 3],
        [0.2],
    ),
} | {
    f'dataset.{kind}.io_backend': (
        file,
        f'{entry}:io_backend',
        {f'{entry}:type': kind, f'{entry}:io_backend': {'type': 'lmdb'}, **more},
        'readahead',
        True,
        'often',
    )
    for kind, file, entry, more in (
        ('PairedImageDataset', TRAIN, TRAINED, {}),
        ('DegradedImageDataset', GT, TRAINED, {}),
        ('BSRGANTrainDataset', GT, TRAINED, {}),
        ('KernelImageDataset', KERNELS, TRAINED, {}),
        ('RealESRGANDataset', KERNELS, TRAINED, {}),
        ('SingleImageDataset', TEST, 'datasets:lq', {'datasets:lq:dataroot_lq': 'lq'}),
    )
}


def faults(tree: dict) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(json.loads(json.dumps(tree)))]


def test_it_is_what_the_code_reads():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    # In a process of its own: other tests have registered parts that are none of ours.
    command = [sys.executable, str(ROOT / 'scripts/make_schema.py'), '--check']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_option_file_names_and_fits_it(path):
    first = path.read_text(encoding='utf-8').partition('\n')[0]
    mark, _, place = first.partition('$schema=')
    assert mark == '# yaml-language-server: '
    assert (path.parent / place).resolve() == ROOT / 'options/schema.json'
    assert not faults(load_yaml(path)[0])


@pytest.mark.parametrize(('file', 'override'), MISTAKES.values(), ids=MISTAKES)
def test_what_the_programs_refuse_it_refuses_too(file, override):
    tree, _ = load_yaml(ROOT / file)
    assert not faults(tree)
    apply_override(tree, override)
    assert faults(tree)
    with pytest.raises(OptionError):
        load_options(ROOT / file, file == TRAIN, [override], check_files=False)


def said_of(tree: dict, path: Path, is_train: bool) -> tuple[list[str], str]:
    """The faults that the schema finds, and what the program says of a file with that content."""
    path.write_text(yaml.safe_dump(tree))
    try:
        load_options(path, is_train, check_files=False)
    except OptionError as error:
        return faults(tree), str(error)
    return faults(tree), ''


@pytest.mark.parametrize(('file', 'place', 'given', 'option', 'right', 'wrong'), NESTED.values(), ids=NESTED)
def test_a_section_inside_options_is_checked_as_by_the_programs(file, place, given, option, right, wrong, tmp_path):
    def said(name: str, value: object) -> tuple[list[str], str]:
        tree, _ = load_yaml(ROOT / file)
        for where, content in (*given.items(), (f'{place}:{name}', value)):
            *sections, last = where.split(':')
            reduce(lambda section, key: section.setdefault(key, {}), sections, tree)[last] = deepcopy(content)
        return said_of(tree, tmp_path / 'x.yml', '/train/' in file)

    assert said(option, right) == ([], '')
    of_schema, of_program = said(f'{option}x', right)
    assert of_schema
    assert re.search(
        rf"x\.yml:\d+: {place}:{option}x: '{option}x' is not a known option of .* mean '{option}'\?", of_program
    )
    of_schema, of_program = said(option, wrong)
    assert of_schema
    assert re.search(rf'x\.yml:\d+: {place}:{option}: ', of_program)


def test_every_section_inside_options_is_among_those_that_are_tried():
    tried, plain = {name.split()[0].strip(',') for name in NESTED}, set()
    for name, definition in SCHEMA['definitions'].items():
        for option, part in definition.get('properties', {}).items():
            kinds = [part, *part.get('anyOf', ())]
            if '.' in name and any(kind.get('additionalProperties') is True for kind in kinds):
                plain.add(f'{name}.{option}')
            elif '.' in name and any('allOf' in kind or '$ref' in kind for kind in kinds):
                assert f'{name}.{option}' in tried | {'options.SwinVQGAN.ddconfig'}
    # Of the first, a rule beside it says more; the others are those of another package's networks.
    assert plain == {'arch.ITER.demask_opt', 'arch.S3Diff.unet', 'arch.S3Diff.vae'}


def test_options_are_explained_where_their_code_explains_them():
    network = SCHEMA['definitions']['arch.ATD']['properties']
    assert 'window' in network['window_size']['description']
    assert network['window_size']['default'] == 8
