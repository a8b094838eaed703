"""A browser, and pages in it that may ask nobody but this machine."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.browsing import ARGUMENTS, PATIENCE_MS, find_chromium

# Babylon reads its light's texture on after the page has closed Gradio's viewer, and fails then: nobody sees it.
CLOSED_WHILE_LOADING = "Cannot read properties of null (reading 'postProcessManager')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages that may ask nobody but this machine, each as a new visitor; any script error fails the test."""
    contexts, strangers, errors = [], [], []

    def opened(address: str, *, script: str | None = None, **options) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        local = ("http://127.0.0.1:", "http://localhost:", "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(local) else strangers.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        if script:
            page.add_init_script(script)
        page.goto(address)
        page.wait_for_selector("#run")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not strangers, "a request left the machine"
    assert not [error for error in errors if error != CLOSED_WHILE_LOADING], "a script failed"
