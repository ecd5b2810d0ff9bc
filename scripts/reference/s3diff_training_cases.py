"""Cases of `s3diff` about training: the discriminator with its augmentation and losses, the reconstruction loss."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.blocks.diff_augment import AugmentDraws, diff_augment
from basicsr.archs.dino_discriminator_arch import DinoDiscriminator, DinoFeatures, MultiLevelHead
from basicsr.losses.multilevel_gan_loss import levels_cross_entropy
from basicsr.models.s3diff_training import mixed_target, negative_samples
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY
from reference.case import Case, filled
from reference.checking import Unsupported, checks, tensors

SIDES = {'loss_G': 0.8, 'loss_real': 0.8, 'loss_fake': 0.0}  # what the judgements are compared with


@checks('s3diff', 'differentiable augmentation')
def augmentation(case: Case) -> Iterator[tuple]:
    if case.args.get('policy', 'color,translation,cutout') != 'color,translation,cutout':
        raise Unsupported(f'the policy is always color,translation,cutout, not {case.args["policy"]}')
    x, *draws = tensors(case, 'x', *(f'u{number}' for number in range(7)))
    yield 'y', diff_augment(signed(case, 'x', x), AugmentDraws(*(draw.flatten() for draw in draws)))


@checks('s3diff', 'DINO ViT features')
@torch.no_grad()
def features(case: Case) -> Iterator[tuple]:
    args = case.args
    net = DinoFeatures(*(args[name] for name in ('embed_dim', 'depth', 'num_heads', 'patch_size', 'img_size')))
    case.fill(net.vit)
    (x,) = tensors(case, 'x')
    x = signed(case, 'x', x)
    yield 'z', net.prepared(x)[..., ::16, ::16]
    *maps, token = net.eval()(x)
    for number, each in enumerate(maps):
        yield f'feat{number}', each[:, ::3, ::2, ::2]
    yield f'feat{len(maps)}', token


@checks('s3diff', 'multi-level discriminator head')
@torch.no_grad()
def head(case: Case) -> Iterator[tuple]:
    args = case.args
    if args.get('down', 2) != 2:
        raise Unsupported(f'the heads always halve, as down=2 does, not down={args["down"]}')
    net = MultiLevelHead(args['level'], args['in_ch1'], args['in_ch2'], args['out_ch'])
    fill_normalised(case, net)
    given = list(tensors(case, *(f'feat{number}' for number in range(args['level']))))
    for mode in ('train1', 'train2', 'eval'):
        judged = net.train(mode != 'eval')(given)
        for number, each in enumerate(judged):
            yield f'{mode}_pred{number}', each
    yield from losses_of(judged)


@checks('s3diff', 'vision-aided discriminator')
def discriminator(case: Case) -> Iterator[tuple]:
    if case.args.get('diffaug'):
        raise Unsupported('the draws of the augmentation are not given')
    arguments = sizes(case.spec['backbone_layout'], case.args.get('num_heads'))
    dim = case.spec['layout']['decoder.0.out.weight_orig'][1]
    net = DinoDiscriminator(pretrained=False, augment=False, dim=dim, **arguments)
    backbone = {name: filled(name, shape) for name, shape in case.spec['backbone_layout'].items()}
    net.backbone.vit.load_state_dict(backbone, strict=True)
    fill_normalised(case, net)
    (x,) = tensors(case, 'x')
    x = signed(case, 'x', x).requires_grad_()
    with torch.no_grad():
        net.train()(x)
    judged = net.eval()(x)
    (0.5 * levels_cross_entropy(judged, SIDES['loss_G']).mean()).backward()
    yield from losses_of(judged)
    yield 'grad_x', x.grad
    for name, part in (('trainable_parameters', net.decoder), ('backbone_parameters', net.backbone)):
        if name in case.spec:
            yield name, sum(parameter.numel() for parameter in part.parameters()), case.spec[name]


@checks('s3diff', 'generator reconstruction loss')
def reconstruction(case: Case) -> Iterator[tuple]:
    args = case.args
    lpips = filled_lpips(case.spec['layout'])
    pred, gt, lq = (signed(case, name, x) for name, x in zip(('pred', 'gt', 'src'), tensors(case, 'pred', 'gt', 'src')))
    (draws,) = tensors(case, 'neg_probs')
    negative = negative_samples(draws, args['neg_prob'])
    target = mixed_target(negative, lq, gt)
    pred.requires_grad_()
    pixel = LOSS_REGISTRY.build({'type': 'MSELoss', 'loss_weight': args['lambda_l2']})(pred, target)
    perceptual = args['lambda_lpips'] * lpips((pred + 1) / 2, (target + 1) / 2).mean()
    (pixel + perceptual).backward()
    with torch.no_grad():
        each = lpips((pred + 1) / 2, (target + 1) / 2)
    yield 'use_neg', negative.long()
    yield 'lpips_each', each
    yield 'loss', pixel + perceptual
    yield 'grad_pred', pred.grad
    yield 'loss_l2', pixel
    yield 'loss_lpips', perceptual


# ---- what the cases share


def signed(case: Case, name: str, x: Tensor) -> Tensor:
    """An image input in [-1, 1] where the case asks for that."""
    how = case.spec['inputs'][name]
    return 2 * x - 1 if isinstance(how, dict) and how.get('map') == '2*x-1' else x


def fill_normalised(case: Case, net: nn.Module) -> None:
    """Load the case's weights; the vectors of spectral normalisation begin with length 1, blurs are computed."""
    own, state = net.state_dict(), {}
    for name, value in case.weights.items():
        kind = name.rpartition('.')[2]
        state[name] = F.normalize(value, dim=0) if kind in ('weight_u', 'weight_v') else value
        if kind == 'filt':
            if own[name].shape != value.shape:
                raise ValueError(f'{name} is {tuple(own[name].shape)} here and {tuple(value.shape)} as published')
            state[name] = own[name]
    net.load_state_dict(state, strict=True)


def losses_of(judged: tuple[Tensor, ...]) -> Iterator[tuple]:
    """The losses of each image, (n, 1)."""
    for name, label in SIDES.items():
        yield name, levels_cross_entropy(judged, label)[:, None]


def sizes(layout: dict[str, list[int]], num_heads: int | None = None) -> dict[str, int]:
    """The arguments of a backbone with these entries; a DINO's heads are 64 channels wide unless the case says more."""
    width, _, patch, _ = layout['patch_embed.proj.weight']
    side = round((layout['pos_embed'][1] - 1) ** 0.5)
    depth = len({name.split('.')[1] for name in layout if name.startswith('blocks.')})
    found = {'embed_dim': width, 'depth': depth, 'patch_size': patch, 'image_size': side * patch}
    return found | {'num_heads': num_heads or max(1, width // 64)}


def filled_lpips(layout: dict[str, list[int]]) -> nn.Module:
    """LPIPS on VGG16 with the weights of the case; the weights of differences are positive."""
    net = ARCH_REGISTRY.build({'type': 'LPIPS', 'net': 'vgg', 'pretrained': False})
    state = net.distance.state_dict()
    for name, shape in layout.items():
        value = filled(name, shape)
        state[name] = value.abs() if name.startswith('lin') else value
    net.distance.load_state_dict(state, strict=True)
    return net
