"""Checkpoints: nothing in a file is executed, and every mismatch is readable."""

import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_files import Net, read, refused, same, state_of
from golden_case import load_case
from safetensors.torch import load_file, save_file
from torch import nn

from basicsr.utils.checkpoint import (
    CheckpointError,
    checksum_fault,
    is_listed,
    load_network,
    load_pretrained,
    network_state,
    read_checkpoint,
    write_checkpoint,
)
from basicsr.utils.options import PretrainedOptions
from basicsr.utils.registry import ARCH_REGISTRY


class Hostile:
    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


# ---- reading


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_a_hostile_pickle_executes_nothing(legacy, tmp_path):
    canary, path = tmp_path / 'canary', tmp_path / 'x.pth'
    torch.save({'params': Hostile(canary)}, path, _use_new_zipfile_serialization=not legacy)
    message = read(path)
    assert 'refused, nothing was executed' in message and 'mkdir' in message
    path.write_bytes(pickle.dumps(Hostile(canary)))
    assert 'refused, nothing was executed' in read(path)
    assert not canary.exists()


def test_objects_are_refused_and_plain_values_are_read(tmp_path):
    content = {'params': {'w': torch.ones(2)}, 'iter': 3, 'note': 'x', 'lrs': [0.1, (1, None, True)]}
    torch.save(content, tmp_path / 'plain.pth')
    assert read_checkpoint(tmp_path / 'plain.pth')['lrs'] == [0.1, (1, None, True)]
    torch.save(nn.Linear(2, 2), tmp_path / 'module.pth')
    assert 'nothing was executed' in read(tmp_path / 'module.pth')
    torch.save([1, 2], tmp_path / 'list.pth')
    assert 'holds a list, not a dictionary of tensors' in read(tmp_path / 'list.pth')


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_torchscript_is_refused(tmp_path):
    path = tmp_path / 'script.pt'
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)
    assert 'a TorchScript archive is a program and is not loaded' in read(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert 'no such checkpoint' in read(tmp_path / 'x.pth')
    assert 'no such checkpoint' in read(tmp_path)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_truncated_and_damaged_files_are_named_whatever_is_left_of_them(suffix, tmp_path):
    path, rng = tmp_path / f'x{suffix}', random.Random(0)
    if suffix == '.pth':
        torch.save({'params': {'w': torch.rand(40, 40), 'v': torch.rand(3)}, 'iter': 5}, path)
    else:
        save_file({'w': torch.rand(40, 40), 'v': torch.rand(3)}, path)
    whole = path.read_bytes()
    for size in [0, 1, 4, 8, 9, 100, *(rng.randrange(len(whole)) for _ in range(30)), len(whole) - 1]:
        path.write_bytes(whole[:size])
        message = read(path)
        assert f'({size} bytes)' in message or 'refused' in message
    for _ in range(200):  # without a manifest damage may go unnoticed, but it never ends in anything but one line
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error) and '\n' not in str(error)


def test_a_damaged_legacy_file_ends_in_one_line(tmp_path):
    path, rng = tmp_path / 'x.pth', random.Random(1)
    torch.save({'params': {'w': torch.rand(5)}}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for _ in range(200):
        data = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(rng.randint(0, 5) if data else 0):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            assert '\n' not in str(error)


@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
def test_one_flipped_byte_is_found_by_the_manifest(name, tmp_path):
    path = tmp_path / name
    write_checkpoint(path, {'w': torch.zeros(1000)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert 'damaged: its sha256 is not the one in manifest.json' in read(path)
    assert read_checkpoint(path, verify=False).keys() == {'w'}
    path.write_bytes(data[:-7])
    assert f'damaged: {len(data) - 7} bytes instead of {len(data)}' in read(path)


@pytest.mark.parametrize('manifest', ['', '{', '[]', '{"x.pth": 3}', '{"x.pth": {}}', '\xff', '{"x.pth": null}'])
def test_a_damaged_manifest_vouches_for_nothing(manifest, tmp_path):
    path = tmp_path / 'x.pth'
    write_checkpoint(path, {'w': torch.ones(2)})
    (tmp_path / 'manifest.json').write_text(manifest, encoding='latin-1')
    assert checksum_fault(path) == '' and not is_listed(path)
    assert read_checkpoint(path)['w'].sum() == 2


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / 'bomb.pth'
    torch.save({'params': {'w': torch.zeros(4)}}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data if '/data/' not in name else bytes(1 << 24))
    assert 'refused: it would unpack to' in read(path)


def test_huge_declared_sizes_are_refused(tmp_path):
    header = json.dumps({'w': {'dtype': 'F32', 'shape': [1 << 40], 'data_offsets': [0, 1 << 42]}}).encode()
    (tmp_path / 'x.safetensors').write_bytes(struct.pack('<Q', len(header)) + header)
    assert 'damaged or truncated' in read(tmp_path / 'x.safetensors')
    (tmp_path / 'y.safetensors').write_bytes(struct.pack('<Q', 1 << 60) + b'{}')
    assert 'damaged or truncated' in read(tmp_path / 'y.safetensors')
    path = tmp_path / 'wide.pth'  # one number, seen as 2^40 of them: it takes no memory until it is copied
    torch.save({'params': {'first.weight': torch.zeros(1).expand(1 << 20, 1 << 20)}}, path)
    state = network_state(read_checkpoint(path), 'params', 'wide')
    assert 'first.weight (1048576, 1048576) instead of' in refused(load_network, Net(), state, 'wide')


# ---- networks in files


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: {'params': s},
        lambda s: {'params_ema': s},
        lambda s: s,
        lambda s: {'state_dict': s, 'epoch': 3},
        lambda s: {'params': {f'module.{k}': v for k, v in s.items()}},
        lambda s: {f'_orig_mod.{k}': v for k, v in s.items()},
        lambda s: {f'_orig_mod.module.{k}': v for k, v in s.items()},
        lambda s: {'params': {f'module._orig_mod.{k}': v for k, v in s.items()}, 'iter': 3},
    ],
    ids=['params', 'params_ema', 'bare', 'state_dict', 'module', 'orig_mod', 'orig_mod.module', 'module.orig_mod'],
)
@pytest.mark.parametrize('key', ['params', 'params_ema', None])
def test_usual_nestings_and_prefixes_are_read(wrap, key, tmp_path):
    wanted = state_of(Net())
    torch.save(wrap(wanted), tmp_path / 'x.pth')
    assert same(network_state(read_checkpoint(tmp_path / 'x.pth'), key, 'x'), wanted)


def test_safetensors_are_read_and_written(tmp_path):
    wanted, path = state_of(Net()), tmp_path / 'x.safetensors'
    save_file(wanted, path)
    assert same(network_state(read_checkpoint(path), 'params_ema', 'x'), wanted)
    transposed = {'w': torch.rand(3, 5).T, 'part': torch.rand(9)[3:5]}
    write_checkpoint(path, transposed)
    assert same(load_file(path), transposed)


def test_the_asked_entry_comes_before_the_others():
    content = {'params': {'w': torch.zeros(1)}, 'params_ema': {'w': torch.ones(1)}}
    assert network_state(content, 'params_ema', 'x')['w'] == 1
    assert network_state(content, 'params', 'x')['w'] == 0
    assert network_state({'params': {'w': torch.zeros(1)}}, 'params_ema', 'x')['w'] == 0


def test_a_file_without_a_network_says_what_it_has():
    for content in ({'iter': 1, 'optimizers': []}, {'params': {}}, {1: torch.ones(1)}, {}):
        message = refused(network_state, content, 'params', 'x.state')
        assert message.startswith("x.state: no network under 'params'; the file has: ")


def test_another_network_is_refused_with_the_first_ten_names_of_each_kind():
    theirs = {f'layers.{n}.weight': torch.zeros(1) for n in range(12)} | {'first.weight': torch.zeros(8, 3, 3, 3)}
    net = Net()
    before = state_of(net)
    message = refused(load_network, net, theirs, 'x.pth')
    assert message.startswith('x.pth: belongs to another network than Net as configured: ')
    assert '3 missing: first.bias, last.weight, last.bias' in message
    assert '12 unexpected: layers.0.weight, ' in message and 'layers.9.weight, ...' in message
    assert 'layers.10' not in message
    assert '1 of another shape: first.weight (8, 3, 3, 3) instead of (4, 3, 3, 3)' in message
    assert same(state_of(net), before)


def test_not_strict_takes_what_fits_and_tells_the_rest():
    net, theirs = Net(extra=True), Net(width=4)
    state = state_of(theirs) | {'last.bias': torch.zeros(7), 'unknown': torch.zeros(1)}
    own = state_of(net)
    assert load_network(net, state, 'x', strict=False) == {'extra.weight', 'extra.bias', 'last.bias'}
    for name, value in net.state_dict().items():
        assert torch.equal(value, own[name] if name.startswith('extra') or name == 'last.bias' else state[name])


def test_an_average_starts_from_the_same_new_entries_as_its_network(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'params': state_of(Net()), 'params_ema': state_of(Net())}, path)
    source = PretrainedOptions(path=str(path), strict=False)
    net, average = Net(extra=True), Net(extra=True)
    load_pretrained(net, source, 'params')
    load_pretrained(average, source, 'params_ema', like=net)
    assert torch.equal(average.extra.weight, net.extra.weight) and torch.equal(average.extra.bias, net.extra.bias)
    assert not torch.equal(average.first.weight, net.first.weight)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_into_a_float32_network(dtype, tmp_path):
    wanted, net = {k: v.to(dtype) for k, v in Net().state_dict().items()}, Net()
    write_checkpoint(tmp_path / 'x.safetensors', wanted)
    load_network(net, network_state(read_checkpoint(tmp_path / 'x.safetensors'), None, 'x'), 'x')
    assert all(value.dtype == torch.float32 for value in net.state_dict().values())
    assert same(state_of(net), {k: v.float() for k, v in wanted.items()})


def test_published_atd_checkpoints_load_strictly_and_atd_v2_is_refused_by_name():
    case = load_case('atd', 'direct_x3_odd')
    net = ARCH_REGISTRY.build({'type': 'ATD', **case.args})
    own = net.state_dict()
    published = {
        k: v if v.is_floating_point() and own[k].is_floating_point() else own[k] for k, v in case.weights.items()
    }
    assert load_network(net, published, 'atd.pth') == set()
    v2 = {k: v for k, v in published.items() if not k.endswith(('sigma', 'logit_scale'))}
    v2['layers.0.residual_group.layers.0.fc_td.weight'] = torch.zeros(4, 4)
    assert 'atd.pth: these are weights of ATD v2' in refused(load_network, net, v2, 'atd.pth')


def test_a_network_may_name_entries_that_it_takes_but_does_not_keep():
    atd = ARCH_REGISTRY.build({'type': 'ATD', 'depths': [1], 'num_heads': [2], 'embed_dim': 12})
    load_network(atd, state_of(atd) | {'no_norm': torch.zeros(1)}, 'neosr.pth')
    assert atd.mean.abs().sum() == 0 and 'no_norm' not in atd.state_dict()
    net = Net()
    net.optional_entries = ('no_norm',)
    load_network(net, state_of(Net()) | {'no_norm': torch.zeros(1)}, 'x')
    assert '1 unexpected: other' in refused(load_network, net, state_of(Net()) | {'other': torch.zeros(1)}, 'x')
