"""Pictures of every kind come in, and keep their kind on the way out."""

import io
import logging

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch.nn import functional as F

from basicsr.utils.image_codec import decode, encode
from basicsr.utils.picture import Picture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
GRAY_PROFILE = SRGB[:16] + b'GRAY' + SRGB[20:]


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def enlarged(image: torch.Tensor, scale: int = 2) -> torch.Tensor:
    return F.interpolate(image, scale_factor=scale, mode='nearest')


def pillow_file(path, image: Image.Image, **options):
    image.save(path, **options)
    return path


def palette(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image).quantize(16)


KINDS = {
    'one_bit.png': (lambda: Image.fromarray(noise(6, 8)).convert('1'), True, False),
    'gray.png': (lambda: Image.fromarray(noise(6, 8)), True, False),
    'gray.jpg': (lambda: Image.fromarray(noise(6, 8)), True, False),
    'gray_alpha.png': (lambda: Image.fromarray(noise(6, 8, 2)), True, True),
    'palette.png': (lambda: palette(noise(6, 8, 3)), False, False),
    'rgb.png': (lambda: Image.fromarray(noise(6, 8, 3)), False, False),
    'rgb.jpg': (lambda: Image.fromarray(noise(6, 8, 3)), False, False),
    'rgb.webp': (lambda: Image.fromarray(noise(6, 8, 3)), False, False),
    'rgb.bmp': (lambda: Image.fromarray(noise(6, 8, 3)), False, False),
    'rgb.tif': (lambda: Image.fromarray(noise(6, 8, 3)), False, False),
    'rgba.png': (lambda: Image.fromarray(noise(6, 8, 4)), False, True),
    'rgba.webp': (lambda: Image.fromarray(noise(6, 8, 4)), False, True),
    'rgba.tif': (lambda: Image.fromarray(noise(6, 8, 4)), False, True),
    'cmyk.jpg': (lambda: Image.fromarray(noise(6, 8, 4), 'CMYK'), False, False),
    'cmyk.tif': (lambda: Image.fromarray(noise(6, 8, 4), 'CMYK'), False, False),
}


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('name', KINDS)
def test_every_eight_bit_kind_is_read_as_pillow_reads_it_and_keeps_its_kind(tmp_path, name):
    make, gray, alpha = KINDS[name]
    path = pillow_file(tmp_path / name, make())
    picture = Picture.read(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert('RGBA'), np.float32) / 255
    visible = expected[..., 3] > 0
    assert picture.lq.shape == (1, 3, 6, 8) and picture.lq.dtype == torch.float32
    np.testing.assert_allclose(picture.lq[0].permute(1, 2, 0)[visible], expected[..., :3][visible], atol=1e-6)
    assert (picture.gray, picture.deep, picture.alpha is not None) == (gray, False, alpha)
    if alpha:
        np.testing.assert_allclose(picture.alpha[0, 0], expected[..., 3], atol=1e-6)
    picture.save(tmp_path / f'out_{name}', enlarged(picture.lq))
    result = decode((tmp_path / f'out_{name}').read_bytes(), name)
    assert result.array.shape == (12, 16, (1 if gray else 3) + alpha)
    assert result.array.dtype == np.uint8


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_sixteen_bits_survive_exactly(tmp_path, suffix, channels):
    image = noise(6, 8, channels, dtype=np.uint16)
    if channels == 4:
        image[..., 3] = 65535
    bgr = image[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]]
    assert cv2.imwrite(str(tmp_path / f'in{suffix}'), bgr)
    picture = Picture.read(tmp_path / f'in{suffix}')
    assert picture.deep and picture.gray == (channels == 1)
    picture.save(tmp_path / f'out{suffix}', enlarged(picture.lq))
    result = cv2.imread(str(tmp_path / f'out{suffix}'), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(result.reshape(12, 16, -1), bgr.repeat(2, 0).repeat(2, 1))


def test_sixteen_bit_gray_with_alpha_survives(tmp_path):
    image = noise(6, 8, 2, dtype=np.uint16)
    image[..., 1] = 65535
    (tmp_path / 'in.png').write_bytes(encode(image, '.png'))
    picture = Picture.read(tmp_path / 'in.png')
    assert picture.gray and picture.deep
    picture.save(tmp_path / 'out.png', enlarged(picture.lq))
    np.testing.assert_array_equal(
        decode((tmp_path / 'out.png').read_bytes(), '').array, image.repeat(2, 0).repeat(2, 1)
    )


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_float_tiff_is_taken_as_zero_to_one_and_written_with_sixteen_bits(tmp_path, channels, dtype):
    image = np.random.default_rng(0).random((6, 8, channels)).astype(dtype)
    image[0, 0], image[0, 1] = -0.02, 1.03  # a little ringing
    cv2.imwrite(str(tmp_path / 'in.tif'), image[..., ::-1])
    picture = Picture.read(tmp_path / 'in.tif')
    np.testing.assert_allclose(picture.lq[0, :channels].permute(1, 2, 0), image.clip(0, 1), atol=1e-6)
    picture.save(tmp_path / 'out.tif', enlarged(picture.lq))
    result = decode((tmp_path / 'out.tif').read_bytes(), '').array
    expected = np.round(image.clip(0, 1) * 65535).repeat(2, 0).repeat(2, 1)
    assert result.dtype == np.uint16 and np.abs(result - expected).max() <= 1


@pytest.mark.parametrize('value', [255.0, -3.0, np.nan, np.inf])
def test_float_tiff_of_another_range_is_refused(tmp_path, value):
    image = np.full((4, 4, 3), 0.5, np.float32)
    image[1, 1, 1] = value
    cv2.imwrite(str(tmp_path / 'in.tif'), image)
    with pytest.raises(ValueError, match=r'in\.tif has float values from .* scale them to \[0, 1\] first'):
        Picture.read(tmp_path / 'in.tif')


@pytest.mark.parametrize('kind', [np.int32, np.uint32])
def test_thirty_two_bit_integers_are_refused_with_a_reason(tmp_path, kind):
    Image.fromarray(np.ones((4, 4), np.int32)).save(tmp_path / 'in.tif')
    with pytest.raises(ValueError, match='not supported'):
        Picture.read(tmp_path / 'in.tif')


def test_white_is_zero_tiff_is_inverted(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    for image in (noise(6, 8), noise(6, 8, dtype=np.uint16)):
        tifffile.imwrite(tmp_path / 'in.tif', image, photometric='miniswhite')
        white = np.iinfo(image.dtype).max
        expected = (white - image).astype(np.float32) / white
        np.testing.assert_allclose(Picture.read(tmp_path / 'in.tif').lq[0, 0], expected, atol=1e-6)


def test_alpha_multiplied_colors_of_a_deep_tiff_are_divided_again(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    color, alpha = np.full((4, 4, 3), 40000.0), np.full((4, 4, 1), 32768.0)
    stored = np.concatenate([color * alpha / 65535, alpha], 2).round().astype(np.uint16)
    tifffile.imwrite(tmp_path / 'in.tif', stored, photometric='rgb', extrasamples=['assocalpha'])
    np.testing.assert_allclose(Picture.read(tmp_path / 'in.tif').lq, 40000 / 65535, atol=1e-4)


def test_a_transparent_color_becomes_alpha(tmp_path):
    image = Image.fromarray(np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8))
    image.save(tmp_path / 'in.png', transparency=(40, 50, 60))
    picture = Picture.read(tmp_path / 'in.png')
    np.testing.assert_array_equal(picture.alpha[0, 0], [[1, 0]])


def test_clear_and_solid_regions_stay_so_and_edges_get_no_fringe(tmp_path):
    y, x = np.mgrid[:24, :24]
    inside = (x - 12) ** 2 + (y - 12) ** 2 < 64
    image = np.zeros((24, 24, 4), np.uint8)  # what is clear is black below
    image[inside] = (200, 40, 40, 255)
    Image.fromarray(image).save(tmp_path / 'in.png')
    picture = Picture.read(tmp_path / 'in.png')
    sr = F.interpolate(picture.lq, scale_factor=4, mode='bicubic')
    restored = F.interpolate(picture.alpha, scale_factor=4, mode='bicubic') + 0.01  # as a network leaves a haze
    picture.save(tmp_path / 'out.png', sr, restored)
    result = np.asarray(Image.open(tmp_path / 'out.png'))
    near = F.max_pool2d(picture.alpha, 3, 1, 1), -F.max_pool2d(-picture.alpha, 3, 1, 1)
    far_out, deep_in = enlarged(near[0], 4)[0, 0].numpy() == 0, enlarged(near[1], 4)[0, 0].numpy() == 1
    assert (result[far_out][:, 3] == 0).all() and (result[deep_in][:, 3] == 255).all()
    visible = result[result[..., 3] > 0][:, :3].astype(int)
    assert np.abs(visible - [200, 40, 40]).max() <= 1


def test_a_format_without_alpha_gets_white_below_and_says_so(tmp_path, caplog):
    image = np.zeros((8, 8, 4), np.uint8)
    image[:, 4:] = (0, 0, 255, 255)
    Image.fromarray(image).save(tmp_path / 'in.png')
    picture = Picture.read(tmp_path / 'in.png')
    for suffix in ('.jpg', '.bmp'):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            picture.save(tmp_path / f'out{suffix}', enlarged(picture.lq))
        assert 'laid on white' in caplog.text
        result = np.asarray(Image.open(tmp_path / f'out{suffix}').convert('RGB')).astype(int)
        assert np.abs(result[4, 1] - 255).max() < 6 and np.abs(result[4, 14] - (0, 0, 255)).max() < 6


def test_a_format_of_eight_bits_rounds_and_says_so(tmp_path, caplog):
    (tmp_path / 'in.png').write_bytes(encode(noise(6, 8, 3, dtype=np.uint16), '.png'))
    picture = Picture.read(tmp_path / 'in.png')
    with caplog.at_level(logging.WARNING):
        picture.save(tmp_path / 'out.bmp', picture.lq)
    assert '8 bits a channel' in caplog.text
    expected = (picture.lq[0] * 255).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out.bmp')), expected)


@pytest.mark.parametrize('name', ['in.png', 'in.jpg', 'in.tif', 'in.webp', 'deep.png', 'deep.tif'])
def test_the_color_profile_is_kept(tmp_path, name):
    if name.startswith('deep'):
        (tmp_path / name).write_bytes(encode(noise(6, 8, 3, dtype=np.uint16), f'.{name[5:]}', SRGB))
    else:
        Image.fromarray(noise(6, 8, 3)).save(tmp_path / name, icc_profile=SRGB)
    picture = Picture.read(tmp_path / name)
    for suffix in ('.png', '.jpg', '.tif', '.webp'):
        picture.save(tmp_path / f'out{suffix}', enlarged(picture.lq))
        with Image.open(tmp_path / f'out{suffix}') as image:
            assert image.info['icc_profile'] == SRGB


def test_a_profile_that_does_not_describe_the_file_is_dropped(tmp_path):
    Image.fromarray(noise(6, 8)).save(tmp_path / 'in.png', icc_profile=GRAY_PROFILE)
    picture = Picture.read(tmp_path / 'in.png')
    for suffix, kept in (('.png', True), ('.webp', False)):
        picture.save(tmp_path / f'out{suffix}', enlarged(picture.lq))
        with Image.open(tmp_path / f'out{suffix}') as image:
            assert ('icc_profile' in image.info) == kept


def test_a_mislabelled_picture_is_restored_with_a_warning(tmp_path, caplog):
    (tmp_path / 'photo.png').write_bytes(encode(noise(6, 8, 3), '.jpg'))
    with caplog.at_level(logging.WARNING):
        assert Picture.read(tmp_path / 'photo.png').lq.shape == (1, 3, 6, 8)
    assert 'is a JPEG file in spite of its name' in caplog.text


def test_jpeg_is_written_at_high_quality(tmp_path):
    y, x = np.mgrid[:32, :32]
    smooth = np.stack([8 * x, 8 * y, 4 * (x + y)], 2).clip(0, 255).astype(np.uint8)
    (tmp_path / 'in.png').write_bytes(encode(smooth, '.png'))
    picture = Picture.read(tmp_path / 'in.png')
    picture.save(tmp_path / 'out.jpg', picture.lq)
    result = np.asarray(Image.open(io.BytesIO((tmp_path / 'out.jpg').read_bytes()))).astype(int)
    assert np.abs(result - smooth).max() <= 6


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 1)])
def test_the_smallest_pictures_pass(tmp_path, size):
    (tmp_path / 'in.png').write_bytes(encode(noise(*size, 4), '.png'))
    picture = Picture.read(tmp_path / 'in.png')
    picture.save(tmp_path / 'out.png', enlarged(picture.lq, 4))
    assert decode((tmp_path / 'out.png').read_bytes(), '').array.shape == (4 * size[0], 4 * size[1], 4)
