"""The page in Chromium: run, watch, steer, reload, stop, take the mesh away; nothing leaves the machine.

Everything is done from the keyboard, which also spares the mouse's wait for a still frame on a busy machine.

Most tests drive a scripted engine (`scripted`, a test double); the last one drives the real models in assets/.
"""

import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from psd.config.preset import Preset
from psd.distillation.events import Alarmed, BestKept, Event, Failed, Finished, Meshed, NegativeUpdated, Warned
from psd.distillation.interfaces import Control
from psd.embedded.captions import kinds
from psd.runs import engine
from tests.support.browsing import (
    BALL,
    LOWER,
    PATIENCE_MS,
    UPPER,
    download_glb,
    expect_colours_in_the_viewer,
    expect_new_picture,
    expect_state,
    look_back,
    number_of,
    open_advanced,
    open_tab,
    press,
    run_steps,
    scripted,
    serve,
    type_number,
)

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
WARNING = "Out of memory: going on with views = 2, render_size = 32."
ALARM = "train reward +8 %, judge -3 % since step 6: likely reward hacking"


def troubled(preset: Preset, control: Control, resume: object) -> Iterator[Event]:
    """`scripted` without its end: a best scene, a warning and an alarm on the way, and a failure where it stops."""
    for event in scripted(preset, control, resume):
        if isinstance(event, Meshed | Finished):
            break
        yield event
        if isinstance(event, NegativeUpdated) and event.step == 8:
            yield BestKept(step=8, judge="assets/selector", score=1.9)
        elif isinstance(event, NegativeUpdated) and event.step == 16:
            yield Warned(step=16, message=WARNING)
            yield Alarmed(step=16, kind="hacking", since=6, message=ALARM)
    yield Failed(step=16, message="Out of memory again.", cure="Lower render_size.", traceback="Traceback (most recent")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(scripted, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def troubled_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(troubled, tmp_path_factory.mktemp("troubled"))


@pytest.fixture(scope="module")
def real_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(engine.make_events, tmp_path_factory.mktemp("real"))


def test_a_run_from_what_can_be_made_to_the_downloaded_mesh(
    open_page: Callable[..., Page], address: str, tmp_path: Path
) -> None:
    page = open_page(address)
    press(page.get_by_role("button", name="What can be made"))
    press(page.get_by_role("button", name="pirate ship", exact=True))
    expect(page.locator("#prompt textarea")).to_have_value("a pirate ship", timeout=PATIENCE_MS)

    run_steps(page, 2000)
    first = expect_new_picture(page)
    second = expect_new_picture(page, after=first)
    assert page.request.get(address + first).body() != page.request.get(address + second).body()
    private = second.split("/previews/")[0] + "/../status.json"
    assert page.request.get(address + private).status in (403, 404), "more than public/ is served"
    open_tab(page, "Curves")
    chart = "#charts svg.lines polyline"
    expect(page.locator(chart).first).to_have_attribute("points", re.compile("[0-9]+ [0-9]+"), timeout=PATIENCE_MS)
    page.evaluate(f"window.chart = document.querySelector('{chart}')")
    before = page.locator(chart).first.get_attribute("points") or ""
    expect(page.locator(chart).first).not_to_have_attribute("points", before, timeout=PATIENCE_MS)
    assert page.evaluate("window.chart.isConnected"), "the chart was drawn anew: it flickers"

    type_number(number_of(page, "control-guidance_scale"), "9.5")
    rule = page.locator("#charts .rule", has_text="guidance_scale = 9.5").first
    expect(rule).to_be_attached(timeout=PATIENCE_MS)
    expect(page.locator("#control-rescale input[type=number]")).to_be_disabled()

    press(page.locator("#pause"))
    expect_state(page, "Paused")
    assert "?run=" in page.url
    page.reload()
    expect_state(page, "Paused")
    expect(page.locator("#prompt textarea")).to_have_value("a pirate ship", timeout=PATIENCE_MS)
    expect_new_picture(page)

    other = open_page(page.url)  # another browser: it sees the run, and may not steer it
    expect_state(other, "Paused")
    expect_new_picture(other)
    expect(other.locator("#said")).to_contain_text("Another browser started this run", timeout=PATIENCE_MS)
    expect(other.locator("#stop")).to_have_count(0)
    expect(page.locator("#pause")).to_have_text("Continue", timeout=PATIENCE_MS)
    press(page.locator("#pause"))
    expect_state(page, "Running")

    look_back(page, 1)
    expect(page.locator("#follow input")).not_to_be_checked()

    press(page.locator("#stop"))
    expect_state(page, "Stopped")
    expect_state(other, "Stopped")
    # Light comes from above; sRGB written as if it were linear would be 60 off, and another up-axis more than 100.
    expect_colours_in_the_viewer(page, UPPER, LOWER, off=45)
    assert len(download_glb(page, tmp_path).faces) == len(BALL.faces)
    expect(other.locator("#run")).to_be_enabled()


def test_bad_input_is_answered_in_words(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address + "?run=../../secret")
    problem = page.locator("#message [role=alert]")
    expect(problem).to_contain_text("no run", timeout=PATIENCE_MS)

    prompt = page.locator("#prompt textarea")
    prompt.fill("a red unicorn")
    prompt.press("Enter")
    expect(problem).to_contain_text("unicorn", timeout=PATIENCE_MS)
    expect(prompt).to_have_value("a red unicorn")
    expect_state(page, "Ready")

    nearest = page.locator("#known .kind")
    expect(nearest).to_have_count(3, timeout=PATIENCE_MS)
    text = nearest.first.get_attribute("data-caption") or ""
    press(nearest.first)
    expect(prompt).to_have_value(text)
    expect(prompt).to_be_focused()
    expect(page.locator("#known")).to_have_text(f"Read as: {text}", timeout=PATIENCE_MS)
    expect(problem).to_have_count(0)


def test_a_suggestion_goes_on_as_the_prompt_begins(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address)
    prompt, suggestions = page.locator("#prompt textarea"), page.locator("#suggestions button")
    expect(suggestions.first).to_have_text("a red mushroom", timeout=PATIENCE_MS)  # the examples
    prompt.fill("a pineap")
    expect(suggestions).to_have_text(["a pineapple"], timeout=PATIENCE_MS)
    expect(page.locator("#known")).to_contain_text("Go on typing", timeout=PATIENCE_MS)
    press(suggestions.first)
    expect(prompt).to_have_value("a pineapple", timeout=PATIENCE_MS)


def test_what_can_be_made_is_searched_by_its_names_and_from_the_keyboard(
    open_page: Callable[..., Page], address: str
) -> None:
    page = open_page(address, viewport={"width": 390, "height": 844})
    asked: list[str] = []
    press(page.get_by_role("button", name="What can be made"))
    find, tiles = page.get_by_label("Find a kind"), page.locator("#picker .kind:visible")
    expect(find).to_be_visible(timeout=PATIENCE_MS)
    page.wait_for_timeout(1000)  # the page is whole, and the sheet of pictures has come
    page.on("request", lambda request: asked.append(request.url))

    find.fill("hamburger")
    expect(tiles).to_have_text(["burger"])
    find.fill("VEHICLES")
    expect(tiles.filter(has_text="taxi")).to_have_count(1)
    assert tiles.count() > 2 and tiles.filter(has_text="mushroom").count() == 0
    expect(page.locator("#picker [role=status]")).to_have_text(f"{tiles.count()} kinds")
    find.fill("unicorn")
    expect(tiles).to_have_count(0)
    expect(page.locator("#picker [role=status]")).to_contain_text("Nothing here has that name")
    find.fill("vehicle")
    find.press("ArrowDown")
    expect(tiles.first).to_be_focused()
    tiles.first.press("ArrowRight")
    expect(tiles.nth(1)).to_be_focused()
    tiles.nth(1).press("End")
    expect(tiles.last).to_be_focused()
    tiles.last.press("Home")
    tiles.first.press("ArrowUp")
    expect(find).to_be_focused()
    assert not asked, "a key in the search asks the server"
    box = tiles.first.bounding_box()
    assert box and min(box["width"], box["height"]) >= 24

    find.fill("cab")
    find.press("Enter")
    expect(page.locator("#prompt textarea")).to_have_value("a taxi")
    expect(page.locator("#known")).to_contain_text("Read as: a taxi", timeout=PATIENCE_MS)


def test_each_kind_shows_its_own_part_of_one_sheet(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address)
    press(page.get_by_role("button", name="What can be made"))
    page.get_by_label("Find a kind").fill("pineapple")
    picture = page.locator("#picker .kind:visible i")
    expect(picture).to_have_count(1, timeout=PATIENCE_MS)
    x, y = kinds.locate_picture("pineapple")
    tile = Image.open(kinds.GALLERY).crop((x, y, x + kinds.TILE, y + kinds.TILE))
    for _ in range(PATIENCE_MS // 500):  # until the sheet has come
        seen = Image.open(BytesIO(picture.screenshot())).convert("RGB")
        off = np.asarray(seen, float) - np.asarray(tile.resize(seen.size), float)
        if np.abs(off).mean() < 6:
            return
        page.wait_for_timeout(500)
    raise AssertionError("the picture of a pineapple shows something else")


def test_nothing_is_wider_than_the_window(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address)
    for width in (390, 1920):
        page.set_viewport_size({"width": width, "height": 900})
        expect(page.locator("#run")).to_be_in_viewport()  # without scrolling
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        box = page.locator("#layout").bounding_box()
        assert box and box["width"] > 0.9 * width, "an empty page is narrower than a full one: it would jump"


def test_the_tab_key_closes_a_list_and_shows_where_it_is(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address)
    open_advanced(page)
    method = page.locator("#control-method input")
    method.focus()
    options = page.locator("#control-method [role=option]")
    expect(options.first).to_be_visible(timeout=PATIENCE_MS)
    page.keyboard.press("Tab")
    expect(method).not_to_be_focused()
    expect(options).to_have_count(0)
    for name in ("#prompt textarea", "#show input", "#scrub input[type=range]", "#run", "#control-method input"):
        page.locator(name).first.focus()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", f"nothing shows that {name} has the keyboard"


SHIFTS = """window.shifts = [];
new PerformanceObserver(list => { for (const e of list.getEntries()) if (!e.hadRecentInput) window.shifts.push(
  [e.value, ...e.sources.map(s => s.node && (s.node.id || s.node.className || s.node.nodeName))]) }).observe(
  {type: 'layout-shift'})"""


A_NUMBER_GROWS = 1e-3  # layout shift: a text's neighbours by a digit; a line that comes in between is some .01


@pytest.mark.parametrize(("tab", "width"), [("Curves", 1440), ("Negative", 390)])
def test_nothing_moves_when_the_run_has_something_to_say(
    open_page: Callable[..., Page], troubled_address: str, tab: str, width: int
) -> None:
    page = open_page(troubled_address, viewport={"width": width, "height": 2000}, color_scheme="dark")
    run_steps(page, 2000)
    expect_state(page, "Running")
    open_tab(page, tab)
    page.wait_for_timeout(1500)  # what the tab's opening moves is the person's own doing
    page.evaluate(SHIFTS)
    said = page.locator("#said")
    expect(said).to_contain_text(WARNING, timeout=PATIENCE_MS)
    if tab == "Curves":
        expect(page.locator("#alarms")).to_contain_text("Since step 6 the reward rises", timeout=PATIENCE_MS)
    page.wait_for_timeout(1000)
    moved = [shift for shift in page.evaluate("window.shifts") if shift[0] > A_NUMBER_GROWS]
    assert not moved
    press(page.locator("#stop"))
    expect_state(page, "Failed")
    expect(said).to_contain_text("Out of memory again. Lower render_size.", timeout=PATIENCE_MS)
    expect(said).to_contain_text(WARNING)
    assert "Traceback" not in page.locator("body").inner_text()


def test_the_real_models_make_a_mesh(open_page: Callable[..., Page], real_address: str, tmp_path: Path) -> None:
    """From a prompt to a GLB with what ships; a missing model is a failure, not a reason to skip."""
    page = open_page(real_address)
    run_steps(page, 2000)
    first = expect_new_picture(page)
    expect_new_picture(page, after=first)
    press(page.locator("#stop"))
    expect_state(page, "Stopped")
    page.wait_for_selector("#viewer canvas")
    assert len(download_glb(page, tmp_path).faces) > 0
