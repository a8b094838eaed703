"""What one does with results, in Chromium: read the curves, take them along, and keep, compare and delete runs."""

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from psd.config.preset import Preset
from tests.support.browsing import (
    PATIENCE_MS,
    expect_state,
    open_tab,
    press,
    run_steps,
    scripted,
    serve,
    store_run,
)

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
STEPS = 8  # of the stored run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def stored(root: Path) -> str:
    return store_run(root, Preset.load("tiny", {"prompt": "a taxi", "steps": STEPS}))


@pytest.fixture(scope="module")
def address(root: Path, stored: str) -> Iterator[str]:
    yield from serve(scripted, root)


def test_a_pointer_reads_all_curves_and_a_click_looks_back(
    open_page: Callable[..., Page], address: str, stored: str, tmp_path: Path
) -> None:
    page = open_page(f"{address}?run={stored}")
    expect_state(page, "Finished")
    charts = page.locator("#charts svg.lines")
    expect(charts.first).to_be_visible(timeout=PATIENCE_MS)
    page.wait_for_timeout(1000)  # the page is whole
    charts.first.scroll_into_view_if_needed()
    box = charts.first.bounding_box()
    assert box
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    expect(page.locator("#charts .cross.on")).to_have_count(charts.count())
    said = page.locator("#charts figure", has_text="Rewards, optimised").locator(".legend .at").first.inner_text()
    found = re.fullmatch(r"step (\d+): ([\d.]+)", said)
    assert found, said
    step, value = int(found[1]), float(found[2])
    assert 0 < step < STEPS and abs(value - step**0.5) < 0.02 * value
    page.mouse.click(*middle)
    expect(page.locator("#picture .sprite")).to_have_attribute(
        "src", re.compile(rf"{step:06d}\.jpg"), timeout=PATIENCE_MS
    )
    page.mouse.move(0, 0)
    expect(page.locator("#charts .cross.on")).to_have_count(0)

    for kind in ("csv", "png"):
        with page.expect_download(timeout=PATIENCE_MS) as download:
            press(page.locator(f"#{kind}"))
        assert download.value.suggested_filename == f"curves.{kind}"
        download.value.save_as(tmp_path / f"curves.{kind}")
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert abs(float(rows[-1]["reward/assets/reward"]) - STEPS**0.5) < 1e-3 and rows[-1]["step"] == str(STEPS)
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
    coloured = picture.max(-1) - picture.min(-1) > 60  # the curves themselves
    assert picture.shape[1] >= 1000 and coloured.sum() > 1000


def test_runs_are_played_compared_deleted_and_brought_back(
    open_page: Callable[..., Page], address: str, stored: str
) -> None:
    page = open_page(address)
    run_steps(page, 3)
    expect_state(page, "Finished")
    open_tab(page, "Runs")
    cards = page.locator("#runs .card")
    expect(cards).to_have_count(2, timeout=PATIENCE_MS)
    mine = cards.first

    # A pointer plays how it grew.
    film = mine.locator(".film")
    assert film.get_attribute("src") is None
    mine.locator(".shot").hover()
    expect(film).to_have_attribute("src", re.compile(r"timelapse\.webp"))
    page.wait_for_function("document.querySelector('#runs .card .film').naturalWidth > 0")

    # Two ticks and a press compare.
    for card in (cards.nth(0), cards.nth(1)):
        card.get_by_role("checkbox").check()
    press(page.get_by_role("button", name="Compare 2 runs"))
    expect(page.locator("#compare-scores tbody tr")).to_have_count(2, timeout=PATIENCE_MS)

    # What is deleted comes back.
    open_tab(page, "Runs")
    expect(cards).to_have_count(2, timeout=PATIENCE_MS)
    press(mine.get_by_role("button", name="Delete"))
    expect(cards).to_have_count(1, timeout=PATIENCE_MS)
    press(page.get_by_role("button", name=re.compile("Deleted. Undo")))
    expect(cards).to_have_count(2, timeout=PATIENCE_MS)
