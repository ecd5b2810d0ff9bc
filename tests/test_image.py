"""Images on disk and in memory: equal to BasicSR's conversions, strict about damaged files."""

import io
import json
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from basicsr.utils.image import (
    crop_border,
    decode_image,
    header_size,
    img2tensor,
    read_image,
    tensor2img,
    tensor2img_fast,
    to_tensor,
    to_uint8,
    write_atomic,
    write_image,
)
from basicsr.utils.image_codec import decode, encode

GOLDEN = Path(__file__).parent / 'golden' / 'core'
SUFFIXES = ('.png', '.jpg', '.webp', '.tif', '.bmp')


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_conversions_equal_basicsr():
    arrays = np.load(GOLDEN / 'img_convert.npz')
    tensor, batch = torch.from_numpy(arrays['tensor']), torch.from_numpy(arrays['batch'])
    image = arrays['image_u8'].astype(np.uint8)
    png = cv2.imencode('.png', image)[1].tobytes()
    computed = {
        'tensor2img': tensor2img(tensor),
        'tensor2img_rgb': tensor2img(tensor, rgb2bgr=False),
        'tensor2img_batch1': tensor2img(tensor[None]),
        'tensor2img_pm1': tensor2img(2 * tensor - 1, min_max=(-1, 1)),
        'tensor2img_float': tensor2img(tensor, out_type=np.float32),
        'tensor2img_gray': tensor2img(tensor[:1]),
        'tensor2img_2d': tensor2img(tensor[0]),
        'tensor2img_grid': tensor2img(batch),
        'tensor2img_fast': tensor2img_fast(tensor[None]),
        'img2tensor': img2tensor(image.astype(np.float64) / 255),
        'img2tensor_norgb': img2tensor(image.astype(np.float64) / 255, bgr2rgb=False),
        'img2tensor_u8': img2tensor(image, float32=False),
        'imfrombytes': decode_image(png, 'image')[..., ::-1],
        'crop_border': crop_border(image, 1),
    }
    tolerance = json.loads((GOLDEN / 'img_convert.json').read_text())['tolerance']
    assert computed.keys() == set(arrays.files) - {'tensor', 'batch', 'image_u8'}
    for name, value in computed.items():
        assert value.shape == arrays[name].shape, name
        np.testing.assert_allclose(value, arrays[name], **tolerance, err_msg=name)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_reads_what_opencv_reads(tmp_path, suffix):
    path = tmp_path / f'image{suffix}'
    assert cv2.imwrite(str(path), noise(13, 17, 3))
    expected = cv2.imread(str(path))[..., ::-1].astype(np.float32) / 255
    np.testing.assert_array_equal(read_image(path), expected)


def test_gray_is_repeated_and_sixteen_bits_are_kept(tmp_path):
    gray, deep = noise(5, 7), noise(5, 7, 3, dtype=np.uint16)
    cv2.imwrite(str(tmp_path / 'gray.png'), gray)
    cv2.imwrite(str(tmp_path / 'deep.png'), deep[..., ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / 'gray.png'), np.repeat(gray[..., None], 3, 2) / np.float32(255))
    np.testing.assert_array_equal(read_image(tmp_path / 'deep.png'), deep / np.float32(65535))


@pytest.mark.parametrize('suffix', ['.png', '.webp', '.tif', '.bmp'])
def test_what_is_written_without_loss_is_read_again(tmp_path, suffix):
    image = noise(9, 11, 3)
    write_image(tmp_path / 'new' / f'image{suffix}', image)
    np.testing.assert_array_equal(read_image(tmp_path / 'new' / f'image{suffix}'), image / np.float32(255))
    assert [path.name for path in (tmp_path / 'new').iterdir()] == [f'image{suffix}']


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_opencv_and_tifffile_read_our_sixteen_bits(suffix, channels):
    image = noise(9, 11, channels, dtype=np.uint16)
    data = encode(image, suffix)
    if suffix == '.tif':
        tifffile = pytest.importorskip('tifffile')
        other = tifffile.imread(io.BytesIO(data)).reshape(image.shape)
    else:
        other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).reshape(9, 11, -1)
        other = other[..., {1: [0], 2: [0, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]]
    np.testing.assert_array_equal(other, image)


def test_a_tall_sixteen_bit_png_is_written_block_by_block():
    image = np.cumsum(noise(3000, 300, 3, dtype=np.uint16) % 200, 0).astype(np.uint16)  # more than one block of rows
    other = cv2.imdecode(np.frombuffer(encode(image, '.png'), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(other[..., ::-1], image)


def test_a_smooth_sixteen_bit_png_is_compressed():
    ramp = np.linspace(0, 65535, 256 * 256 * 3).astype(np.uint16).reshape(256, 256, 3)
    assert len(encode(ramp, '.png')) < ramp.nbytes / 4


@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('share', [0, 0.02, 0.4, 0.9])
def test_a_truncated_image_is_refused_by_name(tmp_path, suffix, share):
    data = encode(noise(40, 40, 3), suffix)
    path = tmp_path / f'cut{suffix}'
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=f'cut{suffix}'):
        read_image(path)


def test_a_flipped_bit_in_a_png_is_noticed():
    data = encode(noise(40, 40, 3), '.png')
    for position in range(40, len(data), 97):
        damaged = bytearray(data)
        damaged[position] ^= 4
        with pytest.raises(ValueError, match='cannot read image here'):
            decode_image(bytes(damaged), 'here')


@pytest.mark.parametrize('dtype', [np.uint16, np.float32])
def test_a_truncated_deep_tiff_is_refused(dtype):
    data = cv2.imencode('.tif', np.ones((40, 40, 3), dtype))[1].tobytes()
    for share in (0.01, 0.3, 0.9, 0.99):
        with pytest.raises(ValueError, match='deep'):
            decode(data[: int(len(data) * share)], 'deep.tif')


def test_what_is_no_image_is_refused_in_one_line(tmp_path):
    (tmp_path / 'text.png').write_text('not an image')
    for name, reason in (('text.png', 'not a readable image'), ('missing.png', 'No such file'), ('', 'directory')):
        with pytest.raises(ValueError, match=reason) as caught:
            read_image(tmp_path / name)
        assert '\n' not in str(caught.value)


def test_a_jpeg_under_a_png_name_is_refused():
    with pytest.raises(ValueError, match=r'photo\.png is mislabelled: its content is JPEG'):
        decode_image(encode(noise(8, 8, 3), '.jpg'), 'photo.png')
    assert decode_image(encode(noise(8, 8, 3), '.jpg'), 'photo.JPEG').shape == (8, 8, 3)
    assert decode_image(encode(noise(8, 8, 3), '.jpg'), 'lmdb_key').shape == (8, 8, 3)


def png_header(width: int, height: int) -> bytes:
    content = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    end = b'\0\0\0\0IEND' + struct.pack('>I', zlib.crc32(b'IEND'))
    return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + content + struct.pack('>I', zlib.crc32(content)) + end


@pytest.mark.parametrize('size', [(65000, 65000), (2**20 + 1, 1), (1, 2**17 + 1)])
def test_a_picture_bomb_is_refused_before_decoding(size):
    with pytest.raises(ValueError, match=f'{size[0]}x{size[1]} is .*beyond the limit'):
        decode_image(png_header(*size), 'bomb.png')


def test_a_deep_tiff_bomb_is_refused_before_decoding():
    small = encode(np.zeros((4, 4, 3), np.uint16), '.tif')
    bomb = bytearray(small)
    directory = struct.unpack_from('<I', small, 4)[0]
    for entry in (0, 1):  # the tags of width and height come first
        struct.pack_into('<HHI', bomb, directory + 2 + 12 * entry + 2, 4, 1, 0)
        struct.pack_into('<I', bomb, directory + 2 + 12 * entry + 8, 65000)
    with pytest.raises(ValueError, match='beyond the limit'):
        decode(bytes(bomb), 'bomb.tif')


def test_a_png_text_bomb_is_refused():
    content = b'zTXtcomment\0\0' + zlib.compress(b' ' * 50_000_000)
    chunk = struct.pack('>I', len(content) - 4) + content + struct.pack('>I', zlib.crc32(content))
    png = encode(noise(4, 4, 3), '.png')
    with pytest.raises(ValueError, match=r'bomb\.png'):
        decode_image(png[:33] + chunk + png[33:], 'bomb.png')


def test_the_limits_can_be_set():
    data = encode(noise(20, 30, 3), '.png')
    assert decode_image(data, 'image', max_pixels=600, max_side=30).shape == (20, 30, 3)
    with pytest.raises(ValueError, match='limit of 599'):
        decode_image(data, 'image', max_pixels=599)
    with pytest.raises(ValueError, match='limit of 29 pixels a side'):
        decode_image(data, 'image', max_side=29)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif', '.webp'])
def test_exif_orientation_is_applied(orientation, suffix):
    image = Image.fromarray(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, 8, 0).repeat(8, 1))
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(image, {'.jpg': 'JPEG', '.png': 'PNG', '.tif': 'TIFF', '.webp': 'WEBP'}[suffix], exif=exif)
    turn = {
        1: None,
        2: Image.FLIP_LEFT_RIGHT,
        3: Image.ROTATE_180,
        4: Image.FLIP_TOP_BOTTOM,
        5: Image.TRANSPOSE,
        6: Image.ROTATE_270,
        7: Image.TRANSVERSE,
        8: Image.ROTATE_90,
    }[orientation]
    expected = np.asarray(image if turn is None else image.transpose(turn))
    result = decode(data, 'turned').array[..., 0]
    assert result.shape == expected.shape
    assert header_size(data, 'turned') == expected.shape[::-1]
    assert np.abs(result.astype(int) - expected).max() < 30  # JPEG and WebP lose a little


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied_to_sixteen_bit_color(orientation):
    image = noise(2, 3, 3, dtype=np.uint16)
    exif = Image.Exif()
    exif[274] = orientation
    block = b'eXIf' + exif.tobytes().removeprefix(b'Exif\0\0')
    data = encode(image, '.png')
    data = data[:33] + struct.pack('>I', len(block) - 4) + block + struct.pack('>I', zlib.crc32(block)) + data[33:]
    expected = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: np.rot90(image, -1),
        7: image[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(image),
    }[orientation]
    np.testing.assert_array_equal(decode(data, 'turned').array, expected)


def test_the_header_alone_gives_the_size():
    assert header_size(png_header(65000, 3), 'image') == (65000, 3)
    for deep in (
        encode(noise(5, 9, 3, dtype=np.uint16), '.tif'),
        cv2.imencode('.tif', np.ones((5, 9, 3), np.float32))[1],
    ):
        assert header_size(bytes(deep), 'image') == (9, 5)
    for data in (b'', b'text', encode(noise(5, 9, 3), '.png')[:20], encode(noise(5, 9, 3), '.tif')[:9]):
        with pytest.raises(ValueError, match='image'):
            header_size(data, 'image')


def test_threads_may_read_at_the_same_time():
    data = [encode(noise(20, 20, 3), suffix) for suffix in SUFFIXES] * 20
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        shapes = set(pool.map(lambda content: decode_image(content, 'image').shape, data))
    assert shapes == {(20, 20, 3)}
    assert limit == Image.MAX_IMAGE_PIXELS and filters == warnings.filters


def test_eight_bit_rounding_is_half_to_even_and_clamped():
    values = torch.tensor([-0.1, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1.1])
    result = to_uint8(values.reshape(1, 1, -1).expand(3, -1, -1))
    expected = np.round(values.clamp(0, 1).numpy() * np.float32(255)).astype(np.uint8)
    np.testing.assert_array_equal(result[0, :, 0], expected)
    np.testing.assert_array_equal(result[0, [0, 4], 0], [0, 255])


def test_arrays_become_tensors_and_return():
    image = noise(4, 6, 3)
    np.testing.assert_array_equal(to_uint8(to_tensor(image) / 255), image)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(OSError, match='cannot write'):
        write_image(tmp_path / 'file' / 'image.png', noise(4, 4, 3))
    write_atomic(tmp_path / 'image.png', b'old')

    def full(_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(OSError, match=r'cannot write .*image\.png: No space left on device'):
        write_image(tmp_path / 'image.png', noise(4, 4, 3))
    assert (tmp_path / 'image.png').read_bytes() == b'old'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'image.png']


@pytest.mark.parametrize(
    ('suffix', 'image', 'reason'),
    [
        ('.jpg', noise(4, 4, 4), 'alpha'),
        ('.bmp', noise(4, 4, 2), 'alpha'),
        ('.jpg', noise(4, 4, 3, dtype=np.uint16), '16 bits'),
        ('.gif', noise(4, 4, 3), 'known image suffix'),
        ('.png', np.zeros((4, 4, 3), np.float32), 'float32'),
        ('.webp', np.zeros((1, 16384, 3), np.uint8), 'at most 16383'),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, suffix, image, reason):
    with pytest.raises(ValueError, match=reason):
        write_image(tmp_path / f'image{suffix}', image)
    assert not list(tmp_path.iterdir())


def test_a_border_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match='leaves nothing'):
        crop_border(noise(4, 9, 3), 2)
