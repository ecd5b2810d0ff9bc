"""S3DiffModel: any size and scale whatever the batch, as the published steps written down; SD-Turbo's weights."""

import copy
import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from s3diff_fixture import ESTIMATOR, NETWORK, TINY_UNET, images, options, prompts_file, randomise, sd_turbo, tiny_model
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from basicsr.dry_run import flops
from basicsr.models import build_model
from basicsr.models.prompts import NEGATIVE, POSITIVE, read_prompts
from basicsr.models.restorer import Restorer
from basicsr.models.s3diff_model import S3DiffModel
from basicsr.utils.checkpoint import CheckpointError, write_checkpoint
from basicsr.utils.color_fix import wavelet_fix
from basicsr.utils.registry import OptionError, UserError

TILES = {'latent_tile': 8, 'latent_overlap': 2, 'latent_tile_batch': 2}


@pytest.fixture(scope='module')
def model() -> S3DiffModel:
    return tiny_model()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (7, 3), (16, 32), (17, 13)])
def test_any_size_is_restored(model, size):
    sr = Restorer(model)(images(2, *size))
    assert sr.shape == (2, 3, 4 * size[0], 4 * size[1]) and sr.min() >= 0 and sr.max() <= 1
    assert sr.std() > 0.01 and not torch.equal(sr[0], sr[1])


@pytest.mark.parametrize('scale', [1, 2, 3, 8])
def test_any_scale_is_restored(scale):
    assert Restorer(tiny_model(scale=scale))(images(1, 9, 7)).shape == (1, 3, 9 * scale, 7 * scale)


def test_restoring_is_the_published_steps(model):
    """s3diff.md 3.1, with two separate passes and in the order of that list."""
    lq, net = images(1, 20, 14), model.nets['g']
    noise = model.noise(torch.zeros(1, 3, 80, 64), model.context(lq)['seeds'])
    positive, negative = model.prompts
    with torch.no_grad():
        up = F.interpolate(lq, scale_factor=4, mode='bilinear', align_corners=False)
        x = F.pad((2 * up - 1).clamp(-1, 1), (0, 8, 0, 0), mode='reflect')
        with net.modulated(net.modulation(model.nets['de'](lq))):
            mean, log_variance = net.vae.quant_conv(net.vae.encoder(x)).chunk(2, 1)
            z = (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise) * 0.18215
            eps = [net.unet(z, 999, prompt).sample for prompt in (negative, positive)]
            abar = 0.00466009508818388
            x0 = (z - (1 - abar) ** 0.5 * (eps[0] + 1.07 * (eps[1] - eps[0]))) / abar**0.5
            y = net.vae.decoder(net.vae.post_quant_conv(x0 / 0.18215)).clamp(-1, 1)[..., :80, :56] * 0.5 + 0.5
    torch.testing.assert_close(Restorer(model)(lq), wavelet_fix(y, up).clamp(0, 1), atol=1e-3, rtol=0)


def test_an_image_is_the_same_in_every_batch_order_and_process(model):
    lq, restorer = images(3), Restorer(model)
    together = restorer(lq)
    for index in (2, 0, 1):
        assert torch.equal(restorer(lq[index : index + 1])[0], together[index])
    assert torch.equal(restorer(lq[[1, 2, 0]]), together[[1, 2, 0]])
    assert torch.equal(Restorer(tiny_model())(lq), together)


def test_images_that_are_restored_together_are_nearly_what_they_are_alone(model):
    """As on a GPU: each with its own scores, noise and modulation, in tiles of latents and of the autoencoder."""
    lq = images(3, 40, 20)
    lq[1] *= 0.3
    for changes in (
        {},
        TILES | {'vae_encoder_tile': 64, 'vae_decoder_tile': 8},
    ):
        other = tiny_model(changes)
        context = other.context(lq)
        with torch.no_grad():
            together = other._restored(lq, context['score'], context['seeds'])
        torch.testing.assert_close(together.clamp(0, 1), Restorer(other)(lq), atol=2e-3, rtol=0)


def test_another_seed_draws_another_latent_and_the_mean_needs_none():
    lq = images()
    drawn = [Restorer(tiny_model({'seed': seed}))(lq) for seed in (0, 1)]
    assert not torch.equal(*drawn)
    means = [Restorer(tiny_model({'seed': seed, 'sample_posterior': False}))(lq) for seed in (0, 1)]
    assert torch.equal(*means) and not torch.equal(means[0], drawn[0])


def test_random_state_outside_neither_matters_nor_changes(model):
    before = torch.get_rng_state()
    one = Restorer(model)(images())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(Restorer(model)(images()), one)


def test_scores_of_the_whole_image_hold_for_its_tiles(model):
    lq, seen, modulation = images(1, 40, 20), [], model.nets['g'].modulation

    def kept(score: Tensor):
        seen.append(score)
        return modulation(score)

    with mock.patch.object(model.nets['g'], 'modulation', kept):
        sr = Restorer(model, tile=16, overlap=4)(lq)
    assert sr.shape == (1, 3, 160, 80) and len(seen) == 6
    assert all(torch.equal(score, model.scores(lq)) for score in seen)
    assert not torch.equal(model.scores(lq), model.scores(lq[..., :16, :16]))


def test_the_image_follows_its_scores(model):
    lq, seeds = images(), torch.tensor([0])
    sr = [model.restore(lq, torch.tensor([score]), seeds) for score in ([0.1, 0.9], [0.9, 0.1])]
    assert (sr[0] - sr[1]).abs().max() > 1e-3


def test_guidance_of_one_sees_the_positive_prompt_only():
    lq, counts = images(), []
    for guidance in (1.0, 1.07):
        model = tiny_model({'guidance_scale': guidance})
        denoise = model.nets['g'].denoise
        with mock.patch.object(model.nets['g'], 'denoise', lambda z, p, f=denoise: counts.append(len(z)) or f(z, p)):
            Restorer(model)(lq)
    assert counts == [1, 2]
    swapped = tiny_model({'guidance_scale': 0.0})
    swapped.embeddings = swapped.embeddings._replace(negative=swapped.embeddings.positive)
    one = Restorer(tiny_model({'guidance_scale': 1.0}))(lq)
    torch.testing.assert_close(Restorer(swapped)(lq), one, atol=1e-3, rtol=0)


def test_the_colour_fix_has_a_strength_and_takes_colours_from_the_enlarged_lq():
    lq = images()
    results = {s: Restorer(tiny_model({'color_strength': s}))(lq) for s in (0.0, 1.0)}
    plain = Restorer(tiny_model({'color_fix': 'none'}))(lq)
    up = F.interpolate(lq, scale_factor=4, mode='bilinear', align_corners=False)
    assert torch.equal(results[0.0], plain)
    assert (results[1.0] - up).mean((2, 3)).abs().max() < (plain - up).mean((2, 3)).abs().max()
    assert not torch.equal(Restorer(tiny_model({'color_fix': 'adain'}))(lq), results[1.0])


def test_bicubic_enlargement_is_clamped_where_it_overshoots():
    lq = (images() > 0.5).float()
    up = tiny_model({'upsample': 'bicubic'}).enlarged(lq)
    expected = F.interpolate(lq, scale_factor=4, mode='bicubic', align_corners=False)
    assert expected.max() > 1 and torch.equal(up, expected.clamp(0, 1))


def test_bf16_is_near(model):
    lq = images()
    exact, near = (Restorer(model, dtype=dtype)(lq) for dtype in ('fp32', 'bf16'))
    assert 0 < (exact - near).abs().mean() < 0.1 * exact.std()


@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
def test_merged_weights_give_the_same(dtype):
    lq = images(2, 20, 20)
    folded, merged = (Restorer(tiny_model(TILES | {'merge': how}), dtype=dtype)(lq) for how in ('never', 'always'))
    assert (folded - merged).abs().mean() < (1e-5 if dtype == 'fp32' else 0.02)


@pytest.mark.parametrize(
    ('settings', 'merges'),
    [
        ({'merge': 'auto'}, False),
        (TILES | {'merge': 'auto'}, False),  # on a CPU
        (TILES | {'merge': 'never'}, False),
        ({'merge': 'always'}, True),
    ],
)
def test_weights_are_merged_where_that_is_asked_for(settings, merges):
    model = tiny_model(settings)
    net, lq = model.nets['g'], images(2, 20, 20)
    with mock.patch.object(type(net), 'merged', autospec=True, side_effect=type(net).merged) as used:
        Restorer(model)(lq)
        assert used.call_count == (2 if merges else 0)
        context = model.context(lq)
        model._restored(lq, context['score'], context['seeds'])
        assert used.call_count == (2 if merges else 0), 'images cannot share weights'


@pytest.mark.parametrize(('settings', 'merges'), [(TILES, True), (TILES | {'merge': 'never'}, False), ({}, False)])
def test_devices_whose_layers_do_not_merge_do_so_where_the_unet_is_called_often(settings, merges):
    model, (latent, two) = tiny_model(settings), (torch.empty(count, 4, 16, 16, device='meta') for count in (1, 2))
    assert model._merges(latent) == merges and not model._merges(two)


def test_a_network_that_has_restored_in_bf16_can_be_copied():
    model = tiny_model()
    near = Restorer(model, dtype='bf16')(images())
    model.nets['g'] = copy.deepcopy(model.nets['g'])
    assert torch.equal(Restorer(model, dtype='bf16')(images()), near)


def test_its_work_can_be_counted(model):
    one, more = (flops(model, images(1, side, side)) for side in (16, 32))
    assert 0 < one < more


# ---- SD-Turbo's own weights, and files


def on_sd_turbo(model: dict | None = None, folder: Path | None = None, **sections) -> S3DiffModel:
    settings = {'sd_path': str(folder or sd_turbo())} | (model or {})
    return build_model(options(settings, **sections))


def test_what_network_g_has_of_sd_turbo_is_that_of_the_folder():
    state = on_sd_turbo().nets['g'].state_dict()
    for part in ('unet', 'vae'):
        published = load_file(sd_turbo() / part / 'diffusion_pytorch_model.safetensors')
        for name, value in published.items():
            module, _, leaf = name.rpartition('.')
            there = state.get(f'{part}.{name}', state.get(f'{part}.{module}.base_layer.{leaf}'))
            assert torch.equal(there, value), name


def test_prompts_are_those_of_the_folders_text_encoder(cache):
    model = on_sd_turbo({'prompt_embeddings': None, 'positive_prompt': 'the sky', 'negative_prompt': 'the'})
    assert model.prompts.positive.shape == model.prompts.negative.shape == (1, 77, 32)
    (file,) = (cache / 'prompts').iterdir()
    assert torch.equal(read_prompts(file, 'the sky', 'the').negative, model.prompts.negative)
    assert Restorer(model)(images()).isfinite().all()


def test_checkpoints_hold_what_s3diff_adds_and_restore_the_same_on_the_same_folder(tmp_path):
    model = on_sd_turbo()
    randomise(model)
    contents = model.networks()
    assert contents.keys() == {'g', 'de'} and contents['g']['params'].keys() == model.nets['g'].own_names()
    for label, file in (('g', 'net_g.pth'), ('de', 'net_de.pth')):
        write_checkpoint(tmp_path / file, contents[label])
    path = {'pretrain_network_g': str(tmp_path / 'net_g.pth'), 'pretrain_network_de': str(tmp_path / 'net_de.pth')}
    free = {key: value for key, value in NETWORK.items() if not key.startswith('rank')}
    for network in (NETWORK, free):
        again = on_sd_turbo(path=path, network_g=network)
        assert again.networks().keys() == {'g'}, 'the estimator has a file'
        assert torch.equal(Restorer(again)(images()), Restorer(model)(images())), 'ranks are those of the file'
    resumed = on_sd_turbo()
    resumed.load_networks(contents, ['g'])
    assert torch.equal(resumed.nets['g'].state_dict()['W'], model.nets['g'].W)


def test_a_file_of_published_layout_and_ranks_is_read(tmp_path):
    model = on_sd_turbo()
    randomise(model)
    torch.save(model.nets['g'].to_published(model.networks()['g']['params']), tmp_path / 's3diff.pkl')
    torch.save(model.nets['de'].state_dict(), tmp_path / 'de_net.pth')
    path = {f'pretrain_network_{k}': str(tmp_path / f) for k, f in (('g', 's3diff.pkl'), ('de', 'de_net.pth'))}
    again = on_sd_turbo(path=path, network_g={k: v for k, v in NETWORK.items() if not k.startswith('rank')})
    assert torch.equal(Restorer(again)(images()), Restorer(model)(images()))


def test_a_folder_of_another_shape_is_refused_with_the_first_difference(tmp_path):
    with pytest.raises(UserError, match=r'unet/config.json: layers_per_block is 1, network_g: unet has 2 \(network_g'):
        on_sd_turbo(network_g=NETWORK | {'unet': TINY_UNET | {'layers_per_block': 2}})
    folder = shutil.copytree(sd_turbo(), tmp_path / 'sd')
    config = folder / 'vae' / 'config.json'
    config.write_text(json.dumps(json.loads(config.read_text()) | {'latent_channels': 16}))
    with pytest.raises(UserError, match=f'{config}: latent_channels is 16, network_g: vae has 4'):
        on_sd_turbo(folder=folder)


def test_a_folder_with_other_or_damaged_weights_is_refused(tmp_path):
    folder = shutil.copytree(sd_turbo(), tmp_path / 'sd')
    file = folder / 'vae' / 'diffusion_pytorch_model.safetensors'
    shutil.copy(folder / 'unet' / 'diffusion_pytorch_model.safetensors', file)
    with pytest.raises(CheckpointError, match=f'{file}: this is not the vae of this configuration: .* missing'):
        on_sd_turbo(folder=folder)
    file.write_bytes(b'nothing')
    with pytest.raises(CheckpointError, match=f'{file}: damaged'):
        on_sd_turbo(folder=folder)


def test_a_missing_file_of_the_folder_is_named(tmp_path):
    folder = shutil.copytree(sd_turbo(), tmp_path / 'sd', ignore=shutil.ignore_patterns('text_encoder', 'tokenizer'))
    assert on_sd_turbo(folder=folder).folder == folder, 'a file of embeddings needs no text encoder'
    with pytest.raises(UserError, match=f'{folder / "text_encoder" / "config.json"}: no such file'):
        on_sd_turbo({'prompt_embeddings': None}, folder)


def test_without_sd_turbo_it_is_said_that_weights_are_random(caplog):
    tiny_model()
    assert caplog.messages == ['no sd_path: what network_g has of SD-Turbo is random']


@pytest.mark.parametrize(
    ('model', 'sections', 'words'),
    [
        ({'prompt_embeddings': None}, {}, 'prompts need sd_path, or prompt_embeddings'),
        ({'latent_tile': 32}, {}, 'should be less than latent_tile, 32'),
        ({'vae_encoder_tile': 100}, {}, 'should be a multiple of 32, got 100'),
        ({'color_strength': 1.5}, {}, 'less than or equal to 1'),
        ({'color_fix': 'wave'}, {}, "'none', 'wavelet' or 'adain'"),
        ({'guidance': 1.0}, {}, "did you mean 'guidance_scale'"),
        ({}, {'network_g': ESTIMATOR}, 'works with S3Diff, not with DEResNet'),
        ({'positive_prompt': 'sharp'}, {}, "its positive_prompt is .* the option file asks for 'sharp'"),
        ({'sd_path': 'nowhere'}, {}, 'nowhere: no such folder, and no name on the hub'),
    ],
)
def test_what_does_not_fit_is_said(model, sections, words):
    with pytest.raises(UserError, match=words):
        build_model(options(model, **sections))


def test_a_missing_estimator_and_embeddings_of_another_width_are_said():
    tree = options()
    with pytest.raises(OptionError, match="section 'network_de' is missing"):
        build_model(tree.model_copy(update={'networks': {'g': NETWORK}}))
    wider = NETWORK | {'unet': TINY_UNET | {'cross_attention_dim': 48}}
    with pytest.raises(UserError, match=f'{prompts_file()}: embeddings of 32 channels, network_g: unet takes 48'):
        build_model(options(network_g=wider))


def test_prompts_are_the_published_ones():
    """s3diff.md 4.2."""
    assert POSITIVE.startswith('A high-resolution, 8K, ultra-realistic image') and POSITIVE.endswith('lighting.')
    assert NEGATIVE.startswith('oil painting, cartoon, blur') and NEGATIVE.endswith('low resolution, oversmooth')
