"""A contact sheet: rows of images of equal height in columns, each with a caption below."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (95, 95, 95)
LEAST_TILE = 240  # pixels a side: smaller images are enlarged, or their captions would not be legible


@dataclass(frozen=True)
class Tile:
    """An image (h, w, 3) float RGB in [0, 1], and the lines below it."""

    image: np.ndarray
    caption: Sequence[str]


def enlarged(image: np.ndarray, factor: int) -> np.ndarray:
    """(h, w, 3) by nearest neighbour."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def contact_sheet(title: Sequence[str], rows: Sequence[Sequence[Tile]]) -> np.ndarray:
    """uint8 RGB (h, w, 3): the lines of the title, the first one larger, then the rows. Long lines are broken."""
    largest = max(max(tile.image.shape[:2]) for row in rows for tile in row)
    zoom = -(-LEAST_TILE // largest)
    width = largest * zoom
    size = max(13, round(width / 19))
    margin, line = size // 2 + 2, round(1.3 * size)
    columns = max(len(row) for row in rows)
    captions = [[wrapped(tile.caption, width, size) for tile in row] for row in rows]
    whole = columns * (width + margin) - margin
    title = [*title[:1], *wrapped(title[1:], whole, size)]
    heights = [
        max(tile.image.shape[0] for tile in row) * zoom + (max(map(len, lines)) * line) + 2 * margin
        for row, lines in zip(rows, captions)
    ]
    head = len(title) * (line + 4) + 2 * margin
    canvas = Image.new('RGB', (columns * (width + margin) + margin, head + sum(heights) + margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, text in enumerate(title):
        place = margin, margin + number * (line + 4)
        draw.text(place, text, INK if number == 0 else FAINT, font(size + (3 if number == 0 else 0)))
    top = head
    for row, lines, height in zip(rows, captions, heights):
        for column, (tile, texts) in enumerate(zip(row, lines)):
            left = margin + column * (width + margin)
            pixels = np.rint(enlarged(tile.image, zoom).clip(0, 1) * 255).astype(np.uint8)
            canvas.paste(Image.fromarray(pixels), (left, top))
            for number, text in enumerate(texts):
                draw.text((left, top + pixels.shape[0] + size // 3 + number * line), text, INK, font(size))
        top += height
    return np.asarray(canvas)


def wrapped(lines: Sequence[str], width: int, size: int) -> list[str]:
    """The lines, broken at blanks where they are wider than `width` pixels."""
    broken = []
    for line in lines:
        part = ''
        for word in line.split(' '):
            longer = f'{part} {word}' if part else word
            if part and font(size).getlength(longer) > width:
                broken.append(part)
                longer = word
            part = longer
        broken.append(part)
    return broken


@cache
def font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)
