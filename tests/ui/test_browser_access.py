"""Every place of the page as axe sees it: names, contrasts, places for the keyboard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, ViewportSize, expect

from tests.support.browsing import PATIENCE_MS, expect_state, open_advanced, open_tab, press, run_steps, scripted, serve

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]  # axe takes ten seconds a place
GRAVE = ("critical", "serious")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(scripted, tmp_path_factory.mktemp("runs"))


def list_grave_faults(page: Page) -> list[str]:
    """What axe calls critical or serious, with the first place of each."""
    page.wait_for_timeout(800)  # what changed fades
    found: dict[str, Any] = Axe().run(page, options={"resultTypes": ["violations"]}).response
    return [
        f"{fault['id']}: {fault['nodes'][0]['html'][:120]}" for fault in found["violations"] if fault["impact"] in GRAVE
    ]


@pytest.mark.parametrize(
    ("query", "size"),
    [("", ViewportSize(width=1440, height=900)), ("?__theme=dark", ViewportSize(width=390, height=844))],
    ids=["desk", "dark phone"],
)
def test_no_place_of_the_page_shuts_anybody_out(
    open_page: Callable[..., Page], address: str, query: str, size: ViewportSize
) -> None:
    page = open_page(address + query, viewport=size)
    expect(page.locator("#run")).to_have_css("opacity", "1", timeout=PATIENCE_MS)  # enabled, and no longer fading
    faults = {"first screen": list_grave_faults(page)}
    press(page.get_by_role("button", name="What can be made"))
    page.locator("#prompt textarea").fill("a red unicorn")
    expect(page.locator("#known .kind")).to_have_count(3, timeout=PATIENCE_MS)
    faults["kinds"] = list_grave_faults(page)
    page.locator("#prompt textarea").fill("a taxi")
    press(page.get_by_role("button", name="What can be made"))
    open_advanced(page)
    faults["drawer"] = list_grave_faults(page)
    page.keyboard.press("Escape")
    run_steps(page, 40)
    faults["run"] = list_grave_faults(page)
    expect_state(page, "Finished")
    expect(page.locator("canvas").first).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#run")).to_have_css("opacity", "1", timeout=PATIENCE_MS)
    faults["end"] = list_grave_faults(page)
    for tab in ("Curves", "Runs", "Compare"):
        open_tab(page, tab)
        faults[tab] = list_grave_faults(page)
    assert not {place: found for place, found in faults.items() if found}
