"""The whole page without a browser: every pane of every tab, while a run waits, goes on, is over and is read back."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fake_run import fake_run

from psd import ui
from psd.events import Finished
from psd.preset import Preset
from psd.ui.page import Look
from psd.worker import Worker

TABS = ("Live", "Curves", "Negative", "Mesh", "Compare", "Runs", "Log")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(fake_run, tmp_path)
    yield worker
    assert worker.shutdown()


def asker(worker: Worker) -> tuple[gr.Blocks, Callable[..., dict[Any, Any]]]:
    """The page, and what it would be told: component -> update, by tab."""
    blocks = ui.build(worker)
    listener = next(fn for fn in blocks.fns.values() if fn.name == "refresh")
    ask = listener.fn
    assert ask is not None

    def told(run: str, tab: str, *, compared: list[str] | None = None, follow: bool = True, step: int = 0) -> dict:
        kinds = list(Look.kinds)
        news = ask(run, "", [], None, tab, kinds, follow, step, compared or [], 0, False)
        assert len(news) == len(listener.outputs)
        return {component.elem_id: value for component, value in zip(listener.outputs, news, strict=True)}

    return blocks, told


def finished(worker: Worker, **values: Any) -> str:
    run = worker.submit(Preset.make({"steps": 6, "prompt": "a red mug", **values}))
    index, over = 0, False
    while not over:  # the status is written a moment before the last event is told
        events = worker.wait(run, index, timeout_s=5)
        index, over = index + len(events), any(isinstance(event, Finished) for event in events)
    return run


@pytest.mark.parametrize("tab", TABS)
def test_every_tab_tells_of_a_run_that_is_over(worker: Worker, tab: str) -> None:
    _, told = asker(worker)
    first, second = finished(worker), finished(worker, method="sds")
    before = told("", tab)
    after = told(first, tab, compared=[first, second])
    assert "a red mug" in after["status"] and "Finished" in after["status"] and "Ready" in before["status"]
    if tab == "Compare":
        assert "psd · seed 0" in after["compare-scores"] and "sds · seed 0" in after["compare-scores"]
    if tab == "Runs":
        assert after["runs"].count("<tr>") == 3


def test_a_page_asks_for_nothing_twice(worker: Worker) -> None:
    blocks, _ = asker(worker)
    listener = next(fn for fn in blocks.fns.values() if fn.name == "refresh")
    assert listener.fn is not None
    run = finished(worker)
    seen = [None, "Curves", list(Look.kinds), True, 0, [], 0, False]
    keys, *_ = listener.fn(run, "", [], *seen)
    again, *news = listener.fn(run, "", keys, *seen)
    skipped = gr.skip()
    assert [key for key, old in zip(again, keys, strict=True) if key != old] == []
    assert all(value == skipped for value in news)


def test_looking_back_shows_the_preview_of_that_step(worker: Worker) -> None:
    _, told = asker(worker)
    run = finished(worker)
    assert "000006.jpg?v=6" in told(run, "Live")["picture"]
    assert "000002.jpg?v=2" in told(run, "Live", follow=False, step=3)["picture"]


def test_the_question_what_is_new_holds_no_slider(worker: Worker) -> None:
    """A slider that still holds a value of the range before makes Gradio refuse the whole question."""
    blocks, _ = asker(worker)
    listener = next(fn for fn in blocks.fns.values() if fn.name == "refresh")
    assert not [component for component in listener.inputs if isinstance(component, gr.Slider)]
