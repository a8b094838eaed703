"""Hundreds of damaged run folders and logs, and kills at any moment: no traceback, no silently wrong result."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from psd.__main__ import BAD_INPUT, MISSING, OK, main
from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Finished, Stepped, Warned
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import drive_run, require_checkpoint
from psd.runs.store.archive import latest_checkpoint, list_runs, read_status, replay_events
from psd.runs.store.folder import RunFolder
from psd.ui.state.view import View, fold_event
from tests.support.fake_run import fake_run

pytestmark = pytest.mark.slow
PRESET = Preset(prompt="a red mushroom", seed=3, steps=8)
KILLS = 20
LONGER = PRESET.with_values({"extra_steps": 2})


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setenv("PSD_RUNS", str(tmp_path / "runs"))


def write_run(root: Path, preset: Preset = PRESET) -> Path:
    with RunFolder.create(preset, root) as folder:
        for event in fake_run(preset, Controls(preset)):
            folder.write(event)
    return folder.path


def damage_file(path: Path, other: Path, chance: random.Random) -> str:
    """Damage one file in a random way; returns what was done."""
    data = path.read_bytes()
    place, length = chance.randrange(len(data) + 1), chance.randrange(1, 64)
    digits = (chance.choice(b"0123456789") if 48 <= byte < 58 and chance.random() < 0.02 else byte for byte in data)
    ways = {
        "deleted": None, "emptied": b"", "cut": data[:place], "doubled": data * 2,
        "from another run": other.read_bytes(), "zeros": data[:place] + bytes(length) + data[place + length :],
        "noise": data[:place] + chance.randbytes(length) + data[place + length :],
        "inserted": data[:place] + chance.randbytes(length) + data[place:],
        "without a part": data[:place] + data[place + length :],
        "digits": bytes(digits), "a folder": None, "a link": None,
    }  # fmt: skip
    way = chance.choice(sorted(ways))
    content = ways[way]
    if content is not None:
        path.write_bytes(content)
        return way
    path.unlink()
    if way == "a folder":
        path.mkdir()
    elif way == "a link":
        path.symlink_to(other)
    return way


@pytest.mark.timeout(1200)
def test_two_hundred_damaged_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template, strange = (
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", PRESET.with_values({"seed": 4, "kappa": 2.0})),
    )
    outside = {path: path.read_bytes() for path in strange.rglob("*") if path.is_file()}
    wanted = [event for event in fake_run(LONGER, Controls(LONGER)) if isinstance(event, Stepped)]
    codes = []
    for number in range(200):
        chance, root = random.Random(number), tmp_path / "runs"
        folder = Path(shutil.copytree(template, root / template.name))
        files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        done = [
            (str(file), damage_file(folder / file, strange / file, chance))
            for file in chance.sample(files, chance.choice([1, 1, 2, 4]))
        ]
        story = f"{number}: {done}"
        (run,) = list_runs(root)
        assert run.status.state in ("finished", "interrupted", "stopped", "failed", "unreadable"), story
        view = View()
        if run.status.state != "unreadable":
            for event in replay_events(folder):
                view = fold_event(view, event)
        code = main(["resume", str(folder), "--more", "2"], prepare=lambda preset: fake_run)
        codes.append(code)
        told = capsys.readouterr().err
        assert code in (OK, BAD_INPUT, MISSING), f"{story}: {code} {told}"
        assert "Traceback" not in told and "Errno" not in told, f"{story}: {told}"
        if code == OK:
            assert read_status(folder).step == 10, story
            last = latest_checkpoint(folder)
            assert last is not None and last.step == 10, story
            steps = [event for event in replay_events(folder) if isinstance(event, Stepped)]
            assert steps[-2:] == wanted[-2:], story
        shutil.rmtree(root)
    assert codes.count(OK) > 100 and {path: path.read_bytes() for path in outside} == outside


@pytest.mark.timeout(1200)
def test_two_hundred_damaged_logs(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    path = folder / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    whole = list(replay_events(folder, images=False))
    values = [None, True, -1, 0, 1e300, "x", [], {}, [[]], {"x": None}, "\x00", 2**70, -0.5, [1, "a"]]
    for number in range(200):
        chance = random.Random(number)
        damaged = list(lines)
        for _ in range(chance.choice([1, 2, 8])):
            place = chance.randrange(len(damaged))
            kind = chance.randrange(5)
            if kind == 0:  # a value of another type, somewhere in the line
                try:
                    record = json.loads(damaged[place])
                except ValueError:
                    continue
                target = record
                while True:
                    key = chance.choice(list(target))
                    if not (isinstance(target[key], dict) and target[key] and chance.random() < 0.7):
                        break
                    target = target[key]
                target[key] = chance.choice(values)
                damaged[place] = json.dumps(record).encode() + b"\n"
            elif kind == 1:
                damaged[place] = damaged[place][: chance.randrange(len(damaged[place]))] + b"\n"
            elif kind == 2:
                damaged.insert(place, chance.choice(damaged))
            elif kind == 3:
                damaged.insert(place, chance.randbytes(30).replace(b"\n", b"") + b"\n")
            else:
                del damaged[place]
        path.write_bytes(b"".join(damaged))
        view = View()
        for event in replay_events(folder, images=False):
            view = fold_event(view, event)
            assert isinstance(event, Event)
        assert require_checkpoint(folder)[0] is not None
        (run,) = list_runs(tmp_path)
        assert run.status.state == "finished", number
    path.write_bytes(b"".join(lines))
    assert list(replay_events(folder, images=False)) == whole


def slow_run(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
    for event in fake_run(preset, control, resume):
        time.sleep(0.002)
        yield event


def drive_in_child(folder: Path) -> None:
    """Go on with a run until the end, or until the process is killed."""
    checkpoint, _ = require_checkpoint(folder, from_start=True)
    with RunFolder.open(folder) as run:
        for _ in drive_run(slow_run, run, Controls(run.preset), checkpoint):
            pass


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_twenty_kills_at_any_moment_change_no_bit(tmp_path: Path) -> None:
    preset = PRESET.with_values({"steps": 100})
    whole = [event for event in fake_run(preset, Controls(preset)) if isinstance(event, Stepped | Checkpointed)]
    context, kills = multiprocessing.get_context("fork"), 0
    for number in range(100):
        chance = random.Random(number)
        with RunFolder.create(preset, tmp_path) as folder:
            pass
        while True:
            child = context.Process(target=drive_in_child, args=(folder.path,))
            child.start()
            child.join(chance.uniform(0.05, 1.5) if kills < KILLS else None)
            if child.is_alive() and child.pid:
                os.kill(child.pid, signal.SIGKILL)
                kills += 1
            child.join()
            if child.exitcode == 0:
                break
            assert child.exitcode == -signal.SIGKILL, number
            assert read_status(folder.path).state in ("interrupted", "finished"), number
        events = list(replay_events(folder.path, images=False))
        assert [e for e in events if isinstance(e, Stepped)] == [e for e in whole if isinstance(e, Stepped)], number
        last, wanted = latest_checkpoint(folder.path), whole[-1]
        assert last is not None and isinstance(wanted, Checkpointed) and last.step == wanted.step == 100
        assert np.array_equal(last.tensors["walk"], wanted.tensors["walk"]) and last.values == wanted.values
        ends = [event for event in events if isinstance(event, Finished)]
        assert len(ends) == 1 and not [e for e in events if isinstance(e, Warned) and "lines" in e.message], number
        assert not list(folder.path.rglob(".*")), "a half-written file was left"
        if kills >= KILLS:
            break
    assert kills == KILLS
