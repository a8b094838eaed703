"""Every field of the page in Chromium: what it takes, what it refuses and where it says so, what things are called."""

import json
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from psd.config.preset import Preset, list_settings
from psd.geometry.export import FORMATS
from psd.ui.inputs.controls import control_id, read_bounds
from tests.support.browsing import (
    PATIENCE_MS,
    expect_state,
    number_of,
    open_advanced,
    open_tab,
    press,
    run_steps,
    scripted,
    serve,
    store_run,
    type_number,
    type_numbers,
)

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
LEARNED = ("a taxi", "a burger")  # two prompts of the shipped models


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder of runs, and in it a finished run of each of `LEARNED`, equal but for the prompt."""
    root = tmp_path_factory.mktemp("runs")
    return root, [store_run(root, Preset.load("tiny", {"prompt": prompt, "steps": 2})) for prompt in LEARNED]


@pytest.fixture(scope="module")
def address(stored: tuple[Path, list[str]]) -> Iterator[str]:
    yield from serve(scripted, stored[0])


def open_settings(page: Page) -> None:
    open_advanced(page)
    expect(number_of(page, "control-mesh_faces")).to_be_visible(timeout=PATIENCE_MS)
    page.wait_for_timeout(1000)  # values are set once more as they come onto the page


def test_every_number_takes_all_that_its_field_allows(open_page: Callable[..., Page], address: str) -> None:
    """The most that is allowed is what stands there and what a run would go by; every slider ends there."""
    page = open_page(address)
    open_settings(page)
    typed: dict[str, float] = {"rewards-0": 100}
    for name, info in list_settings().items():
        low, high = read_bounds(info)
        field = number_of(page, control_id(name))
        if high is None or field.count() != 1 or not field.is_visible():
            continue
        if (field.get_attribute("max") or "") != "":  # a slider
            assert float(field.get_attribute("max") or "nan") == high, name
            assert float(field.get_attribute("min") or "nan") == low, name
        is_shut = any(type(rule).__name__ == "Lt" for rule in info.metadata)
        typed[name] = high - 1 if is_shut and info.annotation is int else high * 0.99 if is_shut else high
    assert len(typed) > 30
    type_numbers((number_of(page, control_id(name)), f"{value:.12g}") for name, value in typed.items())
    for name, value in typed.items():
        assert float(number_of(page, control_id(name)).input_value()) == value, name

    # What differs from the preset, which is what a run would go by.
    open_advanced(page)
    press(page.get_by_role("button", name="Preset as text, commands"))
    press(page.locator("#share-read"))
    differences = page.locator("#share-diff tbody tr")
    expect(differences).to_have_count(len(typed), timeout=PATIENCE_MS)
    shown = {row.split()[0]: row.split()[-1].rstrip("}") for row in differences.all_inner_texts()}
    typed["rewards"] = typed.pop("rewards-0")
    assert {name: float(value) for name, value in shown.items()} == typed


def test_a_refused_number_is_named_where_the_click_was(
    open_page: Callable[..., Page], address: str, stored: tuple[Path, list[str]]
) -> None:
    page = open_page(address)
    run_steps(page, 2)
    expect_state(page, "Finished")
    for field, value, button, message, words in (
        ("more", "-3", "#go-on", "#bar-message", "steps more=-3 must be a whole number in [0, "),
        ("more", "2.5", "#go-on", "#bar-message", "steps more=2.5 must be a whole number"),
    ):
        type_number(number_of(page, field), value)
        press(page.locator(button))
        expect(page.locator(message)).to_contain_text(words, timeout=PATIENCE_MS)
        expect(page.locator(message)).to_be_in_viewport()
    open_tab(page, "Mesh")
    expect(number_of(page, "most-faces")).to_have_value("2200", timeout=PATIENCE_MS)
    for field, value, words in (("most-faces", "3", "most faces=3 must be"), ("threshold", "", "threshold is empty")):
        box = number_of(page, field)
        before = box.input_value()
        type_number(box, value)
        expect(box).to_have_value(value)
        press(page.locator("#remesh-button"))
        expect(page.locator("#remesh-message")).to_contain_text(words, timeout=PATIENCE_MS)
        expect(page.locator("#remesh-message")).to_be_in_viewport()
        type_number(box, before)
    open_tab(page, "Compare")
    for field, value, words in (
        ("sweep-seeds", "99", "seeds=99 must be a whole number in [2, "),
        ("sweep-steps", "0.5", "steps of each=0.5 must be a whole number in [1, "),
    ):
        box = number_of(page, field)
        before = box.input_value()
        type_number(box, value)
        press(page.locator("#sweep-button"))
        expect(page.locator("#compare-message")).to_contain_text(words, timeout=PATIENCE_MS)
        expect(page.locator("#compare-message")).to_be_in_viewport()
        expect(box).to_have_value(value)
        type_number(box, before)


def test_dictation_and_another_run_s_values_refresh_the_help(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address)
    prompt, hint = page.locator("#prompt textarea"), page.locator("#known")
    prompt.press("Control+A")
    page.keyboard.insert_text("a red unicorn")  # as dictation does, without a key
    expect(hint).to_contain_text("know nothing of that name", timeout=PATIENCE_MS)
    open_tab(page, "Runs")
    press(page.get_by_role("button", name=f"Remix: {LEARNED[0]}").last)
    expect(prompt).to_have_value(LEARNED[0], timeout=PATIENCE_MS)
    expect(hint.locator(".note")).to_have_count(0, timeout=PATIENCE_MS)


def test_compared_runs_of_two_prompts_are_called_by_them(
    open_page: Callable[..., Page], address: str, stored: tuple[Path, list[str]]
) -> None:
    """In the order in which they were chosen, with one colour each, in rows, table and legends."""
    page = open_page(address)
    open_tab(page, "Compare")
    box = page.locator("#compared input")
    for number, prompt in enumerate(reversed(LEARNED), 1):
        box.fill(prompt)
        option = page.get_by_role("option", name=re.compile(f"^{prompt} · psd · seed 0")).last
        expect(option).to_be_visible(timeout=PATIENCE_MS)
        option.click()
        expect(page.locator("#compare-scores tbody tr", has_text="Finished")).to_have_count(number, timeout=PATIENCE_MS)
    page.wait_for_timeout(1500)
    looks = page.evaluate("""() => {
        const line = (item) => getComputedStyle(item.querySelector('.swatch line')).stroke
        const name = (item) => item.innerText.match(/a taxi|a burger/)[0]
        const look = (items) => [...items].map((item) => [name(item), line(item)])
        const all = (selector) => document.querySelectorAll(selector)
        return [look(all('#compare-views .who')), look(all('#compare-scores tbody th')),
                ...[...all('#compare-charts .legend:has(.swatch)')].map((list) => look(list.querySelectorAll('li')))]
    }""")
    assert len(looks) >= 3 and all(look == looks[0] for look in looks)
    assert [name for name, _ in looks[0]] == [*reversed(LEARNED)] and looks[0][0][1] != looks[0][1][1]
    shown = page.locator("#compare-views").inner_text() + page.locator("#compare-scores").inner_text()
    assert "seed" not in shown and "psd" not in shown, "both have the same"


def test_the_page_of_the_api_explains_each_parameter(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(address)
    press(page.get_by_role("button", name=re.compile("Use via API")))
    shown = page.locator(".api-docs")
    for words in (
        "what to make; the small models know things such as", "name of a shipped preset",
        "the same seed gives the same run", "Queue a run that makes a 3D object",
    ):  # fmt: skip
        expect(shown.get_by_text(words).first).to_be_visible(timeout=PATIENCE_MS)
    assert '"1st"' not in shown.inner_text() and "Any" not in shown.inner_text().split()


def test_a_run_that_was_started_by_the_api_shows_the_seed_of_its_overrides(
    open_page: Callable[..., Page], address: str
) -> None:
    page = open_page(address)

    def start_run(overrides: str) -> str:
        joined = {"data": ["a taxi", "tiny", None, overrides, ""]}
        answer = page.request.post(f"{address}gradio_api/call/start_run", data=joined)
        stream = page.request.get(f"{address}gradio_api/call/start_run/{answer.json()['event_id']}")
        return stream.text()

    answer = start_run("seed: 7\nsteps: 2")
    told = json.loads(next(line[6:] for line in answer.splitlines() if line.startswith("data: ")))[0]
    page.goto(f"{address}?run={told['run_id']}")
    expect(number_of(page, "control-seed")).to_have_value("7", timeout=PATIENCE_MS)
    expect_state(page, "Finished")
    assert "event: error" in start_run("prompt: a blue cube")


def test_the_snippet_holds_the_path_of_a_proxy(
    open_page: Callable[..., Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(scripted, tmp_path, root_path="/psd")
    page = open_page(next(served))
    open_advanced(page)
    press(page.get_by_role("button", name="Preset as text, commands"))
    press(page.locator("#share-read"))
    expect(page.locator("#share .cm-content").last).to_contain_text(
        re.compile(r"Client\('http://127.0.0.1:\d+/psd'\)"), timeout=PATIENCE_MS
    )
    next(served, None)


def test_every_file_is_saved_under_the_prompt_s_name_and_its_frame_is_said(
    open_page: Callable[..., Page], address: str, stored: tuple[Path, list[str]]
) -> None:
    root, (run, _) = stored
    page = open_page(f"{address}?run={run}")
    open_tab(page, "Mesh")
    for label, name in (("GLB", ".glb"), ("OBJ", ".obj"), ("PLY", ".ply"), ("STL", ".stl"), ("Turntable", ".mp4")):
        with page.expect_download(timeout=PATIENCE_MS) as download:
            page.get_by_role("link", name=f"Download {label}").press("Enter")
        assert download.value.suggested_filename == f"a-taxi{name}"
    for known in FORMATS.values():
        expect(page.get_by_text(known.frame)).to_be_visible()
    assert "longest side 100 mm" in FORMATS["stl"].frame
    assert str(root) not in page.content() and root.name not in page.content(), "an address shows the server's folder"


def test_the_sentence_over_empty_boxes_has_a_ground_of_its_own(open_page: Callable[..., Page], address: str) -> None:
    """No edge of a box runs through it."""
    page = open_page(address)
    sentence = page.get_by_text("Describe an object and press Run.")

    def spread_of_the_rim() -> int:
        pixels = np.asarray(Image.open(BytesIO(sentence.screenshot())).convert("L")).astype(int)
        return np.ptp(np.concatenate([pixels[2, 12:-12], pixels[-3, 12:-12], pixels[12:-12, 2], pixels[12:-12, -3]]))

    for _ in range(40):  # the page may still be settling
        if spread_of_the_rim() == 0:
            return
        page.wait_for_timeout(250)
    raise AssertionError("an edge runs through the sentence")
