"""The shelf in Chromium: it turns under the pointer, a click opens the run, and "Make my own" goes on from it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.support.browsing import (
    LOWER,
    PATIENCE_MS,
    UPPER,
    expect_colours_in_the_viewer,
    expect_new_picture,
    expect_state,
    press,
    scripted,
    serve,
)
from tests.support.shelf import PROMPT, STEPS, make_shelf

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
# On a wide screen Steer stands beside the pictures: it comes when its sliders have loaded, and nothing pushes it.
SHIFT = """window.moved = []
const place = innerWidth > 719 ? '#see' : '#stage'
new PerformanceObserver(list => { for (const entry of list.getEntries())
  for (const {node} of entry.sources) if (node?.nodeType === 1 && node.closest(place)) window.moved.push(node.id)
}).observe({type: 'layout-shift', buffered: true})"""

# A page's parts come in whichever order its scripts arrive: here these come last.
LATE = """addEventListener('DOMContentLoaded', () => document.head.insertAdjacentHTML('beforeend',
  '<style id="late">#suggestions, #known, #picker { display: none !important }</style>'))"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, shelf: Path) -> Iterator[str]:
    yield from serve(scripted, tmp_path_factory.mktemp("runs"), shipped=shelf)


def find_tile(page: Page) -> Locator:
    tile = page.get_by_role("button", name=f"Open {PROMPT}")
    expect(tile).to_be_visible(timeout=PATIENCE_MS)
    page.wait_for_function("[...document.querySelectorAll('.tile img')].every(it => it.complete && it.naturalWidth)")
    return tile


def offset_of(tile: Locator) -> float:
    """How far the strip is moved, in pixels."""
    return tile.locator("img").evaluate("image => new DOMMatrix(getComputedStyle(image).transform).e")


def hover_at(page: Page, tile: Locator, share: float) -> None:
    box = tile.bounding_box()
    assert box
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 3)


def test_a_tile_turns_under_the_pointer(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address)
    tile = find_tile(page)
    width = tile.locator(".spin").evaluate("view => view.clientWidth")
    assert offset_of(tile) == 0
    for share, view in ((0.53, 8), (0.9, 14)):
        hover_at(page, tile, share)
        assert offset_of(tile) == pytest.approx(-view * width, abs=width / 4)
    page.mouse.move(5, 5)
    assert offset_of(tile) == 0


def test_a_tile_stands_still_where_less_motion_is_asked_for(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address, reduced_motion="reduce", has_touch=True)
    tile = find_tile(page)
    hover_at(page, tile, 0.5)
    tile.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    page.wait_for_timeout(1000)
    assert offset_of(tile) == 0


@pytest.mark.parametrize("size", [(1440, 900), (390, 844)])
def test_pictures_push_nothing_about(open_page: Callable[..., Page], address: str, size: tuple[int, int]) -> None:
    page = open_page(address, viewport={"width": size[0], "height": size[1]}, script=LATE)
    find_tile(page)
    page.evaluate(SHIFT)
    page.evaluate("document.getElementById('late').remove()")
    page.wait_for_timeout(1000)
    assert page.evaluate("window.moved") == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    columns = page.locator(".tiles").evaluate("tiles => getComputedStyle(tiles).gridTemplateColumns.split(' ').length")
    assert columns == (4 if size[0] > 719 else 3)


def test_a_click_opens_the_run_and_make_my_own_goes_on(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address)
    tile = find_tile(page)
    page.locator("#prompt textarea").fill("a taxi")
    with page.expect_response(re.compile(r"mesh\.glb")) as mesh:
        press(tile)  # with the keyboard
    assert "immutable" in mesh.value.headers["cache-control"]
    expect_state(page, "Finished")
    assert page.url.endswith(f"_s0_{page.url[-8:]}") and "?run=" in page.url
    expect_colours_in_the_viewer(page, UPPER, LOWER, off=70)
    expect(page.locator(".tile")).to_have_count(0)
    expect(page.locator("#charts polyline").first).to_be_attached(timeout=PATIENCE_MS)
    expect(page.locator("#status .slot").first).to_contain_text(f"{STEPS} / {STEPS}")
    expect(page.locator("#prompt textarea")).to_have_value(PROMPT)
    for button in ("#pause", "#stop", "#go-on"):
        expect(page.locator(button)).to_be_hidden()
    page.reload()
    expect_state(page, "Finished")
    page.locator("#prompt textarea").fill("a taxi")
    press(page.get_by_role("button", name="Make my own"))
    find_tile(page)
    expect(page.locator("#prompt textarea")).to_have_value(PROMPT)
    assert "?run=" not in page.url
    press(page.locator("#run"))
    expect_new_picture(page)
    expect(page.locator(".tile")).to_have_count(0)


def test_the_way_back_leads_to_the_shelf(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address)
    find_tile(page).click()
    expect_state(page, "Finished")
    page.go_back()
    find_tile(page)
    expect_state(page, "Ready")
