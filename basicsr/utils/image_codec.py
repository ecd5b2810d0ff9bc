"""Bytes of image files <-> pixel arrays in the file's own depth; the only code that calls image libraries.

Pillow reads what has 8 bits a channel, OpenCV what Pillow would reduce to 8 bits: 16-bit colour and float TIFF.
"""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

FORMATS = {
    '.png': 'PNG',
    '.jpg': 'JPEG',
    '.jpeg': 'JPEG',
    '.webp': 'WEBP',
    '.tif': 'TIFF',
    '.tiff': 'TIFF',
    '.bmp': 'BMP',
}
IMAGE_SUFFIXES = tuple(FORMATS)
HOLDS_ALPHA = ('PNG', 'WEBP', 'TIFF')
HOLDS_16_BITS = ('PNG', 'TIFF')
MAX_PIXELS = 2**28
MAX_SIDE = 2**17
_TIFF_STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_PNG_START = b'\x89PNG\r\n\x1a\n'
_one_thread = threading.Lock()


@dataclass(frozen=True)
class Pixels:
    """array: (h, w, c), upright, uint8, uint16 or float32; c is 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha."""

    array: np.ndarray
    format: str
    icc: bytes | None = None


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> Pixels:
    """Pixels of an image file's bytes. Raises ValueError, with `name`, for anything that is not a whole image.

    1-bit becomes gray, palettes become RGB, CMYK becomes sRGB (through its profile where it has one), a transparent
    colour becomes alpha, EXIF orientation is applied. Float TIFF is kept as it is. The size is checked before decoding.
    """
    with _errors_about(data, name):
        if data.startswith(_TIFF_STARTS):
            tags = _tiff_tags(data)
            _check_size(tags[256], tags[257], max_pixels, max_side)
            if tags[339] == 3 or (tags[258] == 16 and tags[277] > 1):
                return Pixels(_deep_tiff(data, tags), 'TIFF', tags.get(34675))
        if data.startswith(_PNG_START):
            _check_png_chunks(data)
        return _with_pillow(data, max_pixels, max_side)


def header_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height), upright by EXIF, from an image file's header alone. Raises ValueError for what is no image."""
    with _errors_about(data, name):
        if data.startswith(_TIFF_STARTS):
            tags = _tiff_tags(data)
            size, orientation = (tags[256], tags[257]), tags.get(274, 1)
        else:
            image = _open(data)
            # Pillow would decode a PNG to look for EXIF behind its pixels.
            exif = image.getexif() if image.format != 'PNG' or 'exif' in image.info else {}
            size, orientation = image.size, exif.get(274, 1)
        return size[::-1] if orientation in (5, 6, 7, 8) else size


def expected_format(name: str) -> str | None:
    """The format that a file name's suffix promises; None if the suffix is none of an image."""
    return FORMATS.get(PurePath(name).suffix.lower())


def encode(array: np.ndarray, suffix: str, icc: bytes | None = None, quality: int = 95) -> bytes:
    """File bytes of an (h, w) or (h, w, c) uint8 or uint16 array, channels as in Pixels.

    JPEG is written at `quality` without chroma subsampling, WebP without loss. Raises ValueError for what the format
    cannot hold: alpha in JPEG and BMP, 16 bits outside PNG and TIFF, sides beyond its limit.
    """
    suffix = suffix.lower()
    kind = FORMATS.get(suffix)
    if kind is None:
        raise ValueError(f'{suffix!r} is not a known image suffix; known: {", ".join(IMAGE_SUFFIXES)}')
    array = array[..., None] if array.ndim == 2 else array
    height, width, channels = array.shape
    limit = {'JPEG': 65535, 'WEBP': 16383}.get(kind, 2**31 - 1)
    if max(height, width) > limit:
        raise ValueError(f'{kind} holds at most {limit} pixels a side, not {width}x{height}; use .png or .tif')
    if channels in (2, 4) and kind not in HOLDS_ALPHA:
        raise ValueError(f'{kind} cannot hold an alpha channel; use .png')
    if array.dtype == np.uint16:
        if kind not in HOLDS_16_BITS:
            raise ValueError(f'{kind} cannot hold 16 bits a channel; use .png or .tif')
        return _png16(array, icc) if kind == 'PNG' else _tiff16(array, icc)
    if array.dtype != np.uint8:
        raise ValueError(f'an image is written from uint8 or uint16, not {array.dtype}')
    image = Image.fromarray(np.ascontiguousarray(array[..., 0] if channels == 1 else array))
    options = {
        'JPEG': {'quality': quality, 'subsampling': 0},
        'WEBP': {'lossless': True, 'exact': True},
        'TIFF': {'compression': 'tiff_deflate'},
    }.get(kind, {})
    if icc and kind != 'BMP':
        options['icc_profile'] = icc
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_round_trip(pixels: np.ndarray, quality: int) -> np.ndarray:
    """(h, w, 3) uint8 RGB written as JPEG by OpenCV, chroma subsampled as it does by default, and read again.

    Raises ValueError for sides beyond what libjpeg writes.
    """
    import cv2

    if max(pixels.shape) > 65500:
        raise ValueError(f'JPEG holds at most 65500 pixels a side, not {pixels.shape[1]}x{pixels.shape[0]}')
    encoded = cv2.imencode('.jpg', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@contextmanager
def _errors_about(data: bytes, name: str) -> Iterator[None]:
    if not data:
        raise ValueError(f'{name} is empty (0 bytes)')
    try:
        yield
    except MemoryError:
        raise ValueError(f'{name} needs more memory than this process may have') from None
    except Image.UnidentifiedImageError:
        raise ValueError(f'{name} is not a readable image (PNG, JPEG, WebP, TIFF or BMP)') from None
    except Exception as error:  # the decoders raise a dozen types on damaged bytes; all of them mean this one thing
        raise ValueError(f'cannot read image {name}: {error or type(error).__name__}') from None


@contextmanager
def _pillow_settings() -> Iterator[None]:
    """Our limit of size in place of Pillow's lower one, and no remarks on damaged metadata: damaged pixels raise.

    Both can only be set for the whole process, so threads take turns.
    """
    with _one_thread, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _open(data: bytes) -> Image.Image:
    with _pillow_settings():
        return Image.open(io.BytesIO(data), formats=sorted(set(FORMATS.values())))


def _check_size(width: int, height: int, max_pixels: int, max_side: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f'it declares a size of {width}x{height}')
    if max(width, height) > max_side:
        raise ValueError(f'{width}x{height} is beyond the limit of {max_side} pixels a side')
    if width * height > max_pixels:
        raise ValueError(f'{width}x{height} is {width * height} pixels, beyond the limit of {max_pixels}')


def _with_pillow(data: bytes, max_pixels: int, max_side: int) -> Pixels:
    image = _open(data)
    kind = 'JPEG' if image.format == 'MPO' else image.format
    _check_size(*image.size, max_pixels, max_side)
    image.load()
    if kind == 'PNG' and data[24] == 16:
        array = _upright(_deep_png(data, image), image.getexif().get(274, 1))
    elif image.mode.startswith('I;16'):
        array = np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)[..., None]
        if kind == 'TIFF' and image.tag_v2.get(262) == 0:  # white is zero; Pillow inverts 8 bits only
            array = 65535 - array
    else:
        image, icc = _eight_bits(ImageOps.exif_transpose(image))
        array = np.asarray(image)
        return Pixels(array if array.ndim == 3 else array[..., None], kind, icc)
    return Pixels(array, kind, image.info.get('icc_profile'))


def _eight_bits(image: Image.Image) -> tuple[Image.Image, bytes | None]:
    """The image as L, LA, RGB or RGBA, and its colour profile if that still describes it."""
    icc = image.info.get('icc_profile')
    transparent = 'transparency' in image.info
    mode = image.mode
    if mode in ('1', 'L'):
        return image.convert('LA' if transparent else 'L'), icc
    if mode in ('LA', 'La'):
        return image.convert('LA'), icc
    if mode in ('RGBA', 'RGBa', 'PA') or (mode in ('P', 'RGB') and transparent):
        return image.convert('RGBA'), icc
    if mode in ('P', 'RGB', 'RGBX'):
        return image.convert('RGB'), icc
    if mode in ('CMYK', 'LAB') and icc:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            return ImageCms.profileToProfile(image, profile, ImageCms.createProfile('sRGB'), outputMode='RGB'), None
        except ImageCms.PyCMSError:  # a damaged profile says nothing; the plain conversion is what is left
            pass
    if mode in ('CMYK', 'YCbCr', 'HSV'):
        return image.convert('RGB'), None
    raise ValueError(f'pixels of kind {mode!r} are not supported (8 and 16 bits a channel and float are)')


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF orientation 1..8 applied to an (h, w, c) array."""
    if orientation in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)
    rows_flipped, columns_flipped = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    array = array[::-1] if rows_flipped else array
    return array[:, ::-1] if columns_flipped else array


def _check_png_chunks(data: bytes) -> None:
    """Every chunk's checksum (the decoders skip that of pixel data) and the end marker."""
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from('>I4s', data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if kind == b'IEND':
            return
        if zlib.crc32(data[position + 4 : end]) != struct.unpack_from('>I', data, end)[0]:
            raise ValueError(f'wrong checksum at byte {position}')
        position = end + 4
    raise ValueError('the file is truncated')


def _with_opencv(data: bytes) -> np.ndarray:
    """(h, w) or (h, w, c) in the file's depth, RGB order."""
    import cv2

    logging = cv2.utils.logging
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)  # its complaint about a damaged file would come on top of ours
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError('the file is damaged')
    if array.ndim == 2:
        return array[..., None]
    return array[..., [2, 1, 0, 3][: array.shape[2]]]


def _deep_png(data: bytes, image: Image.Image) -> np.ndarray:
    """16-bit pixels of a PNG whose data Pillow has already found whole."""
    color_type = data[25]
    array = np.asarray(image).astype(np.uint16)[..., None] if color_type == 0 else _with_opencv(data)
    if color_type == 4:
        return array[..., [0, 3]]
    key = image.info.get('transparency')
    if key is not None and color_type in (0, 2):
        array = array[..., : 1 if color_type == 0 else 3]
        opaque = (array != np.asarray(key, np.uint16)).any(2, keepdims=True)
        return np.concatenate([array, opaque * np.uint16(65535)], axis=2)
    return array


def _tiff_tags(data: bytes) -> dict:
    """The tags of the first image: sizes and kinds as plain numbers; every strip is known to lie inside the file."""
    stream = io.BytesIO(data)
    header = stream.read(16 if 43 in data[2:4] else 8)  # 43: BigTIFF
    with _pillow_settings():
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        stream.seek(directory.next)
        directory.load(stream)
        tags = dict(directory)
    if not all(isinstance(tags.get(number), int) for number in (256, 257)):
        raise ValueError('its directory is damaged')
    tags = {339: (1,), 258: (1,), 277: 1, 262: 1, 338: ()} | tags
    for number in (258, 339):
        values = tags[number] if isinstance(tags[number], tuple) else (tags[number],)
        tags[number] = values[0]
        if len(set(values)) != 1:
            tags[number] = 0
    for offsets, counts in ((273, 279), (324, 325)):
        if offsets in tags and counts in tags:
            pieces = zip(np.atleast_1d(tags[offsets]), np.atleast_1d(tags[counts]), strict=True)
            if any(int(offset) + int(count) > len(data) for offset, count in pieces):
                raise ValueError('the file is truncated')
    return tags


def _deep_tiff(data: bytes, tags: dict) -> np.ndarray:
    """16-bit colour or float pixels; OpenCV has applied the orientation."""
    samples, photometric, alpha = tags[277], tags[262], tags[338][:1] if tags[338] else ()
    if photometric not in (0, 1, 2) or samples not in (1, 3, 4):
        raise ValueError(f'a {tags[258]}-bit TIFF with {samples} channels of kind {photometric} is not supported')
    array = _with_opencv(data)
    if array.shape[2] != samples or sorted(array.shape[:2]) != sorted((tags[256], tags[257])):
        raise ValueError(f'a {tags[258]}-bit TIFF of this layout is not supported')
    if array.dtype != np.uint16:
        array = array.astype(np.float32)
    if samples == 4 and alpha == (0,):  # unspecified; where the tag is missing, alpha is meant (OpenCV writes so)
        array = array[..., :3]
    elif samples == 4 and alpha == (1,):  # stored multiplied by alpha
        white = 65535 if array.dtype == np.uint16 else 1
        color = array[..., :3].astype(np.float64) * white / np.maximum(array[..., 3:], 1e-6 * white)
        color = np.minimum(color, white)
        array = np.concatenate([color.round() if white > 1 else color, array[..., 3:]], axis=2).astype(array.dtype)
    if photometric == 0:
        array = (65535 if array.dtype == np.uint16 else np.float32(1)) - array
    return array


def _png16(array: np.ndarray, icc: bytes | None) -> bytes:
    """A 16-bit PNG with 1 to 4 channels; each row takes the filter with the smallest sum of differences."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    height, width, channels = array.shape
    compressor, pixels = zlib.compressobj(6), []
    step = max(1, 2**20 // (width * channels))  # rows at a time: the four candidates of a large image need much memory
    for top in range(0, height, step):
        rows = (
            array[max(0, top - 1) : top + step]
            .astype('>u2', order='C')
            .view(np.uint8)
            .reshape(-1, 2 * width * channels)
        )
        above = rows[:-1] if top else np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
        rows = rows[1:] if top else rows
        left = np.pad(rows, ((0, 0), (2 * channels, 0)))[:, : rows.shape[1]]
        average = ((left.astype(np.uint16) + above) // 2).astype(np.uint8)
        filtered = np.stack([rows, rows - left, rows - above, rows - average])
        best = np.abs(filtered.view(np.int8).astype(np.int16)).sum(2, dtype=np.int64).argmin(0)
        chosen = filtered[best, np.arange(len(rows))]
        pixels.append(compressor.compress(np.concatenate([best.astype(np.uint8)[:, None], chosen], axis=1).tobytes()))
    pixels.append(compressor.flush())
    header = struct.pack('>IIBBBBB', width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    profile = chunk(b'iCCP', b'ICC profile\0\0' + zlib.compress(icc)) if icc else b''
    return _PNG_START + chunk(b'IHDR', header) + profile + chunk(b'IDAT', b''.join(pixels)) + chunk(b'IEND', b'')


def _tiff16(array: np.ndarray, icc: bytes | None) -> bytes:
    """A 16-bit deflate-compressed TIFF in one strip with 1 to 4 channels."""
    height, width, channels = array.shape
    strip = zlib.compress(np.ascontiguousarray(array.astype('<u2')).tobytes(), 6)
    start = b'II*\0\x08\0\0\0'  # the directory follows at byte 8
    directory = TiffImagePlugin.ImageFileDirectory_v2(start)
    values = {
        256: width,
        257: height,
        258: (16,) * channels,
        259: 8,
        262: 2 if channels > 2 else 1,
        273: 0,  # counted from the end of the directory
        277: channels,
        278: height,
        279: len(strip),
        284: 1,
        339: (1,) * channels,
    }
    if channels in (2, 4):
        values[338] = 2
    if icc:
        values[34675] = icc
    for tag, value in values.items():
        directory[tag] = value
    stream = io.BytesIO()
    stream.write(start)
    directory.save(stream)
    return stream.getvalue() + strip
