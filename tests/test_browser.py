"""The page in Chromium: run, watch, steer, reload, stop, take the mesh away; nothing leaves the machine.

Everything is done from the keyboard, which also spares the mouse's wait for a still frame on a busy machine.

Most tests drive a scripted engine (`scripted`, a test double); the last one drives the real models in assets/.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import trimesh
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

import app
from psd import ui
from psd.events import Event, Finished, LiveChanged, Meshed, NegativeUpdated, Previewed, Started, Stepped
from psd.mesh import Mesh
from psd.preset import Preset
from psd.protocols import Control
from psd.tiny import grammar
from psd.worker import MakeEvents, Worker

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
PATIENCE_MS = 120_000  # the machine may be busy
ARGUMENTS = (
    "--no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --use-angle=swiftshader --enable-unsafe-swiftshader"
).split()
BALL = trimesh.creation.uv_sphere(0.5, count=[8, 8])


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
        scores = {"reward/tiny": step**0.5, "judge/other": 2.0 - 1.0 / step}
        yield Stepped(step=step, t=500, metrics=scores, time_s=0.25 * step)
        views = np.full((4, 32, 32, 3), (10 * step % 256, 90, 160), np.uint8)
        yield Previewed(step=step, images={"rgb": views}, time_s=0.25 * step)
        drift = {"negative/drift": 0.01 * step, "negative/cosine_start": 1.0}
        yield NegativeUpdated(
            step=step, tokens=("low", "quality"), drift=(0.1, 0.2), nearest=("low", "red"), metrics=drift
        )
    mesh = Mesh(
        vertices=np.asarray(BALL.vertices, np.float32),
        faces=np.asarray(BALL.faces, np.int32),
        normals=np.asarray(BALL.vertex_normals, np.float32),
        colours=np.full((len(BALL.vertices), 3), (200, 80, 40), np.uint8),
    )
    film = np.full((6, 32, 32, 3), 200, np.uint8)
    yield Meshed(step=step, mesh=mesh, turntable=film, statistics={"faces": len(mesh.faces)}, time_s=0.25 * step)
    yield Finished(step=step, reason="stopped" if control.stopping() else "completed", time_s=0.25 * step)


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
    blocks = ui.build(worker, root=root, vocabularies={"assets/prior": grammar})
    _, address, _ = blocks.launch(
        server_name="127.0.0.1", share=False, prevent_thread_lock=True, quiet=True, **ui.appearance()
    )
    yield address
    blocks.close(verbose=False)
    assert worker.shutdown()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(scripted, tmp_path_factory.mktemp("runs"))


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
        page.wait_for_selector("#viewer")
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
    expect(page.locator("#tabs svg.marks").first).to_be_visible(timeout=PATIENCE_MS)
    third = expect_new_picture(page, after=second)
    page.evaluate("window.chart = document.querySelector('#tabs svg.marks')")
    expect_new_picture(page, after=expect_new_picture(page, after=third))
    assert page.evaluate("window.chart.isConnected"), "the chart was drawn anew: it flickers"

    press(page.get_by_role("button", name="Guidance"))
    slider = page.locator("#control-guidance_scale input[type=number]")
    slider.fill("9.5")
    slider.press("Tab")
    press(page.get_by_role("tab", name="Log"))
    expect(page.locator("#log textarea")).to_have_value(re.compile("guidance_scale = 9.5"), timeout=PATIENCE_MS)

    assert "?run=" in page.url
    page.reload()
    expect(page.locator(".badge")).to_have_text("Running", timeout=PATIENCE_MS)
    expect(page.locator("#prompt textarea")).to_have_value("a red rocket", timeout=PATIENCE_MS)
    expect_new_picture(page)

    press(page.locator("#stop"))
    expect(page.locator(".badge")).to_have_text("Stopped", timeout=PATIENCE_MS)
    page.wait_for_selector("#viewer canvas")
    assert len(download_glb(page, tmp_path).faces) == len(BALL.faces)

    other = open_page(page.url)  # another browser, after the end
    expect(other.locator(".badge")).to_have_text("Stopped", timeout=PATIENCE_MS)
    other.wait_for_selector("#viewer canvas")
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
    expect(page.locator(".badge")).to_have_text("Ready")

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


def test_the_real_models_make_a_mesh(open_page: Callable[..., Page], real_address: str, tmp_path: Path) -> None:
    """From a prompt to a GLB with what ships; a missing model is a failure, not a reason to skip."""
    page = open_page(real_address)
    run_steps(page, 2000)
    first = expect_new_picture(page)
    expect_new_picture(page, after=first)
    press(page.locator("#stop"))
    expect(page.locator(".badge")).to_have_text("Stopped", timeout=PATIENCE_MS)
    page.wait_for_selector("#viewer canvas")
    assert len(download_glb(page, tmp_path).faces) > 0
