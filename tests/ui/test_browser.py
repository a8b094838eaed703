"""The page in Chromium: run, watch, steer, reload, stop, take the mesh away; nothing leaves the machine.

Everything is done from the keyboard, which also spares the mouse's wait for a still frame on a busy machine.

Most tests drive a scripted engine (`scripted`, a test double); the last one drives the real models in assets/.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

import app
from psd.config.preset import Preset
from psd.distillation.events import (
    Alarmed,
    BestKept,
    Event,
    Failed,
    Finished,
    LiveChanged,
    Meshed,
    NegativeUpdated,
    Previewed,
    Started,
    Stepped,
    Warned,
)
from psd.distillation.interfaces import Control
from psd.embedded.captions import grammar
from psd.geometry.mesh import Mesh
from psd.runs.jobs.drive import MakeEvents
from psd.runs.jobs.worker import Worker
from psd.ui import build

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
PATIENCE_MS = 120_000  # the machine may be busy
ARGUMENTS = (
    "--no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --use-angle=swiftshader --enable-unsafe-swiftshader"
).split()
BALL = trimesh.creation.uv_sphere(0.5, count=[24, 24])
UPPER, LOWER = np.array([200, 80, 40]), np.array([40, 80, 200])  # sRGB of what is up and what is down in the world


def scripted(preset: Preset, control: Control, resume: object) -> Iterator[Event]:
    """A stand-in for the engine: coloured views that change with the step, and a small mesh at the end."""
    yield Started(step=0, preset=preset.model_dump(mode="json"), total_steps=preset.steps, views=4, environment={})
    step, live = 0, {}
    while step < preset.steps and not control.stopping():
        if control.live() != live:
            live = dict(control.live())
            yield LiveChanged(step=step, values=live)
        step += 1
        time.sleep(0.25)
        scores = {"reward/assets/reward": step**0.5, "judge/assets/selector": 2.0 - 1.0 / step}
        yield Stepped(step=step, t=500, metrics=scores, time_s=0.25 * step)
        views = np.full((4, 32, 32, 3), (10 * step % 256, 90, 160), np.uint8)
        rewards = {"reward/assets/reward": [1.0, 2.0, 3.0, 4.0]}
        yield Previewed(step=step, images={"rgb": views, "normal": views}, rewards=rewards, time_s=0.25 * step)
        drift = {"negative/drift": 0.01 * step, "negative/cosine_start": 1.0}
        tokens = ("low", "quality", "blurry", "broken")
        nearest = tokens if step < 12 else ("striped", "chair", "yellow", "lollipop")
        yield NegativeUpdated(step=step, tokens=tokens, drift=(0.1, 0.2, 0.3, 0.4), nearest=nearest, metrics=drift)
    mesh = Mesh(
        vertices=np.asarray(BALL.vertices, np.float32),
        faces=np.asarray(BALL.faces, np.int32),
        normals=np.asarray(BALL.vertex_normals, np.float32),
        colours=np.where(BALL.vertices[:, 2:] > 0, UPPER, LOWER).astype(np.uint8),
    )
    film = np.full((6, 32, 32, 3), 200, np.uint8)
    yield Meshed(step=step, mesh=mesh, turntable=film, statistics={"faces": len(mesh.faces)}, time_s=0.25 * step)
    yield Finished(step=step, reason="stopped" if control.stopping() else "completed", time_s=0.25 * step)


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
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "the browser tests need Chromium: `make test` installs it or says how"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


def serve(make_events: MakeEvents, root: Path) -> Iterator[str]:
    worker = Worker(make_events, root)
    blocks = build.build_blocks(worker, vocabularies={"assets/prior": grammar}, remesher=app.make_remesher)
    _, address, _ = blocks.launch(
        server_name="127.0.0.1", share=False, prevent_thread_lock=True, quiet=True, **build.launch_options()
    )
    yield address
    blocks.close(verbose=False)
    assert worker.shutdown()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(scripted, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def troubled_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(troubled, tmp_path_factory.mktemp("troubled"))


@pytest.fixture(scope="module")
def real_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(app.make_events, tmp_path_factory.mktemp("real"))


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages that may ask nobody but this machine, each as a new visitor; any script error fails the test."""
    contexts, strangers, errors = [], [], []

    def opened(address: str, **options) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        local = ("http://127.0.0.1:", "http://localhost:", "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(local) else strangers.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#run")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not strangers, "a request left the machine"
    assert not errors, "a script failed"


def choose(page: Page, label: str, value: str) -> None:
    """Pick from a dropdown as a person at the keyboard would."""
    box = page.get_by_label(label, exact=True)
    box.fill(value)
    expect(page.get_by_role("option", name=value, exact=True)).to_be_visible(timeout=PATIENCE_MS)
    box.press("Enter")


def press(button: Locator) -> None:
    expect(button).to_be_enabled(timeout=PATIENCE_MS)
    button.press("Enter")


def run_steps(page: Page, steps: int) -> None:
    field = page.locator("#control-steps input[type=number]")
    field.fill(str(steps))
    field.press("Tab")
    press(page.locator("#run"))


def expect_new_picture(page: Page, after: str | None = None) -> str:
    """Wait for a preview other than ``after``; returns its address."""
    picture = page.locator(".shot img").first
    expect(picture).to_be_visible(timeout=PATIENCE_MS)
    if after:
        expect(picture).not_to_have_attribute("src", after, timeout=PATIENCE_MS)
    return picture.get_attribute("src") or ""


def look_back(page: Page, step: int) -> None:
    """Types the step to look back at.

    While the newest preview is followed the field moves by itself, once in a while between typing and leaving it; that
    stops the following all the same, so the second time it stays.
    """
    back, picture = page.locator("#scrub input[type=number]"), page.locator(".shot img").first
    wanted = re.compile(rf"{step:06d}\.jpg")
    for patience_ms in (PATIENCE_MS / 4, PATIENCE_MS):
        back.fill(str(step))
        back.press("Tab")
        expect(page.locator("#follow input")).not_to_be_checked(timeout=PATIENCE_MS)
        try:
            expect(picture).to_have_attribute("src", wanted, timeout=patience_ms)
            return
        except AssertionError:
            if patience_ms == PATIENCE_MS:
                raise


def state(page: Page, word: str) -> None:
    expect(page.locator("#status .badge")).to_have_text(word, timeout=PATIENCE_MS)


def open_tab(page: Page, name: str) -> None:
    press(page.get_by_role("tab", name=name, exact=True))


def expect_colours_in_the_viewer(page: Page, upper: np.ndarray, lower: np.ndarray, off: int) -> None:
    """The mesh viewer settles at these sRGB colours a quarter above and below its middle.

    A picture counts when the next one is the same: the viewer's light comes up after the mesh.
    """
    viewer = page.locator("#viewer canvas")
    before, seen = np.zeros(0), "nothing"
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline:
        picture = np.asarray(Image.open(BytesIO(viewer.screenshot())).convert("RGB")).astype(int)
        drawn = np.argwhere(picture.max(-1) - picture.min(-1) > 60)  # what has a colour
        if len(drawn) > 500 and np.array_equal(picture, before):
            (top, left), (bottom, right) = drawn.min(0), drawn.max(0)
            across, quarter = (left + right) // 2, (bottom - top) // 4
            above, below = picture[top + quarter, across], picture[bottom - quarter, across]
            if np.abs(above - upper).max() < off and np.abs(below - lower).max() < off:
                return
            seen = f"{above} above {below}"
        before = picture
        page.wait_for_timeout(500)
    raise AssertionError(f"the viewer shows {seen} instead of {upper} above {lower}")


def download_glb(page: Page, folder: Path) -> trimesh.Trimesh:
    with page.expect_download() as download:
        page.get_by_role("link", name="Download GLB").press("Enter")
    target = folder / download.value.suggested_filename
    download.value.save_as(target)
    assert target.suffix == ".glb"
    mesh = trimesh.load(target, force="mesh")
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh


def test_a_run_from_the_builder_to_the_downloaded_mesh(
    open_page: Callable[..., Page], address: str, tmp_path: Path
) -> None:
    page = open_page(address)
    press(page.get_by_role("button", name="Build a prompt"))
    choose(page, "object", "rocket")
    expect(page.locator("#prompt textarea")).to_have_value("a red rocket", timeout=PATIENCE_MS)

    run_steps(page, 2000)
    first = expect_new_picture(page)
    second = expect_new_picture(page, after=first)
    assert page.request.get(address + first).body() != page.request.get(address + second).body()
    private = second.split("/public/")[0] + "/status.json"
    assert page.request.get(address + private).status in (403, 404), "more than public/ is served"
    open_tab(page, "Curves")
    chart = "#charts svg.lines polyline"
    expect(page.locator(chart).first).to_have_attribute("points", re.compile("[0-9]+ [0-9]+"), timeout=PATIENCE_MS)
    page.evaluate(f"window.chart = document.querySelector('{chart}')")
    before = page.locator(chart).first.get_attribute("points") or ""
    expect(page.locator(chart).first).not_to_have_attribute("points", before, timeout=PATIENCE_MS)
    assert page.evaluate("window.chart.isConnected"), "the chart was drawn anew: it flickers"

    press(page.get_by_role("button", name="Guidance"))
    slider = page.locator("#control-guidance_scale input[type=number]")
    expect(slider).to_be_visible(timeout=PATIENCE_MS)
    page.wait_for_timeout(500)  # its value is set once more as it comes onto the page, before any hand could reach it
    slider.fill("9.5")
    slider.press("Tab")
    expect(page.locator("#charts .rule title").first).to_have_text(
        re.compile("guidance_scale = 9.5"), timeout=PATIENCE_MS
    )
    expect(page.locator("#control-rescale input[type=number]")).to_be_disabled()

    press(page.locator("#pause"))
    state(page, "Paused")
    assert "?run=" in page.url
    page.reload()
    state(page, "Paused")
    expect(page.locator("#prompt textarea")).to_have_value("a red rocket", timeout=PATIENCE_MS)
    expect_new_picture(page)

    other = open_page(page.url)  # another browser: it sees the run, and may not steer it
    state(other, "Paused")
    expect_new_picture(other)
    expect(other.locator("#stop")).to_be_disabled()
    expect(page.locator("#pause")).to_have_text("Continue", timeout=PATIENCE_MS)
    press(page.locator("#pause"))
    state(page, "Running")

    look_back(page, 1)
    expect(page.locator("#follow input")).not_to_be_checked()

    press(page.locator("#stop"))
    state(page, "Stopped")
    state(other, "Stopped")
    open_tab(page, "Mesh")
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
    state(page, "Ready")

    suggestion = page.locator("#suggestions button").first
    expect(suggestion).not_to_have_text("a red mushroom", timeout=PATIENCE_MS)  # no more the examples
    text = suggestion.inner_text()
    press(suggestion)
    expect(prompt).to_have_value(text, timeout=PATIENCE_MS)
    assert grammar.parse(text)


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
    method = page.locator("#control-method input")
    method.focus()
    options = page.locator("#control-method [role=option]")
    expect(options.first).to_be_visible(timeout=PATIENCE_MS)
    page.keyboard.press("Tab")
    expect(method).not_to_be_focused()
    expect(options).to_have_count(0)
    for name in ("#prompt textarea", "#kinds input", "#scrub input[type=range]", "#run", "#control-method input"):
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
    state(page, "Running")
    open_tab(page, tab)
    page.wait_for_timeout(1500)  # what the tab's opening moves is the person's own doing
    page.evaluate(SHIFTS)
    said = page.locator("#status")
    expect(said).to_contain_text(WARNING, timeout=PATIENCE_MS)
    if tab == "Curves":
        expect(page.locator("#alarms")).to_contain_text(ALARM, timeout=PATIENCE_MS)
    page.wait_for_timeout(1000)
    moved = [shift for shift in page.evaluate("window.shifts") if shift[0] > A_NUMBER_GROWS]
    assert not moved
    press(page.locator("#stop"))
    state(page, "Failed")
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
    state(page, "Stopped")
    open_tab(page, "Mesh")
    page.wait_for_selector("#viewer canvas")
    assert len(download_glb(page, tmp_path).faces) > 0
