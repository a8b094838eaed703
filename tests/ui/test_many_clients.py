"""A served page under a hundred clients of every kind: it answers all through, and forgets them when they are gone."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ui.test_api import png

ROOT = Path(__file__).resolve().parents[2]
CLIENTS, SECONDS, WARM_UP_S = 100, 60.0, 30.0
PATIENCE_S = 120.0
# Serves fake runs; for each line on its input it prints what it holds: memory, threads, sessions, streams.
SERVER = """
import gc, json, sys, threading, time
from pathlib import Path
from psd.runs.jobs.worker import Worker
from psd.runs.store.retention import Limits
from psd.runtime.memory import resident_bytes
from psd.ui import api, build, protection
from psd.ui.sessions import keep_few_sessions
from tests.support.fake_run import fake_run

def slow(preset, control, resume):
    for event in fake_run(preset, control, resume):
        time.sleep(0.02)
        yield event

def score(images, prompt, judge):
    return {"judge": judge or "selector", "scores": [float(image.mean()) for image in images]}

worker = Worker(slow, Path(sys.argv[1]), limits=Limits(runs=10))
blocks = build.build_blocks(worker)
api.register_endpoints(blocks, worker, score=score, remake=lambda *_: None)
app, url, _ = blocks.launch(
    prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", max_file_size=2**20, run_history=False,
    enable_monitoring=False, app_kwargs={"middleware": protection.protect(worker.library.find_folder)},
    **build.launch_options(),
)
keep_few_sessions(app, blocks)
numbers = {str(listener.api_name): number for number, listener in blocks.fns.items()}
print(json.dumps({"url": url, "numbers": numbers}), flush=True)
for _ in sys.stdin:
    gc.collect()
    told = {"bytes": resident_bytes(), "threads": sorted(thread.name for thread in threading.enumerate()),
            "sessions": len(app.state_holder.session_data), "waiting": len(blocks._queue.pending_messages_per_session)}
    print(json.dumps(told), flush=True)
"""


class Visitors:
    """Clients that ask, watch, leave in the middle and come again; what they met is counted."""

    def __init__(self, url: str, numbers: dict[str, int]) -> None:
        self.url, self.numbers = url, numbers
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.runs: list[tuple[str, str]] = [("none", "nobody")]

    def visit_together(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=self._visit, args=[number, until]) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:  # somebody who just looks
            assert httpx.get(self.url, timeout=PATIENCE_S).status_code == 200
            self.counts["page"] += 1
            time.sleep(1.0)
        for thread in threads:
            thread.join(2 * PATIENCE_S)
            assert not thread.is_alive(), "a client still waits for its answer"

    def _visit(self, number: int, until: float) -> None:
        chance, visits = random.Random(number), 0
        while time.monotonic() < until:
            visits += 1
            try:
                with httpx.Client(timeout=PATIENCE_S) as http:
                    self._ask(http, chance, f"visitor-{number}-{visits}-{time.monotonic_ns()}")
            except Exception as error:  # noqa: BLE001  (told by the test)
                self.faults.append(f"{type(error).__name__}: {error}")
                return

    def _ask(self, http: httpx.Client, chance: random.Random, session: str) -> None:
        run_id, owner = chance.choice(self.runs[-5:])
        name, data = chance.choice([
            ("list_runs", ["", 5]), ("get_status", [run_id]), ("export_mesh", [run_id, "glb", "", 0.0, ""]),
            ("score_images", [[png()], "a cube", ""]), ("score_images", [["x"], "a cube", ""]),
            ("stop_run", [run_id, chance.choice([owner, "guess"])]), ("watch_run", [run_id, 0]),
            ("watch_run", [run_id, 0]),
            ("start_run", ["a red mushroom", "tiny", 0, "steps: 40", f"owner {chance.randrange(4)}"]),
            ("start_run", ["a red mushroom", "tiny", 0, "steps: 010", ""]),
        ])  # fmt: skip
        joined = {"data": data, "fn_index": self.numbers[name], "session_hash": session}
        answer = http.post(f"{self.url}gradio_api/queue/join", json=joined)
        if answer.status_code in (429, 503):
            self.counts["asked to wait"] += 1
            return
        assert answer.status_code == 200, answer.text[:200]
        if chance.random() < 0.2:
            self.counts["left before the answer"] += 1
            return
        messages = 0
        with http.stream("GET", f"{self.url}gradio_api/queue/data?session_hash={session}") as lines:
            for line in lines.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {}
                messages += 1
                if message.get("msg") == "process_completed":
                    self._count(name, message)
                    return
                if name == "watch_run" and messages > 3 and chance.random() < 0.3:
                    self.counts["left a stream"] += 1
                    return
        self.faults.append(f"{name} ended without an answer")

    def _count(self, name: str, message: dict[str, Any]) -> None:
        if message["success"]:
            self.counts[name] += 1
            if name == "start_run":
                (told,) = message["output"]["data"]
                self.runs.append((told["run_id"], told["owner"]))
        else:
            words = str(message["output"]["error"])
            self.counts[f"{name} refused"] += 1
            if words == "None" or "Traceback" in words or "Error:" in words:
                self.faults.append(f"{name}: {words[:300]}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_clients_for_a_minute_leave_the_server_as_it_was(tmp_path: Path, record_property: Any) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FORWARDED_ALLOW_IPS": "", "MALLOC_ARENA_MAX": "2"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)], cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=(tmp_path / "errors").open("w"),
    ) as server:  # fmt: skip
        assert server.stdin is not None and server.stdout is not None
        try:
            about = json.loads(server.stdout.readline())

            def look() -> dict[str, Any]:
                assert server.stdin is not None and server.stdout is not None
                print(file=server.stdin, flush=True)
                return json.loads(server.stdout.readline())

            visitors = Visitors(about["url"], about["numbers"])
            visitors.visit_together(WARM_UP_S)  # once, so that threads and caches are there
            time.sleep(15.0)  # a stream without news notices within ten seconds that nobody reads
            before = look()
            visitors.visit_together(SECONDS)
            deadline = time.monotonic() + 60.0
            while (after := look())["bytes"] > 1.10 * before["bytes"] and time.monotonic() < deadline:
                time.sleep(3.0)
            facts = {"before_mib": before["bytes"] >> 20, "after_mib": after["bytes"] >> 20, **visitors.counts}
            record_property("clients", facts)
            print(facts, after)
            assert not visitors.faults, visitors.faults[:5]
            lasting = Counter(name for name in before["threads"] if not name.startswith("AnyIO"))  # those come and go
            assert "psd-worker" in lasting and lasting <= Counter(after["threads"]), "a thread died"
            assert len(after["threads"]) < 60, after["threads"]
            assert after["bytes"] <= 1.10 * before["bytes"], facts
            told = httpx.post(
                f"{about['url']}gradio_api/call/list_runs", json={"data": ["", 3]}, timeout=PATIENCE_S
            )  # fmt: skip
            assert told.status_code == 200
        finally:
            server.kill()
    assert "Traceback" not in (tmp_path / "errors").read_text()
