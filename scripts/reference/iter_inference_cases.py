"""Cases of `iter` about restoring: schedules, draws, and whole images with their tokens and masks step by step."""

import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from basicsr.archs.iter_arch import random_mask
from basicsr.models import build_model
from basicsr.models.iter_model import ITERModel
from basicsr.models.token_refinement import (
    GivenNoise,
    Greedy,
    Refinement,
    draw_kept,
    kept_counts,
    masked_share,
    refine_tokens,
)
from basicsr.models.token_tiles import TokenTiles
from basicsr.utils.grid import image_grid
from basicsr.utils.options import parse_options
from reference.case import Case
from reference.checking import checks, tensors
from reference.iter_network_cases import load_weights, within

FIRST = torch.zeros(1, dtype=torch.int64)  # the number of the only image of a batch
SHOWN = 4  # logits of so many tokens are stored
SHEET_STEP = 8  # of the published sheet, each so many rows and columns
_models: dict[str, ITERModel] = {}  # the last one: its 60 million weights are made once for all cases that share them


@checks('iter', 'TokenRefine.gamma_func')
def schedules(case: Case) -> Iterator[tuple]:
    (progress,) = tensors(case, 'r')
    for mode in case.args['modes']:
        yield within(case, f'gamma:{mode}', masked_share(mode, progress))
        for steps in case.args['T']:
            for height, width in case.args['grids']:
                counts = kept_counts(mode, steps, height, width)
                yield within(case, f'num_keep:{mode}:T{steps}:{height}x{width}', torch.tensor(counts))


@checks('iter', 'TokenRefine samplers')
def samplers(case: Case) -> Iterator[tuple]:
    rates, noise = tensors(case, 'rate_noise', 'mask_noise')
    yield within(case, 'rate', masked_share('cosine', rates))
    yield within(case, 'sample_k', random_mask(rates, noise[:, 0])[:, None])
    critic, refiner, before, g_tok, g_mask = tensors(
        case, 'mask_logits', 'token_logits', 'prev_mask', 'g_tok', 'g_mask'
    )
    temperature, count, before = case.args['temp'], case.args['k'], before[:, 0].bool()
    given = GivenNoise(g_tok[None], g_mask.view(1, *before.shape))
    for name, draws, kept, k in (
        ('greedy_mask_noprev', Greedy(), torch.zeros_like(before), count),
        ('greedy_mask_prev', Greedy(), before, count),
        ('greedy_mask_k_too_small', Greedy(), before, 1),
        ('gumbel_mask_prev', given, before, count),
    ):
        yield within(case, name, draw_kept(kept, critic / temperature, k, draws, 0, FIRST)[:, None])
    for name, draws in (('gumbel_tokens', given), ('greedy_tokens', Greedy())):
        yield within(case, name, draws.tokens(refiner / temperature, 0, FIRST))


def restoring_model(case: Case) -> ITERModel:
    """Our model with the case's network and its published settings, greedy."""
    key = json.dumps([case.args['init'], case.spec['fill'], case.name if case.spec['fill'].get('stored') else ''])
    if key not in _models:
        _models.clear()
        _models[key] = built(case)
    model = _models[key]
    steps, token, mask, threshold, schedule = case.args.get('sample_params', [8, 1.0, 1.0, 0.5, 'cosine'])
    model.refinement = Refinement(steps, token, mask, threshold, schedule, sampling='greedy')
    return model


def built(case: Case) -> ITERModel:
    init, refine = case.args['init'], case.args['init'].get('LQ_train_phase') != 'token_pred'
    vqgan = {name: value for name, value in init['vqgan_opt'].items() if name != 'ckpt_path'}
    network = {'type': 'ITER', 'vqgan_opt': vqgan, 'scale_factor': init['scale_factor'], 'refine': refine}
    tree = {'name': 'reference', 'model_type': 'ITERModel', 'scale': init['scale_factor'], 'network_g': network}
    model = build_model(parse_options(tree, is_train=False))
    load_weights(case, model.nets['g'])
    return model


@checks('iter', 'ITER', ('iter_',))
def whole_images(case: Case) -> Iterator[tuple]:
    model, (image,) = restoring_model(case), tensors(case, 'x')
    if case.spec['kind'] == 'iter_tile':
        yield within(case, 'out', published_tiles(model.restore, image, model.scale, **case.args['tile']))
        return
    yield from one_image(case, model, image)


@torch.no_grad()
def one_image(case: Case, model: ITERModel, image: Tensor) -> Iterator[tuple]:
    """By the model's own path where nothing is given from outside, else by the parts that it is made of."""
    nets, how, padded = TokenTiles(model.eval_net('g'), 0, 0, 1), model.refinement, model.extended(image)
    logits = nets.lq_logits(padded)
    tokens = logits.argmax(1)
    yield within(case, 'padded_input_shape', torch.tensor(padded.shape))
    yield within(case, 'lq_logits', logits[:, :SHOWN])
    yield within(case, 'lq_tokens', tokens[:, None])
    if nets.refine_condition is None:
        yield within(case, 'out', model.restore(image))
        return
    noise = [case.inputs.get(name) for name in ('g_tok', 'g_mask')]
    if noise[0] is None:
        draws = Greedy()
    else:
        g_tok, g_mask = map(torch.as_tensor, noise)
        draws = GivenNoise(g_tok, g_mask.view(how.T, *tokens.shape))
    evaluations, refinements = recorded(nets, 'evaluate'), recorded(nets, 'refine')
    refined = refine_tokens(nets, tokens, how, draws, keep_history=True)
    yield within(case, 'crit_prob', evaluations[0].softmax(1)[:, 1:])
    yield within(case, 'executed_steps', torch.arange(refined.starts[0], how.T))
    yield within(case, 'tokens', refined.history)
    yield within(case, 'masks', refined.masks)
    if refinements:
        yield within(case, 'last_logits', refinements[-1][:, :SHOWN])
    sr = nets.decode(refined.tokens)
    height, width = (side * model.scale for side in image.shape[-2:])
    yield within(case, 'out', model.restore(image) if noise[0] is None else sr[..., :height, :width])
    if case.args.get('inter'):
        shown = sheet(*model._process(nets, refined, sr, image))
        yield within(case, 'inter', shown[None, :, ::SHEET_STEP, ::SHEET_STEP])


def recorded(nets: TokenTiles, name: str) -> list[Tensor]:
    """A list to which everything is added that this method gives from now on."""
    results, method = [], getattr(nets, name)

    def record(*args: Tensor) -> Tensor:
        results.append(method(*args))
        return results[-1]

    setattr(nets, name, record)
    return results


def sheet(images: Tensor, masks: Tensor) -> Tensor:
    """The published picture of all steps of one image: (1, 3 * T, h, w) and (1, T, h, w) -> (3, 2 * h, T * w)."""
    rows = torch.cat([images[0].unflatten(0, (-1, 3)), masks[0][:, None].expand(-1, 3, -1, -1)])
    return image_grid(rows, columns=masks.shape[1], padding=0)


def published_tiles(
    restore: Callable[[Tensor], Tensor], image: Tensor, scale: int, tile_size: int = 256, tile_pad: int = 16
) -> Tensor:
    """ITER.test_tile: tiles that see `tile_pad` pixels around them, each restored alone, side by side without blending.

    Ours are blended in every step instead, see TokenTiles.
    """
    height, width = image.shape[-2:]
    rows = []
    for top in range(0, height, tile_size):
        row = []
        for left in range(0, width, tile_size):
            bottom, right = min(top + tile_size, height), min(left + tile_size, width)
            above, before = max(top - tile_pad, 0), max(left - tile_pad, 0)
            seen = image[..., above : bottom + tile_pad, before : right + tile_pad]
            inside = [slice((start - first) * scale, (end - first) * scale) for start, end, first in
                      ((top, bottom, above), (left, right, before))]  # fmt: skip
            row.append(restore(seen)[..., inside[0], inside[1]])
        rows.append(torch.cat(row, -1))
    return torch.cat(rows, -2)
