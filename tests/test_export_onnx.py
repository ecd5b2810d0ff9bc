"""ONNX files: onnxruntime computes with them what PyTorch restores, at any size; what they say of themselves."""

import json
import sys

import onnxruntime
import pytest
import torch
from torch import nn
from training_fixture import ROOT

from basicsr.model_file import Description, described_options, write_model_file
from basicsr.models import build_model
from basicsr.models.restorer import Restorer
from basicsr.restoring import load_model
from basicsr.utils.registry import ARCH_REGISTRY, UserError
from basicsr.utils.yaml_loader import parse_yaml

sys.path.insert(0, str(ROOT / 'scripts'))
import export_onnx

NETWORKS = {
    # Groups of 40 tokens: images have fewer, as many as one group is not full with, and several.
    'ATD': 'network_g: {type: ATD, upscale: 2, embed_dim: 12, depths: [2], num_heads: [2], window_size: 4, '
    'category_size: 40, num_tokens: 8, upsampler: pixelshuffledirect}',
    'RCAN': 'network_g: {type: RCAN, upscale: 2, num_feat: 16, num_group: 1, num_block: 1}',
    'D2C': 'network_g: {type: D2CBranches, scale: 2, n_resblocks: 1, n_feats: 16}\nnetwork_f: {type: D2CFusion}',
    'D2C of branches only': 'network_g: {type: D2CBranches, scale: 2, n_resblocks: 1, n_feats: 16}',
    'D2C of RCAN': 'network_g: {type: D2CBackboneBranches, scale: 2, shared: [head], parents: [body.0], backbone: '
    '{type: RCAN, upscale: 2, num_feat: 16, num_group: 2, num_block: 1}}',
    'D2C of ATD': 'network_g: {type: D2CBackboneBranches, scale: 2, shared: [conv_first, patch_embed], backbone: '
    '{type: ATD, upscale: 2, embed_dim: 12, depths: [1], num_heads: [2], window_size: 4, category_size: 40, '
    'num_tokens: 8, upsampler: pixelshuffledirect, use_checkpoint: true}}\nnetwork_f: {type: D2CFusion}',
}
# One pixel, less than a window, odd sides, a row, upright, several images; D2C-SR blends the last in several bands.
SHAPES = ((1, 1, 1), (1, 3, 2), (1, 9, 13), (1, 1, 30), (1, 24, 8), (3, 7, 12), (1, 100, 90))


@pytest.fixture(scope='module', params=NETWORKS)
def exported(request, tmp_path_factory):
    """A model file with random weights, and the ONNX file that the command made of it."""
    folder, kind = tmp_path_factory.mktemp('onnx'), 'D2CModel' if request.param.startswith('D2C') else 'SRModel'
    about = Description(
        f'name: tiny\nmodel_type: {kind}\nscale: 2\n{NETWORKS[request.param]}\n', {'A': {'psnr': 30.5}}, 'MIT', 'us'
    )
    torch.manual_seed(0)
    labels = [key.removeprefix('network_') for key in parse_yaml(about.options, '')[0] if key.startswith('network_')]
    drawn = build_model(
        described_options(about, folder / 'none', [f'path:pretrain_network_{label}=~' for label in labels])
    )
    path, target = folder / 'tiny.safetensors', folder / 'tiny.onnx'
    write_model_file(path, {label: one['params'] for label, one in drawn.networks().items()}, about)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['export_onnx.py', '--weights', str(path), '-o', str(target)])
        assert export_onnx.main() == 0
    return load_model(None, None, str(path), True), target, about


def test_onnxruntime_restores_what_pytorch_does_for_any_size_and_number(exported):
    model, target, _ = exported
    session, restorer = onnxruntime.InferenceSession(target, providers=['CPUExecutionProvider']), Restorer(model)
    for b, h, w in SHAPES:
        lq = torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(h))
        (found,) = session.run(['sr'], {'lq': lq.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), restorer(lq), rtol=0, atol=1e-5)


def test_the_file_says_scale_options_licence_and_results_and_nothing_of_this_machine(exported):
    _, target, about = exported
    texts = onnxruntime.InferenceSession(target).get_modelmeta().custom_metadata_map
    assert (texts['format'], texts['scale'], texts['options']) == (export_onnx.FORMAT, '2', about.options)
    assert (texts['licence'], texts['source'], json.loads(texts['card'])) == ('MIT', 'us', about.card)
    assert str(ROOT).encode() not in target.read_bytes()


@pytest.mark.parametrize('name', ['SR3-demo_x4', 'ITER-demo_x4'])
def test_what_is_more_than_its_networks_is_refused_in_one_line(monkeypatch, tmp_path, name):
    path = tmp_path / 'm.onnx'
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', '-m', name, '-o', str(path)])
    with pytest.raises(UserError, match=r'^(SR3|ITER)Model restores by a procedure .* can be exported$'):
        export_onnx.main()
    assert not path.exists()


class Undecided(nn.Module):
    """Computes one thing for dark images, another for bright ones, which no graph can say."""

    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        lq = lq * self.gain if lq.mean() > 0.5 else lq + self.gain
        return lq.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


@pytest.fixture
def undecided(monkeypatch, tmp_path):
    """The command line that would export such a network."""
    monkeypatch.setitem(ARCH_REGISTRY._entries, 'Undecided', Undecided)
    weights, target = tmp_path / 'm.safetensors', tmp_path / 'm.onnx'
    about = Description('name: x\nmodel_type: SRModel\nscale: 2\nnetwork_g: {type: Undecided, scale: 2}\n')
    write_model_file(weights, {'g': Undecided(2).state_dict()}, about)
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', '--weights', str(weights), '-o', str(target)])
    return target


def test_a_network_that_torch_cannot_export_is_named_with_the_reason_in_one_line(undecided):
    with pytest.raises(UserError, match=r'^Undecided: torch cannot export it \(\w+: .*\)$') as caught:
        export_onnx.main()
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 300
    assert not undecided.exists()


def test_a_file_that_onnxruntime_cannot_load_is_one_line_and_is_not_written(monkeypatch, undecided):
    monkeypatch.setattr(export_onnx, 'onnx_content', lambda model, about: b'none')
    with pytest.raises(UserError, match=r'^Undecided: onnxruntime cannot load what torch exported \(\w+: .*\)$'):
        export_onnx.main()
    assert not undecided.exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['-o', 'a.onnx'], 'name the model'),
        (['-m', 'ATD-demo_x2', '--opt', 'a.yml', '-o', 'a.onnx'], 'name the model'),
        (['-m', 'ATD-demo_x2', '-o', 'a.pth'], 'a.pth: an ONNX file ends in .onnx'),
        (['-m', 'ATD-demo_x2', '-o', 'there.onnx'], 'there.onnx exists; --overwrite replaces it'),
    ],
)
def test_mistakes_are_one_line(monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there.onnx').touch()
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', *arguments])
    with pytest.raises(UserError, match=message):
        export_onnx.main()


def test_a_file_that_computes_something_else_is_not_written(monkeypatch, tmp_path):
    path = tmp_path / 'm.onnx'
    monkeypatch.setattr(export_onnx, 'onnx_content', lambda model, about: b'')
    monkeypatch.setattr(export_onnx, 'compared', lambda content, model: {(1, 3, 5, 7): 0.5, (1, 3, 8, 8): 0.0})
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', '-m', 'ATD-demo_x2', '-o', str(path)])
    with pytest.raises(UserError, match=r'is not written: it differs by 5\.0e-01 for \(1, 3, 5, 7\)'):
        export_onnx.main()
    assert not path.exists()


def test_the_package_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', '-m', 'ATD-demo_x2', '-o', str(tmp_path / 'm.onnx')])
    with pytest.raises(UserError, match=r"ONNX needs the package onnxscript: pip install -e '.\[onnx\]'"):
        export_onnx.main()
