"""Cases of `d2c`: both networks, their blocks, layouts, gradients, and a file that MegEngine wrote."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.blocks.conv import RCAB, ChannelAttention, ResidualGroup, pixel_shuffles
from basicsr.archs.d2c_arch import BRANCHES, D2CBranches, D2CFusion
from basicsr.utils.checkpoint import load_network, network_state, read_checkpoint
from reference.case import Case, filled
from reference.checking import checks, tensors

OUTPUTS = [f'out{name}' for name in BRANCHES]


@checks('d2c', 'CALayer')
def channel_attention(case: Case) -> Iterator[tuple]:
    x = _features(case)
    yield 'y', x * _loaded(case, ChannelAttention(case.args['channel'], case.args['reduction']))(x)


@checks('d2c', 'RCAB')
def block(case: Case) -> Iterator[tuple]:
    args = case.args
    yield 'y', _loaded(case, RCAB(args['n_feat'], args['kernel_size'], args['reduction']))(_features(case))


@checks('d2c', 'ResidualGroup')
def group(case: Case) -> Iterator[tuple]:
    args = case.args
    net = ResidualGroup(args['n_feat'], args['kernel_size'], args['reduction'], args['n_resblocks'])
    yield 'y', _loaded(case, net)(_features(case))


@checks('d2c', 'Upsampler')
def upsampler(case: Case) -> Iterator[tuple]:
    yield 'y', _loaded(case, pixel_shuffles(case.args['n_feats'], case.args['scale']))(_features(case))


@checks('d2c', 'D_Net then C_Net')
def both(case: Case) -> Iterator[tuple]:
    """The published layouts, names and shapes in order; then the images, through the published file's layout."""
    nets = D2CBranches(**case.args), D2CFusion()
    for net, letter, layout in zip(nets, 'DC', ('layout', 'layout_C'), strict=True):
        ours = [[name, list(value.shape)] for name, value in net.to_published(net.state_dict()).items()]
        yield layout, ours, [[name, shape] for name, shape in case.spec[layout].items()]
        yield letter, sum(p.numel() for p in net.parameters()), case.spec['parameters'][letter]
    if case.outputs:
        (x,) = tensors(case, 'x')
        for net, layout in zip(nets, ('layout', 'layout_C'), strict=True):
            state = {name: filled(name, shape) for name, shape in case.spec[layout].items()}
            load_network(net, state, case.name, published=True)
        yield from _in_bgr(*nets, x)


@checks('d2c', 'D_Net')
def branches(case: Case) -> Iterator[tuple]:
    net = _loaded(case, D2CBranches(**case.args))
    yield 'parameters', sum(p.numel() for p in net.parameters()), case.spec.get('parameters', 0) or _numel(net)
    if 'grad_x' in case.arrays:
        yield from gradients(case, net)
        return
    seen = {}
    for name in ('sub_mean', 'head', 'body1', 'body2', 'body11', 'body22'):
        getattr(net, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    (x,) = tensors(case, 'x')
    yield from zip(OUTPUTS, net(x).unbind(1), strict=True)
    yield from seen.items()


def gradients(case: Case, net: nn.Module) -> Iterator[tuple]:
    """A gradient is within 1e-4 of its largest magnitude, which is said by words in the JSON."""
    x, label = tensors(case, 'x', 'label')
    x = x.clone().requires_grad_(True)
    losses = [F.mse_loss(image, label) for image in net(x).unbind(1)]
    sum(losses).backward()
    yield 'losses', torch.stack([*losses, sum(losses)])
    ours = {f'grad:{name}': p.grad for name, p in net.named_parameters()} | {'grad_x': x.grad}
    for name in case.outputs:
        if name.startswith('grad') and name != 'grad_norms':
            published = torch.from_numpy(case.arrays[name])
            largest, gradient = published.abs().max(), ours[name].reshape(published.shape)
            yield name, gradient / largest * 1e-2, published / largest * 1e-2  # so that the case's atol is 1e-4 of it
    yield 'grad_norms', torch.stack([net.get_parameter(name).grad.norm() for name in case.spec['layout']])


@checks('d2c', 'C_Net')
def fusion(case: Case) -> Iterator[tuple]:
    net = _loaded(case, D2CFusion())
    images = torch.stack([*tensors(case, *OUTPUTS)], 1)
    yield 'parameters', _numel(net), case.spec['parameters']
    yield 'logits', net.logits(images.flatten(1, 2))
    yield from zip(('fusion', 'mask'), net(images), strict=True)


@checks('d2c', 'reading a MegEngine checkpoint')
def file(case: Case) -> Iterator[tuple]:
    """The file beside the case holds the fill rule's weights; both networks read it as users do."""
    content = read_checkpoint(case.folder / case.spec['file'])
    nets = D2CBranches(**case.args), D2CFusion()
    for net, key, layout in zip(nets, ('state_dict_D', 'state_dict_C'), ('layout', 'layout_C'), strict=True):
        state = network_state(content, key, case.name)
        yield layout, [[name, list(v.shape)] for name, v in state.items()], [*map(list, case.spec[layout].items())]
        for name, shape in case.spec[layout].items():
            yield name, state[name], filled(name, shape)
        load_network(net, state, case.name, published=True)
    found = nets[0].options_of(network_state(content, 'state_dict_D', case.name))
    yield 'options', found, {k: v for k, v in case.args.items() if k != 'n_colors'}
    (x,) = tensors(case, 'x')
    yield from _in_bgr(*nets, x)


@torch.no_grad()
def _in_bgr(branching: nn.Module, blending: nn.Module, x: Tensor) -> Iterator[tuple]:
    """The stored images are in the published order of colours, our networks, once loaded, in the other."""
    images = branching(x.flip(1))
    yield from zip(OUTPUTS, images.flip(2).unbind(1), strict=True)
    yield 'fusion', blending(images)[0].flip(1)


def _features(case: Case) -> Tensor:
    """The JSON says `x = (image - 0.5) * 2` of the features that blocks get."""
    (x,) = tensors(case, 'x')
    return (x - 0.5) * 2


def _loaded(case: Case, net: nn.Module) -> nn.Module:
    """The network with the case's weights as they are: x is in no particular order of colours."""
    state = {name: value.flatten() if name.endswith('bias') else value for name, value in case.weights.items()}
    net.load_state_dict(state, strict=True)
    return net.eval()


def _numel(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
