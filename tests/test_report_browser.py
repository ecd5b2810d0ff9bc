"""The report in a real browser: panels move together, differences are true, keys and phones work, no script is fine.

Needs Chromium on the machine (Debian: apt-get install chromium) and pip install -e '.[browser-tests]'.
"""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from browser import chromium
from PIL import Image
from report_files import made, make_results, make_training, noise

from basicsr.utils.image import write_image

SIZE = {'width': 1200, 'height': 900}
GT, A, B, LQ = noise(3, 48, 64), noise(1, 48, 64), noise(3, 48, 64), noise(4, 12, 16)  # b restores gt exactly


@pytest.fixture(scope='module')
def report_file(tmp_path_factory):
    """Two models, two images, a training run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp('report'))
        scores = {'set': {'x': {'psnr': 30.0}, 'y': {'psnr': 31.0}}}
        a = make_results(Path('a'), scores, {'x': A, 'y': noise(5)})
        b = make_results(Path('b'), scores, {'x': B, 'y': noise(6)})
        write_image('gt/x.png', GT)
        write_image('gt/y.png', noise(7))
        write_image('lq/x.png', LQ)
        write_image('lq/y.png', noise(8, 6, 8))
        training = make_training(Path('t'), [{'iter': n, 'l_pix': 1 / n, 'lr': [1e-4]} for n in range(1, 9)])
        made(a, b, '--train', training)
        return folder / 'report.html'


@pytest.fixture(scope='module')
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser, report_file):
    """A function of the context's options that opens the page; nothing is fetched, and no script fails."""
    contexts, asked, faults = [], [], []

    def open_page(address: str = '', **options):
        contexts.append(browser.new_context(**{'viewport': SIZE, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)  # milliseconds: other work may share the machine
        page.on('request', lambda request: asked.append(request.url))
        page.on('pageerror', lambda error: faults.append(str(error)))
        page.on('console', lambda message: message.type == 'error' and faults.append(message.text))
        page.goto(report_file.as_uri() + address)
        if options.get('java_script_enabled', True):
            page.wait_for_selector('.stage[data-scale]')
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
    assert all(url.startswith((report_file.as_uri(), 'data:image/')) for url in asked)


def panel(page, number: int, kind: str = 'image') -> np.ndarray:
    """What a panel shows, (h, w, 3): lq, a, b, gt."""
    settle(page)
    canvas = page.locator('.stage figure').nth(number).locator('canvas').nth(int(kind == 'gap'))
    png = canvas.evaluate("canvas => canvas.toDataURL('image/png')").partition(',')[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert('RGBA'))[..., :3]


def box_of(page, number: int) -> dict:
    """Where a canvas lies in the window, scrolled to."""
    canvas = page.locator('.stage canvas').nth(number)
    canvas.scroll_into_view_if_needed()
    return canvas.bounding_box()


def settle(page) -> None:
    page.evaluate('() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))')


def view(page) -> tuple[float, float, float]:
    settle(page)
    return tuple(float(page.locator('.stage').get_attribute(f'data-{name}')) for name in ('scale', 'x', 'y'))


def whole(page, number: int, kind: str = 'image') -> np.ndarray:
    """The image in a panel, read back from the enlarged view at the middle of each of its pixels."""
    shown = panel(page, number, kind)
    scale, x, y = view(page)
    scale *= page.evaluate('devicePixelRatio')
    height, width = GT.shape[:2]
    rows = np.floor((np.arange(height) + 0.5 - y) * scale + shown.shape[0] / 2).astype(int)
    columns = np.floor((np.arange(width) + 0.5 - x) * scale + shown.shape[1] / 2).astype(int)
    return shown[rows][:, columns]


def test_panels_show_the_images_and_their_differences_from_gt(opened):
    page = opened()
    assert page.locator('.stage figcaption strong').all_inner_texts() == ['lq, bicubic', 'a', 'b', 'gt']
    for number, image in ((1, A), (2, B), (3, GT)):
        np.testing.assert_array_equal(whole(page, number), image)
        gap = np.abs(image.astype(int) - GT) * 8
        np.testing.assert_array_equal(whole(page, number, 'gap'), gap.clip(0, 255))


def test_the_gain_and_the_reference_can_be_chosen(opened):
    page = opened()
    page.get_by_label('Gain').fill('2')
    page.get_by_label('Difference from').select_option('a')
    np.testing.assert_array_equal(whole(page, 3, 'gap'), (np.abs(GT.astype(int) - A) * 2).clip(0, 255))
    assert whole(page, 1, 'gap').max() == 0
    assert page.get_by_text('|gt \u2212 a| \xd7 2').is_visible()
    page.get_by_label('Show', exact=True).select_option('images')
    assert [canvas.is_visible() for canvas in page.locator('.stage canvas').all()] == 4 * [True, False]


def test_the_wheel_enlarges_all_panels_about_the_same_place(opened):
    page = opened()
    before = view(page)
    box = box_of(page, 2)
    pointer = round(box['x'] + box['width'] / 4), round(box['y'] + box['height'] / 4)  # whole, as browsers report it
    page.mouse.move(*pointer)
    page.mouse.wheel(0, -600)
    after = view(page)
    assert after[0] > 2 * before[0]
    offsets = pointer[0] - box['x'] - box['width'] / 2, pointer[1] - box['y'] - box['height'] / 2
    under = [[v[1] + offsets[0] / v[0], v[2] + offsets[1] / v[0]] for v in (before, after)]
    assert under[0] == pytest.approx(under[1], abs=0.02), 'what was under the pointer stays there'
    np.testing.assert_array_equal(panel(page, 2), panel(page, 3))
    assert not np.array_equal(panel(page, 1), panel(page, 3))


def test_dragging_moves_all_panels_and_never_past_the_image(opened):
    page = opened()
    page.get_by_role('button', name='zoom in').click(click_count=6)
    scale, x, y = view(page)
    box = box_of(page, 2)
    centre = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
    page.mouse.move(*centre)
    page.mouse.down()
    page.mouse.move(centre[0] - 30, centre[1] - 20)
    assert view(page) == pytest.approx((scale, x + 30 / scale, y + 20 / scale))
    page.mouse.move(centre[0] + 5000, centre[1] + 5000)
    page.mouse.up()
    left_top = view(page)[1] - box['width'] / 2 / scale, view(page)[2] - box['height'] / 2 / scale
    assert left_top == pytest.approx((0, 0), abs=0.05)
    np.testing.assert_array_equal(panel(page, 2), panel(page, 3))


def test_two_fingers_enlarge_and_one_moves(opened):
    page = opened(has_touch=True)
    scale, x, y = view(page)
    box = box_of(page, 1)
    left, middle = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2

    def touch(kind: str, *places: float) -> None:
        points = [{'x': round(left + place), 'y': round(middle), 'id': number} for number, place in enumerate(places)]
        session.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': points})
        settle(page)

    session = page.context.new_cdp_session(page)
    touch('touchStart', -20, 20)
    for place in (25, 30, 35, 40):
        touch('touchMove', -place, place)
    touch('touchEnd')
    assert view(page)[0] == pytest.approx(2 * scale, rel=0.15)
    scale, x, y = view(page)
    touch('touchStart', 0)
    for place in (-10, -20, -30):
        touch('touchMove', place)
    touch('touchEnd')
    assert view(page) == pytest.approx((scale, x + 30 / scale, y), abs=0.5)


def test_everything_works_from_the_keyboard(opened):
    page = opened()
    fitted = view(page)
    page.locator('.stage').focus()
    page.keyboard.press('+')
    page.keyboard.press('+')
    enlarged = view(page)
    assert enlarged[0] == pytest.approx(fitted[0] * 1.25**2)
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowDown')
    assert view(page) == pytest.approx((enlarged[0], enlarged[1] + 40 / enlarged[0], enlarged[2] + 40 / enlarged[0]))
    page.keyboard.press('-')
    assert view(page)[0] == pytest.approx(enlarged[0] / 1.25)
    page.keyboard.press('0')
    assert view(page) == fitted
    page.keyboard.press('PageDown')
    page.wait_for_selector('.stage[data-shot="1"]')
    assert page.get_by_label('Image', exact=True).input_value() == '1'
    page.keyboard.press('PageUp')
    page.wait_for_selector('.stage[data-shot="0"]')


def test_tab_reaches_every_control_and_the_images(opened):
    page, reached = opened(), set()
    for _ in range(60):
        page.keyboard.press('Tab')
        reached.add(
            page.evaluate('document.activeElement.getAttribute("aria-label") || document.activeElement.tagName')
        )
    assert {'Image', 'previous image', 'Difference from', 'Show', 'INPUT', 'zoom in', 'zoom out', 'SUMMARY'} <= reached
    assert any(label.startswith('Images, enlarged and moved together') for label in reached)


def test_a_link_and_an_address_show_an_image(opened):
    page = opened()
    page.get_by_role('link', name='y', exact=True).first.click()
    page.wait_for_selector('.stage[data-shot="1"]')
    assert page.evaluate('document.activeElement.className') == 'stage'
    assert opened('#shot-1').locator('.stage').get_attribute('data-shot') == '1'


def test_panels_say_their_scores_and_the_pixel_under_the_pointer(opened):
    page = opened()
    scores = page.locator('.stage figcaption span').all_inner_texts()
    assert [line.strip() for line in scores] == ['', 'psnr 30.00', 'psnr 30.00', '']
    scale, x, y = view(page)
    box = box_of(page, 2)
    page.mouse.move(box['x'] + box['width'] / 2 + (20.5 - x) * scale, box['y'] + box['height'] / 2 + (30.5 - y) * scale)
    words = page.locator('.stage figcaption span').all_inner_texts()
    assert words[1:] == [f'(20, 30): {" ".join(map(str, image[30, 20]))}' for image in (A, B, GT)]


def test_without_javascript_tables_images_and_plots_are_there(opened):
    page = opened(java_script_enabled=False)
    assert page.get_by_text('Zoom and differences need JavaScript.').is_visible()
    assert page.get_by_role('table', name='set: paired differences').is_visible()
    assert page.locator('.strip img').first.is_visible() and not page.locator('#viewer').is_visible()
    assert page.locator('svg.plot').first.is_visible()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_has_the_contrast_that_wcag_asks_for_in_light_and_dark(opened, scheme):
    page = opened(color_scheme=scheme)
    colours = page.evaluate("""() => ['body', '.faint', 'a', 'thead th', '.range', 'dt'].map((selector) => [
        getComputedStyle(document.querySelector(selector)).color, getComputedStyle(document.body).backgroundColor])""")
    for pair in colours:
        darker, lighter = sorted(luminance(colour) for colour in pair)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5
    assert (luminance(colours[0][1]) < 0.5) == (scheme == 'dark')


def luminance(colour: str) -> float:
    """WCAG's relative luminance of 'rgb(r, g, b)'."""
    channels = np.array([int(part) for part in colour[4:-1].split(',')]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_a_phone_shows_the_page_without_scrolling_sideways(opened):
    page = opened(viewport={'width': 360, 'height': 740}, has_touch=True, is_mobile=True, device_scale_factor=3)
    assert page.evaluate('document.documentElement.scrollWidth') == 360
    for select in page.locator('.controls select').all():
        box = select.bounding_box()
        assert box['x'] >= 0 and box['x'] + box['width'] <= 360
    np.testing.assert_array_equal(whole(page, 1), A)
    assert page.locator('.stage canvas').first.evaluate('canvas => canvas.style.touchAction') == 'pan-y'
    page.get_by_role('button', name='zoom in').tap()
    settle(page)
    assert page.locator('.stage canvas').first.evaluate('canvas => canvas.style.touchAction') == 'none'
