"""What the browser tests share: a scripted engine, a served page, and hands and eyes on it."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import trimesh
from PIL import Image
from playwright.sync_api import Locator, Page, TimeoutError, expect

import app
from psd.config.preset import Preset
from psd.distillation.events import Event, Finished, LiveChanged, Meshed, NegativeUpdated, Previewed, Started, Stepped
from psd.distillation.interfaces import Control, NoControl
from psd.embedded.captions import kinds
from psd.geometry.mesh import Mesh
from psd.geometry.splat import Gaussians
from psd.runs.jobs.drive import MakeEvents
from psd.runs.jobs.worker import Worker
from psd.runs.store.folder import RunFolder
from psd.ui import api, build
from psd.ui.protection import protect
from psd.ui.tabs.mesh import Remesh

PATIENCE_MS = 120_000  # the machine may be busy
ARGUMENTS = (
    "--no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --use-angle=swiftshader --enable-unsafe-swiftshader "
    "--disable-gpu-compositing"  # the page itself is drawn without a simulated GPU: two seconds less a page
).split()
BALL = trimesh.creation.uv_sphere(0.5, count=[24, 24])
UPPER, LOWER = np.array([200, 80, 40]), np.array([40, 80, 200])  # sRGB of what is up and what is down in the world


def find_chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "the browser tests need Chromium: `make test` installs it or says how"
    return found


def paint_side(azimuth_deg: float, elevation_deg: float, size: int) -> np.ndarray:
    """Stands in for a render: each side has a grey of its own."""
    return np.full((size, size, 3), azimuth_deg / 2, np.uint8)


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
        control.show_scene(paint_side, step)
        views = np.full((4, 32, 32, 3), (10 * step % 256, 90, 160), np.uint8)
        rewards = {"reward/assets/reward": [1.0, 2.0, 3.0, 4.0]}
        yield Previewed(step=step, images={"rgb": views, "normal": views}, rewards=rewards, time_s=0.25 * step)
        drift = {"negative/drift": 0.01 * step, "negative/cosine_start": 1.0}
        tokens = ("low", "quality", "blurry", "broken")
        nearest = tokens if step < 12 else ("frog", "taxi", "yellow", "crate")
        yield NegativeUpdated(step=step, tokens=tokens, drift=(0.1, 0.2, 0.3, 0.4), nearest=nearest, metrics=drift)
    mesh = Mesh(
        vertices=np.asarray(BALL.vertices, np.float32),
        faces=np.asarray(BALL.faces, np.int32),
        normals=np.asarray(BALL.vertex_normals, np.float32),
        colours=np.where(BALL.vertices[:, 2:] > 0, UPPER, LOWER).astype(np.uint8),
    )
    facts = {"faces": len(mesh.faces), "threshold": 10.0}
    yield Meshed(step=step, mesh=mesh, statistics=facts, time_s=0.25 * step)
    yield Finished(step=step, reason="stopped" if control.stopping() else "completed", time_s=0.25 * step)


def serve(
    make_events: MakeEvents,
    root: Path,
    remesher: Callable[[], Remesh] = app.make_remesher,
    shipped: Path | None = None,
    **settings: Any,
) -> Iterator[str]:
    """The address of a page and its API, which end with the iteration; ``settings`` go to Gradio's ``launch``.

    ``shipped`` holds the runs of its shelf, which is empty by default.
    The page asks for news more often than it does outside of tests, which wait for them all the time.
    """
    with patch.object(build, "TICK_S", 0.5):
        worker = Worker(make_events, root, shipped=shipped or root / "no runs ship")
        vocabularies = {"assets/prior": app.read_vocabulary()}
        blocks = build.build_blocks(worker, vocabularies=vocabularies, remesher=remesher)
        api.register_endpoints(
            blocks, worker, score=lambda images, prompt, judge: {}, remake=app.remake_mesh, vocabularies=vocabularies
        )  # fmt: skip
        layers = protect(worker.library.find_folder, worker.library.find_zip, page_files=[kinds.GALLERY])
        _, address, _ = blocks.launch(
            server_name="127.0.0.1", share=False, prevent_thread_lock=True, quiet=True,
            app_kwargs={"middleware": layers}, **settings, **build.launch_options(),
        )  # fmt: skip
        yield address
        blocks.close(verbose=False)
        assert worker.shutdown()


def store_run(root: Path, preset: Preset, splats: Gaussians | None = None) -> str:
    """A finished run of the scripted engine in ``root``, made by nobody's browser; returns its id.

    Its mesh was made of ``splats``, where these are given.
    """
    with RunFolder.create(preset, root) as folder:
        for event in scripted(preset, NoControl(), None):
            if isinstance(event, Meshed) and event.mesh is not None and splats is not None:
                event = replace(event, mesh=replace(event.mesh, splats=splats))
            folder.write(event)
        assert not folder.make_films()
    return folder.id


def splat_ball() -> Gaussians:
    """The ball's vertices as Gaussians that are nearly opaque, in the colours of its mesh."""
    places = torch.tensor(BALL.vertices, dtype=torch.float32)
    count, is_upper = len(places), places[:, 2:] > 0
    colours = torch.where(is_upper, torch.tensor(UPPER), torch.tensor(LOWER)).float() / 255
    upright = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(count, 4)
    return Gaussians(places, torch.full((count, 3), 0.05), upright, torch.full((count,), 0.99), colours)


def number_of(page: Page, control: str) -> Locator:
    return page.locator(f"#{control} input[type=number]")


def type_number(field: Locator, value: str) -> None:
    """Types a number until the page keeps it: a field's value is set once more as it comes onto the page."""
    type_numbers([(field, value)])


def type_numbers(wanted: Iterable[tuple[Locator, str]]) -> None:
    """Types into one field after another, and again into those whose value the page did not keep."""
    left, deadline = list(wanted), time.monotonic() + PATIENCE_MS / 1000
    while left:
        assert time.monotonic() < deadline, f"the page does not keep {[value for _, value in left]}"
        for field, value in left:
            field.fill(value)
            field.press("Tab")
        left[0][0].page.wait_for_timeout(300)
        left = [(field, value) for field, value in left if field.input_value() != value]


def press(button: Locator) -> None:
    expect(button).to_be_enabled(timeout=PATIENCE_MS)
    button.press("Enter")


def open_advanced(page: Page) -> None:
    """The drawer of all settings, with its values in place."""
    steps = number_of(page, "control-steps")
    if not steps.is_visible():
        press(page.get_by_role("button", name="Advanced"))
        expect(steps).to_be_visible(timeout=PATIENCE_MS)
        page.wait_for_timeout(500)  # values are set once more as they come onto the page


def run_steps(page: Page, steps: int) -> None:
    open_advanced(page)
    type_number(number_of(page, "control-steps"), str(steps))
    press(page.locator("#run"))


def expect_new_picture(page: Page, after: str | None = None) -> str:
    """Wait for a preview other than ``after``; returns its address."""
    picture = page.locator("#picture .sprite")
    expect(picture).to_be_attached(timeout=PATIENCE_MS)
    if after:
        expect(picture).not_to_have_attribute("src", after, timeout=PATIENCE_MS)
    return picture.get_attribute("src") or ""


def look_back(page: Page, step: int) -> None:
    """Moves the time line's slider to a step; once more where news that were under way put it back."""
    wanted = page.locator(f"#picture .sprite[src*='{step:06d}.jpg']")
    for _ in range(5):
        page.locator("#scrub input[type=range]").fill(str(step))
        expect(page.locator("#follow input")).not_to_be_checked(timeout=PATIENCE_MS)
        with suppress(TimeoutError):
            wanted.wait_for(timeout=PATIENCE_MS / 5)
            return
    raise AssertionError(f"the picture of step {step} never came")


def expect_state(page: Page, word: str) -> None:
    expect(page.locator("#status .badge")).to_have_text(word, timeout=PATIENCE_MS)


def open_tab(page: Page, name: str) -> None:
    press(page.get_by_role("tab", name=name, exact=True))


def expect_colours_in_the_viewer(page: Page, upper: np.ndarray, lower: np.ndarray, off: int) -> None:
    """The mesh viewer settles at these sRGB colours in its upper and its lower half.

    A picture counts when the next one is the same: the viewer's light comes up after the mesh.
    """
    viewer = page.locator("#viewer canvas")
    before, seen = np.zeros(0), "nothing"
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline:
        shot = viewer.screenshot(style="#show { visibility: hidden }")  # its buttons lie over the viewer
        picture = np.asarray(Image.open(BytesIO(shot)).convert("RGB")).astype(int)
        drawn = np.argwhere(picture.max(-1) - picture.min(-1) > 60)  # what has a colour
        if len(drawn) > 500 and np.array_equal(picture, before):
            (top, left), (bottom, right) = drawn.min(0), drawn.max(0)
            across, height = (left + right) // 2, bottom - top  # seen from above, the seam lies below the middle
            above, below = picture[top + height // 4, across], picture[bottom - height // 6, across]
            if np.abs(above - upper).max() < off and np.abs(below - lower).max() < off:
                return
            seen = f"{above} above {below}"
        before = picture
        page.wait_for_timeout(500)
    raise AssertionError(f"the viewer shows {seen} instead of {upper} above {lower}")


def download_glb(page: Page, folder: Path) -> trimesh.Trimesh:
    with page.expect_download() as download:
        page.locator("#take a").press("Enter")
    target = folder / download.value.suggested_filename
    download.value.save_as(target)
    assert target.suffix == ".glb"
    mesh = trimesh.load(target, force="mesh")
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh
