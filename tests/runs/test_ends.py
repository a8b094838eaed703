"""How a run on the command line ends when its terminal, its reader or its machine goes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from psd.__main__ import INTERRUPTED, OK, TERMINATED, main
from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Finished, Meshed, Stepped
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import MakeEvents
from psd.runs.store.archive import list_runs, read_status, replay_events
from tests.support.fake_run import fake_run

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import sys
from psd.__main__ import main
from tests.support.fake_run import fake_run
sys.exit(main(sys.argv[1:], prepare=lambda preset: fake_run))
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PSD_RUNS", str(tmp_path / "läufe"))
    return tmp_path / "läufe"


def ended_by(*signals: int) -> MakeEvents:
    """A run that is sent signals at step 3."""

    def engine(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        for event in fake_run(preset, control, resume):
            yield event
            if isinstance(event, Stepped) and event.step == 3:
                for number in signals:
                    signal.raise_signal(number)

    return engine


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_a_folder_whose_name_is_no_text_ends_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xffns"))
    for encoding in ("utf-8", "ascii", "cp1252"):
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, "run", "a fox", "--steps", "2", "--out", os.fsencode(out)], cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True,
        )  # fmt: skip
        assert done.returncode == OK and b"Traceback" not in done.stderr, done.stderr
    assert [run.status.state for run in list_runs(out)] == ["finished"] * 3


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED), (signal.SIGHUP, TERMINATED)]
)
def test_a_signal_ends_a_run_with_its_mesh(root: Path, number: int, code: int) -> None:
    before = signal.getsignal(number)
    assert main(["run", "a fox", "--steps", "9"], prepare=lambda preset: ended_by(number)) == code
    (run,) = list_runs(root)
    events = list(replay_events(run.folder))
    assert run.status.state == "stopped" and any(isinstance(event, Meshed) for event in events)
    assert isinstance(events[-1], Finished) and events[-1].step == 3
    assert signal.getsignal(number) is before


def test_a_second_signal_leaves_at_once(root: Path) -> None:
    twice = ended_by(signal.SIGTERM, signal.SIGTERM)
    assert main(["run", "a fox", "--steps", "9"], prepare=lambda preset: twice) == TERMINATED == 143
    (run,) = list_runs(root)
    assert run.status.state == "interrupted"


def test_nohup_stays_nohup(root: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["run", "a fox", "--steps", "9"], prepare=lambda preset: ended_by(signal.SIGHUP)) == OK
    finally:
        signal.signal(signal.SIGHUP, before)
    assert list_runs(root)[0].status.state == "finished"


@pytest.mark.parametrize(
    "shell",
    [
        '"$@" 2>&1 | head -1', '"$@" 2>&1 >/dev/null | true', '"$@" >&- 2>&-', '"$@" 2>/dev/full', '"$@" >/dev/full',
        '"$@" </dev/null >/dev/null 2>&-',
    ],
)  # fmt: skip
def test_output_that_nobody_reads_ends_no_run(root: Path, shell: str) -> None:
    script = f"set -o pipefail; {shell}"
    command = ["bash", "-c", script, "bash", sys.executable, "-c", COMMAND, "run", "a red cup", "--steps", "60"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert told.returncode == OK, told
    (run,) = list_runs(root)
    assert (run.status.state, run.status.step) == ("finished", 60)
    assert b"Traceback" not in (run.folder / "events.jsonl").read_bytes() and "Exception ignored" not in told.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_an_encoding_that_lacks_a_letter_ends_no_run(root: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    own = ["--set", "prior=any", "--out", str(root / "茸")]  # a prior that reads any prompt
    command = [sys.executable, "-c", COMMAND, "run", "a 茸 ü", "--steps", "4", *own]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=100, check=False)
    assert told.returncode == OK and b"Traceback" not in told.stderr
    (run,) = list_runs(root / "茸")
    assert read_status(run.folder).state == "finished" and run.id.encode() in told.stdout
