"""Every file of a run folder, damaged in every way: the run opens, lists, replays and goes on, or is refused in words.

What may never happen: a traceback, a result that differs in silence, a state that is written over by a failed attempt.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from psd.__main__ import FAILED, MISSING, OK, main
from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Failed, Finished, LiveChanged, Previewed, Stepped, Warned
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import require_checkpoint
from psd.runs.jobs.worker import Worker
from psd.runs.store import archive, ownership
from psd.runs.store.event_lines import parse_event_line
from psd.runs.store.files import StoreError
from psd.runs.store.folder import RunFolder
from psd.runs.store.library import write_zip
from psd.runs.store.media import decode_views
from psd.ui.state.view import View, fold_event
from tests.support.fake_run import fake_run

PRESET = Preset(prompt="a red mushroom", seed=3, steps=6)
OTHER = Preset(prompt="a blue cube", seed=4, steps=6, guidance_scale=3.0)
PATIENCE_S = 20.0


@cache
def template(preset: str) -> Path:
    """A finished run with checkpoints after steps 4 and 6, written once for all tests."""
    known = Preset.make(json.loads(preset))
    with RunFolder.create(known, Path(tempfile.mkdtemp(prefix="psd-damage-"))) as folder:
        for event in fake_run(known, Controls(known)):
            folder.write(event)
    return folder.path


def write_run(root: Path, preset: Preset = PRESET) -> Path:
    """A copy of `template`."""
    original = template(preset.model_dump_json())
    return Path(shutil.copytree(original, root / original.name))


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here is about power cuts."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PSD_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def run(root: Path) -> Path:
    return write_run(root)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def resume(folder: Path, *more: str, engine: Callable[..., Iterator[Event]] = fake_run) -> int:
    return main(["resume", str(folder), *more], prepare=lambda preset: engine)


def steps_of(events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, Stepped)]


def wanted_steps(total: int) -> list[Event]:
    preset = PRESET.with_values({"steps": total})
    return steps_of(list(fake_run(preset, Controls(preset))))


DAMAGES: dict[str, Callable[[bytes, bytes], bytes | None]] = {
    "gone": lambda data, other: None,
    "empty": lambda data, other: b"",
    "cut": lambda data, other: data[: 2 * len(data) // 3],
    "doubled": lambda data, other: data + data,
    "swapped": lambda data, other: other,
    "zeros": lambda data, other: bytes(len(data)),
    "flipped": lambda data, other: bytes(
        [*data[: len(data) // 2], data[len(data) // 2] ^ 1, *data[len(data) // 2 + 1 :]]
    ),
    "another form": lambda data, other: b"[]\n",
    "nested": lambda data, other: b"[" * 100_000,
}
FILES = [
    "status.json", "preset.yaml", "preset.resolved.yaml", "environment.json", "events.jsonl", "metrics.jsonl", "lock",
    "checkpoints/000006.json", "checkpoints/000006.safetensors", "checkpoints/000004.json",
    "checkpoints/000004.safetensors", "public/previews/000004.jpg", "public/previews/000006_normal.png", "owner",
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_costs_no_run(run: Path, tmp_path: Path, file: str, damage: str) -> None:
    other = write_run(tmp_path / "elsewhere", OTHER)
    for folder in (run, other):
        ownership.claim_run(folder, folder.name)
    path = run / file
    content = path.read_bytes() or b"\n"  # the lock is empty
    data = DAMAGES[damage](content, (other / file).read_bytes())
    path.unlink() if data is None else path.write_bytes(data)

    (listed,) = archive.list_runs(run.parent)
    assert listed.status.state in ("finished", "interrupted") and listed.status.prompt == PRESET.prompt
    assert (listed.status.step, listed.status.seed) == (6, 3) or file == "events.jsonl"
    view = View()
    for event in archive.replay_events(run):
        view = fold_event(view, event)
    assert archive.read_preset(run).seed == (4 if (file, damage) == ("preset.resolved.yaml", "swapped") else 3)
    assert archive.read_provenance(run, 6)["run"] == run.name
    write_zip(run, tmp_path / "run.zip")
    before = snapshot(run)
    code = resume(run, "--more", "2")
    if code == OK:
        assert archive.read_status(run).state == "finished" and archive.read_status(run).step == 8
        told = list(archive.replay_events(run))
        (_, last) = (archive.latest_checkpoint(run), steps_of(told)[-1])
        assert last == wanted_steps(8)[-1], "the state was that of another run"
    else:  # a preset that is none of its checkpoints'
        assert code == MISSING and snapshot(run) == before
        assert file == "preset.resolved.yaml"


@pytest.mark.parametrize("name", ["status.json", "preset.resolved.yaml"])
def test_what_was_rebuilt_is_said_and_written_again(run: Path, name: str) -> None:
    (run / name).write_bytes(b"")
    assert resume(run, "--more", "1") == OK
    notes = [event.message for event in archive.replay_events(run) if isinstance(event, Warned)]
    assert sum(name in note for note in notes) == 1, notes
    assert (
        json.loads((run / "status.json").read_text())["step"] == 7
        and archive.read_preset(run, notes=[]).total_steps == 7
    )
    assert resume(run, "--more", "1") == OK
    assert len([e for e in archive.replay_events(run) if isinstance(e, Warned) and name in e.message]) == 1


@pytest.mark.parametrize("state", ["finished", "stopped", "failed", "running"])
def test_a_status_is_derived_as_it_was(root: Path, state: str) -> None:
    with RunFolder.create(PRESET, root) as folder:
        for event in fake_run(PRESET, Controls(PRESET)):
            if isinstance(event, Finished) and state != "finished":
                break
            folder.write(event)
        if state == "stopped":
            folder.write(Finished(step=6, reason="stopped", time_s=3.0))
        if state == "failed":
            folder.write(Failed(step=6, message="no", time_s=3.0))
    before = archive.read_status(folder.path)
    (folder.path / "status.json").write_bytes(b"")
    after = archive.read_status(folder.path)
    assert after.state == ("interrupted" if state == "running" else state)
    for name in ("step", "total", "prompt", "seed", "method", "best_step", "best_score", "preview", "run"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.created == before.created and "status.json" in after.message


# ---- checkpoints


@pytest.mark.parametrize("kind", ["tensors of an older step", "seal of another run", "both of another run", "a byte"])
def test_a_checkpoint_that_is_not_the_run_s_is_passed_over_and_said(run: Path, tmp_path: Path, kind: str) -> None:
    other = write_run(tmp_path / "elsewhere", OTHER)
    newest = run / "checkpoints/000006.safetensors"
    if kind == "tensors of an older step":
        shutil.copy(run / "checkpoints/000004.safetensors", newest)
    if kind in ("seal of another run", "both of another run"):
        shutil.copy(other / "checkpoints/000006.json", newest.with_suffix(".json"))
    if kind == "both of another run":
        shutil.copy(other / "checkpoints/000006.safetensors", newest)
    if kind == "a byte":
        data = bytearray(newest.read_bytes())
        data[-1] ^= 0x40
        newest.write_bytes(data)
    search = archive.find_checkpoint(run)
    assert search.checkpoint is not None and search.checkpoint.step == 4
    assert len(search.passed_over) == 1 and "step 6" in search.reasons
    assert resume(run, "--more", "1") == OK
    told = list(archive.replay_events(run))
    assert steps_of(told) == wanted_steps(7)
    assert any(isinstance(event, Warned) and "step 6 was passed over" in event.message for event in told)


@pytest.mark.parametrize(
    "change",
    [{"step": -1}, {"step": "x"}, {"step": 4}, {"time_s": True}, {"values": []}, {"values": {"x": 1}}, {"preset": 3}],
)
def test_a_seal_is_checked_to_its_last_value(run: Path, change: dict[str, Any]) -> None:
    seal = run / "checkpoints/000006.json"
    seal.write_text(json.dumps({**json.loads(seal.read_text()), **change}))
    checkpoint = archive.find_checkpoint(run).checkpoint
    assert checkpoint is not None and checkpoint.step == 4


@pytest.mark.parametrize("damage", ["gone", "emptied", "another grid"])
def test_a_run_begins_anew_only_when_it_is_asked_to(run: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    if damage == "another grid":
        path = run / "preset.resolved.yaml"
        path.write_text(path.read_text().replace("guidance_scale: ", "guidance_scale: 1"))
        assert archive.read_preset(run).guidance_scale != PRESET.guidance_scale
    for path in (run / "checkpoints").iterdir():
        if damage == "gone":
            path.unlink()
        elif damage == "emptied":
            path.write_bytes(b"")
    before = snapshot(run)
    assert resume(run, "--more", "1") == MISSING
    told = capsys.readouterr().err
    assert "--from-start" in told and run.name in told and ("guidance_scale" in told) == (damage == "another grid")
    assert snapshot(run) == before, "nothing is touched"
    assert resume(run, "--more", "1", "--from-start") == OK
    assert steps_of(list(archive.replay_events(run))) == wanted_steps(7)


def test_a_run_that_never_had_a_checkpoint_begins_anew_and_says_so(root: Path) -> None:
    with RunFolder.create(PRESET, root) as folder:
        for event in [*fake_run(PRESET, Controls(PRESET))][:2]:
            folder.write(event)
    assert require_checkpoint(folder.path)[0] is None
    assert resume(folder.path) == OK
    assert any(isinstance(e, Warned) and "begins anew" in e.message for e in archive.replay_events(folder.path))


def test_seals_of_the_version_before_are_believed(run: Path) -> None:
    seal = run / "checkpoints/000006.json"
    record = json.loads(seal.read_text())
    seal.write_text(json.dumps({"schema": 2, **{name: record[name] for name in ("step", "time_s", "values")}}))
    checkpoint = archive.latest_checkpoint(run)
    assert checkpoint is not None and checkpoint.step == 6 and checkpoint.values == record["values"]


# ---- a resume that fails


def broken_engine(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
    raise RuntimeError("size mismatch for grid.0")
    yield


def test_a_resume_that_cannot_begin_leaves_the_run_as_it_was(run: Path) -> None:
    before = snapshot(run)
    assert resume(run, "--more", "2", engine=broken_engine) == FAILED
    after = snapshot(run)
    assert "size mismatch" in after.pop("log.txt").decode()
    assert after == {name: data for name, data in before.items() if name != "log.txt"}
    assert archive.read_status(run).state == "finished"


def test_the_worker_too_leaves_such_a_run_as_it_was(run: Path) -> None:
    before = snapshot(run)
    worker = Worker(broken_engine, run.parent)
    worker.extend(run.name, 2)
    events: list[Event] = []
    while more := worker.wait(run.name, len(events), PATIENCE_S):
        events += more
    assert isinstance(events[-1], Failed) and "size mismatch" in events[-1].message
    assert worker.shutdown(PATIENCE_S)
    after = snapshot(run)
    after.pop("log.txt")
    before.pop("log.txt")
    assert after == before


def test_a_resume_that_was_taken_out_of_the_queue_leaves_the_run_as_it_was(run: Path) -> None:
    worker = Worker(lambda preset, control, resume: iter(()), run.parent)
    worker._device.acquire()  # nothing starts
    worker.submit(OTHER)
    worker.extend(run.name, 2)
    assert archive.read_status(run).state == "queued"
    worker.stop(run.name)
    assert archive.read_status(run).state == "finished" and archive.read_preset(run).total_steps == 6
    last = worker.events_since(run.name)[-1]
    assert isinstance(last, Finished) and last.reason == "stopped"
    worker._device.release()
    assert worker.shutdown(PATIENCE_S)


# ---- lines


GOOD = b'{"event": "Stepped", "step": 1, "time_s": 0.5, "t": 9, "metrics": {"reward/x": 1.0}}\n'
WRONG_LINES = {
    "blank": b"\n",
    "spaces": b"  \n",
    "zeros": bytes(20) + b"\n",
    "half": GOOD[:30] + b"\n",
    "twice": GOOD[:-1] * 2 + b"\n",
    "a list": b"[]\n",
    "a number": b"3\n",
    "no event": b'{"step": 1}\n',
    "event of a number": b'{"event": 3, "step": 1}\n',
    "unknown": b'{"event": "Rocket", "step": 1}\n',
    "text for a step": GOOD.replace(b'"step": 1', b'"step": "1"'),
    "true for a step": GOOD.replace(b'"step": 1', b'"step": true'),
    "negative": GOOD.replace(b'"step": 1', b'"step": -1'),
    "huge": GOOD.replace(b'"step": 1', b'"step": 1' + 400 * b"0"),
    "nan": GOOD.replace(b"1.0", b"NaN"),
    "infinite": GOOD.replace(b"1.0", b"1e999"),
    "a list for metrics": GOOD.replace(b'{"reward/x": 1.0}', b"[1]"),
    "null": GOOD.replace(b'{"reward/x": 1.0}', b"null"),
    "unknown key": GOOD.replace(b'"t": 9', b'"t": 9, "u": 1'),
    "lacks t": GOOD.replace(b'"t": 9, ', b""),
    "surrogate": b'{"event": "Warned", "step": 1, "message": "\\ud800"}\n',
    "no utf-8": b'{"event": "Warned", "step": 1, "message": "\xff"}\n',
    "deep": b'{"event":' + b"[" * 100_000 + b"\n",
    "path": b'{"event": "Previewed", "step": 1, "file": "../../secret.jpg"}\n',
    "absolute": b'{"event": "Checkpointed", "step": 1, "file": "/etc/passwd"}\n',
    "infinite live value": b'{"event": "LiveChanged", "step": 1, "values": {"guidance_scale": 1e999}}\n',
    "two drifts of one token": b'{"event":"NegativeUpdated","step":1,"tokens":["a"],"drift":[1,2],"nearest":["a"]}\n',
}


@pytest.mark.parametrize("line", WRONG_LINES.values(), ids=WRONG_LINES)
def test_a_line_that_is_no_event_is_skipped(run: Path, line: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(not an|unknown) event"):
        parse_event_line(line)
    path = run / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    whole = list(archive.replay_events(run, images=False))
    path.write_bytes(b"".join([*lines[:3], line, *lines[3:], line]))
    *events, warning = archive.replay_events(run, images=False)
    assert events == whole
    assert isinstance(warning, Warned) and "2 lines skipped, the first at events.jsonl:4" in warning.message
    assert str(run) not in warning.message
    assert resume(run, "--more", "1") == OK
    assert steps_of(list(archive.replay_events(run))) == wanted_steps(7)


def test_every_event_of_a_run_is_read_back(run: Path) -> None:
    assert parse_event_line(GOOD) == Stepped(step=1, time_s=0.5, t=9, metrics={"reward/x": 1.0})
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    assert len([parse_event_line(line) for line in lines]) == len(lines)


def test_a_live_change_that_cannot_be_made_again_is_skipped_and_said(root: Path) -> None:
    with RunFolder.create(PRESET, root) as folder:
        for event in [*fake_run(PRESET, Controls(PRESET))][:7]:
            folder.write(event)
        folder.write(LiveChanged(step=2, values={"seed": 9}))
        folder.write(LiveChanged(step=2, values={"guidance_scale": -5}))
    assert resume(folder.path) == OK
    told = list(archive.replay_events(folder.path))
    (note,) = [event.message for event in told if isinstance(event, Warned) and "live change" in event.message]
    assert "seed cannot change" in note and "guidance_scale" in note
    assert steps_of(told) == wanted_steps(6)


# ---- links and folders in the wrong place


@pytest.mark.parametrize("name", ["events.jsonl", "metrics.jsonl", "log.txt", "status.json", "checkpoints", "public"])
def test_links_are_not_followed(run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    outside = tmp_path / "outside"
    (run / name).rename(outside) if (run / name).exists() else outside.write_text("a stranger's")
    (run / name).symlink_to(outside, target_is_directory=outside.is_dir())
    before = snapshot(outside) if outside.is_dir() else outside.read_bytes()
    assert resume(run, "--more", "1") in (MISSING,)
    told = capsys.readouterr().err
    assert "is a link, which is not followed" in told or "no plain file" in told
    archive.list_runs(run.parent)
    list(archive.replay_events(run))
    assert (snapshot(outside) if outside.is_dir() else outside.read_bytes()) == before


def test_a_zip_holds_nothing_from_outside(run: Path, tmp_path: Path) -> None:
    import zipfile

    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key.txt").write_text("secret")
    (run / "public/previews/linked").symlink_to(tmp_path / "secret", target_is_directory=True)
    (run / "public/exports/key.txt").symlink_to(tmp_path / "secret/key.txt")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(tmp_path / "secret/key.txt")
    with zipfile.ZipFile(write_zip(run, tmp_path / "run.zip")) as packed:
        assert not [name for name in packed.namelist() if b"secret" in packed.read(name)]


@pytest.mark.parametrize("kind", ["folder", "dangling link", "link", "empty", "half"])
def test_a_run_whose_owner_cannot_be_read_is_nobody_s(run: Path, tmp_path: Path, kind: str) -> None:
    ownership.claim_run(run, "alice")
    path = run / "owner"
    digest = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif "link" in kind:
        target = tmp_path / "target"
        target.write_bytes(digest) if kind == "link" else None
        path.symlink_to(target)
    else:
        path.write_bytes(digest[:32] if kind == "half" else b"")
    for owner in ("", "alice", "bob"):
        assert not ownership.is_owner(run, owner)
        with pytest.raises(ownership.NotYoursError):
            ownership.require_owner(run, owner)


@pytest.mark.parametrize("name", ["events.jsonl", "log.txt", "checkpoints/000006.json", "status.json", "metrics.jsonl"])
def test_a_folder_in_place_of_a_file_is_said_in_words(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    before = snapshot(run)
    assert resume(run, "--more", "1") == MISSING
    told = capsys.readouterr().err
    assert "folder where a file belongs" in told and "Errno" not in told
    assert snapshot(run) == before
    with pytest.raises(StoreError, match="folder where a file belongs"):
        RunFolder.open(run)


@pytest.mark.parametrize("part", ["checkpoints", "public/previews", "public/exports", "public"])
def test_a_missing_folder_is_made_again(run: Path, part: str) -> None:
    shutil.rmtree(run / part)
    code = resume(run, "--more", "2", *(["--from-start"] if part == "checkpoints" else []))
    assert code == OK and (run / part).is_dir()


@pytest.mark.parametrize("length", [100, 300, 5000])
def test_an_endless_run_id_is_refused_in_words(root: Path, length: int, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = f"20260101-000000_{'a' * length}_s0_00000000"
    with pytest.raises(StoreError, match="no run '20260101-000000_aaa"):
        archive.find_run(run_id, root)
    assert main(["resume", run_id]) == 2 and "no run" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(40), b"no picture"])
def test_a_damaged_preview_is_counted_as_missing(run: Path, content: bytes) -> None:
    path = run / "public/previews/000004.jpg"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="no picture of views"):
        decode_views(path)
    events = list(archive.replay_events(run))
    assert [bool(event.images) for event in events if isinstance(event, Previewed)] == [True, False, True]
    assert isinstance(events[-1], Warned) and "1 preview files are missing" in events[-1].message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_said_in_words(run: Path) -> None:
    (run / "status.json").chmod(0)
    assert archive.read_status(run).state == "finished"


def test_a_preset_of_another_version_is_named_by_its_file_and_key(run: Path) -> None:
    path = run / "preset.resolved.yaml"
    path.write_text(path.read_text() + "old_param: 3\n")
    notes: list[str] = []
    assert archive.read_preset(run, notes=notes) == PRESET
    assert "preset.resolved.yaml" in notes[0] and "old_param" in notes[0] and "checkpoint of step 6" in notes[0]
    for other in [*(run / "checkpoints").iterdir(), run / "events.jsonl"]:
        other.unlink()
    with pytest.raises(StoreError, match="preset.resolved.yaml is no preset.*unknown key 'old_param'"):
        archive.read_preset(run)
    path.write_text("{}\n")
    with pytest.raises(StoreError, match="preset.resolved.yaml is not whole"):
        archive.read_preset(run)
