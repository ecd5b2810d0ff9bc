"""The browser of the tests of pages; a module that imports this is skipped without one, and says why."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

try:
    from playwright.sync_api import Browser, sync_playwright
except ImportError:
    pytest.skip("playwright is missing: pip install -e '.[browser-tests]'", allow_module_level=True)
CHROMIUM = next(
    (found for name in ('chromium', 'chromium-browser', 'google-chrome') if (found := shutil.which(name))), ''
)
if not CHROMIUM:
    pytest.skip('no Chromium on this machine (Debian: apt-get install chromium)', allow_module_level=True)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()
