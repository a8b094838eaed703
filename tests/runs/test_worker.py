"""The worker: queue, stop, pause, live sliders and failures, driven by runs without models."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.events import (
    Checkpointed,
    Event,
    Failed,
    Finished,
    LiveChanged,
    Previewed,
    Started,
    Stepped,
    Warned,
    to_json,
    without_arrays,
)
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import PAUSE_POLL_S, MakeEvents, describe_failure, drive_run
from psd.runs.jobs.event_log import EventLog
from psd.runs.jobs.worker import Limits, Worker
from psd.runs.store.archive import latest_checkpoint, read_status, replay_events
from psd.runs.store.files import StoreError
from psd.runs.store.folder import RunFolder
from psd.ui.state.watch import Watcher
from tests.support.fake_run import fake_run

PRESET = Preset(prompt="a red mushroom", steps=6)
ENDLESS = PRESET.with_values({"steps": 100_000})
PATIENCE_S = 20.0


class Gate:
    """Lets a run's steps through one by one, so that tests decide what happens between them."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.waiting = False
        self.has_started: list[int] = []  # seeds, in the order of starting

    def run(self, preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        for event in fake_run(preset, control, resume):
            if isinstance(event, Started):
                self.has_started.append(preset.seed)
            if isinstance(event, Stepped):
                self.waiting = True
                assert self.permits.acquire(timeout=PATIENCE_S)
                self.waiting = False
            yield event

    def open(self, steps: int = 1) -> None:
        self.permits.release(steps)


@pytest.fixture
def hire(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def hire(make_events: MakeEvents, limits: Limits | None = None) -> Worker:
        workers.append(Worker(make_events, tmp_path, limits=limits))
        return workers[-1]

    yield hire
    assert all(worker.shutdown(PATIENCE_S) for worker in workers)


def finish(worker: Worker, run_id: str) -> list[Event]:
    """All events of a run, once it is over."""
    events: list[Event] = []
    while more := worker.wait(run_id, len(events), PATIENCE_S):
        events += more
    return events


def until(worker: Worker, run_id: str, step: int) -> None:
    """Wait for the event Stepped of ``step``."""
    seen = 0
    while more := worker.wait(run_id, seen, PATIENCE_S):
        if any(isinstance(event, Stepped) and event.step >= step for event in more):
            return
        seen += len(more)
    pytest.fail(f"no step {step}")


def steps(events: list[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, Stepped)]


def test_consumers_hear_what_the_folder_tells(hire: Callable[[MakeEvents], Worker]) -> None:
    worker = hire(fake_run)
    run_id = worker.submit(PRESET)
    first, second = finish(worker, run_id), finish(worker, run_id)
    assert (
        first
        == second
        == worker.events_since(run_id)
        == [without_arrays(e) for e in replay_events(worker.snapshot_job(run_id).folder)]
    )
    assert worker.events_since(run_id, 5) == first[5:]
    assert all(not event.images and event.file for event in first if isinstance(event, Previewed))
    job = worker.snapshot_job(run_id)
    assert (job.status.state, job.status.step, job.events, job.ahead) == ("finished", 6, len(first), 0)


@pytest.mark.parametrize("count", [0, 1, 70])
def test_events_come_back_from_any_index(count: int, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("a line of an earlier run\n", encoding="utf-8")
    log, told = EventLog(tmp_path), [Warned(step=number, message=f"line {number} ü") for number in range(count)]
    for event in told:
        if event.step != 40:  # the disk was full
            with path.open("a", encoding="utf-8") as file:
                file.write(to_json(event) + "\n")
        log.add(event)
    assert len(log) == count
    for index in {0, 1, 39, 40, 41, max(count - 1, 0), count, count + 300}:
        assert log.read_since(index) == told[index:], index
        for most in (0, 1, 30):
            assert log.read_since(index, most) == told[index : index + most], (index, most)


def test_a_line_that_is_not_whole_yet_is_no_event(tmp_path: Path) -> None:
    path, event = tmp_path / "events.jsonl", Warned(step=1, message="whole")
    log = EventLog(tmp_path)
    assert not log.catch_up()  # no file yet
    path.write_text(to_json(event))
    assert not log.catch_up()
    path.write_text(to_json(event) + "\n")
    assert log.catch_up() == 1 and log.read_since(0) == [event]


def test_a_mesh_that_was_made_again_is_among_the_events_of_a_run_that_goes_on(
    hire: Callable[[MakeEvents], Worker],
) -> None:
    worker = hire(fake_run)
    run_id = worker.submit(PRESET)
    before = finish(worker, run_id)
    with RunFolder.open(worker.library.find_folder(run_id)) as folder:
        folder.write(note := Warned(step=6, message="made again"))
    worker.extend(run_id, 2)
    assert finish(worker, run_id)[: len(before) + 1] == [*before, note]


def test_first_in_first_out(hire: Callable[[MakeEvents], Worker]) -> None:
    gate = Gate()
    worker = hire(gate.run)
    ids = [worker.submit(PRESET.with_values({"seed": seed})) for seed in (5, 3, 4)]
    worker.wait(ids[0], 0, PATIENCE_S)
    assert [job.id for job in worker.list_jobs()] == ids
    assert [job.ahead for job in worker.list_jobs()] == [0, 1, 2]
    assert [read_status(job.folder).state for job in worker.list_jobs()] == ["running", "queued", "queued"]
    gate.open(18)
    for run_id in ids:
        finish(worker, run_id)
    assert gate.has_started == [5, 3, 4]


def test_stop_ends_within_a_step_and_keeps_the_rest(hire: Callable[[MakeEvents], Worker]) -> None:
    gate = Gate()
    worker = hire(gate.run)
    run_id = worker.submit(ENDLESS)
    gate.open(3)
    until(worker, run_id, 3)
    worker.stop(run_id)
    gate.open(1)  # the step that was on its way
    events = finish(worker, run_id)
    assert steps(events) in ([1, 2, 3], [1, 2, 3, 4])
    assert isinstance(events[-1], Finished) and events[-1].reason == "stopped"
    assert read_status(worker.snapshot_job(run_id).folder).state == "stopped"


def test_stopping_a_queued_job_takes_it_out(hire: Callable[[MakeEvents], Worker]) -> None:
    gate = Gate()
    worker = hire(gate.run)
    first, second, third = (worker.submit(PRESET.with_values({"seed": seed})) for seed in (1, 2, 3))
    worker.stop(second)
    assert finish(worker, second) == [Finished(step=0, reason="stopped")]
    assert worker.snapshot_job(third).ahead == 1
    gate.open(12)
    finish(worker, first)
    finish(worker, third)
    assert gate.has_started == [1, 3]


def test_pause_holds_and_resume_goes_on(hire: Callable[[MakeEvents], Worker]) -> None:
    gate = Gate()
    worker = hire(gate.run)
    run_id = worker.submit(PRESET)
    gate.open(1)
    until(worker, run_id, 1)
    worker.pause(run_id)
    gate.open(5)
    folder = worker.snapshot_job(run_id).folder
    wait_for(lambda: read_status(folder).state == "paused")
    held = worker.events_since(run_id)
    assert max(steps(held)) <= 2
    threading.Event().wait(0.2)  # nothing may happen now
    assert worker.events_since(run_id) == held
    worker.resume(run_id)
    assert steps(finish(worker, run_id)) == [1, 2, 3, 4, 5, 6]
    assert read_status(folder).state == "finished"


def test_a_paused_run_can_be_stopped(hire: Callable[[MakeEvents], Worker]) -> None:
    gate = Gate()
    worker = hire(gate.run)
    run_id = worker.submit(ENDLESS)
    worker.pause(run_id)
    gate.open(1)  # the start may have been told before the pause
    wait_for(lambda: worker.snapshot_job(run_id).status.state == "paused")
    worker.stop(run_id)
    assert worker.snapshot_job(run_id).stopping
    gate.open(1)
    assert isinstance(finish(worker, run_id)[-1], Finished)
    assert not worker.snapshot_job(run_id).stopping


def test_a_paused_run_gives_way_to_those_who_wait(hire: Callable[..., Worker]) -> None:
    gate = Gate()
    worker = hire(gate.run, Limits(pause_s=1e-3))
    first = worker.submit(PRESET)
    worker.pause(first)
    gate.open(1)
    wait_for(lambda: worker.snapshot_job(first).status.state == "paused")
    threading.Event().wait(2 * PAUSE_POLL_S)  # alone it may stay
    assert worker.snapshot_job(first).status.state == "paused"
    second = worker.submit(PRESET)
    gate.open(12)  # the first may take one more before it hears that it is to stop
    warned = [event.message for event in finish(worker, first) if isinstance(event, Warned)]
    assert sum("others wait" in message for message in warned) == 1
    assert worker.snapshot_job(first).status.state == "stopped"
    assert steps(finish(worker, second))[-1] == 6
    worker.extend(first)  # nothing is lost
    gate.open(6)
    assert steps(finish(worker, first))[-1] == 6


def wait_for(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    ticks = threading.Event()
    for _ in range(int(patience_s / 0.01)):
        if condition():
            return
        ticks.wait(0.01)
    pytest.fail("waited in vain")


def test_live_sliders_reach_the_run(hire: Callable[[MakeEvents], Worker]) -> None:
    gate = Gate()
    worker = hire(gate.run)
    run_id = worker.submit(PRESET)
    gate.open(1)
    until(worker, run_id, 1)
    worker.change(run_id, {"guidance_scale": 7.5})
    worker.change(run_id, {"negative_lr": 0.5})
    gate.open(5)
    events = finish(worker, run_id)
    last = [event for event in events if isinstance(event, LiveChanged)][-1]
    assert last.values == {"guidance_scale": 7.5, "negative_lr": 0.5} == worker.snapshot_job(run_id).live
    assert last.step <= 2


@pytest.mark.parametrize(
    ("values", "complaint"),
    [({"seed": 1}, "seed cannot change during a run"), ({"guidance_scale": -1}, "guidance_scale")],
)
def test_wrong_live_values_are_refused(values: dict[str, Any], complaint: str) -> None:
    control = Controls(PRESET)
    control.change({"guidance_scale": 2})
    with pytest.raises(PresetError, match=complaint):
        control.change(values)
    assert control.live() == {"guidance_scale": 2}


def test_a_raising_run_fails_alone(hire: Callable[[MakeEvents], Worker]) -> None:
    def runs(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        for event in fake_run(preset, control, resume):
            yield event
            if preset.seed == 1 and event.step == 3:
                raise ArithmeticError("density is not finite at step 3")

    worker = hire(runs)
    bad, good = worker.submit(PRESET.with_values({"seed": 1})), worker.submit(PRESET)
    last = finish(worker, bad)[-1]
    assert isinstance(last, Failed) and last.step == 3 and last.traceback == ""
    assert "density is not finite" in last.message and "log.txt" in last.cure
    folder = worker.snapshot_job(bad).folder
    assert "Traceback" in (folder / "log.txt").read_text()
    assert "Traceback" not in (folder / "events.jsonl").read_text()
    assert read_status(folder).state == "failed"
    assert isinstance(finish(worker, good)[-1], Finished)


def test_a_run_that_just_ends_has_failed(hire: Callable[[MakeEvents], Worker]) -> None:
    worker = hire(lambda preset, control, resume: iter([*fake_run(preset, control)][:4]))
    last = finish(worker, worker.submit(PRESET))[-1]
    assert isinstance(last, Failed) and "without saying why" in last.message


def test_full_disk_fails_the_run_and_everybody_hears(
    hire: Callable[[MakeEvents], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def runs(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        for event in fake_run(preset, control, resume):
            if event.step == 3:
                monkeypatch.setattr("psd.runs.store.files.open", full, raising=False)
            yield event

    worker = hire(runs)
    run_id = worker.submit(PRESET)
    last = finish(worker, run_id)[-1]
    monkeypatch.undo()
    assert isinstance(last, Failed) and "disk is full" in last.message and "could not be stored" in last.message
    assert "free space" in last.cure
    assert steps([*replay_events(worker.snapshot_job(run_id).folder)]) == [1, 2]
    assert worker.snapshot_job(run_id).status.state == "failed", "whoever watches must not wait for ever"
    seen = Watcher(worker).view_run(run_id)  # the disk still says that it goes on
    assert seen.state == "failed" and "disk is full" in seen.view.problem and "free space" in seen.view.cure


def test_a_shelf_that_cannot_be_cleared_stops_no_run(
    hire: Callable[[MakeEvents], Worker], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = hire(fake_run)

    def gone(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("psd.runs.store.retention.delete_oldest", gone)
    for seed in (1, 2):
        assert isinstance(finish(worker, worker.submit(PRESET.with_values({"seed": seed})))[-1], Finished)
    assert "no room could be made" in caplog.text


@pytest.mark.parametrize("where", ["psd.runs.store.ownership.claim_run", "psd.runs.store.folder.replace_file"])
def test_a_run_that_cannot_be_queued_leaves_nothing(
    hire: Callable[[MakeEvents], Worker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is full", "free space")

    worker = hire(fake_run)
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(where, full)
    with pytest.raises(StoreError, match="disk is full"):
        worker.submit(PRESET, owner="me")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [] and worker.list_jobs() == []
    assert len(os.listdir("/proc/self/fd")) == before, "a lock was kept"


def test_a_run_that_cannot_go_on_is_free_for_another_try(
    hire: Callable[[MakeEvents], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = hire(fake_run)
    run_id = worker.submit(PRESET)
    finish(worker, run_id)

    def damaged(*_: Any) -> None:
        raise StoreError("schema 99", "update")

    monkeypatch.setattr("psd.runs.jobs.drive.find_checkpoint", damaged)
    with pytest.raises(StoreError, match="schema 99"):
        worker.submit(PRESET, resume=worker.library.find_folder(run_id))
    monkeypatch.undo()
    worker.extend(run_id, 2)
    assert steps(finish(worker, run_id))[-1] == 8


def test_nothing_is_queued_behind_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is shut down while a run's folder is being made."""
    worker = Worker(fake_run, tmp_path)
    monkeypatch.setattr("psd.runs.store.ownership.claim_run", lambda *_: worker.shutdown(PATIENCE_S))
    with pytest.raises(RuntimeError, match="shut down"):
        worker.submit(PRESET, owner="me")
    assert worker.list_jobs() == [] and list(tmp_path.iterdir()) == []


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("error", "message", "cure"),
    [
        (PresetError("steps=0 is below 1: raise it"), "steps=0 is below 1: raise it", ""),
        (StoreError("the disk is full", "free space"), "the disk is full", "free space"),
        (OutOfMemoryError("tried 2 GiB"), "out of memory: tried 2 GiB", "lower render_size"),
        (MemoryError(), "out of memory: MemoryError", "lower render_size"),
        (KeyError("x"), "KeyError: 'x'", "log.txt"),
    ],
)
def test_exceptions_in_words(error: Exception, message: str, cure: str) -> None:
    event = describe_failure(error, 3, 1.5)
    assert (event.step, event.time_s, event.message) == (3, 1.5, message)
    assert event.cure.startswith(cure) and type(error).__name__ in event.traceback


def test_keyboard_interrupt_is_not_a_failure(tmp_path: Path) -> None:
    def runs(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        yield from [*fake_run(preset, control)][:3]
        raise KeyboardInterrupt

    with RunFolder.create(PRESET, tmp_path) as folder:
        with pytest.raises(KeyboardInterrupt):
            list(drive_run(runs, folder, Controls(PRESET)))
    assert read_status(folder.path).state == "interrupted"


def test_stop_and_resume_equal_going_through(hire: Callable[[MakeEvents], Worker]) -> None:
    gate = Gate()
    worker = hire(gate.run)
    run_id = worker.submit(PRESET)
    gate.open(3)
    until(worker, run_id, 3)
    worker.stop(run_id)
    gate.open(1)
    finish(worker, run_id)
    folder = worker.snapshot_job(run_id).folder
    again = hire(fake_run)
    assert again.submit(PRESET, resume=folder) == run_id
    finish(again, run_id)
    through = [event for event in fake_run(PRESET, Controls(PRESET)) if isinstance(event, Stepped | Finished)]
    told = [event for event in replay_events(folder) if isinstance(event, Stepped) or event == through[-1]]
    assert told == through
    assert (checkpoint := latest_checkpoint(folder)) and checkpoint.step == 6


def test_a_running_folder_cannot_be_resumed(hire: Callable[[MakeEvents], Worker]) -> None:
    gate = Gate()
    worker = hire(gate.run)
    run_id = worker.submit(PRESET)
    with pytest.raises(StoreError, match="another process"):
        worker.submit(PRESET, resume=worker.snapshot_job(run_id).folder)
    gate.open(6)


def test_shutdown_keeps_results_and_takes_no_more(tmp_path: Path) -> None:
    gate = Gate()
    worker = Worker(gate.run, tmp_path)
    running, queued = worker.submit(ENDLESS), worker.submit(PRESET)
    gate.open(2)
    until(worker, running, 2)
    wait_for(lambda: gate.waiting)
    assert not worker.shutdown(0.05)  # step 3 is on its way
    gate.open(1)
    assert worker.shutdown(PATIENCE_S)
    assert [job.status.state for job in worker.list_jobs()] == ["stopped", "stopped"]
    assert not worker.events_since(queued)[:-1]
    with pytest.raises(RuntimeError, match="shut down"):
        worker.submit(PRESET)


def test_unknown_job_is_named(hire: Callable[[MakeEvents], Worker]) -> None:
    with pytest.raises(StoreError, match="no job 'nowhere'"):
        hire(fake_run).events_since("nowhere")
