"""The plain transcription of ITER computes what the published code does, so that it may judge ours."""

import sys

import numpy as np
import pytest
import torch
from golden_case import GOLDEN, Case, filled, load_case
from torch import Tensor, nn

sys.path.insert(0, str(GOLDEN.parent / 'oracles'))
from iter_reference import Draws, ITERReference, Rule, draw, gamma, kept_count
from iter_token_reference import LQEncoder, SwinModel, TransformerModel, UNetModel
from iter_vqgan_reference import SwinLayers, VQModel

MODULES = {
    'SwinLayers': SwinLayers,
    'SwinModel': SwinModel,
    'UNetModel': UNetModel,
    'TransformerModel': TransformerModel,
    'LQEncoder': LQEncoder,
}
REPEATED = ('generator.', 'mid_block.2.', 'mid_block.3.')  # second names of shared modules
COMPUTED = ('attn_mask', 'relative_position_index')


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def iter_net():
    """Networks by scale, built and filled once."""
    built = {}

    def net(scale: int) -> ITERReference:
        if scale not in built:
            case = load_case('iter', f'iter_x{scale}_greedy')
            built[scale] = loaded(ITERReference(case.args['init']['vqgan_opt'], scale), case)
        return built[scale]

    return net


def loaded(net: nn.Module, case: Case) -> nn.Module:
    """Filled by the published names and shapes, which must be the network's."""
    layout = {
        name: shape
        for name, shape in case.spec['layout'].items()
        if not any(part in name for part in REPEATED) and not name.endswith(COMPUTED)
    }
    state = {name: filled(name, shape) for name, shape in layout.items()}
    net.load_state_dict(state, strict=True, assign=True)
    return net.eval()


def given(case: Case, name: str) -> Tensor:
    return torch.as_tensor(case.inputs[name])


def check(case: Case, found: dict[str, Tensor]) -> None:
    """Every output that is named, within the case's tolerance or exactly."""
    for name, value in found.items():
        wanted = torch.from_numpy(np.asarray(case.arrays[name]))
        if name in case.spec['exact']:
            assert torch.equal(value.to(wanted), wanted), name
        else:
            tolerance = case.spec['tolerance_by_output'][name]
            torch.testing.assert_close(value, wanted, **tolerance, msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.parametrize('name', ['vqgan_small', 'vqgan_mhsa'])
@torch.no_grad()
def test_images_become_tokens_and_tokens_images(name):
    case = load_case('iter', name)
    net, step = loaded(VQModel(**case.args['init']), case), case.args['subsample']
    for label in case.spec['inputs']:
        x = given(case, label)
        z, (decoded, loss, indices) = net.prequant(x), net(x)
        raw = net.decoder(net.quantize.embedding(indices).permute(0, 3, 1, 2))
        check(case, {f'{label}:prequant': z, f'{label}:indices': indices, f'{label}:codebook_loss': loss,
                     f'{label}:decoder_raw': raw[..., ::step, ::step],
                     f'{label}:decoded': decoded[..., ::step, ::step]})  # fmt: skip
        torch.testing.assert_close(net.decode_indices(indices), decoded, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_an_odd_size_is_padded_and_cropped():
    case = load_case('iter', 'vqgan_test_pad')
    net = loaded(VQModel(**case.args['init']), load_case('iter', case.spec['layout_of']))
    check(case, {'out': net.test(given(case, 'x'))})


@pytest.mark.parametrize(
    'name', ['swin_layers', 'demask_swin', 'demask_unet', 'demask_transformer', 'lq_encoder_x2', 'lq_encoder_x4']
)
@torch.no_grad()
def test_modules_are_the_published_ones(name):
    case = load_case('iter', name)
    net = loaded(MODULES[case.args['class']](**case.args['init']), case)
    for call in case.args['calls']:
        maps = [given(case, label) for label in call['inputs']]
        if 'onehot' in call:
            classes = call['onehot'][0]
            first, second = (nn.functional.one_hot(tokens[:, 0], classes).permute(0, 3, 1, 2) for tokens in maps)
            m1, m2 = (given(case, label) for label in call['mask_channel'])
            maps = [torch.cat([first, 1 - m1], 1), torch.cat([second * m2, 1 - m2], 1)]
        check(case, {call['out']: net(maps if len(maps) > 1 else maps[0])})


def test_schedules_keep_as_many_tokens():
    case = load_case('iter', 'gamma')
    found = {f'gamma:{kind}': gamma(given(case, 'r'), kind) for kind in case.args['modes']}
    for name in case.arrays:
        if name.startswith('num_keep'):
            _, kind, steps, grid = name.split(':')
            steps, (h, w) = int(steps[1:]), map(int, grid.split('x'))
            found[name] = torch.tensor([kept_count(i, steps, kind, h, w) for i in range(steps)])
    check(case, found)


def test_draws_are_greedy_or_follow_given_noise():
    case = load_case('iter', 'samplers')
    logits, previous, noise = (given(case, name) for name in ('mask_logits', 'prev_mask', 'g_mask'))
    k, temperature = case.args['k'], case.args['temp']
    check(case, {'greedy_mask_noprev': draw(logits, k, torch.zeros_like(previous), temperature, None),
                 'greedy_mask_prev': draw(logits, k, previous, temperature, None),
                 'greedy_mask_k_too_small': draw(logits, 1, previous, temperature, None),
                 'gumbel_mask_prev': draw(logits, k, previous, temperature, noise)})  # fmt: skip


@pytest.mark.parametrize(
    'name', ['iter_x4_greedy', 'iter_x4_cosine', 'iter_x4_none_good', 'iter_x4_noise', 'iter_x2_greedy']
)
@torch.no_grad()
def test_restoring_takes_the_published_steps_to_the_published_image(name, iter_net):
    case = load_case('iter', name)
    net = iter_net(case.args['init']['scale_factor'])
    noise = [given(case, key) for key in ('g_tok', 'g_mask')] if case.args['rule'] == 'gumbel' else []
    found = net.restore(given(case, 'x'), Rule(*case.args['sample_params'], *noise))
    check(case, {'out': found.image, 'lq_logits': found.lq_logits[:, :4], 'lq_tokens': found.lq_tokens[:, None],
                 'crit_prob': found.good_probability, 'executed_steps': torch.tensor(found.executed),
                 'tokens': torch.stack(found.tokens), 'masks': torch.stack(found.masks)[:, :, 0],
                 'last_logits': found.last_logits[:, :4]})  # fmt: skip


def test_a_training_step_has_the_published_losses_and_gradients(iter_net):
    case, net = load_case('iter', 'train_refine_x4'), iter_net(4)
    gt = given(case, 'gt')
    draws = (given(case, name) for name in ('rate_noise', 'mask_noise', 'gumbel_lq', 'gumbel_refined'))
    with torch.no_grad():
        q = net.vqgan.indices(gt)
    found = net.training_losses(given(case, 'lq'), q, Draws(*draws))
    pixels = {'l_pix': (found['out_img'] - gt).abs().mean(), 'l1_refined': (found['refined_img'] - gt).abs().mean()}
    (found['l_codebook'] + pixels['l_pix'] + pixels['l1_refined']).backward()
    for key in ('out_img', 'refined_img'):
        found[key] = found[key][..., ::2, ::2]
    parameters = dict(net.named_parameters())
    gradients = {f'grad:{name}': parameters[name].grad for name in case.args['grads']}
    for part in ('lq_encoder', 'token_refine_net.token_crit_net', 'token_refine_net.token_refine_net'):
        norms = [p.grad.norm() for name, p in parameters.items() if name.startswith(part)]
        gradients[f'gradnorm:{part}'] = torch.stack(norms).norm()
    check(
        case,
        {'gt_indices': q[:, None], **{key: value.detach() for key, value in (found | pixels).items()}, **gradients},
    )
    net.zero_grad()
