"""What a server that stays up must not do: leak, lose, or grow."""

import gc
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client

from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Finished, Started, Stepped, Warned
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.worker import Worker
from psd.runs.store.archive import ACTIVE, latest_checkpoint, read_status, replay_events
from psd.runtime.memory import resident_bytes
from psd.ui import build
from psd.ui.state.watch import Watcher
from tests.runs.test_worker import PATIENCE_S, finish, until, wait_for
from tests.support.fake_run import fake_run

pytestmark = pytest.mark.slow
LONG = Preset(steps=100_000)
ROOT = Path(__file__).resolve().parents[2]
SERVER = """
import sys, threading, time
from pathlib import Path
from psd.config.preset import Preset
from psd.runs.jobs.worker import Worker
from tests.support.fake_run import fake_run

def slow(preset, control, resume):
    for event in fake_run(preset, control, resume):
        time.sleep(0.005)
        yield event

worker = Worker(slow, Path(sys.argv[1]))
print(worker.submit(Preset(steps=100_000)), flush=True)
threading.Event().wait()
"""


TABS = ("Live", "Curves", "Negative", "Mesh", "Compare", "Runs", "Log")


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used so far."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.timeout(1500)
def test_three_streams_cost_the_server_little(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """The same run with the embedded models, watched and not, in turns; processor time of the server's process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PSD_RUNS": str(tmp_path)}
    command = [sys.executable, "app.py", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            address = f"http://127.0.0.1:{port}/"
            wait_for(lambda: server.poll() is not None or reachable(address), 120.0)
            client = Client(address, verbose=False)
            spent: dict[int, list[float]] = {0: [], 3: []}
            for watchers in (0, 0, 3, 0, 3):  # the first one loads the models
                before = cpu_s(server.pid)
                told = client.predict("a red mushroom", overrides="{steps: 40}", api_name="/start_run")
                streams = [Client(address, verbose=False) for _ in range(watchers)]
                jobs = [stream.submit(told["run_id"], api_name="/watch_run") for stream in streams]
                wait_for(lambda run_id=told["run_id"]: read_status(tmp_path / run_id).state == "finished", 400.0)
                for job in jobs:
                    job.result(timeout=60)
                    assert [
                        event["step"] for events in job.outputs() for event in events if event["event"] == "Stepped"
                    ]
                spent[watchers].append(cpu_s(server.pid) - before)
        finally:
            server.terminate()
    alone, watched = min(spent[0][1:]), min(spent[3])
    record_property("watched_over_headless", watched / alone)
    print(f"40 steps of the preset tiny: {alone:.1f} s of processor time alone, {watched:.1f} s with three streams")
    assert watched <= 1.10 * alone, spent


def reachable(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.timeout(300)
def test_a_tick_of_the_page_costs_little(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """On every tab, in a run of thousands of steps with as many metrics as a real one, a step between two ticks."""
    metrics = {
        f"{group}/metric_{number}": 0.1 * number for group in ("reward", "image", "time") for number in range(10)
    }
    go, done = threading.Semaphore(0), threading.Semaphore(0)

    def endless(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        yield Started(step=0, preset={}, total_steps=preset.steps, views=4, environment={})
        for step in range(1, 20_000):
            if step > 3000:
                done.release()
                assert go.acquire(timeout=PATIENCE_S)
            if control.stopping():
                break
            yield Stepped(step=step, t=1, metrics={name: value + step for name, value in metrics.items()})
        yield Finished(step=step, reason="stopped")

    worker = Worker(endless, tmp_path)
    blocks = build.build_blocks(worker)
    tick = next(fn.fn for fn in blocks.fns.values() if fn.name == "refresh")
    assert tick is not None
    run_id = worker.submit(LONG)
    assert done.acquire(timeout=60)
    spent = {}
    for tab in TABS:
        keys: list = []
        times = []
        for _ in range(21):
            go.release()
            assert done.acquire(timeout=PATIENCE_S)
            before = time.thread_time()
            keys, *_ = tick(run_id, "", keys, None, tab, ["rgb"], True, 0, [run_id], 0, False)
            times.append(time.thread_time() - before)
        spent[tab] = 1e3 * statistics.median(times)
    record_property("tick_ms", spent)
    print("a tick in ms: " + ", ".join(f"{tab} {ms:.1f}" for tab, ms in spent.items()))
    worker.stop(run_id)
    go.release(2)
    assert worker.shutdown(PATIENCE_S)
    assert max(spent.values()) < 20, spent


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_fifty_starts_and_stops_leave_nothing_behind(tmp_path: Path) -> None:
    worker = Worker(fake_run, tmp_path)

    def cycle() -> None:
        run_id = worker.submit(LONG)
        until(worker, run_id, 2)
        assert Watcher(worker).view_run(run_id).state in ("loading", "running")
        worker.stop(run_id)
        finish(worker, run_id)
        assert Watcher(worker).view_run(run_id).view.step >= 2, "a reload shows all of it"

    cycle()
    gc.collect()
    before = threading.active_count(), handles()
    for _ in range(50):
        cycle()
    gc.collect()
    wait_for(lambda: (threading.active_count(), handles()) == before)  # the last folder is closed after its last event
    runs = worker.library.list_runs()
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
    told = [event for event in replay_events(folder) if not isinstance(event, Warned)]
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
        watcher.view_run(run_id)
        sizes.append(resident_bytes())
    wait_for(lambda: worker.snapshot_job(run_id).status.state == "failed")  # it ends without an end
    assert watcher.view_run(run_id).view.step == 10_000
    gc.collect()
    assert resident_bytes() < 1.05 * sizes[9], f"{sizes[9] / 2**20:.0f} -> {resident_bytes() / 2**20:.0f} MiB"
    assert worker.shutdown(PATIENCE_S)
