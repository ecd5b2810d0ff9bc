"""ITERModel: any size whatever the batch, one map of tokens over all tiles, steps that nothing needs left out."""

import copy
from unittest import mock

import pytest
import torch
from iter_fixture import NETWORK, VQGAN, images, options, tiny_model
from torch import Tensor

from basicsr.dry_run import flops
from basicsr.models import build_model, iter_model
from basicsr.models.iter_model import ITERModel
from basicsr.models.restorer import Restorer
from basicsr.models.token_refinement import Refined, kept_counts
from basicsr.models.token_tiles import TokenTiles
from basicsr.utils.checkpoint import CheckpointError
from basicsr.utils.registry import OptionError, UserError

GREEDY = {'refinement': {'sampling': 'greedy', 'threshold': 0.5}}


@pytest.fixture(scope='module')
def model() -> ITERModel:
    return tiny_model(model={'refinement': {'threshold': 0.4}})


def refinements(model: ITERModel, lq: Tensor, **settings) -> list[Refined]:
    """What became of the tokens of each image."""
    found, refine = [], iter_model.refine_tokens

    def kept(*args) -> Refined:
        found.append(refine(*args))
        return found[-1]

    with mock.patch.object(iter_model, 'refine_tokens', kept):
        Restorer(model, **settings)(lq)
    return found


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (7, 3), (16, 32), (17, 13)])
def test_any_size_is_restored(model, size):
    sr = Restorer(model)(images(2, *size))
    assert sr.shape == (2, 3, 4 * size[0], 4 * size[1]) and sr.min() >= 0 and sr.max() <= 1 and sr.std() > 0.01


def test_restoring_is_refining_lqs_tokens_and_decoding_them():
    """With the sides doubled by mirroring, as published code does, and a whole unit more where they fit."""
    lq = images(1, 16, 9)
    for whole_unit, sides in ((True, (32, 16)), (False, (16, 16))):
        model = tiny_model(model=GREEDY | {'whole_unit': whole_unit})
        net = model.nets['g']
        padded = torch.cat([torch.cat([lq, lq.flip(2)], 2)] * 2, 3)
        padded[..., 9:18] = padded[..., :9].flip(3)
        padded = padded[..., : sides[0], : sides[1]]
        assert torch.equal(model.extended(lq), padded)
        with torch.no_grad():
            tokens = net.lq_logits(padded).argmax(1)
            condition = net.critic_condition(tokens)
            good = net.evaluate(tokens, condition).softmax(1)[:, 1] >= 0.5
            assert kept_counts('linear', 8, *tokens.shape[1:])[2] >= good.sum()
            (refined,) = refinements(model, lq)
            assert 0 < refined.starts[0] <= 2
            expected = net.vqgan.decode_indices(refined.tokens)[..., :64, :36]
        assert torch.equal(Restorer(model)(lq), expected)


def test_an_image_is_the_same_in_every_batch_order_and_process(model):
    lq, restorer = images(3), Restorer(model)
    together = restorer(lq)
    for index in (2, 0, 1):
        assert torch.equal(restorer(lq[index : index + 1])[0], together[index])
    assert torch.equal(restorer(lq[[1, 2, 0]]), together[[1, 2, 0]])
    assert torch.equal(Restorer(tiny_model(model={'refinement': {'threshold': 0.4}}))(lq), together)


def test_images_that_are_refined_together_nearly_are_what_they_are_alone(model):
    """As on a GPU. Kernels round otherwise in batches, which no decision here is near to."""
    lq = images(3)
    seeds = model.context(lq)['seeds'].tolist()
    with torch.no_grad():
        together = model._together(lq, seeds, (0, 0, 1), lambda _: None, False)
    torch.testing.assert_close(together, Restorer(model)(lq), atol=1e-4, rtol=0)


def test_another_seed_draws_other_tokens_and_none_are_drawn_without_a_need():
    lq = images(1)
    changed = {seed: Restorer(tiny_model(model={'seed': seed}))(lq) for seed in (0, 1)}
    assert not torch.equal(changed[0], changed[1])
    still = [Restorer(tiny_model(model={'seed': seed} | GREEDY))(lq) for seed in (0, 1)]
    assert torch.equal(*still)
    good = [Restorer(tiny_model(model={'seed': seed, 'refinement': {'threshold': 0.0}}))(lq) for seed in (0, 1)]
    assert torch.equal(*good)


def test_random_state_outside_neither_matters_nor_changes(model):
    before = torch.get_rng_state()
    one = Restorer(model)(images())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(Restorer(model)(images()), one)


def test_a_network_without_token_nets_decodes_the_tokens_of_lq():
    model = tiny_model({'refine': False, 'demask_opt': {}})
    net, lq = model.nets['g'], images(1, 16, 9)
    with torch.no_grad():
        expected = net.vqgan.decode_indices(net.lq_logits(model.extended(lq)).argmax(1))[..., :64, :36]
    assert torch.equal(Restorer(model)(lq), expected)
    whole = tiny_model(model={'refinement': {'threshold': 0.0}})
    whole.nets['g'].load_state_dict(net.state_dict(), strict=False)
    assert torch.equal(Restorer(whole)(lq), expected), 'a token net that finds all good changes nothing'
    with pytest.raises(UserError, match='no steps to show'):
        Restorer(model, maps=True)(lq)


def test_all_tiles_draw_in_one_map_of_tokens(model):
    """Tiles see less than the whole: only the numbers drawn are the same, by the same seed, and the sizes."""
    seen, net = [], copy.copy(model.nets['g'])
    evaluate = net.evaluate

    def noted(candidate: Tensor, condition: Tensor) -> Tensor:
        seen.append(tuple(candidate.shape))
        return evaluate(candidate, condition)

    net.evaluate = noted
    lq, tiles = images(2, 40, 56), TokenTiles(net, 24, 8, 3)
    assert (tiles.tile, tiles.overlap) == (16, 4)
    tokens = torch.randint(0, 12, (2, 24, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert tiles.evaluate(tokens, net.critic_condition(tokens)).shape == (2, 2, 24, 32)
    assert set(seen) == {(6, 16, 16)}, 'three tiles of two images at once'
    settings = {'tile': 24, 'overlap': 8, 'tile_batch': 2}
    (one, two) = refinements(model, lq, **settings)
    assert one.tokens.shape == two.tokens.shape == (1, 24, 32)
    sr = Restorer(model, **settings)(lq)
    assert sr.shape == (2, 3, 160, 224) and torch.equal(sr[1:], Restorer(model, **settings)(lq[1:]))


def test_large_images_are_restored_in_tiles_without_being_told():
    model, lq = tiny_model(), images(1, 290, 12)
    whole, tiled = Restorer(model)(lq), Restorer(model, tile=256, overlap=32)(lq)
    model.max_size = 59
    assert 58**2 < 290 * 12 < 59**2 and not torch.equal(whole, tiled)
    assert torch.equal(Restorer(model)(lq), whole)
    model.max_size = 58
    assert torch.equal(Restorer(model)(lq), tiled)
    model.max_size = 0
    assert torch.equal(Restorer(model)(lq), whole)


def test_where_networks_look_no_further_than_tiles_overlap_tiles_are_the_whole():
    """Each network is replaced by one that looks one token around."""
    torch.manual_seed(0)
    weight = {n: torch.randn(n, n, 3, 3) for n in (12, 16)}
    lq_weight, critic_weight = torch.randn(12, 3, 6, 6), torch.randn(2, 16, 3, 3)
    padded = torch.nn.functional.pad

    class Local:
        scale, size_multiple, token_refine_net = 4, 16, True
        vqgan = mock.Mock(reduction=8, decode_indices=lambda tokens: onehot(tokens)[:, :3].repeat_interleave(8, 2)
                          .repeat_interleave(8, 3))  # fmt: skip

        def lq_logits(self, lq: Tensor) -> Tensor:
            return torch.conv2d(padded(lq, (2, 2, 2, 2)), lq_weight, stride=2)

        def critic_condition(self, tokens: Tensor) -> Tensor:
            return torch.cat([onehot(tokens), onehot(tokens)[:, :4]], 1)

        def refine_condition(self, tokens: Tensor, good: Tensor) -> Tensor:
            return onehot(tokens) * good[:, None]

        def evaluate(self, candidate: Tensor, condition: Tensor) -> Tensor:
            logits = torch.conv2d(onehot(candidate), weight[12], padding=1)[:, :2]
            return logits + torch.conv2d(condition, critic_weight, padding=1)

        def refine(self, condition: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
            return torch.conv2d(condition + onehot(tokens) * kept[:, None], weight[12], padding=1)

    def onehot(tokens: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(tokens, 12).movedim(-1, 1).float()

    model = tiny_model(model={'refinement': {'threshold': 0.7}})
    model.eval_net = lambda _: Local()
    lq = images(1, 50, 70)
    whole = Restorer(model)(lq)
    torch.testing.assert_close(Restorer(model, tile=32, overlap=16, tile_batch=2)(lq), whole)
    assert 0 < refinements(model, lq, tile=32, overlap=16)[0].starts[0] < 8 and whole.unique().tolist() == [0, 1]


def test_the_steps_are_shown_as_images_and_masks_and_equal_maps_are_decoded_once(model):
    lq, net = images(2), model.nets['g']
    starts = [refined.starts[0] for refined in refinements(model, lq)]
    assert min(starts) > 0, 'this is to be a test in which some steps are not taken'
    with mock.patch.object(net.vqgan, 'decode_indices', wraps=net.vqgan.decode_indices) as decode:
        maps = Restorer(model, maps=True)(lq)
    assert decode.call_count == sum(8 - start + 1 for start in starts)
    assert maps.shape == (2, 3 + 8 * 4, 80, 52)
    sr, steps, masks = maps.split([3, 24, 8], 1)
    assert torch.equal(sr, Restorer(model)(lq)) and torch.equal(steps[:, -3:], sr)
    assert masks.unique().tolist() == [0, 1]
    for image, mask, start in zip(steps.unflatten(1, (8, 3)), masks, starts, strict=True):
        for step in range(1, 8):
            assert torch.equal(image[step], image[step - 1]) == (step < start)
            assert (mask[step] >= mask[step - 1]).all()


def test_progress_counts_all_images_to_the_end(model):
    done = []
    Restorer(model)(images(2), lambda *counts: done.append(counts))
    assert [part for part, _ in done] == sorted({*range(1, 21)}) and {total for _, total in done} == {20}


def test_out_of_memory_goes_on_in_tiles(model):
    net, lq = model.nets['g'], images(1, 60, 60)
    decode = net.vqgan.decode_indices

    def guard(indices: Tensor) -> Tensor:
        if indices.shape[-1] > 16:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return decode(indices)

    restorer = Restorer(model, overlap=8)
    with mock.patch.object(net.vqgan, 'decode_indices', guard):
        assert restorer(lq).shape == (1, 3, 240, 240)
    assert restorer.tile == 30


def test_numbers_that_are_none_are_no_picture():
    """The argmax of NaN is a token like any other."""
    model = tiny_model(model={'refinement': {'threshold': 0.4}})
    refine = model.nets['g'].refine
    with (
        mock.patch.object(model.nets['g'], 'refine', lambda *args: refine(*args) * torch.nan),
        pytest.raises(FloatingPointError, match='NaN or infinity'),
    ):
        Restorer(model)(images())


def test_bf16_restores_nearly_the_same():
    model = tiny_model(model={'refinement': {'threshold': 0.0}})
    for parameter in model.nets['g'].vqgan.parameters():
        parameter.data *= 0.7
    exact, half = (Restorer(model, dtype=dtype)(images(2)) for dtype in ('fp32', 'bf16'))
    assert not torch.equal(exact, half) and (exact - half).abs().mean() < 0.02


def test_the_cost_of_all_steps_can_be_counted_without_data(model):
    counts = [flops(model, images(1, height, 16)) for height in (16, 48)]
    assert 1.9 < counts[1] / counts[0] < 2.1 and counts[0] > 0


@pytest.mark.parametrize(
    ('model', 'place', 'text'),
    [
        ({'refinement': {'T': 0}}, 'model:refinement:T', 'greater than 0'),
        ({'refinement': {'treshold': 0.5}}, 'model:refinement:treshold', "did you mean 'threshold'"),
        ({'refinement': {'threshold': 1.5}}, 'model:refinement:threshold', 'less than or equal to 1'),
        ({'refinement': {'schedule': 'exp'}}, 'model:refinement:schedule', 'is not a known schedule'),
        ({'refinement': {'temp_token': 0}}, 'model:refinement:temp_token', 'greater than 0'),
        ({'refinement': {'sampling': 'beam'}}, 'model:refinement:sampling', "'multinomial' or 'greedy'"),
        ({'seed': -1}, 'model:seed', 'greater than or equal to 0'),
    ],
)
def test_mistakes_in_the_option_file_are_said_with_their_place(model, place, text):
    with pytest.raises(OptionError) as error:
        options(model=model)
    assert place in str(error.value) and text in str(error.value)


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(OptionError, match='ITERModel works with ITER, not with ATD'):
        build_model(options().model_copy(update={'networks': {'g': {'type': 'ATD', 'upscale': 4}}}))
    with pytest.raises(OptionError, match='should be the scale of the file, 2'):
        build_model(options(scale=2))
    with pytest.raises(OptionError, match='no token nets'):
        build_model(options({'refine': False}, model=GREEDY))


# ---- the two files


def files(folder, model: ITERModel, with_vqgan: bool) -> dict[str, str]:
    """A model's weights as the publishers distribute them: the VQGAN in a file of its own."""
    net = model.nets['g']
    state = net.to_published(net.state_dict())
    state = {name: value for name, value in state.items() if with_vqgan or not name.startswith('vqgan.')}
    torch.save({'params': state}, folder / 'ITER.pth')
    torch.save({'params': net.vqgan.to_published(net.vqgan.state_dict())}, folder / 'swinvqgan.pth')
    return {
        'pretrain_network_g': str(folder / 'ITER.pth'),
        'pretrain_network_hq': str(folder / 'swinvqgan.pth'),
    }


@pytest.mark.parametrize('with_vqgan', [False, True], ids=['apart', 'in both'])
def test_published_files_load_and_the_vqgan_completes_the_other(model, with_vqgan, tmp_path):
    paths, ours = files(tmp_path, model, with_vqgan), model.nets['g'].state_dict()
    loaded = build_model(options(path=paths)).nets['g'].state_dict()
    assert loaded.keys() == ours.keys() and all(torch.equal(loaded[name], ours[name]) for name in ours)
    alone = build_model(options(path={'pretrain_network_hq': paths['pretrain_network_hq']})).nets['g'].state_dict()
    assert all(
        torch.equal(alone[name], ours[name]) == name.startswith('vqgan.') for name in ours if ours[name].ndim > 1
    )


def test_a_file_without_a_vqgan_needs_that_of_one(model, tmp_path):
    paths = files(tmp_path, model, with_vqgan=False)
    del paths['pretrain_network_hq']
    with pytest.raises(CheckpointError, match=r'ITER.pth: holds no VQGAN .*path:pretrain_network_hq'):
        build_model(options(path=paths))


def test_a_vqgan_of_half_precision_is_the_same_one(model, tmp_path):
    paths = files(tmp_path, model, with_vqgan=True)
    content = torch.load(paths['pretrain_network_g'])
    torch.save({'params': {name: value.half() for name, value in content['params'].items()}}, tmp_path / 'ITER.pth')
    build_model(options(path=paths))


def test_a_wrong_pairing_is_refused_with_the_reason(model, tmp_path):
    paths = files(tmp_path, model, with_vqgan=True)
    other = tiny_model()
    other.nets['g'].vqgan.quantize.embedding.weight.data[3, 5] += 0.25
    torch.save({'params': other.nets['g'].vqgan.state_dict()}, tmp_path / 'swinvqgan.pth')
    with pytest.raises(CheckpointError) as error:
        build_model(options(path=paths))
    for part in ('ITER.pth was made with another VQGAN than', 'swinvqgan.pth: vqgan.quantize.embedding.weight', '0.25'):
        assert part in str(error.value)


@pytest.mark.parametrize('with_vqgan', [False, True], ids=['apart', 'in both'])
def test_a_vqgan_of_another_size_is_refused_with_the_shapes(model, with_vqgan, tmp_path):
    """Whichever of the two files is the one that the option file does not describe."""
    paths = files(tmp_path, model, with_vqgan)
    larger = {**NETWORK, 'vqgan_opt': {**VQGAN, 'n_embed': 20}}
    (tmp_path / 'other').mkdir()
    others = files(tmp_path / 'other', tiny_model(larger), with_vqgan)
    shapes = r'quantize.embedding.weight \(20, 16\) instead of \(12, 16\)'
    with pytest.raises(CheckpointError, match=rf'other/swinvqgan.pth: belongs to another network .*{shapes}'):
        build_model(options(path={**paths, 'pretrain_network_hq': others['pretrain_network_hq']}))
    shapes = r'\(20, 16\) instead of \(12, 16\)' if with_vqgan else r'code_emb.weight \(16, 20, 1, 1\) instead of'
    with pytest.raises(CheckpointError, match=rf'other/ITER.pth.*{shapes}'):
        build_model(options(path={**paths, 'pretrain_network_g': others['pretrain_network_g']}))


def test_loading_what_fits_only_still_wants_the_right_vqgan(tmp_path):
    """As ITER_x2.pth begins the training for x4; of the LQ encoder only some layers fit."""
    first = tiny_model({'scale_factor': 2})
    paths = files(tmp_path, first, with_vqgan=True) | {'strict_load': False}
    ours, theirs = build_model(options(path=paths)).nets['g'].state_dict(), first.nets['g'].state_dict()
    differing = [
        k for k in ours if ours[k].shape != theirs.get(k, ours[k][None]).shape or not torch.equal(ours[k], theirs[k])
    ]
    assert differing and all(name.startswith('lq_encoder.model.') for name in differing)
    larger = {**NETWORK, 'vqgan_opt': {**VQGAN, 'n_embed': 20}}
    other = files(tmp_path, tiny_model(larger), with_vqgan=True)
    with pytest.raises(CheckpointError, match=r'swinvqgan.pth: belongs to another network'):
        build_model(options(path=other | {'strict_load': False}))
