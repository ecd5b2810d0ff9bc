"""Cases of `iter` about the networks: what they compute, whole and in parts, and the published layouts."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from basicsr.archs.blocks.codebook import VectorQuantizer
from basicsr.archs.blocks.published import with_copies
from basicsr.archs.blocks.swin import SwinLayers, with_computed
from basicsr.archs.iter_arch import ALL_COPIES, ITER, LQEncoder, TokenRefine
from basicsr.archs.patch_discriminator_arch import (
    MultiScaleNLayerDiscriminator,
    NLayerDiscriminator,
    VQGANDiscriminator,
)
from basicsr.archs.swin_vqgan_arch import SwinVQGAN
from basicsr.archs.token_net_arch import SwinTokenNet, TokenNet, TransformerTokenNet, UNetTokenNet
from basicsr.archs.unet_discriminator_arch import UNetDiscriminatorSN
from basicsr.utils.checkpoint import load_network
from basicsr.utils.padding import extend_symmetric
from reference.case import Case, filled
from reference.checking import Unsupported, Within, checks

PARTS = {
    'SwinLayers': SwinLayers,
    'SwinModel': SwinTokenNet,
    'UNetModel': UNetTokenNet,
    'TransformerModel': TransformerTokenNet,
    'LQEncoder': LQEncoder,
    'UNetDiscriminatorSN': UNetDiscriminatorSN,
    'NLayerDiscriminator': NLayerDiscriminator,
    'MultiScaleNLayerDiscriminator': MultiScaleNLayerDiscriminator,
    'VQGANDiscriminator': VQGANDiscriminator,
    'VQGANDiscriminatorSN': VQGANDiscriminator,
}


# ---- loading the weights of a case


def load_weights(case: Case, net: nn.Module) -> nn.Module:
    """The network with the weights of a published file that was filled as the case says, in evaluation mode."""
    state, fill = published(net), case.spec.get('fill', {})
    for name, value in state.items():
        if name in fill.get('stored', ()):
            state[name] = torch.from_numpy(case.arrays[f'state:{name}'])
        elif name.rpartition('.')[2] not in fill.get('keep', ()):
            source = name
            for part, original in fill.get('alias', ()):
                source = source.replace(part, original)
            state[name] = filled(source, value.shape)
    load_network(net, ITER.from_published(state), case.name)  # also of parts, which have no such method
    return net.eval()


def published(net: nn.Module) -> dict[str, Tensor]:
    """The state of a network or of a part of one, with the names and in the order of published files."""
    return with_copies(with_computed(net, net.state_dict()), ALL_COPIES)


def layouts(case: Case, net: nn.Module) -> Iterator[tuple]:
    """Names and shapes in order, compared with those that the case has, if any."""
    if 'layout' in case.spec:
        ours = [[name, [*value.shape]] for name, value in published(net).items()]
        yield 'layout', ours, [*map(list, case.spec['layout'].items())]


def within(case: Case, name: str, value: Tensor) -> tuple[str, object]:
    """An output with the tolerance that the case gives it: none, its own, or that of all."""
    if name in case.spec.get('exact', ()):
        return name, Within(value, atol=0, rtol=0)
    own = case.spec.get('tolerance_by_output', {}).get(name)
    return name, value if own is None else Within(value, **own)


# ---- parts


def module(case: Case) -> Iterator[tuple]:
    """A layout; or a part of a network, called as the case says."""
    if case.spec['kind'] == 'layout':
        return layout(case, lambda: PARTS[case.spec['network']](**case.args))
    return called(case)


@torch.no_grad()
def called(case: Case) -> Iterator[tuple]:
    kind = PARTS.get(case.args['class'])
    if kind is None:
        raise Unsupported(f'no such part: {case.args["class"]}')
    net = kind(**case.args['init'])
    yield from layouts(case, net)
    load_weights(case, net)
    for call in case.args['calls']:
        given = [torch.as_tensor(case.inputs[name]) for name in call['inputs']]
        yield within(case, call['out'], on_tokens(case, net, call, given) if isinstance(net, TokenNet) else net(*given))


def on_tokens(case: Case, net: TokenNet, call: dict, given: list[Tensor]) -> Tensor:
    """The token net of one or two maps, which are tokens or, without `onehot`, images to which code_emb is applied."""
    if 'onehot' not in call:
        embedded = [net.code_emb(x) for x in given]
        return net(net.combine(torch.cat(embedded, 1)) if len(given) > 1 else embedded[0])
    slots = (0, 1) if len(given) > 1 else (None,)
    given, masks = [x.long()[:, 0] for x in given], {}
    if 'mask_channel' in call:
        first, second = (torch.as_tensor(case.inputs[name])[:, 0] for name in call['mask_channel'])
        masks = {0: {'marked': 1 - first}, 1: {'kept': second, 'marked': 1 - second}}
    return net(sum(net.embed(x, slot, **masks.get(slot, {})) for slot, x in zip(slots, given, strict=True)))


for name in PARTS:
    checks('iter', name)(module)


@checks('iter', 'VectorQuantizer')
def quantizer(case: Case) -> Iterator[tuple]:
    """The published weighting of beta and the other one; gradients of the loss and of what the output is used for."""
    init = {k: v for k, v in case.args['init'].items() if k not in ('sane_index_shape', 'legacy')}
    z, grad = (torch.as_tensor(case.inputs[name]) for name in ('z', 'grad_out'))
    for kind in ('legacy', 'fixed'):
        net = load_weights(case, VectorQuantizer(**init, legacy=kind == 'legacy'))
        features = z.clone().requires_grad_(True)
        out, loss, indices = net(features)
        (loss + (out * grad).sum()).backward()
        yield within(case, f'{kind}:loss', loss)
        yield within(case, f'{kind}:grad_z', features.grad)
        yield within(case, f'{kind}:grad_embedding', net.embedding.weight.grad)
    yield within(case, 'z_q', out)
    yield within(case, 'indices', indices)
    yield within(case, 'distances', net.distances(z))
    yield within(case, 'entry', net.entries(indices))


# ---- networks


@checks('iter', 'VQModel')
def autoencoder(case: Case) -> Iterator[tuple]:
    """A layout; or whole images of any size; or what becomes of an image in between."""
    if case.spec['kind'] == 'layout':
        return layout(case, lambda: SwinVQGAN(**case.args))
    return padded(case) if case.spec['kind'] == 'vqmodel_test' else coded(case)


@torch.no_grad()
def padded(case: Case) -> Iterator[tuple]:
    net = load_weights(case, SwinVQGAN(**case.args['init']))
    for name, image in case.inputs.items():
        h, w = image.shape[-2:]
        restored, _, _ = net(extend_symmetric(torch.as_tensor(image), 64))
        yield within(case, 'out' if len(case.inputs) == 1 else f'{name}:out', restored[..., :h, :w])


@torch.no_grad()
def coded(case: Case) -> Iterator[tuple]:
    net = SwinVQGAN(**case.args['init'])
    yield from layouts(case, net)
    load_weights(case, net)
    step = case.args.get('subsample', 1)
    for name, image in case.inputs.items():
        image = torch.as_tensor(image)
        features = net.features(image)
        codes, loss, indices = net.quantize(features)
        yield within(case, f'{name}:prequant', features)
        yield within(case, f'{name}:indices', indices)
        yield within(case, f'{name}:codebook_loss', loss)
        yield within(case, f'{name}:decoder_raw', net.decoder(codes)[..., ::step, ::step])
        yield within(case, f'{name}:decoded', net(image)[0][..., ::step, ::step])
        if not torch.equal(net.indices(image), indices):
            raise ValueError('indices() and forward() name different tokens')


@checks('iter', 'ITER', ('layout',))
def whole(case: Case) -> Iterator[tuple]:
    args = case.args
    return layout(case, lambda: ITER(vqgan_opt=args['vqgan_opt'], scale_factor=args.get('scale_factor', 4)))


def layout(case: Case, build: Callable[[], nn.Module]) -> Iterator[tuple]:
    """The published network: entries, numbers of parameters, those of its parts, and types."""
    with torch.device('meta'):
        net = build()
        state = published(net)
    yield from layouts(case, net)
    yield from counts(net, state, case.spec)
    for part, count in case.spec.get('parts', {}).items():
        yield f'parameters of {part}', parameters(net.get_submodule(part), only_trained=False), count
    for name, value in state.items():
        types = case.spec.get('dtypes', {})
        wanted = types.get(name.rpartition('.')[2], types.get('others', 'float32'))
        yield f'type of {name}', str(value.dtype).removeprefix('torch.'), wanted


def counts(net: nn.Module, state: dict[str, Tensor], spec: dict) -> Iterator[tuple]:
    yield 'num_entries', len(state), spec['num_entries']
    yield 'num_parameters', parameters(net, only_trained=False), spec['num_parameters']
    if 'num_trainable' in spec:
        yield 'num_trainable', parameters(net, only_trained=True), spec['num_trainable']


def parameters(net: nn.Module, only_trained: bool) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad or not only_trained)


@checks('iter', 'TokenRefine', ('layout',))
def token_nets(case: Case) -> Iterator[tuple]:
    for kind, spec in case.spec['nets'].items():
        with torch.device('meta'):
            net = TokenRefine(case.args['n_e'], kind, {})
            state = published(net)
        for name, ours, theirs in counts(net, state, spec):
            yield f'{name} of {kind}', ours, theirs
        if 'layout' in spec:
            ours = [[name, [*value.shape]] for name, value in state.items()]
            yield f'layout of {kind}', ours, [*map(list, spec['layout'].items())]
