"""The driver for lent GPUs, with a decorator that forks as ZeroGPU does: pickled events, nothing shared but files."""

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from psd.config.preset import Preset
from psd.distillation.events import Alarmed, Checkpointed, Event, Finished, LiveChanged, Started, Stepped
from psd.distillation.run import run
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import drive_run
from psd.runs.jobs.executors.chunked import split_into_chunks
from psd.runs.store.archive import replay_events
from psd.runs.store.folder import RunFolder
from tests.distillation.test_run import (
    essence,
    steps_of,
    without_mesh,  # noqa: F401  (a fixture)
)
from tests.support.fake_run import fake_run
from tests.support.toy import ConstantReward, make_models, make_preset

PRESET = Preset(steps=12)


def lend(generator: Callable[..., Iterator[Event]]) -> Callable[..., Iterator[Event]]:
    """Each call in a forked process of its own, its values pickled one by one, in step with whoever takes them."""

    def forked(*args: object) -> Iterator[Event]:
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        child = context.Process(target=serve, args=(generator, pickle.dumps(args), here, there))
        child.start()
        there.close()
        try:
            while True:
                here.send("next")
                value = here.recv()
                if value is None:
                    return
                if isinstance(value, Exception):
                    raise value
                yield value
        finally:
            here.close()
            child.join(20)
            assert child.exitcode == 0, "the process outlives its chunk"

    return forked


def serve(generator: Callable[..., Iterator[Event]], args: bytes, theirs, pipe) -> None:
    theirs.close()  # a copy that fork made: while it is open the other side's end is no end
    try:
        values = generator(*pickle.loads(args))
        while pipe.recv() == "next":
            try:
                pipe.send(next(values, None))
            except Exception as error:  # noqa: BLE001 - goes to the other side
                pipe.send(error)
    except EOFError:
        pass
    os._exit(0)  # no clean-up of what belongs to the parent


def test_one_chunk_is_the_run() -> None:
    events = list(split_into_chunks(fake_run, lend)(PRESET, Controls(PRESET), None))
    assert [str(event) for event in events] == [str(event) for event in fake_run(PRESET, Controls(PRESET))]


def test_a_chunk_without_time_for_a_step_is_no_endless_loop() -> None:
    engine = leaving_after(10**9)
    with pytest.raises(RuntimeError, match="too short for a step"):
        list(split_into_chunks(engine, lend, seconds=0.0)(make_preset(), Controls(make_preset()), None))


def test_a_pause_at_the_start_of_a_chunk_is_no_lack_of_time(tmp_path: Path) -> None:
    """While the user thinks, the chunk's time runs out before its first step."""
    preset, events, paused = make_preset(), [], []
    control = Controls(preset)
    with RunFolder.create(preset, tmp_path) as folder:
        for event in drive_run(split_into_chunks(leaving_after(10**9), lend, seconds=5.0), folder, control):
            events.append(event)
            if isinstance(event, Started) and not paused:
                control.pause()
                paused.append(threading.Timer(6.0, control.resume))
                paused[0].start()
    assert isinstance(events[-1], Finished), events[-1]


def leaving_after(count: int):
    """The engine that leaves its chunk after so many steps, whatever the clock says."""

    def events(preset: Preset, control, resume: Checkpointed | None) -> Iterator[Event]:
        models, done = make_models(), 0
        for event in run(preset, models, control=control, resume=resume):
            yield event
            done += isinstance(event, Stepped)
            if done == count:
                control._deadline = 0.0

    return events


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_engine_goes_on_bit_for_bit_in_another_process(steps: int) -> None:
    preset = make_preset()
    whole = list(run(preset, make_models()))
    events = list(split_into_chunks(leaving_after(steps), lend)(preset, Controls(preset), None))
    assert list(map(essence, steps_of(events))) == list(map(essence, steps_of(whole)))
    last, expected = ([event for event in found if isinstance(event, Checkpointed)][-1] for found in (events, whole))
    assert essence(last) == essence(expected) and essence(events[-1]) == essence(whole[-1])
    assert sum(isinstance(event, Started) for event in events) == 1


def test_stop_and_live_values_reach_the_other_process(tmp_path: Path) -> None:
    preset, control = make_preset(steps=40), Controls(make_preset())
    with RunFolder.create(preset, tmp_path) as folder:
        for event in drive_run(split_into_chunks(leaving_after(3), lend), folder, control):
            if isinstance(event, Stepped) and event.step == 2:
                control.change({"guidance_scale": 2.0})
            if isinstance(event, Stepped) and event.step == 7:
                control.stop()
    events = list(replay_events(folder.path))
    assert isinstance(events[-1], Finished) and events[-1].reason == "stopped" and 7 <= events[-1].step <= 9
    changes = [event for event in events if isinstance(event, LiveChanged)]
    assert [event.values for event in changes] == [{"guidance_scale": 2.0}] and 2 <= changes[0].step <= 4


def leaving_at_the_alarm(preset: Preset, control, resume: Checkpointed | None) -> Iterator[Event]:
    """The engine whose selector judge is flat, in a chunk whose time is up in the step that stops early."""
    models = replace(make_models(), judges={"flat": ConstantReward()})
    for event in run(preset, models, control=control, resume=resume):
        yield event
        if isinstance(event, Alarmed):
            control._deadline = 0.0


def test_an_early_stop_in_the_last_moment_of_a_chunk_is_no_mere_leaving() -> None:
    preset = make_preset(steps=40, preview_every=1, early_stop="plateau", judges=["flat"], method="sds")
    events = list(split_into_chunks(leaving_at_the_alarm, lend)(preset, Controls(preset), None))
    end, alarm = events[-1], next(event for event in events if isinstance(event, Alarmed))
    assert isinstance(end, Finished) and (end.step, end.reason) == (alarm.step, "stopped early")
    # whoever goes on from there may
    saved = [event for event in events if isinstance(event, Checkpointed)][-1]
    rest = list(split_into_chunks(leaving_at_the_alarm, lend)(preset, Controls(preset), saved))
    assert steps_of(rest)[0].step == end.step + 1
    assert isinstance(rest[-1], Finished) and rest[-1].reason == "completed" and rest[-1].step == 40


def test_an_error_in_the_other_process_is_this_one_s() -> None:
    def broken(*_: object) -> Iterator[Event]:
        raise ArithmeticError("no number")
        yield

    with pytest.raises(ArithmeticError, match="no number"):
        list(split_into_chunks(broken, lend)(PRESET, Controls(PRESET), None))
