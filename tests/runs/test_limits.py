"""What is kept and what goes: limits that are limits, counted per owner, and a word for every run that is deleted."""

import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.events import Finished
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.worker import Worker
from psd.runs.store import ownership, retention
from psd.runs.store.archive import default_root, list_runs
from psd.runs.store.folder import RunFolder
from psd.runs.store.library import Library
from psd.runs.store.retention import Limits, delete_oldest, parse_limit
from tests.support.fake_run import fake_run

ROOT = Path(__file__).resolve().parents[2]
PRESET = Preset(prompt="a red mushroom", steps=2)
PATIENCE_S = 20.0


def write_run(root: Path, day: int, owner: str = "", *, is_empty: bool = False, size: int = 0) -> str:
    """A run that is over, made on a day of January; returns its id."""
    with RunFolder.create(PRESET, root) as folder:
        ownership.claim_run(folder.path, owner)
        if is_empty:
            folder.write(Finished(step=0, reason="stopped"))
        else:
            for event in fake_run(PRESET, Controls(PRESET)):
                folder.write(event)
    (folder.path / "public/exports/mesh.glb").write_bytes(bytes(size))
    name = f"202601{day:02}-000000{folder.id[15:]}"
    folder.path.rename(root / name)
    return name


@pytest.mark.parametrize("name", ["runs", "total_bytes", "pause_s"])
@pytest.mark.parametrize("value", [-1, 0, math.nan, -math.inf, "7", None, True])
def test_what_is_no_limit_is_refused_before_anything_is_touched(tmp_path: Path, name: str, value: object) -> None:
    write_run(tmp_path, 1)
    with pytest.raises(PresetError, match=f"{name}=.*is no limit.*unlimited"):
        Worker(fake_run, tmp_path, limits=Limits(**{name: value}))  # type: ignore[arg-type]
    assert len(list_runs(tmp_path)) == 1


@pytest.mark.parametrize("text", ["-1", "0", "nan", "inf", "-inf", "", "many", "1e-400", "1,5"])
def test_a_typed_limit_is_a_number_above_0_or_unlimited(text: str) -> None:
    with pytest.raises(PresetError, match="is no limit: give a number above 0, or unlimited"):
        parse_limit(text)
    assert parse_limit("7.5") == 7.5 and parse_limit(" Unlimited ") == math.inf


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [(["--keep-runs=-1"], {}), (["--keep-gb=nan"], {}), ([], {"PSD_KEEP_RUNS": "-1"}), (["--pause-minutes", "0"], {})],
)
def test_the_server_refuses_such_a_limit(tmp_path: Path, arguments: list[str], variables: dict[str, str]) -> None:
    write_run(tmp_path, 1)
    environment = {**os.environ, **variables}
    command = [sys.executable, "app.py", "--runs", str(tmp_path), *arguments]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert told.returncode == 2 and "is no limit: give a number above 0, or unlimited" in told.stderr
    assert "Traceback" not in told.stderr and len(list_runs(tmp_path)) == 1


def test_every_deletion_is_logged_with_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    oldest, older, newest = (write_run(tmp_path, day) for day in (1, 2, 3))
    with caplog.at_level(logging.WARNING):
        worker = Worker(fake_run, tmp_path, limits=Limits(runs=2))
        assert f"deleted the run {oldest}: its owner has 3 runs, and 2 are kept" in caplog.text
        worker.library.delete_run(older)
        assert f"deleted the run {older}: somebody who may steer it asked for that" in caplog.text
    assert worker.shutdown(PATIENCE_S)
    caplog.clear()
    (tmp_path / newest).rename(tmp_path / (retention.DELETED + newest))
    delete_oldest(tmp_path, Limits())
    assert newest in caplog.text and list(tmp_path.iterdir()) == []
    size = write_run(tmp_path, 4, size=10**6)
    delete_oldest(tmp_path, Limits(total_bytes=10**5))
    assert f"deleted the run {size}: all runs take 0.0009" in caplog.text


def test_a_stranger_s_runs_push_out_nobody_else_s(tmp_path: Path) -> None:
    mine = {write_run(tmp_path, day, "alice") for day in range(1, 5)}
    theirs = [write_run(tmp_path, day, "bob") for day in range(5, 12)]
    empty = [write_run(tmp_path, day, "bob", is_empty=True) for day in (12, 13)]
    gone = delete_oldest(tmp_path, Limits(runs=6))
    assert gone == [*empty, theirs[0]], "first what holds nothing, then the oldest of that owner"
    assert mine <= {run.id for run in list_runs(tmp_path)}


def test_whoever_takes_most_pays_for_the_room(tmp_path: Path) -> None:
    mine = write_run(tmp_path, 1, "alice", size=200_000)
    theirs = [write_run(tmp_path, day, "bob", size=400_000) for day in (2, 3, 4)]
    assert delete_oldest(tmp_path, Limits(total_bytes=1_200_000)) == theirs[:1]
    assert (tmp_path / mine).is_dir()
    assert delete_oldest(tmp_path, Limits(total_bytes=math.inf)) == []


def test_runs_that_never_began_are_few_whoever_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MOST_EMPTY", 2)
    kept = write_run(tmp_path, 1, "alice")
    empty = [write_run(tmp_path, 2 + number, f"stranger {number}", is_empty=True) for number in range(5)]
    assert delete_oldest(tmp_path, Limits()) == empty[:3] and (tmp_path / kept).is_dir()


def test_a_worker_forgets_a_run_that_was_deleted(tmp_path: Path) -> None:
    worker = Worker(fake_run, tmp_path, limits=Limits(runs=1))
    first, second = (worker.submit(PRESET) for _ in range(2))
    while worker.wait(second, 0, PATIENCE_S) and worker.snapshot_job(second).status.state != "finished":
        pass
    assert worker.shutdown(PATIENCE_S)
    assert [job.id for job in worker.list_jobs()] == [second] == [run.id for run in list_runs(tmp_path)] != [first]


def test_a_linked_run_is_unlinked_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "runs", tmp_path / "outside"
    root.mkdir()
    name = write_run(outside, 1)
    (root / name).symlink_to(outside / name, target_is_directory=True)
    Library(root).delete_run(name)
    delete_oldest(root, Limits())
    assert list(root.iterdir()) == [] and (outside / name / "events.jsonl").is_file()


def test_the_home_folder_may_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PSD_RUNS", "~/my runs #1%41 läufe")
    assert default_root() == tmp_path / "my runs #1%41 läufe"
    run_id = write_run(default_root(), 1)
    from psd.__main__ import OK, main

    assert main(["resume", f"~/my runs #1%41 läufe/{run_id}", "--more", "1"], prepare=lambda preset: fake_run) == OK
    (tmp_path / "mine.yaml").write_text("steps: 2\n")
    given = ["run", "a red cup", "--preset", "~/mine.yaml", "--out", "~/elsewhere"]
    assert main(given, prepare=lambda preset: fake_run) == OK
    (run,) = list_runs(tmp_path / "elsewhere")
    assert run.status.total == 2 and not Path("~").exists()
