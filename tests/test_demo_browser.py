"""The web demo in a real browser: restore, compare, zoom, download, errors in words, two people at once, no traces.

Needs Chromium on the machine (Debian: apt-get install chromium) and pip install -e '.[demo,browser-tests]'.
"""

import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest
from browser import chromium
from PIL import Image
from playwright.sync_api import expect

from basicsr.models.restorer import Restorer
from basicsr.restoring import load_model
from basicsr.utils.image import read_image, to_tensor, to_uint8, write_image

if importlib.util.find_spec('gradio') is None:
    pytest.skip("gradio is missing: pip install -e '.[demo]'", allow_module_level=True)


ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60_000  # milliseconds: other work may share the machine
expect.set_options(timeout=PATIENCE)
SIZE = {'width': 1200, 'height': 1000}
PHONE = {'viewport': {'width': 360, 'height': 740}, 'has_touch': True, 'is_mobile': True, 'device_scale_factor': 2}
MAX_PIXELS = 4000


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """The address of a running demo, and the folder that its files are in."""
    folder = tmp_path_factory.mktemp('demo')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, 'scripts/demo.py', '--model', 'ATD-demo_x2', '--device', 'cpu', '--port', str(port)]
    command += ['--max-mb', '1', '--max-pixels', str(MAX_PIXELS)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'TMPDIR': str(folder)}
    with (folder / 'log').open('w+') as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: process.poll() is not None or 'Ctrl-C ends it' in (folder / 'log').read_text())
            assert process.poll() is None, (folder / 'log').read_text()
            yield f'http://127.0.0.1:{port}/', folder
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    assert [path.name for path in folder.iterdir()] == ['log'], 'all files go with the program'
    assert 'Traceback' not in (folder / 'log').read_text()


@pytest.fixture(scope='module')
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser, demo):
    """A function of the context's options that opens the page; only this machine is asked, and no script fails."""
    contexts, asked, faults = [], [], []

    def open_page(**options):
        contexts.append(browser.new_context(**{'viewport': SIZE, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on('request', lambda request: asked.append(request.url))
        page.on('pageerror', lambda error: faults.append(str(error)))
        page.goto(demo[0])
        page.wait_for_selector('button#restore')
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
    assert [url for url in asked if not url.startswith((demo[0], 'blob:', 'data:'))] == []


def wait_until(is_so, seconds: float = 120) -> None:
    """Until something holds, for other processes take their time."""
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.2)
    assert is_so()


def picture(folder: Path, height: int = 20, width: int = 30, seed: int = 0, name: str = 'small.png') -> Path:
    write_image(folder / name, np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
    return folder / name


def send(page, path: Path) -> None:
    page.set_input_files('#picture input[type=file]', path)


def status(page, kind: str):
    return page.locator(f'#status .message.{kind}')


def restored(page, path: Path) -> None:
    """Send a file, have it restored, and wait for it."""
    send(page, path)
    expect(status(page, 'note')).to_contain_text(path.name)
    page.click('button#restore')
    status(page, 'done').wait_for()
    page.wait_for_function(
        "() => [...document.querySelectorAll('#slider img')].filter((one) => one.naturalWidth).length == 2"
    )


def downloaded(page) -> tuple[str, np.ndarray]:
    with page.expect_download() as download:
        page.click('#download')
    return download.value.suggested_filename, np.asarray(Image.open(download.value.path()))


@pytest.fixture(scope='module')
def expected():
    """A function of a picture's file: what the model makes of it, uint8 (h, w, 3)."""
    model = load_model('ATD-demo_x2', None, None, True)
    return lambda path: to_uint8(Restorer(model)(to_tensor(read_image(path))[None]))


def handle(page) -> float:
    """Where the slider's handle is, from the left of the image, as a share of its width."""
    middle = page.locator('#slider [data-testid=slider]').bounding_box()
    image = page.locator('#slider img').first.bounding_box()
    return (middle['x'] + middle['width'] / 2 - image['x']) / image['width']


def test_a_picture_is_restored_compared_and_downloaded(opened, expected, tmp_path):
    page, path = opened(), picture(tmp_path)
    restored(page, path)
    expect(status(page, 'done')).to_contain_text('30 \u00d7 20 \u2192 60 \u00d7 40 pixels by ATD-demo_x2')
    name, image = downloaded(page)
    assert name == 'small_x2.png'
    np.testing.assert_array_equal(image, expected(path))
    before, after = (
        urlopen(quote(one.get_attribute('src'), ':/=')).read() for one in page.locator('#slider img').all()
    )
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(after))), image)
    assert np.asarray(Image.open(io.BytesIO(before))).shape == image.shape

    wait_until(lambda: handle(page) == pytest.approx(0.5, abs=0.02))
    box, image = (page.locator(f'#slider {one}').first.bounding_box() for one in ('[data-testid=slider]', 'img'))
    place = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
    page.mouse.move(*place)
    page.mouse.down()
    page.mouse.move(image['x'] + 0.8 * image['width'], place[1], steps=5)
    page.mouse.up()
    wait_until(lambda: handle(page) == pytest.approx(0.8, abs=0.03))
    covered = page.locator('#slider img').nth(1).evaluate('(image) => image.style.clipPath')
    assert float(covered.rpartition(' ')[2].rstrip('%)')) == pytest.approx(80, abs=3)


def test_a_result_is_seen_in_its_own_size_enlarged_and_zoomed(opened, tmp_path):
    page = opened()
    restored(page, picture(tmp_path))
    image = page.locator('#slider img').first
    page.get_by_label('1\u00d7').click()
    page.wait_for_function("() => document.querySelector('#slider img').clientWidth == 60")
    assert image.evaluate('(one) => [one.clientWidth, one.clientHeight]') == [60, 40]
    page.get_by_label('4\u00d7').click()
    page.wait_for_function("() => document.querySelector('#slider img').clientWidth == 240")
    wait_until(lambda: handle(page) == pytest.approx(0.5, abs=0.05))  # the handle goes with the image
    box = image.bounding_box()
    page.mouse.move(box['x'] + box['width'] / 4, box['y'] + box['height'] / 4)  # beside the handle
    page.mouse.wheel(0, -300)
    page.wait_for_function("() => /scale\\((?!1\\))/.test(document.querySelector('#slider img').style.transform)")


def test_a_model_shows_the_settings_that_it_has(opened):
    page = opened()

    def shown() -> set[str]:
        names = page.evaluate("""() => [...document.querySelectorAll('[id^=control-]')]
            .filter((one) => one.checkVisibility()).map((one) => one.id)""")  # at once: they come and go
        return {name.removeprefix('control-') for name in names}

    wait_until(lambda: shown() == {'color_fix', 'tile'})
    for name, controls in (
        ('SR3-demo_x4', {'steps', 'sampler', 'color_fix', 'seed', 'tile'}),
        ('ITER-demo_x4', {'T', 'threshold', 'sampling', 'color_fix', 'seed', 'tile'}),
        ('ATD-demo_x2', {'color_fix', 'tile'}),
    ):
        page.locator('#model input').click()
        page.get_by_role('option', name=name).click()
        wait_until(lambda controls=controls: shown() == controls)
        if name == 'SR3-demo_x4':
            expect(page.locator('#control-steps input[type=number]')).to_have_value('20')
            expect(page.locator('#control-sampler input')).to_have_value('ancestral')


def in_view(page, selector: str) -> bool:
    """Whether all of something lies in the window."""
    box, window = page.locator(selector).bounding_box(), page.viewport_size
    if box is None:
        return False
    right, bottom = box['x'] + box['width'], box['y'] + box['height']
    return box['x'] >= 0 and box['y'] >= 0 and right <= window['width'] and bottom <= window['height']


def test_words_buttons_and_result_are_in_view_however_many_settings_there_are(opened, tmp_path):
    page = opened(viewport={'width': 1280, 'height': 720})
    page.locator('#model input').click()
    page.get_by_role('option', name='ITER-demo_x4').click()
    page.locator('#control-threshold').wait_for()
    page.click('button#restore')
    expect(status(page, 'error')).to_contain_text('There is no image yet')
    wait_until(lambda: all(in_view(page, one) for one in ('#status .message', 'button#restore', 'button#cancel')))
    restored(page, picture(tmp_path, 8, 6))
    page.mouse.move(100, 600)
    page.mouse.wheel(0, 5000)
    wait_until(lambda: page.evaluate('scrollY') > 100)
    wait_until(
        lambda: all(in_view(page, one) for one in ('#status .message', '#slider', '#download', 'button#restore'))
    )


def test_an_example_is_taken_by_a_click(opened):
    page = opened()
    page.locator('#examples button').first.click()
    expect(status(page, 'note')).to_contain_text('astronaut_face.png: 54 \u00d7 63 pixels')


@pytest.mark.parametrize(
    ('content', 'words'),
    [(b'these are only words', 'broken.png is not a readable image'), (b'', 'broken.png is empty')],
)
def test_an_unreadable_file_is_said_in_words(opened, tmp_path, content, words):
    page, path = opened(), tmp_path / 'broken.png'
    path.write_bytes(content)
    restored(page, picture(tmp_path))
    page.get_by_label('Clear').or_(page.get_by_label('Remove Image')).first.click()
    send(page, path)
    expect(status(page, 'error')).to_contain_text(words)
    page.click('button#restore')
    expect(page.locator('#slider img')).to_have_count(0)
    expect(status(page, 'error')).to_contain_text(words)
    expect(page.locator('#picture img')).to_be_hidden()
    assert 'Traceback' not in page.content()
    expect(page.locator('#download')).to_be_disabled(timeout=PATIENCE)
    expect(page.locator('button#restore')).to_be_enabled(timeout=PATIENCE)


def test_an_image_of_too_many_pixels_is_refused(opened, tmp_path):
    page = opened()
    send(page, picture(tmp_path, 70, 70, name='large.png'))
    expect(status(page, 'error')).to_contain_text('large.png has 70 \u00d7 70 pixels, 4,900 in all')
    status(page, 'error').evaluate('(one) => one.dataset.former = true')
    page.click('button#restore')
    expect(page.locator('#status .message.error:not([data-former])')).to_contain_text('takes at most 4,000')


def test_a_file_of_too_many_bytes_is_not_taken(opened, demo, tmp_path):
    page, path = opened(), tmp_path / 'heavy.png'
    path.write_bytes(np.random.default_rng(3).bytes(2**20 + 1))
    send(page, path)
    page.get_by_text('maximum').first.wait_for()
    assert not list(demo[1].rglob('heavy.png'))


def test_without_an_image_it_is_said_what_to_do(opened):
    page = opened()
    page.click('button#restore')
    expect(status(page, 'error')).to_contain_text('There is no image yet')


def test_work_can_be_cancelled(opened, tmp_path):
    page = opened()
    page.locator('#model input').click()
    page.get_by_role('option', name='SR3-demo_x4').click()
    steps = page.locator('#control-steps input[type=number]')
    steps.wait_for()
    steps.fill('2000')
    steps.press('Tab')
    send(page, picture(tmp_path))
    page.locator('#status').get_by_text('small.png').wait_for()
    page.click('button#restore')
    page.get_by_text('Restoring').first.wait_for()
    page.click('button#cancel')
    expect(status(page, 'note')).to_contain_text('Cancelled.')
    expect(page.locator('button#restore')).to_be_enabled(timeout=PATIENCE)
    page.locator('#model input').click()
    page.get_by_role('option', name='ATD-demo_x2').click()
    page.locator('#control-steps').wait_for(state='hidden')
    page.click('button#restore')
    status(page, 'done').wait_for()


def test_two_people_at_once_get_each_their_own_result(opened, expected, tmp_path):
    pages = opened(), opened()
    paths = [picture(tmp_path, seed=seed, name=f'of_{seed}.png') for seed in (1, 2)]
    for page, path in zip(pages, paths, strict=True):
        send(page, path)
        expect(status(page, 'note')).to_contain_text(path.name)
    for page in pages:
        page.click('button#restore')
    for page, path in zip(pages, paths, strict=True):
        status(page, 'done').wait_for()
        name, image = downloaded(page)
        assert name == f'{path.stem}_x2.png'
        np.testing.assert_array_equal(image, expected(path))


def test_files_go_when_the_page_is_closed(opened, demo, tmp_path):
    page = opened()
    restored(page, picture(tmp_path, seed=5, name='private.png'))
    assert {path.name for path in demo[1].rglob('private*')} == {'private.png', 'private_x2.png'}
    page.close()
    wait_until(lambda: not list(demo[1].rglob('private*')))


def test_files_of_the_machine_are_not_served(demo):
    for path in (ROOT / 'README.md', Path('/etc/passwd'), demo[1] / 'log'):
        with pytest.raises(HTTPError) as error:
            urlopen(f'{demo[0]}gradio_api/file={path}')
        assert error.value.code in (403, 404)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_phone_shows_the_page_without_scrolling_sideways(opened, tmp_path, scheme):
    page = opened(**PHONE, color_scheme=scheme)
    assert page.evaluate('document.documentElement.scrollWidth') == 360
    restored(page, picture(tmp_path))
    assert page.evaluate('document.documentElement.scrollWidth') == 360
    page.wait_for_function("() => document.querySelector('#slider').getBoundingClientRect().bottom <= innerHeight")
    image = page.locator('#slider img').first.bounding_box()
    assert image['x'] >= 0 and image['x'] + image['width'] <= 360
