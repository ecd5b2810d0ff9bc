"""The JSON schema of option files: made of the code, true of every option file here, and as strict as the programs."""

import json
import subprocess
import sys

import jsonschema
import pytest
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


def test_options_are_explained_where_their_code_explains_them():
    network = SCHEMA['definitions']['arch.ATD']['properties']
    assert 'window' in network['window_size']['description']
    assert network['window_size']['default'] == 8
