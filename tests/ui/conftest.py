"""A browser, and pages in it that may ask nobody but this machine."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, sync_playwright

from tests.support.browsing import ARGUMENTS, PATIENCE_MS, find_chromium

# Gradio's viewers fail so when they are closed or give way to another while they load: Babylon reads the texture of
# its light, and the viewer of splats looks for a canvas that has gone.  What is asked for is shown all the same.
CLOSED_WHILE_LOADING = {
    "Cannot read properties of null (reading 'postProcessManager')",
    "Cannot read properties of null (reading 'addEventListener')",
}
DESK: ViewportSize = {"width": 1440, "height": 1000}


def clear_visitor(visitor: BrowserContext) -> None:
    """Close what ``visitor`` has open, and leave nothing of it but the cache of scripts."""
    for page in visitor.pages:
        page.evaluate("localStorage.clear()")
        page.close()
    visitor.clear_cookies()
    visitor.clear_permissions()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def first_visitor(browser: Browser) -> BrowserContext:
    """The first visitor of each of a file's tests: its scripts are compiled once a file, a third of a page's time."""
    return browser.new_context(viewport=DESK)


@pytest.fixture
def open_page(browser: Browser, first_visitor: BrowserContext) -> Iterator[Callable[..., Page]]:
    """Opens pages that may ask nobody but this machine, each as a new visitor; any script error fails the test."""
    contexts, strangers, errors = [], [], []

    def open_one(address: str, *, script: str | None = None, **options) -> Page:
        context = browser.new_context(**{"viewport": DESK, **options}) if options or contexts else first_visitor
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

    yield open_one
    for context in contexts:
        if context is first_visitor:
            clear_visitor(context)
        else:
            context.close()
    assert not strangers, "a request left the machine"
    assert not [error for error in errors if error not in CLOSED_WHILE_LOADING], "a script failed"
