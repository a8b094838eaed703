"""The queue: turns between owners, bounded places, one failure that stays one, and a queue that outlives its server."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Failed, Finished, Stepped
from psd.runs.jobs import worker as workers
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import MakeEvents
from psd.runs.jobs.queue import PLACE_FILE, FairQueue
from psd.runs.jobs.worker import Worker
from psd.runs.store.archive import find_checkpoint, read_preset, read_status, replay_events
from psd.runs.store.files import StoreError
from psd.runs.store.folder import RunFolder
from tests.runs.test_worker import PATIENCE_S, Gate, finish, hire, wait_for  # noqa: F401  (hire: a fixture)
from tests.support.fake_run import fake_run

ROOT = Path(__file__).resolve().parents[2]
PRESET = Preset(prompt="a red mushroom", steps=2)
Hire = Callable[[MakeEvents], Worker]


def take_all(queue: FairQueue) -> str:
    return "".join(queue.take_next() for _ in range(len(queue)))


@pytest.mark.parametrize(
    ("arrivals", "order"), [("aaabb", "ababa"), ("aaaab", "abaaa"), ("abcabc", "abcabc"), ("aaaa", "aaaa"), ("", "")]
)
def test_owners_take_turns(arrivals: str, order: str) -> None:
    queue = FairQueue()
    for number, owner in enumerate(arrivals):
        queue.add_run(f"{owner}{number}", owner)
    before = list(queue)
    assert [queue.list_before(run_id) for run_id in before] == [before[:place] for place in range(len(before))]
    taken = [queue.take_next() for _ in range(len(queue))]
    assert "".join(run_id[0] for run_id in taken) == order and taken == before


def test_who_comes_late_waits_for_one_turn_and_puts_nobody_off_for_longer() -> None:
    queue = FairQueue()
    for number in range(9):
        queue.add_run(f"a{number}", "alice")
    assert [queue.take_next() for _ in range(3)] == ["a0", "a1", "a2"]
    queue.add_run("b", "bob")
    assert list(queue)[:3] == ["a3", "b", "a4"]
    for number in range(50):  # ever new owners
        queue.add_run(f"c{number}", f"stranger {number}")
        queue.take_next()
    assert "b" not in queue and "a4" not in queue


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_no_owner_is_two_runs_ahead_of_another_who_waits(arrivals: list[str]) -> None:
    queue, waiting = FairQueue(), {owner: deque[str]() for owner in "abc"}
    for number, owner in enumerate(arrivals):
        queue.add_run(f"{owner}{number}", owner)
        waiting[owner].append(f"{owner}{number}")
    served = dict.fromkeys("abc", 0)
    while len(queue):
        run_id = queue.take_next()
        owner = run_id[0]
        assert waiting[owner].popleft() == run_id, "first in, first out for each"
        served[owner] += 1
        assert all(served[owner] <= served[other] + 1 for other in "abc" if waiting[other])


def test_a_run_that_leaves_gives_its_place_up() -> None:
    queue = FairQueue()
    for run_id in ("a0", "a1", "b0"):
        queue.add_run(run_id, run_id[0])
    queue.remove_run("a0")
    assert list(queue) == ["b0", "a1"] and queue.count_of("a") == 1 and queue.list_before("a0") == []


def test_one_owner_has_a_bounded_number_of_places(hire: Hire, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(workers, "MOST_OF_ONE", 2)
    gate = Gate()
    worker = hire(gate.run)
    worker.submit(PRESET, owner="alice")
    wait_for(lambda: gate.waiting)
    waiting = [worker.submit(PRESET.with_values({"seed": seed}), owner="alice") for seed in (1, 2)]
    with pytest.raises(StoreError, match="2 of your runs are waiting already"):
        worker.submit(PRESET, owner="alice")
    other = worker.submit(PRESET.with_values({"seed": 3}), owner="bob")
    assert worker.snapshot_job(other).ahead == 2 and worker.snapshot_job(waiting[1]).ahead == 3
    gate.open(100)
    finish(worker, waiting[1])
    assert gate.has_started == [0, 1, 3, 2]


# ---- one failure stays one failure


class Panic(BaseException):
    """Like what a library written in Rust raises when memory is short: no Exception."""


@pytest.mark.parametrize(
    "error", [Panic("out of memory"), SystemExit(3), KeyboardInterrupt(), MemoryError(), GeneratorExit()]
)
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.filterwarnings("error")
def test_whatever_a_job_raises_the_next_one_goes_on(hire: Hire, error: BaseException, begun: bool) -> None:  # noqa: F811
    def engine(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        if preset.seed == 0:
            if begun:
                yield from [*fake_run(preset, control)][:3]
            raise error
        yield from fake_run(preset, control)

    worker = hire(engine)
    bad, good = worker.submit(PRESET), worker.submit(PRESET.with_values({"seed": 1}))
    assert isinstance(finish(worker, good)[-1], Finished)
    last = finish(worker, bad)[-1]
    assert isinstance(last, Failed), last
    folder = worker.library.find_folder(bad)
    assert read_status(folder).state == "failed" and type(error).__name__ in (folder / "log.txt").read_text()
    assert worker.snapshot_job(bad).status.state == "failed"


@pytest.mark.parametrize("name", ["library.make_room", "_record_event", "_end"])
def test_what_the_worker_itself_meets_ends_no_thread(hire: Hire, monkeypatch: pytest.MonkeyPatch, name: str) -> None:  # noqa: F811
    worker = hire(fake_run)
    place = worker.library if name.startswith("library") else worker
    original, calls = getattr(place, name.rpartition(".")[2]), []

    def fails_once(*given: object) -> object:
        calls.append(1)
        if len(calls) == 1 and name != "library.make_room":
            raise Panic("once")
        return original(*given)

    if name == "_end":
        monkeypatch.setattr(RunFolder, "close", lambda self: (_ for _ in ()).throw(OSError("once")))
    else:
        monkeypatch.setattr(place, name.rpartition(".")[2], fails_once)
    worker.submit(PRESET)
    good = worker.submit(PRESET.with_values({"seed": 1}))
    assert isinstance(finish(worker, good)[-1], Finished)
    monkeypatch.undo()


def test_a_full_disk_is_told_as_failed_and_written_when_there_is_room(
    hire: Hire,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "RETRY_S", 0.05)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    def engine(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        for event in fake_run(preset, control, resume):
            if event.step == 2:
                monkeypatch.setattr("psd.runs.store.files.open", full, raising=False)
            yield event

    worker = hire(engine)
    run_id = worker.submit(PRESET)
    assert isinstance(finish(worker, run_id)[-1], Failed)
    folder = worker.library.find_folder(run_id)
    monkeypatch.setattr("psd.runs.store.files.open", open)  # space is freed; the worker still tries often
    wait_for(lambda: read_status(folder).state == "failed")
    assert "disk is full" in read_status(folder).message


def test_a_full_disk_lets_a_state_be_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No new file fits any more; the old one still has its room."""
    with RunFolder.create(PRESET, tmp_path) as folder:
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        folder.set_state("failed", "the disk is full")
    assert read_status(folder.path).state == "failed"


# ---- a server that is killed

SERVER = """
import sys, threading
from pathlib import Path
from psd.config.preset import Preset
from psd.distillation.events import Started
from psd.runs.jobs.worker import Worker
from tests.support.fake_run import fake_run

def endless(preset, control, resume):
    yield from [*fake_run(preset.with_values({"steps": 4}), control, resume)][:8]
    threading.Event().wait()

worker = Worker(endless, Path(sys.argv[1]))
finished = sys.argv[2]
ids = [worker.submit(Preset(steps=6, seed=seed), owner=owner) for seed, owner in enumerate(("alice", "alice", "bob"))]
worker.extend(finished, 3)
while worker.snapshot_job(ids[0]).status.step < 2:
    pass
print(*ids, flush=True)
threading.Event().wait()
"""


def test_the_queue_outlives_a_server_that_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RunFolder.create(PRESET.with_values({"seed": 9}), tmp_path) as finished:
        for event in fake_run(finished.preset, Controls(finished.preset)):
            finished.write(event)
    command = [sys.executable, "-c", SERVER, str(tmp_path), finished.id]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ids = server.stdout.readline().split()
        other = Worker(fake_run, tmp_path)  # beside a living server: its queue is its own
        assert other.list_jobs() == [] and other.shutdown(PATIENCE_S)
        server.kill()
    worker = Worker(fake_run, tmp_path)
    waited = [ids[2], ids[1], finished.id]
    assert {job.id for job in worker.list_jobs()} == set(waited), "the one that was going is not begun again by itself"
    for run_id in waited:
        assert isinstance(finish(worker, run_id)[-1], Finished)
        assert run_id in caplog.text and not (tmp_path / run_id / PLACE_FILE).exists()
    assert read_preset(finished.path).total_steps == 5 == read_status(finished.path).step
    assert worker.library.is_steerable_by(ids[2], "bob") and not worker.library.is_steerable_by(ids[2], "alice")
    assert read_status(tmp_path / ids[0]).state == "interrupted"
    worker.extend(ids[0], owner="alice")
    assert [event.step for event in finish(worker, ids[0]) if isinstance(event, Stepped)] == [1, 2, 3, 4, 5, 6]
    assert worker.shutdown(PATIENCE_S)


def test_a_place_that_cannot_be_read_is_a_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RunFolder.create(PRESET, tmp_path) as folder:
        (folder.path / PLACE_FILE).write_text('{"extra_steps": "many"')
    (tmp_path / "20260101-000000_no-run_s0_00000000").mkdir()
    (tmp_path / "20260101-000000_no-run_s0_00000000" / PLACE_FILE).write_text("{}")
    worker = Worker(fake_run, tmp_path)
    assert isinstance(finish(worker, folder.id)[-1], Finished)
    assert "cannot be queued again" in caplog.text
    assert worker.shutdown(PATIENCE_S)


def test_lost_checkpoints_are_said_by_the_worker_too(hire: Hire) -> None:  # noqa: F811
    worker = hire(fake_run)
    run_id = worker.submit(PRESET)
    finish(worker, run_id)
    folder = worker.library.find_folder(run_id)
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(StoreError, match="its checkpoints are gone.*begin anew"):
        worker.extend(run_id, 2)
    assert read_status(folder).state == "finished" and find_checkpoint(folder).is_lost
    worker.extend(run_id, 2, from_start=True)
    finish(worker, run_id)
    told = list(replay_events(folder))
    assert [event.step for event in told if isinstance(event, Stepped)] == [1, 2, 3, 4]
