"""The plain transcription of S3Diff computes what the published code does, so that it may judge ours."""

import sys

import pytest
import torch
from golden_case import GOLDEN, Case, filled, load_case
from torch import Tensor, nn

pytest.importorskip('diffusers')
sys.path.insert(0, str(GOLDEN.parent / 'oracles'))
from s3diff_reference import LoRALayer, S3DiffReference, row


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def given(case: Case, name: str) -> Tensor:
    return torch.as_tensor(case.inputs[name])


def check(case: Case, found: dict[str, Tensor]) -> None:
    tolerance = case.spec['tolerance']
    for name, value in found.items():
        atol = tolerance.get('per_output', {}).get(name, tolerance['atol'])
        wanted = torch.from_numpy(case.arrays[name])
        text = f'{name} is up to {(value - wanted).abs().max():.1e} from what is published'
        torch.testing.assert_close(value, wanted, atol=atol, rtol=tolerance['rtol'], msg=text)


@pytest.mark.parametrize('name', ['onestep_cfg', 'onestep_nocfg'])
@torch.no_grad()
def test_the_step_is_the_published_one(name):
    case = load_case('s3diff', name)
    args = case.args
    net = S3DiffReference(args['unet'], args['vae'], args['lora_rank_unet'], args['lora_rank_vae'])
    net.load_state_dict(case.weights, strict=True)
    negative = given(case, 'neg')[None] if 'neg' in case.inputs else None
    x, score, positive = 2 * given(case, 'x') - 1, given(case, 'deg_score'), given(case, 'pos')[None]
    found = net.step(x, score, positive, negative, given(case, 'noise'), args['guidance_scale'])
    check(case, found._asdict())


@pytest.mark.parametrize('name', ['lora_linear', 'lora_conv'])
@torch.no_grad()
def test_a_layer_with_lora_is_the_published_one(name):
    case = load_case('s3diff', name)
    kinds = {'linear': nn.Linear, 'conv': nn.Conv2d}
    for index, spec in enumerate(case.spec['layers']):
        layer = LoRALayer(kinds[spec['kind']](**spec['layer']), spec['rank'], spec['adapter'])
        prefix = f'layer{index}.'
        state = {key.removeprefix(prefix): filled(key, shape) for key, shape in spec['layout'].items()}
        layer.load_state_dict(state, strict=True)
        layer.modulation, x = given(case, spec['mod']), given(case, spec['x'])
        assert layer.scaling == spec['scaling']
        check(case, {spec['y']: layer(x), spec['base']: layer.base_layer(x)})


def test_layers_get_the_published_rows_at_full_size():
    case = load_case('s3diff', 'layout_pkl')
    with torch.device('meta'):
        net = S3DiffReference()
    for part, rows in case.spec['block_ids'].items():
        found = {name: row(part, name) for name in net.layers[part]}
        assert found == {name.removeprefix('vae.'): number for name, number in rows.items()}


def test_only_the_published_weights_are_trained():
    with torch.device('meta'):
        net = S3DiffReference()
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert sum(parameter.numel() for name, parameter in net.named_parameters() if name in trained) == 34475120
    assert all('lora_' in name or name.startswith(('unet.conv_in', 'vae_', 'unet_')) for name in trained)
