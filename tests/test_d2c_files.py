"""D2C-SR's two networks from one file, the published one or ours; and back."""

import logging
import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from d2c_files import KEYS, TINY, equal, nets, published
from golden_case import image, load_case
from safetensors.torch import load_file, save_file
from test_inference import call, write  # noqa: F401 (a fixture)

from basicsr.archs.d2c_arch import D2CFusion
from basicsr.restoring import load_model
from basicsr.utils.checkpoint import load_pretrained, read_checkpoint
from basicsr.utils.image import read_image, to_tensor, to_uint8
from basicsr.utils.mge_export import megengine_pickle
from basicsr.utils.options import PretrainedOptions
from basicsr.utils.registry import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))

import convert_checkpoint

OPTIONS = """
name: tiny
model_type: D2CModel
scale: 2
network_g: {type: D2CBranches, scale: 2, n_resblocks: 1, n_feats: 4, reduction: 2}
network_f: {type: D2CFusion}
"""


# ---- one file, two networks


def option(path: Path, key: str | None = 'params') -> PretrainedOptions:
    return PretrainedOptions(path=str(path), param_key=key)


@pytest.mark.parametrize('explicit', [False, True])
@pytest.mark.parametrize('kind', ['megengine', 'pytorch'])
def test_published_weights_are_folded_to_rgb_when_they_are_loaded_and_the_log_says_so(kind, explicit, tmp_path, caplog):
    path = TINY
    if kind == 'pytorch':  # as a third party saves it: biases (c,)
        path, content = tmp_path / 'model.pt', published()
        for state in content.values():
            for name, array in state.items():
                state[name] = torch.from_numpy(array.reshape(-1) if name.endswith('bias') else array)
        torch.save(content, path)
    case = load_case('d2c', 'checkpoint_tiny')
    (net, blend), x = nets(), case.inputs['x']
    with caplog.at_level(logging.INFO, 'basicsr'):
        for one, key in ((net, 'state_dict_D'), (blend, 'state_dict_C')):
            assert load_pretrained(one, option(path, key if explicit else 'params'), 'params') == set()
    assert caplog.text.count('trained on BGR images, its weights were folded to RGB') == 2
    with torch.no_grad():
        sr, _ = blend(net(x.flip(1)))
    np.testing.assert_allclose(sr.flip(1), case.arrays['fusion'], atol=2e-5, rtol=2e-5)


def test_our_own_files_are_taken_as_they_are(tmp_path):
    for net in nets():
        torch.save({'params': net.state_dict(), 'params_ema': net.state_dict()}, tmp_path / 'net.pth')
        save_file(net.state_dict(), tmp_path / 'net.safetensors')
        for name in ('net.pth', 'net.safetensors'):
            for other in nets():
                if type(other) is type(net):
                    load_pretrained(other, option(tmp_path / name), 'params_ema')
                    assert all(torch.equal(v, net.state_dict()[k]) for k, v in other.state_dict().items())


@pytest.mark.parametrize('key', ['f', 'f.'])
def test_a_flat_file_has_its_networks_behind_prefixes(key, tmp_path):
    net, blend = nets()
    state = {f'{k}.{n}': v for k, part in (('g', net), ('f', blend)) for n, v in part.state_dict().items()}
    save_file(state, tmp_path / 'both.safetensors')
    other = D2CFusion()
    for asked in (key, 'params_ema'):  # an average is asked for by its usual key
        load_pretrained(other, option(tmp_path / 'both.safetensors', key), asked)
        assert all(torch.equal(v, blend.state_dict()[k]) for k, v in other.state_dict().items())


@pytest.fixture
def options(tmp_path) -> Path:
    path = tmp_path / 'tiny.yml'
    path.write_text(OPTIONS)
    return path


def converted(*arguments) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['convert_checkpoint.py', *map(str, arguments)])
        assert convert_checkpoint.main() == 0


def test_inference_feeds_both_networks_from_one_file(options, tmp_path, call):  # noqa: F811
    lq = write(tmp_path / 'lq' / 'a.png', to_uint8(image(3, 1, 3, 6, 7)))
    net, blend = nets()
    for one, key in ((net, 'state_dict_D'), (blend, 'state_dict_C')):
        load_pretrained(one, option(TINY), key)
    with torch.no_grad():
        expected = to_uint8(blend(net(to_tensor(read_image(lq))[None]))[0].clamp(0, 1))
    converted(TINY, tmp_path / 'both.safetensors')
    for weights in (TINY, tmp_path / 'both.safetensors'):
        out = tmp_path / f'out{weights.suffix}'
        status, text = call('-i', lq, '-o', out, '--opt', options, '--weights', weights, '--device', 'cpu')
        assert status == 0, text
        np.testing.assert_array_equal(to_uint8(to_tensor(read_image(out / 'a.png'))), expected)


def test_a_file_without_the_blend_is_not_enough_unless_the_option_file_names_it(options, tmp_path):
    net, blend = nets()
    torch.save({'params': net.state_dict()}, tmp_path / 'net_g.pth')
    torch.save({'params': blend.state_dict()}, tmp_path / 'net_f.pth')
    with pytest.raises(UserError, match=r'net_g.pth holds no network_f, and .*tiny.yml names no other file'):
        load_model(None, str(options), str(tmp_path / 'net_g.pth'), offline=True)
    with pytest.raises(UserError, match=r'names no weights .* name them with --weights'):
        load_model(None, str(options), None, offline=True)
    options.write_text(f'{OPTIONS}path: {{pretrain_network_f: {tmp_path / "net_f.pth"}}}')
    model = load_model(None, str(options), str(tmp_path / 'net_g.pth'), offline=True)
    for label, expected in (('g', net), ('f', blend)):
        assert all(torch.equal(v, expected.state_dict()[k]) for k, v in model.nets[label].state_dict().items())


# ---- converting


def test_conversion_there_and_back_gives_the_published_file_again(tmp_path, capsys):
    flat, back = tmp_path / 'both.safetensors', tmp_path / 'checkpoint.pkl'
    converted(TINY, flat)
    assert 'type: D2CBranches, scale: 2, n_resblocks: 1, n_feats: 4, kernel_size: 3, reduction: 2' in (
        capsys.readouterr().out
    )
    converted(flat, back)
    equal(read_checkpoint(back), published())
    state = load_file(flat)
    assert state['g.head.0.bias'].shape == (4,)
    raw = torch.from_numpy(published()['state_dict_D']['sub_mean.weight'])
    assert torch.equal(state['g.sub_mean.weight'], raw.flip(1))


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_what_is_exported_is_read_by_pythons_own_pickle():
    content = {k: {n: torch.from_numpy(a) for n, a in state.items()} for k, state in published().items()}
    found = pickle.loads(megengine_pickle(content))
    for key, state in published().items():
        assert type(found[key]) is OrderedDict and list(found[key]) == list(state)
        for name, array in state.items():
            assert found[key][name].dtype == np.float32 and found[key][name].shape == array.shape
            np.testing.assert_array_equal(found[key][name], array)
    assert b'numpy._core' not in megengine_pickle(content)


def test_files_of_a_training_run_become_one(tmp_path):
    net, blend = nets()
    for name, one in (('g', net), ('f', blend)):
        torch.save({'params': one.state_dict()}, tmp_path / f'net_{name}.pth')
    converted(tmp_path / 'net_g.pth', tmp_path / 'both.safetensors', '--fusion', tmp_path / 'net_f.pth')
    converted(tmp_path / 'net_g.pth', tmp_path / 'checkpoint.pkl', '--fusion', tmp_path / 'net_f.pth')
    expected = {f'g.{k}': v for k, v in net.state_dict().items()} | {f'f.{k}': v for k, v in blend.state_dict().items()}
    found = load_file(tmp_path / 'both.safetensors')
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)
    other = nets()[0]
    load_pretrained(other, option(tmp_path / 'checkpoint.pkl'), 'params')
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in other.state_dict().items())


def test_a_published_file_without_one_of_the_networks_is_refused(tmp_path):
    for key in KEYS:
        (tmp_path / 'half.pkl').write_bytes(pickle.dumps({k: v for k, v in published().items() if k != key}))
        with pytest.raises(UserError, match=f"no network under '{key}'"):
            converted(tmp_path / 'half.pkl', tmp_path / 'x.safetensors')


def test_impossible_conversions_are_refused(tmp_path):
    torch.save({'params': nets()[0].state_dict()}, tmp_path / 'net_g.pth')
    for arguments, message in (
        (('net_g.pth', 'x.pkl'), 'takes both networks of D2C-SR: name the other with --fusion'),
        (('net_g.pth', 'x.npz'), 'the target is a .safetensors, a .pkl or a .pth file'),
        (('net_g.pth', 'net_g.pth'), 'net_g.pth exists; --overwrite replaces it'),
    ):
        with pytest.raises(UserError, match=message):
            converted(*(tmp_path / name for name in arguments))
    with pytest.raises(UserError, match='--half is for'):
        converted(TINY, tmp_path / 'x.pkl', '--half')
