"""The stage in Chromium: always in sight with what steers it, turned by hand, and at the end the mesh in its place."""

import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from psd.config.preset import Preset
from tests.support.browsing import (
    LOWER,
    PATIENCE_MS,
    UPPER,
    expect_colours_in_the_viewer,
    expect_new_picture,
    expect_state,
    number_of,
    open_advanced,
    open_tab,
    press,
    run_steps,
    scripted,
    serve,
    splat_ball,
    store_run,
    type_number,
)

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
LEAST_TARGET = 24  # pixels
LARGEST_SHIFT = 0.1
SIZES = {"laptop": (1440, 900), "desk": (1920, 1080), "phone": (390, 844)}
SHIFT = """window.shift = 0
new PerformanceObserver(list => { for (const entry of list.getEntries())
  if (!entry.hadRecentInput) window.shift += entry.value }).observe({type: 'layout-shift', buffered: true})"""


# Stands in for the system's notifications, which a browser without a window has not.
BELL = """window.rung = []
window.Notification = class { constructor(words) { window.rung.push(words) } }
Notification.permission = 'default'
Notification.requestPermission = async () => Notification.permission = 'granted'"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def stored(root: Path) -> str:
    return store_run(root, Preset.load("tiny", {"prompt": "a taxi", "steps": 8}))


@pytest.fixture(scope="module")
def address(root: Path, stored: str) -> Iterator[str]:
    yield from serve(scripted, root)


def is_whole(page: Page, part: Locator) -> bool:
    """Whether all of it is on the screen."""
    box, size = part.bounding_box(), page.viewport_size
    assert box and size
    low, right = box["y"] + box["height"], box["x"] + box["width"]
    return box["y"] > -1 and low < size["height"] + 1 and right < size["width"] + 1  # edges lie between pixels


def measure_load(page: Page) -> float:
    """How far parts moved by themselves since the page was asked for; counts on from there."""
    page.evaluate(SHIFT)
    page.wait_for_timeout(1000)
    return page.evaluate("window.shift")


def wait_until_still(page: Page) -> None:
    """Until nothing has moved by itself for a while."""
    before = None
    while (now := page.evaluate("window.shift")) != before:
        before = now
        page.wait_for_timeout(1500)


def turn_by_hand(page: Page, pixels: int) -> None:
    box = page.locator("#view").bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + pixels, y, steps=3)
    page.mouse.up()


def expect_wires(page: Page, solid: bytes) -> None:
    """The viewer comes to show less of the mesh than ``solid`` does, and something."""
    whole = count_drawn(solid)
    for _ in range(PATIENCE_MS // 500):
        drawn = count_drawn(page.locator("#viewer canvas").screenshot(style="#show { visibility: hidden }"))
        if 0.02 * whole < drawn < 0.7 * whole:
            return
        page.wait_for_timeout(500)
    raise AssertionError(f"{drawn} pixels of the wireframe, {whole} of the mesh")


def count_drawn(picture: bytes) -> int:
    pixels = np.asarray(Image.open(BytesIO(picture)).convert("RGB")).astype(int)
    return int((pixels.max(-1) - pixels.min(-1) > 60).sum())


@pytest.mark.parametrize("size", SIZES)
def test_guidance_is_moved_while_the_picture_is_in_sight(
    open_page: Callable[..., Page], address: str, size: str
) -> None:
    width, height = SIZES[size]
    page = open_page(address, viewport={"width": width, "height": height})
    loaded = measure_load(page)
    if loaded > LARGEST_SHIFT:  # one load in twelve beside three other browsers; why is not known
        page.reload()
        page.wait_for_selector("#run")
        loaded = measure_load(page)
    open_advanced(page)
    wait_until_still(page)  # what the drawer's opening moves is the person's own doing, late on a busy machine
    page.evaluate("window.shift = 0")
    run_steps(page, 2000)
    expect_new_picture(page)
    page.locator("#view").evaluate("(view) => view.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(500)
    guidance = number_of(page, "control-guidance_scale")
    type_number(guidance, "9.5")
    view = page.locator("#view")
    assert is_whole(page, view) and is_whole(page, guidance), f"{view.bounding_box()} {guidance.bounding_box()}"
    mark = page.locator("#timeline .marks button")
    expect(mark).to_have_attribute("aria-label", re.compile("guidance_scale = 9.5"), timeout=PATIENCE_MS)
    expect(page.locator("#moves")).to_contain_text("guidance_scale = 9.5")
    assert re.fullmatch(r"\d+% a red mushroom · PSD Studio", page.title())
    moved = page.evaluate("window.shift")
    if size == "phone":
        small = page.evaluate(
            """least => [...document.querySelectorAll('#layout :is(button, a, label:has(input), input[type=number])')]
            .filter(part => part.checkVisibility() && part.offsetHeight && part.offsetHeight < least)
            .filter(part => part.tabIndex >= 0 || part.matches('label'))  // Gradio measures its tabs with copies
            .map(part => part.outerHTML.slice(0, 90))""",
            LEAST_TARGET,
        )
        assert not small
    press(page.locator("#stop"))
    expect_state(page, "Stopped")
    assert loaded + moved < LARGEST_SHIFT, f"{loaded:.3f} as the page came, {moved:.3f} of the run"


def test_the_object_is_turned_while_it_grows(open_page: Callable[..., Page], address: str) -> None:
    """By hand and by the keyboard, also while the run is paused; `tests/runs/test_orbit.py` holds how soon."""
    page = open_page(address)
    run_steps(page, 2000)
    picture = page.locator("#picture .turned")
    expect(picture).to_have_attribute("alt", re.compile("from 30°"), timeout=PATIENCE_MS)
    page.wait_for_timeout(2000)
    turn_by_hand(page, -180)
    expect(picture).to_have_attribute("alt", re.compile("from 120°"), timeout=PATIENCE_MS)
    press(page.locator("#pause"))
    expect_state(page, "Paused")
    page.locator("#picture .turns").press("ArrowLeft")
    expect(picture).to_have_attribute("alt", re.compile("from 135°"), timeout=PATIENCE_MS)
    press(page.locator("#stop"))
    expect_state(page, "Stopped")


def test_at_the_end_the_mesh_stands_where_the_picture_was(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(BELL)
    run_steps(page, 24)  # long enough for a slow machine to press the bell before the end
    expect_state(page, "Running")
    page.locator("#status .bell").press("Enter")
    expect(page.locator("#status .bell")).to_have_attribute("aria-pressed", "true")
    expect_state(page, "Finished")
    assert page.evaluate("window.rung") == ["✓ a red mushroom"]
    expect_colours_in_the_viewer(page, UPPER, LOWER, off=45)
    assert page.title() == "✓ a red mushroom · PSD Studio"
    take = page.locator("#take a")
    expect(take).to_have_text(re.compile(r"Download a-red-mushroom.glb\s+\d+ kB"))
    page.locator("#take button").press("Enter")
    expect(page.locator("#take button")).to_have_text("Copied")
    other = open_page(page.evaluate("navigator.clipboard.readText()"))
    expect_state(other, "Finished")

    # A look back shows the picture of that step; Mesh comes back with one press.
    press(page.locator("#timeline .thumbs button").nth(1))
    expect(page.locator("#picture .sprite")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#viewer")).to_be_hidden()
    page.locator("#show label", has_text="Mesh").click()
    expect(page.locator("#viewer")).to_be_visible()
    solid = page.locator("#viewer canvas").screenshot(style="#show { visibility: hidden }")
    page.locator("#show label", has_text="Wireframe").click()
    expect(page.locator("#viewer")).to_be_visible()
    expect_wires(page, solid)
    page.locator("#show label", has_text="Turntable").click()
    expect(page.locator("#film video")).to_be_visible()


def test_a_run_of_gaussians_shows_its_splats_and_hands_out_both_files(
    open_page: Callable[..., Page], address: str, root: Path
) -> None:
    """Upright, in their colours and on white, in the place of the mesh, which comes back."""
    preset = Preset.load("tiny-gaussians", {"prompt": "a red ball", "steps": 2})
    page = open_page(f"{address}?run={store_run(root, preset, splat_ball())}")
    expect_state(page, "Finished")
    with page.expect_response(re.compile(r"/mesh\.splat"), timeout=PATIENCE_MS):  # by then its canvas is there
        page.locator("#show label", has_text="Splats").click(timeout=PATIENCE_MS)
    expect(page.locator("#viewer")).to_be_visible()
    expect_colours_in_the_viewer(page, UPPER, LOWER, off=30)
    corner = page.locator("#viewer canvas").screenshot(style="#show { visibility: hidden }")
    assert Image.open(BytesIO(corner)).convert("RGB").getpixel((3, 3)) == (255, 255, 255)
    open_tab(page, "Mesh")
    for name in ("a-red-ball.splat.ply", "a-red-ball.splat"):
        expect(page.locator(f'#downloads a[download="{name}"]')).to_be_visible(timeout=PATIENCE_MS)


def test_the_stage_stays_in_sight_while_the_rest_is_read(
    open_page: Callable[..., Page], address: str, stored: str
) -> None:
    page = open_page(f"{address}?run={stored}", viewport={"width": 1440, "height": 900})
    expect_state(page, "Finished")
    expect(page.locator("#charts figure").first).to_be_visible(timeout=PATIENCE_MS)
    page.locator("#charts figure").last.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    assert page.evaluate("scrollY") > 300 and is_whole(page, page.locator("#view"))
