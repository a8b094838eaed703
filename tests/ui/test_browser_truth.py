"""The page in Chromium says what is: its pixels, fields and downloads, and the run's log, are looked at.

Several looks share a page, since a page takes seconds to load; each block of a test begins with what it looks at.
"""

import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from playwright.sync_api import Page, expect

from psd.config.preset import DEFAULT_PRESET, Preset
from psd.distillation.events import Meshed
from psd.geometry.mesh import Mesh
from psd.runs.store.archive import read_status
from psd.runs.store.folder import RunFolder
from tests.support import browsing

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SMALL = trimesh.creation.uv_sphere(0.5, count=[12, 12])


class Recolour:
    """Stands in for `psd.runs.remesh.Remesher`: each mesh has the colours of the one before, upside down."""

    made = 0

    def count(self, folder: Path, threshold: float, kept: str) -> int:
        return 1000

    def export(self, folder: Path, *, threshold: float, faces: int, texture: bool, kept: str) -> None:
        self.made += 1
        upper, lower = (browsing.LOWER, browsing.UPPER) if self.made % 2 else (browsing.UPPER, browsing.LOWER)
        mesh = Mesh(
            vertices=np.asarray(SMALL.vertices, np.float32),
            faces=np.asarray(SMALL.faces, np.int32),
            normals=np.asarray(SMALL.vertex_normals, np.float32),
            colours=np.where(SMALL.vertices[:, 2:] > 0, upper, lower).astype(np.uint8),
        )
        status = read_status(folder)
        facts = {"faces": 300 + self.made, "threshold": threshold}
        with RunFolder.open(folder) as run:
            run.write(Meshed(step=status.step, mesh=mesh, statistics=facts, time_s=status.time_s))
            assert not run.make_films()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    recolour = Recolour()
    yield from browsing.serve(browsing.scripted, tmp_path_factory.mktemp("runs"), lambda: recolour)


def expect_preset(page: Page, name: str) -> None:
    expect(page.locator("#preset input")).to_have_value(name, timeout=browsing.PATIENCE_MS)


def expect_film_of(page: Page, upper: np.ndarray, lower: np.ndarray) -> None:
    """The film shows a mesh of these colours."""
    page.locator("#show label", has_text="Turntable").click()
    film = page.locator("#film video")
    for _ in range(browsing.PATIENCE_MS // 500):
        pixels = np.asarray(Image.open(BytesIO(film.screenshot())).convert("RGB")).astype(int)
        middle = pixels[pixels.shape[0] // 3, pixels.shape[1] // 2]
        if np.abs(middle - upper).sum() < min(np.abs(middle - lower).sum(), 200):
            page.locator("#show label", has_text="Mesh").click()
            return
        page.wait_for_timeout(500)
    raise AssertionError(f"the film shows {middle} instead of {upper}")


def test_values_are_what_they_seem(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    prompt, hint, problem = page.locator("#prompt textarea"), page.locator("#known"), page.locator("#message")

    # Paste and cut refresh the help as keys do.
    page.evaluate("navigator.clipboard.writeText('a red unicorn')")
    for keys, expected in (("Control+V", "know nothing of that name"), ("Control+X", "")):
        prompt.press("Control+A")
        prompt.press(keys)
        expect(hint).to_contain_text(expected, timeout=browsing.PATIENCE_MS)
    expect(hint.locator(".note")).to_have_count(0, timeout=browsing.PATIENCE_MS)
    prompt.fill("a taxi")

    # What is typed stays, within what the field allows and beyond; what cannot be is refused by its key.
    browsing.open_advanced(page)
    expect_preset(page, DEFAULT_PRESET)
    guidance = browsing.number_of(page, "control-guidance_scale")
    assert guidance.get_attribute("max") == "200"
    seed = page.locator("#control-seed input[type=number]")
    for field, value, key in ((guidance, "500", "guidance_scale"), (seed, "3.7", "seed")):
        before = field.input_value()
        browsing.type_number(field, value)
        browsing.press(page.locator("#run"))
        expect(problem).to_contain_text(f"{key}={value}", timeout=browsing.PATIENCE_MS)
        expect(field).to_have_value(value)
        browsing.type_number(field, before)
    browsing.type_number(page.locator("#control-threads input[type=number]"), "50")
    expect_preset(page, f"own (from {DEFAULT_PRESET}, 1 value differs)")
    expect(page.locator("#control-threads input[type=number]")).to_have_value("50")

    # A text changes what it names and nothing else.
    browsing.press(page.get_by_role("button", name="Preset as text, commands"))
    editor = page.locator("#share-yaml .cm-content")
    editor.click()
    page.keyboard.insert_text("kappa: 3\nscene.grid_size: 48")
    page.wait_for_timeout(500)  # the editor hands its text on a moment later
    browsing.press(page.locator("#share-apply"))
    expect(page.locator("#share-message")).to_have_text(
        "Changed: kappa, scene.grid_size.", timeout=browsing.PATIENCE_MS
    )
    expect_preset(page, f"own (from {DEFAULT_PRESET}, 3 values differ)")
    expect(page.locator("#control-threads input[type=number]")).to_have_value("50")
    expect(guidance).to_have_value("4")

    # The run goes by these values; a reset is a move like any other, on it too.
    browsing.run_steps(page, 2000)
    browsing.expect_state(page, "Running")
    browsing.type_number(guidance, "12")
    log = page.locator("#log textarea")
    browsing.open_tab(page, "Log")
    expect(log).to_have_value(re.compile(r"guidance_scale = 12"), timeout=browsing.PATIENCE_MS)
    browsing.press(page.locator("#control-guidance_scale .reset-button"))
    expect(guidance).to_have_value("4")
    expect(log).to_have_value(re.compile(r"guidance_scale = 12(.|\n)*guidance_scale = 4"), timeout=browsing.PATIENCE_MS)
    browsing.type_number(guidance, "-3")
    expect(page.get_by_text("guidance_scale=-3")).to_be_visible(timeout=browsing.PATIENCE_MS)

    # Another look at the run finds its values and its preset's name.
    browsing.press(page.locator("#stop"))
    browsing.expect_state(page, "Stopped")
    page.reload()
    browsing.open_advanced(page)
    expect_preset(page, f"own (from {DEFAULT_PRESET}, 4 values differ)")
    expect(page.locator("#control-steps input[type=number]")).to_have_value("2000")

    # Downloads carry the prompt's name; a zip comes with its click, and a refusal floats above the page.
    browsing.open_tab(page, "Mesh")
    for name, file in (
        ("Download GLB", "a-taxi.glb"),
        ("Download STL", "a-taxi.stl"),
        ("Download a-taxi", ".glb"),
    ):
        with page.expect_download(timeout=browsing.PATIENCE_MS) as download:
            page.get_by_role("link", name=name).press("Enter")
        assert download.value.suggested_filename.endswith(file)
    assert download.value.suggested_filename == "a-taxi.glb"
    browsing.open_tab(page, "Runs")
    with page.expect_download(timeout=browsing.PATIENCE_MS) as download:
        browsing.press(page.locator("#runs button[data-act=zip]").first)
    assert re.fullmatch(r"[\d-]+_a-taxi_s\d+_[0-9a-f]{8}\.zip", download.value.suggested_filename)
    other = open_page(address)
    assert page.locator("#runs [data-act=delete]").count() == 1, "its owner may"
    browsing.open_tab(other, "Runs")
    expect(other.locator(".card").first).to_be_visible(timeout=browsing.PATIENCE_MS)
    expect(other.locator("#runs :is([data-act=delete], [data-act=pin], input[data-act=name])")).to_have_count(0)


def test_a_mesh_made_again_is_the_mesh_that_is_seen(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address)
    browsing.run_steps(page, 3)
    browsing.expect_state(page, "Finished")
    browsing.open_tab(page, "Mesh")
    browsing.expect_colours_in_the_viewer(page, browsing.UPPER, browsing.LOWER, off=45)
    ends = page.locator("#threshold .min_value, #threshold .max_value")
    expect(ends).to_have_text(["2.5", "40"], timeout=browsing.PATIENCE_MS)
    facts, threshold = page.locator("#facts"), browsing.number_of(page, "threshold")
    for made, density in ((1, "5"), (2, "7")):
        browsing.type_number(threshold, density)
        browsing.press(page.locator("#remesh-button"))
        expect(facts).to_contain_text(str(300 + made), timeout=browsing.PATIENCE_MS)
        colours = (browsing.LOWER, browsing.UPPER) if made % 2 else (browsing.UPPER, browsing.LOWER)
        browsing.expect_colours_in_the_viewer(page, *colours, off=45)
        expect_film_of(page, *map(np.array, colours))
    browsing.type_number(threshold, "6")
    browsing.press(page.locator("#remesh-button"))
    expect(facts).to_contain_text("303", timeout=browsing.PATIENCE_MS)

    # After a reload too, with the choices that made it, and the range of the run's own mesh.
    page.reload()
    browsing.open_tab(page, "Mesh")
    browsing.expect_colours_in_the_viewer(page, browsing.LOWER, browsing.UPPER, off=45)
    expect_film_of(page, np.array(browsing.LOWER), np.array(browsing.UPPER))
    expect(facts).to_contain_text("303")
    expect(threshold).to_have_value("6")
    expect(browsing.number_of(page, "most-faces")).to_have_value("400")
    expect(ends).to_have_text(["2.5", "40"])


def test_compared_runs_have_one_name_one_place_and_one_colour(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address)
    browsing.open_advanced(page)
    browsing.type_number(browsing.number_of(page, "control-steps"), "3")
    browsing.open_tab(page, "Compare")
    browsing.press(page.locator("#compare-button"))
    table = page.locator("#compare-scores tbody")
    expect(table).to_contain_text(re.compile("Finished.*Finished", re.DOTALL), timeout=browsing.PATIENCE_MS)
    page.wait_for_timeout(1500)
    looks = page.evaluate("""() => {
        const line = (item) => getComputedStyle(item.querySelector('.swatch line')).stroke
        const look = (items) => [...items].map((item) => [item.innerText.match(/psd|sds/)[0], line(item)])
        const all = (selector) => document.querySelectorAll(selector)
        return [look(all('#compare-views .who')), look(all('#compare-scores tbody th')),
                ...[...all('#compare-charts .legend:has(.swatch)')].map((list) => look(list.querySelectorAll('li')))]
    }""")
    assert len(looks) >= 3 and all(look == looks[0] for look in looks)
    assert [name for name, _ in looks[0]] == ["psd", "sds"] and looks[0][0][1] != looks[0][1][1]
    assert "seed" not in page.locator("#compare-views").inner_text(), "both have the same"


def test_the_preset_of_a_run_is_not_the_page_s_first(open_page: Callable[..., Page], tmp_path: Path) -> None:
    """A run that was made elsewhere from another preset."""
    folder = RunFolder.create(Preset.load("mvdream", {"prompt": "a taxi", "kappa": 2.0}), tmp_path)
    folder.close()
    served = browsing.serve(browsing.scripted, tmp_path)
    page = open_page(f"{next(served)}?run={folder.id}")
    browsing.open_advanced(page)
    expect_preset(page, "own (from mvdream, 1 value differs)")
    guidance = browsing.number_of(page, "control-guidance_scale")
    start = f"{Preset.load('mvdream').guidance_scale:g}"
    expect(guidance).to_have_value(start, timeout=browsing.PATIENCE_MS)
    page.wait_for_timeout(1000)  # its value is set once more as it comes onto the page
    browsing.type_number(guidance, "60")
    expect_preset(page, "own (from mvdream, 2 values differ)")
    browsing.press(page.locator("#control-guidance_scale .reset-button"))
    expect(guidance).to_have_value(start)
    expect_preset(page, "own (from mvdream, 1 value differs)")
    next(served, None)
