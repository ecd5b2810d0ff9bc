"""Cases of `sr3` about the networks: what they compute, the layouts of the published ones, their checkpoint files."""

import io
from collections.abc import Iterator

import torch
from torch import nn

from basicsr.models.diffusion import GaussianDiffusion
from basicsr.utils.registry import ARCH_REGISTRY
from reference.case import Case, filled
from reference.checking import checks, tensors

NETWORKS = {'sr3': 'SR3UNet', 'ddpm': 'DDPMUNet'}


@checks('sr3', 'UNet (', ('unet',))
def unet(case: Case) -> Iterator[tuple]:
    kind = 'ddpm' if 'ddpm' in case.spec['network'] else 'sr3'
    net = ARCH_REGISTRY.build({'type': NETWORKS[kind], **case.args}).eval()
    state = {f'denoise_fn.{name}': value for name, value in net.state_dict().items()}
    ours = [[name, list(value.shape)] for name, value in state.items()]
    yield 'layout', ours, [*map(list, case.spec['layout'].items())]
    yield 'params', sum(p.numel() for p in net.parameters()), case.spec['params']
    state |= {k: filled(k, shape) for k, shape in case.spec['layout'].items() if k not in case.spec['computed']}
    net.load_state_dict(net.from_published(state), strict=True)
    seen = {}
    embedding = net.get_submodule(net.embedding_name)
    for name, module in (
        ('pos', embedding[0]),
        ('emb', embedding),
        ('down', net.downs[-1]),
        ('mid0', net.mid[0]),
        ('mid', net.mid[1]),
    ):
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    (x,) = tensors(case, 'x')
    level = torch.as_tensor(case.inputs['time' if kind == 'ddpm' else 'noise_level'])
    with torch.no_grad():
        yield 'out', net(2 * x - 1, level)
    yield from seen.items()


@checks('sr3', 'GaussianDiffusion', ('layout',))
def published_layout(case: Case) -> Iterator[tuple]:
    """All names and shapes in order, the schedule's tables before the network; and where attention is."""
    with torch.device('meta'):
        net = built(case)
    yield 'layout', layout_of(case, net), [*map(list, case.spec['layout'].items())]
    yield 'entries', len(case.spec['layout']), case.spec['entries']
    yield 'params', sum(p.numel() for p in net.parameters()), case.spec['params']
    attention = [name for name, _ in net.named_modules() if name.endswith('.attn')]
    yield 'attention', attention, case.spec['attention']


@checks('sr3', 'GaussianDiffusion', ('checkpoint',))
def checkpoint_files(case: Case) -> Iterator[tuple]:
    """The order of the parameters is that of the optimizer's numbers; a step of ours gives what the files hold."""
    net = built(case)
    yield 'layout', layout_of(case, net), [*map(list, case.spec['layout'].items())]
    order = [f'denoise_fn.{name}' for name, _ in net.named_parameters()]
    yield 'optimizer_param_order', order, case.spec['optimizer_param_order']
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    sum(p.square().sum() for p in net.parameters()).backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save({'epoch': 1, 'iter': 1, 'scheduler': None, 'optimizer': optimizer.state_dict()}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    published = case.spec['opt']['content']
    yield 'opt', list(content), list(published)
    (group,), (published_group,) = content['optimizer']['param_groups'], published['optimizer']['param_groups']
    old = ('lr', 'betas', 'eps', 'weight_decay', 'amsgrad')  # which files of 2021 have
    yield 'param_groups', [group[key] for key in old], [_like(group[key], published_group[key]) for key in old]
    yield 'params', group['params'], list(range(len(order)))
    for number, name in enumerate(order):
        moments = content['optimizer']['state'][number]
        yield f'state of {name}', sorted(moments), sorted(published['optimizer']['state']['<i>'])
        yield f'shape of {name}', [*moments['exp_avg'].shape], case.spec['layout'][name]


def built(case: Case) -> nn.Module:
    return ARCH_REGISTRY.build({'type': NETWORKS[case.args['which_model_G']], **case.args['unet']})


def layout_of(case: Case, net: nn.Module) -> list[list]:
    """Names and shapes as a published file has them."""
    with torch.device('cpu'):
        tables = GaussianDiffusion(**case.args['schedule']).buffers()
    state = tables | {f'denoise_fn.{name}': value for name, value in net.state_dict().items()}
    return [[name, list(value.shape)] for name, value in state.items()]


def _like(ours: object, published: object) -> object:
    """JSON has no tuples, and may write 0 for 0.0."""
    return tuple(published) if isinstance(ours, tuple) else type(ours)(published)
