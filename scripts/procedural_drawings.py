"""The drawings of make_procedural_images.py: `render` makes one training image from its number.

Each drawing takes a generator, the side of its canvas and `unit`, the canvas pixels per pixel of the finished image,
and returns a float canvas (side, side, 3), RGB in [0, 255] or a little outside.
"""

from collections.abc import Sequence
from functools import lru_cache, partial

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

VERSION = 1  # part of every file's recipe: raise it when a drawing changes
Array = np.ndarray
LETTERS = 'eeeeeetttttaaaaaoooooiiiiinnnnnsssshhhhrrrrddlluuccmmffyywwggppbbvvkxjqzABCDEFGHIJKLMNOPRSTUVWXYZ0123456789'


def palette(rng: Generator, count: int) -> Array:
    """`count` colours (count, 3) in [0, 255] that go together: any lightness, hues around one centre, few saturated."""
    lightness = 4 + 92 * rng.beta(1.1, 1.1, (count, 1))
    saturation = rng.choice([rng.uniform(0, 6), rng.uniform(6, 18), rng.uniform(18, 40)], p=[0.35, 0.5, 0.15])
    hue = [0.6, 1] * (rng.normal(0, saturation, 2) + rng.normal(0, saturation, (count, 2)))  # yellow-blue varies most
    lab = np.concatenate([lightness, np.add(hue, [0, 3])], 1).astype(np.float32)
    return 255 * np.clip(cv2.cvtColor(lab[None], cv2.COLOR_Lab2RGB)[0], 0, 1)


def two_colours(rng: Generator, contrast: float = 70) -> Array:
    """Two colours (2, 3) whose mean levels differ by at least `contrast` (out of 255)."""
    while True:
        colours = palette(rng, 2)
        if abs(colours[0].mean() - colours[1].mean()) >= contrast:
            return colours


def noise(rng: Generator, side: int, slope: float, stretch: float = 1.0) -> Array:
    """Random field (side, side), mean 0 and variance 1, amplitude ~ frequency^-slope; `stretch` makes it streaky."""
    fy, fx = np.fft.fftfreq(side)[:, None] * side, np.fft.rfftfreq(side)[None] * side
    angle = rng.uniform(0, np.pi)
    along, across = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    radius = np.sqrt((along * stretch) ** 2 + across**2)
    radius[0, 0] = np.inf
    spectrum = (rng.standard_normal(radius.shape) + 1j * rng.standard_normal(radius.shape)) * radius**-slope
    field = np.fft.irfft2(spectrum, s=(side, side))
    return ((field - field.mean()) / field.std()).astype(np.float32)


def grating(rng: Generator, side: int, unit: int) -> Array:
    """Periodic field (side, side) in [-1, 1]: bars, checks, rings, zone plate or star, up to 0.4 periods a pixel."""
    y, x = (np.mgrid[:side, :side] / unit).astype(np.float32)  # in pixels of the reduced image
    size, angle = side / unit, rng.uniform(0, np.pi)
    frequency = np.exp(rng.uniform(np.log(0.02), np.log(0.4)))
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    cx, cy = rng.uniform(-0.2, 1.2, 2) * size
    radius2 = (x - cx) ** 2 + (y - cy) ** 2
    phase = rng.uniform(0, 2 * np.pi)
    kind = rng.choice(['bars', 'checks', 'rings', 'zone', 'star'], p=[0.4, 0.2, 0.15, 0.15, 0.1])
    if kind == 'bars':
        field = np.sin(2 * np.pi * frequency * u + phase)
    elif kind == 'checks':
        field = np.sin(2 * np.pi * frequency * u + phase) * np.sin(2 * np.pi * frequency * v)
    elif kind == 'rings':
        field = np.sin(2 * np.pi * frequency * np.sqrt(radius2) + phase)
    elif kind == 'zone':
        field = np.sin(np.pi * frequency * radius2 / np.sqrt(radius2.max()) + phase)
    else:
        field = np.sin(rng.integers(5, 40) * np.arctan2(y - cy, x - cx) + phase)
    return np.where(field > rng.uniform(-0.5, 0.5), 1, -1).astype(np.float32) if rng.random() < 0.6 else field


def outline(rng: Generator, radius: float) -> Array:
    """Corners (n, 2) of a random shape around the origin: ellipse, blob, convex polygon or rectangle."""
    kind = rng.choice(['ellipse', 'blob', 'polygon', 'rectangle'], p=[0.35, 0.2, 0.25, 0.2])
    turn, flat = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1)
    if kind == 'rectangle':
        flat = max(flat * rng.uniform(0.1, 1), 0.06)  # down to thin bars
        points = radius * np.array([[-1, -flat], [1, -flat], [1, flat], [-1, flat]])
    else:
        count = int(np.clip(radius, 12, 72))
        angles = np.arange(count) * 2 * np.pi / count
        if kind == 'polygon':
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        reach = np.full(len(angles), radius)
        if kind == 'blob':
            for order in range(2, 6):
                reach *= 1 + rng.uniform(0, 0.5) / order * np.sin(order * angles + rng.uniform(0, 6.3))
        points = np.stack([reach * np.cos(angles), flat * reach * np.sin(angles)], 1)
    cos, sin = np.cos(turn), np.sin(turn)
    return points @ np.array([[cos, sin], [-sin, cos]])


def fixed(points: Array) -> Array:
    """Points as OpenCV wants them with shift=3: in eighths of a pixel."""
    return np.round(points * 8).astype(np.int32)


def paint(canvas: Array, points: Array, colour: Array, texture: Array | None, shade: Array, shadow: int) -> None:
    """Fill a shape of the float canvas (h, w, 3) in place.

    texture: field (h, w) added to the colour; shade: its slope (2,) in levels across the shape; shadow: width in pixels
    of the dark seam left on what lies behind.
    """
    low = np.maximum(np.floor(points.min(0)).astype(int) - 2 * shadow - 1, 0)
    high = np.minimum(np.ceil(points.max(0)).astype(int) + 2 * shadow + 2, canvas.shape[1::-1])
    if (high <= low).any():
        return
    window = np.s_[low[1] : high[1], low[0] : high[0]]
    mask = np.zeros(canvas[window].shape[:2], np.uint8)
    cv2.fillPoly(mask, [fixed(points - low)], 1, shift=3)
    if shadow:
        canvas[window] *= 1 - 0.6 * cv2.blur(mask.astype(np.float32), (2 * shadow + 1, 2 * shadow + 1))[..., None]
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]].astype(np.float32)
    level = shade[0] * (x / mask.shape[1] - 0.5) + shade[1] * (y / mask.shape[0] - 0.5)
    if texture is not None:
        level = level + texture[window]
    np.copyto(canvas[window], colour + level[..., None], where=mask[..., None] > 0, casting='same_kind')


def draw_leaves(rng: Generator, side: int, unit: int) -> Array:
    """Dead leaves: textured, shaded shapes hide one another, number ~ radius^-slope; the first are at times blurred."""
    textures = [noise(rng, side, 1.0), noise(rng, side, 1.6, rng.uniform(1, 12)), grating(rng, side, unit)]
    textures.append(noise(rng, side, 0.5))
    colours = palette(rng, 40)
    canvas = np.full((side, side, 3), colours[0], np.float32)
    smallest, largest = unit * np.exp(rng.uniform(np.log(1.5), np.log(10))), side * rng.uniform(0.2, 0.6)
    power = 1 - rng.uniform(1.5, 3)  # of the share of shapes larger than r
    radii = rng.uniform(largest**power, smallest**power, 4000) ** (1 / power)
    radii = radii[: max(40, int(np.searchsorted(np.cumsum(2 * radii**2), 5 * side * side)))]
    count = len(radii)
    radii[:10] = side * rng.uniform(0.3, 0.7, 10)  # so that no bare ground stays
    blurred_at = int(count * rng.uniform(0.3, 0.9)) if rng.random() < 0.4 else -1
    for number, radius in enumerate(radii):
        points = outline(rng, radius) + rng.uniform(0, side, 2)
        colour = colours[rng.integers(len(colours))] + rng.normal(0, 6, 3)
        if number == blurred_at:
            canvas = cv2.GaussianBlur(canvas, (0, 0), unit * rng.uniform(0.7, 5))
        if radius < 3 * unit:
            cv2.fillPoly(canvas, [fixed(points)], colour.tolist(), shift=3)
            continue
        amplitude = rng.choice([0, rng.uniform(2, 10), rng.uniform(8, 40)])
        texture = textures[rng.integers(len(textures))] * np.float32(amplitude) if amplitude else None
        shadow = int(unit * rng.choice([0, 0, 0, 0, rng.integers(1, 4)]))
        paint(canvas, points, colour, texture, rng.normal(0, 25, 2), shadow)
    return canvas


@lru_cache(maxsize=256)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font: fonts of the system would make the images depend on the machine."""
    return ImageFont.load_default(size)


def word(rng: Generator) -> str:
    """A word of random letters with the frequencies of English; sometimes a capital, a number or a full stop."""
    letters = ''.join(rng.choice(list(LETTERS), rng.integers(1, 10)))
    style, mark, number = rng.integers(5), rng.choice(list('.,;:!?')), rng.integers(0, 10**6)
    return [letters.upper(), letters.capitalize(), letters.lower() + mark, str(number), letters.lower()][style]


def warp(rng: Generator, image: Array, amount: float) -> Array:
    """The image seen from a random side: its corners are cut in by up to `amount` of a side and stretched back."""
    side = image.shape[0]
    target = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    corners = target + rng.uniform(0, amount, (4, 2)) * (1 - 2 * target)
    matrix = cv2.getPerspectiveTransform((corners * side).astype(np.float32), target * side)
    return cv2.warpPerspective(image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def draw_text(rng: Generator, side: int, unit: int) -> Array:
    """Lines of text of one or more sizes in perspective, upright, italic or turned, on a plain or textured ground."""
    ground, ink = two_colours(rng)
    canvas = ground + rng.choice([0, 4, 15]) * noise(rng, side, rng.uniform(0.8, 2))[..., None]
    for _ in range(rng.choice([1, 1, 2, 3])):
        mask = Image.new('L', (side, side))
        draw = ImageDraw.Draw(mask)
        size = int(unit * np.exp(rng.uniform(np.log(7), np.log(60))))
        bold = int(rng.random() < 0.4) * max(1, size // 24)
        y = rng.uniform(-0.1, 0.6) * side
        end = y + rng.choice([2 * size, rng.uniform(0.4, 1.2) * side])
        while y < end:
            text = ' '.join(word(rng) for _ in range(max(1, side // (3 * size))))
            draw.text((rng.uniform(0, 0.1) * side, y), text, fill=255, font=font(size), stroke_width=bold)
            y += size * rng.uniform(1.1, 1.5)
        turn = rng.choice([0, 0, rng.uniform(-30, 30), 90])
        matrix = cv2.getRotationMatrix2D((side / 2, side / 2), turn, 1)
        matrix[0, 1] += rng.choice([0, 0.25, -0.15])  # slant
        letters = cv2.warpAffine(np.asarray(mask), matrix, (side, side), flags=cv2.INTER_LINEAR)
        letters = warp(rng, letters, rng.choice([0, 0.2]))[..., None] / np.float32(255)
        canvas = canvas * (1 - letters) + ink * letters
        ink = ink + rng.normal(0, 30, 3)
    return canvas


def draw_gratings(rng: Generator, side: int, unit: int) -> Array:
    """Gratings, checks, rings, zone plates and stars in two colours each, in shapes that hide one another."""
    canvas = np.zeros((side, side, 3), np.float32)
    for number in range(rng.integers(1, 6)):
        first, second = two_colours(rng, rng.uniform(10, 120))
        share = (grating(rng, side, unit)[..., None] + 1) / 2
        mask = np.full((side, side), int(number == 0), np.uint8)
        cv2.fillPoly(mask, [fixed(outline(rng, side * rng.uniform(0.15, 0.5)) + rng.uniform(0, side, 2))], 1, shift=3)
        np.copyto(canvas, first * share + second * (1 - share), where=mask[..., None] > 0, casting='same_kind')
    return canvas


def curve(rng: Generator, side: int) -> Array:
    """Points (60, 2) of a random cubic Bezier curve."""
    t = np.linspace(0, 1, 60)[:, None]
    a, b, c, d = rng.uniform(-0.1, 1.1, (4, 2)) * side
    return a * (1 - t) ** 3 + 3 * b * t * (1 - t) ** 2 + 3 * c * t**2 * (1 - t) + d * t**3


def draw_lines(rng: Generator, side: int, unit: int) -> Array:
    """Line drawing: curves, outlines, fans and hatched shapes in a few inks and widths."""
    ground, ink = two_colours(rng)
    canvas = np.clip(ground + rng.choice([0, 5, 12]) * noise(rng, side, 1.5)[..., None], 0, 255).astype(np.uint8)
    inks = [ink, *palette(rng, 2)]
    stroke = partial(cv2.polylines, lineType=cv2.LINE_AA, shift=3)
    for _ in range(rng.integers(15, 60)):
        colour = inks[rng.choice(3, p=[0.7, 0.15, 0.15])].tolist()
        width = max(1, int(unit * np.exp(rng.uniform(np.log(0.6), np.log(4)))))
        kind, centre = rng.integers(4), rng.uniform(0, side, 2)
        if kind == 0:
            stroke(canvas, [fixed(curve(rng, side))], False, colour, width)
        elif kind == 1:
            stroke(canvas, [fixed(outline(rng, side * rng.uniform(0.02, 0.3)) + centre)], True, colour, width)
        elif kind == 2:
            rays = rng.uniform(0, side, 2) + np.cumsum(rng.normal(0, 4 * unit, (12, 2)), 0)
            for end in rays:
                stroke(canvas, [fixed(np.stack([centre, end]))], False, colour, width)
        else:
            mask, hatch = np.zeros((2, side, side), np.uint8)
            cv2.fillPoly(mask, [fixed(outline(rng, side * rng.uniform(0.05, 0.25)) + centre)], 1, shift=3)
            gap, angle = unit * rng.uniform(2.5, 9), rng.uniform(0, np.pi)
            across, along = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
            for step in np.arange(-0.4 * side, 0.4 * side, gap):
                stroke(hatch, [fixed(centre + step * across + side * np.array([[-1], [1]]) * along)], False, 255, width)
            share = (hatch * mask)[..., None] / np.float32(255)
            canvas = (canvas * (1 - share) + np.array(colour) * share).astype(np.uint8)
    return canvas.astype(np.float32)


def draw_clouds(rng: Generator, side: int, unit: int) -> Array:
    """Coloured noise with a power-law spectrum, plain, folded into veins, cut into patches or drawn out to a grain."""
    first, second, third = palette(rng, 3)
    field = noise(rng, side, rng.uniform(1.0, 2.0), rng.choice([1, 1, 4, 25]))
    kind = rng.integers(4)
    if kind == 1:
        field = 2 * np.abs(field) - 1.5  # veins: sharp ridges where the field crosses zero
    elif kind == 2:
        field = np.sin(rng.uniform(3, 12) * noise(rng, side, 1.9, rng.choice([1, 6]))) + 0.2 * field
    elif kind == 3:
        field = np.where(noise(rng, side, 1.7) > 0, 1, -1) + 0.3 * field
    share = np.clip(field / 4 + 0.5, 0, 1)[..., None]
    tint = np.clip(noise(rng, side, 1.8) / 4 + 0.5, 0, 1)[..., None] * 0.4
    return (first * share + second * (1 - share)) * (1 - tint) + third * tint


def draw_gradients(rng: Generator, side: int, unit: int) -> Array:
    """Smoothly shaded bodies with clean outlines, highlights and cast shadows, as of porcelain, metal and cloth."""
    y, x = (np.mgrid[:side, :side].astype(np.float32) / side)[..., None]
    corner = palette(rng, 4)
    top, bottom = corner[0] * (1 - x) + corner[1] * x, corner[2] * (1 - x) + corner[3] * x
    canvas = (top * (1 - y) + bottom * y).astype(np.float32)
    light = rng.normal(0, 1, 2)
    light /= np.linalg.norm(light)
    for colour in palette(rng, rng.integers(4, 16)):
        radius, centre = side * np.exp(rng.uniform(np.log(0.04), np.log(0.45))), rng.uniform(0, side, 2)
        points = outline(rng, radius)
        paint(canvas, points + centre, colour, None, 110 * rng.uniform(0, 1) * light, int(rng.integers(0, 6) * unit))
        for inset in rng.uniform(0.3, 0.95, rng.integers(0, 4)):  # rims and reflections
            inner, tone = points * inset + centre - radius * 0.1 * light, colour + rng.normal(0, 45)
            paint(canvas, inner, tone, None, rng.uniform(-90, 90) * light, 0)
        if rng.random() < 0.5:
            spot = centre - light * radius * 0.4 + outline(rng, radius * rng.uniform(0.05, 0.2))
            paint(canvas, spot, np.full(3, 250.0), None, np.zeros(2), 0)
    return canvas


def span(start: int, length: int) -> slice:
    """`length` rows or columns from `start`, without those before the canvas."""
    return slice(max(start, 0), max(start + length, 0))


def draw_facade(rng: Generator, side: int, unit: int) -> Array:
    """A wall, bare or of bricks, with rows of windows, bars and ledges, in perspective."""
    wall, frame, glass, seam = palette(rng, 4)
    canvas = wall + 6 * noise(rng, side, 1.2)[..., None]
    if rng.random() < 0.5:
        tall, joint = int(unit * rng.uniform(3, 9)), max(1, int(unit * rng.uniform(0.4, 1.2)))
        for row, top in enumerate(range(0, side, tall)):
            for left in range(-(row % 2) * tall, side, 2 * tall):
                canvas[span(top, tall), span(left, 2 * tall)] += rng.normal(0, 9)
                canvas[span(top, tall), span(left, joint)] = seam
            canvas[span(top, joint)] = seam
    pitch_x, pitch_y = (unit * np.exp(rng.uniform(np.log(14), np.log(80), 2))).astype(int)
    width, height = int(pitch_x * rng.uniform(0.4, 0.9)), int(pitch_y * rng.uniform(0.4, 0.9))
    border, bars = max(1, int(unit * rng.uniform(0.6, 2.5))), rng.integers(0, 4, 2)
    reflections = 25 * noise(rng, side, 1.6)[..., None]
    for top in range(int(rng.integers(pitch_y)) - pitch_y, side, pitch_y):
        canvas[span(top - border, border)] *= rng.choice([1, 0.7])  # ledge
        for left in range(-pitch_x // 2, side, pitch_x):
            rows, columns = span(top, height), span(left, width)
            pane = span(top + border, height - 2 * border), span(left + border, width - 2 * border)
            canvas[rows, columns] = frame
            canvas[pane] = glass + rng.normal(0, 25) + reflections[pane]
            for bar in range(bars[0]):
                canvas[rows, span(left + (bar + 1) * width // (bars[0] + 1), border)] = frame
            for bar in range(bars[1]):
                canvas[span(top + (bar + 1) * height // (bars[1] + 1), border), columns] = frame
            canvas[span(top + height, border), columns] *= 0.6  # sill
    return warp(rng, canvas, rng.uniform(0, 0.35))


def draw_foliage(rng: Generator, side: int, unit: int) -> Array:
    """Branches that fork, with leaves at their ends, before a blurred background."""
    sky, bark, *greens = palette(rng, 10)
    canvas = cv2.GaussianBlur(draw_clouds(rng, side, unit).astype(np.float32), (0, 0), 6 * unit) * 0.5 + sky * 0.5
    canvas = np.clip(canvas, 0, 255).astype(np.uint8)
    shoots, forks = [], 700
    for _ in range(rng.integers(1, 5)):
        root, angle = (rng.uniform(0, side), side * rng.uniform(0.8, 1.1)), rng.normal(-np.pi / 2, 0.3)
        shoots.append((*root, angle, side * rng.uniform(0.15, 0.3), unit * rng.uniform(2, 7)))
    leaf, leafy = unit * np.exp(rng.uniform(np.log(1.5), np.log(9))), rng.uniform(0, 1)
    while shoots:
        x, y, angle, length, width = shoots.pop(rng.integers(len(shoots)))
        end = x + length * np.cos(angle), y + length * np.sin(angle)
        tone = np.clip(bark * rng.uniform(0.7, 1.2), 0, 255).tolist()
        cv2.polylines(canvas, [fixed(np.array([(x, y), end]))], False, tone, max(1, int(width)), cv2.LINE_AA, 3)
        if length > 4 * unit and forks > 0:
            forks -= 1
            for _ in range(rng.integers(2, 4)):
                shoots.append((*end, angle + rng.normal(0, 0.5), length * rng.uniform(0.6, 0.9), width * 0.72))
        if width < 1.5 * unit and rng.random() < leafy:
            for spot in end + rng.normal(0, 2 * leaf, (3, 2)):
                axes = fixed(leaf * np.array([1, rng.uniform(0.3, 0.7)])).tolist()
                tone = np.clip(greens[rng.integers(8)] + rng.normal(0, 12), 0, 255).tolist()
                cv2.ellipse(canvas, fixed(spot).tolist(), axes, rng.uniform(0, 360), 0, 360, tone, -1, cv2.LINE_AA, 3)
    return canvas.astype(np.float32)


def draw_fur(rng: Generator, side: int, unit: int) -> Array:
    """Thin strokes along a smoothly turning direction in slowly changing colours: fur, hair, grass, straw."""
    base = cv2.GaussianBlur(draw_clouds(rng, side, unit).astype(np.float32), (0, 0), rng.uniform(3, 10) * unit)
    direction = rng.uniform(0, 2 * np.pi) + rng.uniform(0.1, 1.2) * noise(rng, side, 2.2)
    canvas = np.clip(base * 0.6, 0, 255).astype(np.uint8)
    length, width = unit * np.exp(rng.uniform(np.log(5), np.log(40))), unit * rng.uniform(0.4, 1.8)
    count = int(np.clip(2 * side * side / (length * width), 500, 12000))
    spread, contrast = rng.uniform(0.05, 0.35), rng.uniform(10, 45)
    for x, y in rng.uniform(0, side, (count, 2)):
        at = int(y), int(x)
        angle, bend = direction[at] + rng.normal(0, spread), rng.normal(0, spread)
        steps = np.array([[np.cos(angle + i * bend), np.sin(angle + i * bend)] for i in range(3)]) * length / 3
        points = np.array([x, y]) + np.cumsum(steps, 0) - steps[0]
        tone = np.clip(base[at] + rng.normal(0, contrast), 0, 255).tolist()
        thick = max(1, round(width * rng.uniform(0.6, 1.4)))
        cv2.polylines(canvas, [fixed(points)], False, tone, thick, cv2.LINE_AA, 3)
    return canvas.astype(np.float32)


def draw_mixed(rng: Generator, side: int, unit: int) -> Array:
    """Two other kinds, one before the other with a winding or a straight outline."""
    others = [name for name in KINDS if name != 'mixed']
    first, second = (KINDS[name][0] for name in rng.choice(others, 2, replace=False))
    if rng.random() < 0.5:
        mask = noise(rng, side, 2.2) > rng.normal(0, 0.5)
    else:
        canvas = np.zeros((side, side), np.uint8)
        cv2.fillPoly(canvas, [fixed(outline(rng, side * 0.5) + rng.uniform(0.2, 0.8, 2) * side)], 1, shift=3)
        mask = canvas > 0
    return np.where(mask[..., None], first(rng, side, unit), second(rng, side, unit))


KINDS = {  # name -> drawing, frequency
    'leaves': (draw_leaves, 30),
    'text': (draw_text, 9),
    'gratings': (draw_gratings, 5),
    'lines': (draw_lines, 7),
    'clouds': (draw_clouds, 4),
    'gradients': (draw_gradients, 9),
    'facade': (draw_facade, 9),
    'foliage': (draw_foliage, 8),
    'fur': (draw_fur, 9),
    'mixed': (draw_mixed, 8),
}


def render(index: int, size: int, seed: int = 0, kinds: Sequence[str] = tuple(KINDS)) -> Array:
    """Image number `index` as uint8 RGB (size, size, 3); depends on the arguments only."""
    rng = np.random.default_rng([seed, index])
    weights = np.array([KINDS[name][1] for name in kinds], float)
    draw = KINDS[kinds[rng.choice(len(kinds), p=weights / weights.sum())]][0]
    unit = int(rng.integers(3, 5))
    canvas = np.clip(draw(rng, size * unit, unit), 0, 255).astype(np.float32)
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), unit * rng.uniform(0.2, 0.6))  # lenses are not perfect either
    return np.round(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)).astype(np.uint8)
