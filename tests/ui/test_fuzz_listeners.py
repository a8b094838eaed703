"""Hundreds of calls of every listener of the page with hostile values: words, no traceback, and a worker that lives."""

import asyncio
import logging
import math
import random
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest
from gradio.state_holder import SessionState

import app
from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Finished, Started, Stepped
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.worker import Worker
from psd.runs.store.archive import read_status
from psd.ui import build
from psd.ui.checked import CheckedBlocks
from tests.runs.test_worker import PATIENCE_S, finish
from tests.support.fake_run import fake_run
from tests.ui.test_checked import LONE, call, usual_value

CALLS = 500  # of each listener
HUGE = "x" * 100_000
SCALARS = [
    None, True, False, 0, -1, 7, 10**40, -(10**40), 2**63, 0.5, -0.0, 1e308, 5e-324, math.inf, -math.inf, math.nan,
    "", " ", "text", "7", "\0", "\n", LONE, f"a{LONE}", HUGE, "💥" * 300, "../../etc/passwd", "<script>", "steps: 010",
    "{", "a: &a [*a]", "?run=x", "best", "last", "glb", "Live", "Runs", "a red mushroom", "psd",
]  # fmt: skip
EVENTS = [
    {"index": 0, "value": "Live"}, {"index": [0, 1], "value": None}, {"index": "x", "value": LONE}, {"value": 3},
    {"act": "go on", "run": "x"}, {"act": "delete", "run": "../x"}, {"act": LONE}, {"act": None, "run": 7},
    {}, [], None,
]  # fmt: skip


def quick_run(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
    """A run of six steps and no file but its log."""
    yield Started(
        step=0, preset=preset.model_dump(mode="json"), total_steps=preset.total_steps, views=4, environment={}
    )
    for step in range(1, 7):
        yield Stepped(step=step, t=500, metrics={"reward/tiny": 1.0}, time_s=0.1 * step)
    yield Finished(step=6, reason="stopped", time_s=0.7)


class Remesher:
    """Answers as the real one does, without a network."""

    def count(self, folder: Any, threshold: float, kept: str) -> int:
        if kept not in ("best", "last") or not 0 < threshold < math.inf:
            raise PresetError(f"threshold={threshold} of {kept!r}")
        return 12

    def export(self, folder: Any, **values: Any) -> None:
        raise PresetError("no surface")


def draw_value(chance: random.Random, run_ids: list[str], depth: int = 0) -> Any:
    """Any value that JSON can say, and the ids of runs that are there."""
    kind = chance.random()
    if kind < 0.1:
        return chance.choice(run_ids)
    if kind < 0.75 or depth > 2:
        return chance.choice(SCALARS)
    if kind < 0.88:
        return [draw_value(chance, run_ids, depth + 1) for _ in range(chance.randrange(4))]
    keys = ["path", "value", "camera_position", "index", "meta", LONE, "a"]
    return {chance.choice(keys): draw_value(chance, run_ids, depth + 1) for _ in range(chance.randrange(4))}


async def call_often(blocks: CheckedBlocks, listener: Any, seed: int, run_ids: list[str]) -> int:
    """How many of the calls were refused: each with some hostile values among those that a page sends."""
    chance, refused, state = random.Random(seed), 0, SessionState(blocks)
    usual = [usual_value(component) for component in listener.inputs]
    for number in range(CALLS):
        if number % 50 == 0:
            state = SessionState(blocks)
            for component in listener.inputs:
                if isinstance(component, gr.State) and component.value == "":
                    state[component._id] = chance.choice([*run_ids, "", "x"])  # what a page looks at
        values = list(usual)
        for place in chance.sample(range(len(usual)), min(len(usual), chance.choice([0, 1, 1, 2, len(usual)]))):
            values[place] = draw_value(chance, run_ids)
        event = gr.EventData(None, chance.choice([*EVENTS, {"act": "go on", "run": run_ids[0]}]))
        refused += bool(await call(blocks, state, listener, values, event))
    return refused


@pytest.mark.slow
@pytest.mark.timeout(3400)  # four minutes where nothing else runs
def test_500_hostile_calls_of_every_listener(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("psd.ui.state.watch.LIST_S", 60.0)  # hundreds of runs are made on the way
    worker = Worker(quick_run, tmp_path_factory.mktemp("runs"))
    blocks = build.build_blocks(worker, vocabularies={"assets/prior": app.read_vocabulary()}, remesher=Remesher)
    assert isinstance(blocks, CheckedBlocks)
    worker._make_events = fake_run
    run_ids = [worker.submit(Preset(prompt="a red mushroom", steps=6, seed=seed)) for seed in range(2)]
    for run_id in run_ids:
        finish(worker, run_id)
    worker._make_events = quick_run
    found = {}
    for listener in blocks.fns.values():
        if listener.fn is not None:
            found[listener.name, tuple(type(component).__name__ for component in listener.inputs)] = listener
    threads = {thread.name for thread in threading.enumerate()}
    with caplog.at_level(logging.ERROR):
        refused = {
            f"{name} {number}": asyncio.run(call_often(blocks, listener, number, run_ids))
            for number, ((name, _), listener) in enumerate(found.items())
        }
    assert len(found) > 25 and sum(refused.values()) > 50 * len(found), refused
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    written = capfd.readouterr()
    assert "Traceback" not in written.out + written.err
    assert {"psd-worker"} <= threads <= {thread.name for thread in threading.enumerate()}, "a thread died"
    for run in worker.library.list_runs():  # every run that was started is one that the preset allows, and was run
        assert read_status(run.folder).state != "unreadable"
    last = worker.submit(Preset(prompt="a red mushroom", seed=99))
    assert isinstance(finish(worker, last)[-1], Finished)
    assert worker.shutdown(PATIENCE_S)
