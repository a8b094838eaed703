"""The shelf's HTML, and what a page says and offers of a run that ships."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from psd.config.preset import Preset
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.worker import Worker
from psd.runs.store.archive import Run, list_runs
from psd.runs.store.films import STRIP, STRIP_VIEWS
from psd.runs.store.folder import RunFolder
from psd.ui.build import CSS
from psd.ui.panels.shelf import is_shown, shelf_html
from psd.ui.panels.stage import FILMS, PREVIEW_KINDS, list_pictures, said_html
from psd.ui.panels.status import _button_updates
from psd.ui.state.page import Page, WatchedRun
from psd.ui.state.watch import Watcher
from tests.support.fake_run import fake_run

PROMPT = "a <b>red</b> mushroom"


@pytest.fixture
def shipped(tmp_path: Path) -> Run:
    """A run that ships, as far as the shelf looks at it."""
    preset = Preset(prompt=PROMPT, steps=4)
    with RunFolder.create(preset, tmp_path / "shipped") as folder:
        for event in fake_run(preset, Controls(preset)):
            folder.write(event)
    for picture in folder.path.glob("public/previews/*.png"):  # only the colours ship
        picture.unlink()
    (folder.path / STRIP).write_bytes(b"views")
    return list_runs(tmp_path / "shipped")[0]


@pytest.fixture
def watcher(tmp_path: Path, shipped: Run) -> Iterator[Watcher]:
    worker = Worker(fake_run, tmp_path / "runs", shipped=shipped.folder.parent)
    yield Watcher(worker)
    assert worker.shutdown()


def test_a_tile_is_a_button_with_a_name_and_a_strip(shipped: Run) -> None:
    made = shelf_html([shipped])
    (tile,) = re.findall(r"<button.*?</button>", made)
    assert f'data-run="{shipped.id}"' in tile and 'aria-label="Open a &lt;b&gt;red&lt;/b&gt; mushroom"' in tile
    assert re.search(rf'src="gradio_api/file=runs/{shipped.id}/exports/strip\.webp\?v=\d+"', tile), "a file of its own"
    assert f"--views:{STRIP_VIEWS}" in tile and "<b>" not in made


def test_without_strips_there_is_no_shelf(shipped: Run) -> None:
    (shipped.folder / STRIP).unlink()
    assert shelf_html([shipped]) == shelf_html([]) == ""


def test_the_shelf_stands_while_no_run_is_watched(shipped: Run) -> None:
    assert is_shown(Page()) and not is_shown(Page(WatchedRun(shipped.id, state="loading")))


def test_the_style_turns_by_as_many_views_as_a_strip_has() -> None:
    text = CSS.read_text(encoding="utf-8")
    assert set(re.findall(r"animation: turn \S+ steps\((\d+)\)", text)) == {str(STRIP_VIEWS)}
    assert re.findall(r"@keyframes turn \{ to \{ --view: (\d+);", text) == [str(STRIP_VIEWS)]
    outside = re.sub(r"@media \(prefers-reduced-motion: no-preference\) \{.*?\n\}", "", text, flags=re.DOTALL)
    assert "animation: turn" not in outside, "nothing moves where less motion was asked for"


def test_a_run_that_ships_is_told_from_the_others(watcher: Watcher, shipped: Run) -> None:
    watched = watcher.view_run(shipped.id)
    assert watched.is_shipped and watched.state == "finished" and watched.view.total_steps == 4
    assert watcher.runs() == (), "it is none of the runs of this server"
    page = Page(watched)
    assert said_html(page) == "", "nobody else started it"
    assert _button_updates(page)[-1].value == "Make my own"
    others = replace(page, run=replace(watched, is_shipped=False))
    assert "Another browser" in said_html(others) and _button_updates(others)[-1].value == "Remix"


def test_only_pictures_that_came_with_a_run_are_offered(watcher: Watcher, shipped: Run) -> None:
    watched = watcher.view_run(shipped.id)
    assert list_pictures(watched) == ["Colour"]
    film = shipped.folder / FILMS["Turntable"]
    film.write_bytes(b"a film")
    assert list_pictures(watched) == ["Turntable", "Colour"]
    assert list_pictures(replace(watched, is_shipped=False)) == [*FILMS, *PREVIEW_KINDS]
