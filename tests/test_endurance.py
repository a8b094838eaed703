"""What a server that stays up must not do: leak, lose, or grow."""

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from psd.archive import ACTIVE, latest_checkpoint, read_status, replay
from psd.drive import Controls
from psd.events import Checkpointed, Event, Started, Stepped, Warned
from psd.memory import resident_bytes
from psd.preset import Preset
from psd.ui.watch import Watcher
from psd.worker import Worker
from tests.fake_run import fake_run
from tests.test_worker import PATIENCE_S, finish, until, wait_for

pytestmark = pytest.mark.slow
LONG = Preset(steps=100_000)
ROOT = Path(__file__).resolve().parent.parent
SERVER = """
import sys, threading, time
from pathlib import Path
from psd.preset import Preset
from psd.worker import Worker
from tests.fake_run import fake_run

def slow(preset, control, resume):
    for event in fake_run(preset, control, resume):
        time.sleep(0.005)
        yield event

worker = Worker(slow, Path(sys.argv[1]))
print(worker.submit(Preset(steps=100_000)), flush=True)
threading.Event().wait()
"""


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_fifty_starts_and_stops_leave_nothing_behind(tmp_path: Path) -> None:
    worker = Worker(fake_run, tmp_path)

    def cycle() -> None:
        run_id = worker.submit(LONG)
        until(worker, run_id, 2)
        assert Watcher(worker).watched(run_id).state in ("loading", "running")
        worker.stop(run_id)
        finish(worker, run_id)
        assert Watcher(worker).watched(run_id).view.step >= 2, "a reload shows all of it"

    cycle()
    gc.collect()
    before = threading.active_count(), handles()
    for _ in range(50):
        cycle()
    gc.collect()
    assert (threading.active_count(), handles()) == before
    runs = worker.runs()
    assert len(runs) == 51 and not [run for run in runs if run.status.state in ACTIVE]
    assert worker.shutdown(PATIENCE_S)


def test_a_killed_server_loses_no_more_than_since_its_last_checkpoint(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        folder = tmp_path / server.stdout.readline().strip()
        while not (found := latest_checkpoint(folder)) or found.step < 20:
            threading.Event().wait(0.05)
        server.send_signal(signal.SIGKILL)
    status, checkpoint = read_status(folder), latest_checkpoint(folder)
    assert status.state == "interrupted" and checkpoint is not None
    told = [event for event in replay(folder) if not isinstance(event, Warned)]
    last = max(event.step for event in told)
    assert 0 <= last - checkpoint.step <= 2, "fake runs make a checkpoint every second step"
    worker = Worker(fake_run, tmp_path)
    try:
        worker.extend(folder.name)
        until(worker, folder.name, last + 5)
        worker.stop(folder.name)
        steps = [event.step for event in finish(worker, folder.name) if isinstance(event, Stepped)]
        assert steps == [*range(1, len(steps) + 1)]
    finally:
        assert worker.shutdown(PATIENCE_S)


@pytest.mark.timeout(600)
def test_ten_thousand_events_cost_little_memory(tmp_path: Path) -> None:
    """With as many metrics as a real step has, watched all the while."""
    metrics = {f"group/some_metric_{number}": 0.123456789 * number for number in range(30)}
    counted = threading.Semaphore(0)

    def steps(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        yield Started(step=0, preset={}, total_steps=preset.steps, views=4, environment={})
        for step in range(1, 10_001):
            if step % 100 == 0:
                assert counted.acquire(timeout=PATIENCE_S)
            yield Stepped(step=step, t=1, metrics=dict(metrics))

    worker = Worker(steps, tmp_path)
    watcher = Watcher(worker)
    run_id = worker.submit(LONG)
    sizes = []
    for _ in range(100):
        counted.release()
        watcher.watched(run_id)
        sizes.append(resident_bytes())
    wait_for(lambda: worker.snapshot(run_id).status.state == "failed")  # it ends without an end
    assert watcher.watched(run_id).view.step == 10_000
    gc.collect()
    assert resident_bytes() < 1.05 * sizes[9], f"{sizes[9] / 2**20:.0f} -> {resident_bytes() / 2**20:.0f} MiB"
    assert worker.shutdown(PATIENCE_S)
