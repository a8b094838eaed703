"""The whole page without a browser: every pane of every tab, while a run waits, goes on, is over and is read back."""

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from psd.config.preset import Preset
from psd.distillation.events import Event, Finished, LiveChanged
from psd.runs.jobs.worker import Worker
from psd.runs.store import archive
from psd.runs.store.archive import read_preset, replay_events
from psd.ui import build
from psd.ui.build import REST_S, TICK_S
from psd.ui.context import find_live_preset
from psd.ui.state import watch
from psd.ui.state.page import MAKE, Look, Page, WatchedRun
from psd.ui.state.watch import Watcher
from tests.support.fake_run import fake_run

TABS = ("Curves", "Negative", "Mesh", "Log")
PLACES = ("Runs", "Compare")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(fake_run, tmp_path)
    yield worker
    assert worker.shutdown()


def asker(worker: Worker) -> tuple[gr.Blocks, Callable[..., dict[Any, Any]]]:
    """The page, and what it would be told: component -> update, by tab."""
    blocks = build.build_blocks(worker)
    listener = next(fn for fn in blocks.fns.values() if fn.name == "refresh")
    ask = listener.fn
    assert ask is not None

    def told(run: str, tab: str, *, compared: list[str] | None = None, follow: bool = True, step: int = 0) -> dict:
        place = tab if tab in PLACES else MAKE
        news = ask(
            run,
            "",
            [],
            None,
            place,
            tab,
            Look.show,
            follow,
            step,
            [*Look.orbit, 0],
            compared or [],
            0,
            False,
            "",
            Look.sort,
        )
        assert len(news) == len(listener.outputs)
        return {component.elem_id: value for component, value in zip(listener.outputs, news, strict=True)}

    return blocks, told


def finished(worker: Worker, **values: Any) -> str:
    run = worker.submit(Preset.make({"steps": 6, "prompt": "a taxi", **values}))
    index, over = 0, False
    while not over:  # the status is written a moment before the last event is told
        events = worker.wait(run, index, timeout_s=5)
        index, over = index + len(events), any(isinstance(event, Finished) for event in events)
    return run


@pytest.mark.parametrize("tab", [*TABS, *PLACES])
def test_every_tab_tells_of_a_run_that_is_over(worker: Worker, tab: str) -> None:
    _, told = asker(worker)
    first, second = finished(worker), finished(worker, method="sds")
    before = told("", tab)
    after = told(first, tab, compared=[first, second])
    assert "a taxi" in after["status"] and "Finished" in after["status"] and "Ready" in before["status"]
    if tab == "Compare":
        assert "<b>psd</b>" in after["compare-scores"] and "<b>sds</b>" in after["compare-scores"]
    if tab == "Runs":
        assert after["runs"].count('class="card"') == 2


def test_a_page_asks_for_nothing_twice(worker: Worker) -> None:
    blocks, _ = asker(worker)
    listener = next(fn for fn in blocks.fns.values() if fn.name == "refresh")
    assert listener.fn is not None
    run = finished(worker)
    seen = [None, MAKE, "Curves", Look.show, True, 0, [*Look.orbit, 0], [], 0, False, "", Look.sort]
    keys, *_ = listener.fn(run, "", [], *seen)
    again, *news = listener.fn(run, "", keys, *seen)
    skipped = gr.skip()
    assert [key for key, old in zip(again, keys, strict=True) if key != old] == []
    assert all(value == skipped for value in news)


def test_looking_back_shows_the_preview_of_that_step(worker: Worker) -> None:
    _, told = asker(worker)
    run = finished(worker)
    assert f"runs/{run}/previews/000006.jpg?v=" in told(run, "Curves")["picture"]
    assert f"runs/{run}/previews/000002.jpg?v=" in told(run, "Curves", follow=False, step=3)["picture"]


def test_the_question_what_is_new_holds_no_slider(worker: Worker) -> None:
    """A slider that still holds a value of the range before makes Gradio refuse the whole question."""
    blocks, _ = asker(worker)
    listener = next(fn for fn in blocks.fns.values() if fn.name == "refresh")
    assert not [component for component in listener.inputs if isinstance(component, gr.Slider)]


@pytest.mark.parametrize("name", ["pause", "stop"])
def test_a_run_that_is_gone_is_answered_in_words(worker: Worker, name: str) -> None:
    blocks, _ = asker(worker)
    listener = next(fn for fn in blocks.fns.values() if fn.name == name)
    assert listener.fn is not None and "bar-message" in [component.elem_id for component in listener.outputs]
    answer = listener.fn("20200101-000000-gone", "")
    assert "20200101-000000-gone" in answer and "alert" in answer


def listener(worker: Worker, name: str) -> Callable[..., Any]:
    function = next(fn.fn for fn in build.build_blocks(worker).fns.values() if fn.name == name)
    assert function is not None
    return function


def attached(worker: Worker, run: str) -> list[Any]:
    """Owner, run, message and the controls' values, of a page that opens with the run in its address."""
    return listener(worker, "attach")("", "", SimpleNamespace(query_params={"run": run}))


def test_a_run_whose_values_this_version_cannot_read_is_shown_without_them(worker: Worker) -> None:
    run = finished(worker)
    folder = worker.library.find_folder(run)
    (folder / "preset.resolved.yaml").write_text("a_key_of_tomorrow: 1")
    assert attached(worker, run)[3] != gr.skip(), "its log has the values as well"
    shutil.rmtree(folder / "checkpoints")
    log = folder / "events.jsonl"
    log.write_text(log.read_text().replace('"preset": {', '"preset": {"a_key_of_tomorrow": 1, '))
    owner, shown, message, *values = attached(worker, run)
    assert owner and shown == run and "a_key_of_tomorrow" in message and all(value == gr.skip() for value in values)
    *_, said, base = listener(worker, "remix")(run)[:4]
    assert "a_key_of_tomorrow" in said and base == gr.skip()


def test_a_page_without_a_secret_starts_no_run_and_with_it_its_own(worker: Worker) -> None:
    given = attached(worker, finished(worker))[3:-2]  # without the preset's name and the values of reset buttons
    values = [getattr(value, "value", value) for value in given]
    run = next(block for block in build.build_blocks(worker).blocks.values() if getattr(block, "elem_id", "") == "run")
    assert isinstance(run, gr.Button) and run.interactive is False  # until the page has its secret
    jobs = len(worker.list_jobs())
    *_, said, _ = listener(worker, "submit_run")("", False, *values)
    assert "still loading" in said and len(worker.list_jobs()) == jobs
    owner = attached(worker, "")[0]
    started, _, said, seed = listener(worker, "submit_run")(owner, True, *values)
    assert read_preset(worker.library.find_folder(started)).seed == seed, "a random seed is shown"
    assert not said
    assert (
        owner
        and worker.library.is_steerable_by(started, owner)
        and not worker.library.is_steerable_by(started, "y" * 32)
    )


def test_what_is_moved_before_the_first_step_holds_from_there(tmp_path: Path) -> None:
    loaded = threading.Event()

    def slow(*given: Any) -> Iterator[Event]:
        assert loaded.wait(20)
        yield from fake_run(*given)

    worker = Worker(slow, tmp_path)
    run = worker.submit(Preset(prompt="a taxi", steps=6))
    desk: Any = SimpleNamespace(worker=worker)
    assert find_live_preset(desk, run) is not None, "the page would say nothing and forget the value"
    worker.change(run, {"guidance_scale": 9.5})
    loaded.set()
    events: list[Event] = []
    while not any(isinstance(event, Finished) for event in events):
        events += worker.wait(run, len(events), timeout_s=5)
    assert [event.values for event in events if isinstance(event, LiveChanged)] == [{"guidance_scale": 9.5}]
    assert find_live_preset(desk, run) is None and worker.shutdown()


def test_a_page_that_opens_while_a_run_goes_on_shows_the_values_it_has_now(tmp_path: Path) -> None:
    gate = threading.Event()

    def held(*given: Any) -> Iterator[Event]:
        for event in fake_run(*given):
            yield event
            if isinstance(event, LiveChanged):
                assert gate.wait(20)

    worker = Worker(held, tmp_path)
    run = worker.submit(Preset(prompt="a taxi", steps=6, guidance_scale=4.0))
    worker.change(run, {"guidance_scale": 9.5})
    while not Watcher(worker).view_run(run).view.live:
        threading.Event().wait(0.01)
    *_, base = attached(worker, run)[:4]
    assert base["guidance_scale"] == 9.5 and read_preset(worker.library.find_folder(run)).guidance_scale == 4.0
    gate.set()
    assert worker.shutdown()


def test_a_run_of_another_process_is_not_read_anew_at_every_look(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(worker)
    folder, reads = worker.library.find_folder(run), []

    def slow(*given: Any, **how: Any) -> Iterator[Event]:
        reads.append(1)
        threading.Event().wait(0.05)
        return replay_events(*given, **how)

    monkeypatch.setattr(watch, "replay_events", slow)
    status = archive.read_status(folder)
    monkeypatch.setattr(watch, "read_status", lambda _: replace(status, state="running", updated=str(len(reads))))
    other = Worker(fake_run, folder.parent)  # knows the folder only
    watcher = Watcher(other)
    for _ in range(5):
        assert watcher.view_run(run).view.step == 6
    assert len(reads) == 1
    assert other.shutdown()


def test_a_page_looks_often_at_what_goes_on_now_and_then_at_what_may_and_else_never() -> None:
    assert build._tick_s(Page(WatchedRun("r", state="running"))) == TICK_S
    assert build._tick_s(Page(WatchedRun("r", state="finished"))) == REST_S, "its owner may go on with it elsewhere"
    assert build._tick_s(Page()) is None
