"""The one path that restores: any size, tiles, ensembles, little memory, narrow number formats."""

import logging

import pytest
import torch
from torch.nn import functional as F

from basicsr.models.restorer import Restorer, automatic_dtype, pad_to_multiple
from basicsr.utils.registry import UserError


class FakeModel:
    """Nearest-neighbour enlargement of a local mean: looks `radius` pixels around each pixel."""

    scale, size_multiple, radius = 2, 1, 0
    device = torch.device('cpu')

    def __init__(self):
        self.shapes = []

    def context(self, lq):
        return {}

    def restore(self, lq):
        self.shapes.append(tuple(lq.shape))
        assert all(side % self.size_multiple == 0 for side in lq.shape[-2:])
        padded = F.pad(lq, [self.radius] * 4, mode='replicate') if self.radius else lq
        return F.interpolate(F.avg_pool2d(padded, 2 * self.radius + 1, 1), scale_factor=self.scale, mode='nearest')


class FullMemory(FakeModel):
    """Has room for `room` pixels at once."""

    def __init__(self, room, error=None):
        super().__init__()
        self.room, self.error = room, error or torch.OutOfMemoryError('CUDA out of memory')

    def restore(self, lq):
        if lq[:, 0].numel() > self.room:
            raise self.error
        return super().restore(lq)


class Sharpened(FakeModel):
    """Different for every symmetry of the image, and beyond [0, 1]."""

    def restore(self, lq):
        return super().restore(lq) + lq.new_tensor([-0.2, 0.3]).repeat(lq.shape[-1])


def test_tiles_equal_the_whole_image():
    lq, model = torch.rand(1, 3, 37, 29), FakeModel()
    torch.testing.assert_close(Restorer(model, tile=16, overlap=4)(lq), Restorer(model)(lq))


@pytest.mark.parametrize('size', [(1, 1), (1, 13), (7, 1), (31, 17), (32, 16)])
@pytest.mark.parametrize('multiple', [1, 4, 16])
@pytest.mark.parametrize('tile', [0, 12])
def test_any_size_is_padded_and_cropped_to_its_scale(size, multiple, tile):
    model = FakeModel()
    model.size_multiple = multiple
    lq = torch.rand(2, 3, *size)
    sr = Restorer(model, tile=tile)(lq)
    torch.testing.assert_close(sr, F.interpolate(lq, scale_factor=2, mode='nearest'))


def test_padding_mirrors_and_repeats():
    image = torch.arange(3.0).reshape(1, 1, 1, 3)
    assert pad_to_multiple(image, 8)[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert pad_to_multiple(image, 8).shape == (1, 1, 8, 8)
    assert pad_to_multiple(image, 1) is image


def test_the_result_is_clamped_float32_on_the_device_of_lq():
    sr = Restorer(Sharpened())(torch.rand(1, 3, 8, 8))
    assert sr.dtype == torch.float32 and sr.min() == 0 and sr.max() == 1
    assert not sr.requires_grad


def test_the_ensemble_is_the_mean_over_the_eight_symmetries():
    lq, model = torch.rand(1, 3, 6, 10) * 0.2 + 0.4, Sharpened()
    expected = []
    for turns in range(4):
        for mirrored in (False, True):
            image = torch.rot90(lq.flip(-1) if mirrored else lq, turns, (-2, -1))
            result = torch.rot90(model.restore(image), -turns, (-2, -1))
            expected.append(result.flip(-1) if mirrored else result)
    torch.testing.assert_close(Restorer(model, self_ensemble=True)(lq), torch.stack(expected).mean(0))
    tiled = Restorer(FakeModel(), tile=4, overlap=2, self_ensemble=True)
    torch.testing.assert_close(tiled(lq), FakeModel().restore(lq))


def test_out_of_memory_halves_the_tile_remembers_and_says_so_once(caplog):
    model = FullMemory(room=40 * 40)
    restorer, lq = Restorer(model, overlap=8), torch.rand(1, 3, 100, 90)
    with caplog.at_level(logging.WARNING):
        sr = restorer(lq)
    assert restorer.tile == 25
    torch.testing.assert_close(sr, F.interpolate(lq, scale_factor=2, mode='nearest'))
    messages = [record.message for record in caplog.records]
    assert messages == [
        'out of memory with a whole image of 100 pixels a side: going on with tiles of 50',
        'out of memory with tiles of 50 pixels: going on with tiles of 25',
    ]
    caplog.clear()
    restorer(lq)
    assert not caplog.records and set(model.shapes) == {(1, 3, 25, 25)}


def test_out_of_memory_halves_the_batch_of_tiles_first():
    model = FullMemory(room=2 * 32 * 32)
    restorer = Restorer(model, tile=32, overlap=8, tile_batch=8)
    restorer(torch.rand(1, 3, 100, 90))
    assert (restorer.tile, restorer.tile_batch) == (32, 2)


@pytest.mark.parametrize(
    'error',
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError('MPS backend out of memory (MPS allocated: 5 GB)'),
    ],
)
def test_every_way_to_run_out_of_memory_is_known(error):
    restorer = Restorer(FullMemory(room=60 * 60, error=error))
    restorer(torch.rand(1, 3, 100, 100))
    assert restorer.tile == 50


def test_below_the_smallest_tile_the_error_is_clear():
    restorer = Restorer(FullMemory(room=10))
    with pytest.raises(MemoryError, match='out of memory even with tiles of 25 pixels on cpu'):
        restorer(torch.rand(1, 3, 100, 100))


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match='a real fault'):
        Restorer(FullMemory(room=1, error=RuntimeError('a real fault')))(torch.rand(1, 3, 8, 8))


class Overflowing(FakeModel):
    """A product beyond fp16's range, as SwinIR-like networks have."""

    def restore(self, lq):
        weight = torch.full((3, 3, 1, 1), 1e5)
        return super().restore(F.conv2d(F.conv2d(lq, weight), weight * 1e-10 / 9))


def test_fp16_overflow_goes_on_in_a_wider_dtype(caplog):
    lq = torch.full((1, 3, 8, 8), 0.5)
    restorer = Restorer(Overflowing(), dtype='fp16')
    with caplog.at_level(logging.WARNING):
        sr = restorer(lq)
    torch.testing.assert_close(sr, Restorer(Overflowing())(lq), atol=0.01, rtol=0)
    assert restorer.dtype == 'bf16'
    assert [record.message for record in caplog.records] == ['fp16 overflows in this network: going on in bf16']


def test_a_network_of_nan_is_an_error_and_never_a_black_picture():
    model = FakeModel()
    model.restore = lambda lq: F.interpolate(lq * float('nan'), scale_factor=2)
    with pytest.raises(FloatingPointError, match='NaN or infinity'):
        Restorer(model, dtype='bf16')(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize('dtype', ['bf16', 'fp16'])
def test_narrow_dtypes_compute_in_them_and_return_float32(dtype):
    seen = []

    class Convolving(FakeModel):
        def restore(self, lq):
            seen.append(F.conv2d(lq, torch.eye(3)[..., None, None]).dtype)
            return super().restore(lq)

    assert Restorer(Convolving(), dtype=dtype)(torch.rand(1, 3, 8, 8)).dtype == torch.float32
    assert seen == [{'bf16': torch.bfloat16, 'fp16': torch.float16}[dtype]]


class Contextual(FakeModel):
    """Adds each image's own mean, which no tile knows."""

    def context(self, lq):
        return {'mean': lq.mean((1, 2, 3)), 'name': 'all'}

    def restore(self, lq, mean, name):
        assert name == 'all' and len(mean) == len(lq)
        return super().restore(lq) + mean[:, None, None, None]


def test_tiles_share_the_context_of_their_image():
    lq = torch.rand(2, 3, 30, 22) * torch.tensor([0.2, 0.5])[:, None, None, None]
    whole = Restorer(Contextual())(lq)
    torch.testing.assert_close(Restorer(Contextual(), tile=16, overlap=4, tile_batch=3)(lq), whole)


def test_progress_counts_tiles_of_all_symmetries():
    steps = []
    Restorer(FakeModel(), tile=16, overlap=0, self_ensemble=True)(
        torch.rand(1, 3, 32, 16), progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(step, 16) for step in range(1, 17)]


@pytest.mark.parametrize('settings', [{'tile': -1}, {'overlap': -1}, {'tile_batch': 0}, {'dtype': 'int8'}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r'got|not a known'):
        Restorer(FakeModel(), **settings)


def test_auto_is_fp32_on_the_cpu():
    assert automatic_dtype(torch.device('cpu')) == Restorer(FakeModel(), dtype='auto').dtype == 'fp32'


# ---- colours


class Tinted(FakeModel):
    """Too red and too dark everywhere, with a map of the same size."""

    def restore(self, lq):
        return 0.5 * super().restore(lq) + lq.new_tensor([0.4, 0.1, 0.0])[:, None, None]

    def restore_with_maps(self, lq):
        return torch.cat([self.restore(lq), torch.full_like(super().restore(lq)[:, :1], 0.25)], 1)


@pytest.mark.parametrize('tile', [0, 16])
def test_the_colours_of_the_input_come_back_whatever_the_tiles(tile):
    lq = torch.rand(2, 3, 40, 28)
    enlarged = F.interpolate(lq, scale_factor=2, mode='bilinear')
    sr = Restorer(Tinted(), tile=tile, overlap=0, color_fix='adain')(lq)
    torch.testing.assert_close(sr.mean((2, 3)), enlarged.mean((2, 3)), atol=0.01, rtol=0)  # it is clamped after that
    torch.testing.assert_close(sr.std((2, 3)), enlarged.std((2, 3)), atol=0.02, rtol=0)
    tinted, half, whole = (Restorer(Tinted(), color_fix='wavelet', color_strength=s)(lq) for s in (0, 0.5, 1))
    assert torch.equal(tinted, Restorer(Tinted())(lq))
    torch.testing.assert_close(whole.mean((2, 3)), enlarged.mean((2, 3)), atol=0.01, rtol=0)
    torch.testing.assert_close(half, (tinted + whole) / 2, atol=0.05, rtol=0)


def test_maps_keep_their_values():
    sr = Restorer(Tinted(), color_fix='wavelet', maps=True)(torch.rand(1, 3, 20, 24))
    assert sr.shape == (1, 4, 40, 48) and torch.equal(sr[:, 3:], torch.full_like(sr[:, 3:], 0.25))


@pytest.mark.parametrize(
    ('settings', 'fault'),
    [
        ({'color_strength': 0.5}, 'color_strength 0.5 is of a color_fix, and there is none'),
        ({'color_fix': 'wavlet'}, "'wavlet' is not a known colour fix; did you mean 'wavelet'"),
        ({'color_fix': 'adain', 'color_strength': 1.5}, 'color_strength is from 0 to 1, got 1.5'),
    ],
)
def test_a_colour_fix_that_does_not_exist_is_refused(settings, fault):
    with pytest.raises(UserError, match=fault):
        Restorer(FakeModel(), **settings)
