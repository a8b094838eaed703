"""The run folder: what is written comes back, whatever dies in between."""

import errno
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from psd.config.preset import Preset
from psd.distillation.events import (
    Checkpointed,
    Event,
    Failed,
    Finished,
    Meshed,
    Previewed,
    Started,
    Stepped,
    Warned,
    without_arrays,
)
from psd.distillation.interfaces import NoControl
from psd.geometry.cleanup import vertex_normals
from psd.geometry.mesh import Mesh
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import drive_run
from psd.runs.store import files, films
from psd.runs.store.archive import (
    RUN_ID,
    find_run,
    latest_checkpoint,
    list_runs,
    read_preset,
    read_provenance,
    read_status,
    replay_events,
)
from psd.runs.store.files import StoreError, is_locked, take_lock
from psd.runs.store.folder import RunFolder, slugify_prompt
from psd.runs.store.media import decode_views, encode_views, write_films
from tests.support.fake_run import fake_run, views

PRESET = Preset(prompt="a red mushroom", seed=3, steps=6)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.create(PRESET, tmp_path) as folder:
        yield folder


def checkpoint(step: int) -> Checkpointed:
    return Checkpointed(step=step, tensors={"walk": np.full((2, 3), step, np.float32)}, values={"step": step})


def full_disk(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_replay_tells_what_was_written(folder: RunFolder) -> None:
    written = [folder.write(event) for event in fake_run(PRESET, NoControl())]
    told = list(replay_events(folder.path))
    assert [without_arrays(event) for event in told] == [without_arrays(event) for event in written]
    previews = [event for event in told if isinstance(event, Previewed)]
    assert len(previews) == 3
    for event in previews:
        assert np.array_equal(event.images["normal"], 255 - views(event.step))
        assert np.abs(event.images["rgb"].astype(int) - views(event.step)).mean() < 2  # JPEG


def test_metrics_are_flat_rows(folder: RunFolder) -> None:
    steps = [event for event in map(folder.write, fake_run(PRESET, NoControl())) if isinstance(event, Stepped)]
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": e.step, "time_s": e.time_s, "t": e.t, **e.metrics} for e in steps]


def test_presets_as_given_and_as_resolved(folder: RunFolder) -> None:
    given = Preset.load(str(folder.path / "preset.yaml"))
    assert given.model_fields_set == {"prompt", "seed", "steps"}
    assert read_preset(folder.path) == given == PRESET


def test_status_follows_the_run(tmp_path: Path) -> None:
    with RunFolder.create(PRESET, tmp_path) as folder:
        assert read_status(folder.path).state == "queued"
        for event in fake_run(PRESET, NoControl()):
            folder.write(event)
            if isinstance(event, Checkpointed):
                status = read_status(folder.path)
                assert (status.state, status.step, status.total) == ("running", event.step, 6)
    assert read_status(folder.path).state == "finished"


@pytest.mark.parametrize(
    ("event", "state"), [(Finished(step=2, reason="stopped"), "stopped"), (Failed(step=2, message="no"), "failed")]
)
def test_how_a_run_ended(folder: RunFolder, event: Event, state: str) -> None:
    folder.write(event)
    assert read_status(folder.path).state == state


def test_a_dead_writer_reads_as_interrupted(folder: RunFolder) -> None:
    folder.set_state("running")
    assert read_status(folder.path).state == "running"
    folder.close()
    assert read_status(folder.path).state == "interrupted"


def test_traceback_goes_to_the_log_only(folder: RunFolder) -> None:
    event = folder.write(Failed(step=1, message="no", traceback="Traceback: line 7"))
    assert isinstance(event, Failed) and event.traceback == ""
    assert "line 7" in (folder.path / "log.txt").read_text()
    assert "line 7" not in (folder.path / "events.jsonl").read_text()


def test_second_writer_is_refused_until_the_first_lets_go(folder: RunFolder) -> None:
    with pytest.raises(StoreError, match="written by another process"):
        RunFolder.open(folder.path)
    folder.close()
    RunFolder.open(folder.path).close()


def test_lock_dies_with_its_process(folder: RunFolder) -> None:
    folder.close()
    code = (
        "import sys; from psd.runs.store.folder import RunFolder;"
        "folder = RunFolder.open(sys.argv[1]); folder.set_state('running');"
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout and owner.stdout.readline() == "locked\n"
            with pytest.raises(StoreError, match="written by another process"):
                RunFolder.open(folder.path)
            assert read_status(folder.path).state == "running"
        finally:
            owner.kill()
    assert read_status(folder.path).state == "interrupted"
    RunFolder.open(folder.path).close()


def test_closed_folder_takes_no_events(folder: RunFolder) -> None:
    folder.close()
    with pytest.raises(StoreError, match="closed"):
        folder.write(Warned(step=0, message="late"))


def test_crash_between_write_and_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    files.replace_file(path, b"old")

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        files.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_failed_append_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    files.append_line(path, "whole")
    monkeypatch.setattr("builtins.open", lambda *args, **kwargs: FillingFile(path))
    with pytest.raises(StoreError, match="disk is full"):
        files.append_line(path, "a much longer line")
    monkeypatch.undo()
    assert path.read_bytes() == b"whole\n"


class FillingFile(io.FileIO):
    """Takes four bytes, then the disk is full."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "ab")
        self.room = 4

    def write(self, data: Any) -> int:
        if not self.room:
            full_disk()
        taken, self.room = super().write(bytes(data)[: self.room]), 0
        return taken


@pytest.mark.parametrize("event", [*fake_run(PRESET, NoControl())][:3], ids=lambda event: type(event).__name__)
def test_full_disk_says_so(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, event: Event) -> None:
    monkeypatch.setattr(os, "replace", full_disk)
    monkeypatch.setattr("builtins.open", full_disk)
    with pytest.raises(StoreError, match="disk is full.*free space"):
        folder.write(event)


def test_full_disk_at_creation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", full_disk)
    with pytest.raises(StoreError, match="disk is full"):
        RunFolder.create(PRESET, tmp_path)


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StoreError, match="PSD_RUNS"):
        RunFolder.create(PRESET, tmp_path / "runs")


def test_line_cut_short_is_told_and_mended(folder: RunFolder) -> None:
    for event in fake_run(PRESET, NoControl()):
        folder.write(event)
    folder.close()
    path = folder.path / "events.jsonl"
    whole = list(replay_events(folder.path))
    path.write_bytes(path.read_bytes()[:-9])
    told = list(replay_events(folder.path))
    assert [without_arrays(e) for e in told[:-1]] == [without_arrays(e) for e in whole[:-1]]
    assert isinstance(told[-1], Warned) and "middle of a line" in told[-1].message
    with RunFolder.open(folder.path) as again:
        again.write(Finished(step=6, reason="completed"))
    assert [type(e).__name__ for e in replay_events(folder.path)] == [type(e).__name__ for e in whole]
    assert "taken off" in (folder.path / "log.txt").read_text()


@pytest.mark.parametrize("line", ["{}", "not json", '{"event": "Rocket", "step": 1}', '{"event": "Warned", "step": 1}'])
def test_foreign_line_is_skipped_and_named(folder: RunFolder, line: str) -> None:
    folder.write(fine := Warned(step=0, message="fine"))
    files.append_line(folder.path / "events.jsonl", line)
    folder.write(after := Warned(step=1, message="after"))
    *events, told = replay_events(folder.path)
    assert events == [fine, after]
    assert isinstance(told, Warned) and "events.jsonl: 1 line skipped, the first at events.jsonl:2" in told.message


def test_missing_previews_are_told(folder: RunFolder) -> None:
    for event in fake_run(PRESET, NoControl()):
        folder.write(event)
    (folder.path / "public/previews/000004.jpg").unlink()
    *_, last = replay_events(folder.path)
    assert isinstance(last, Warned) and last.message == "1 preview files are missing"


def test_what_a_resume_did_over_is_told_once(folder: RunFolder) -> None:
    for event in fake_run(PRESET.with_values({"steps": 5}), NoControl()):
        folder.write(event)
    folder.close()
    resume = latest_checkpoint(folder.path)
    assert resume is not None and resume.step == 4
    with RunFolder.open(folder.path, PRESET) as again:
        for event in fake_run(PRESET, NoControl(), resume):
            again.write(event)
    steps = [event for event in replay_events(folder.path) if isinstance(event, Stepped)]
    through = [event for event in fake_run(PRESET, NoControl()) if isinstance(event, Stepped)]
    assert steps == through
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert read_preset(folder.path).steps == 6


def test_the_preview_of_the_end_is_told_once(folder: RunFolder) -> None:
    """A run that was killed between its last checkpoint and its mesh makes its last preview again."""
    events = list(fake_run(PRESET, NoControl()))
    for event in takewhile(lambda event: not isinstance(event, Meshed), events):
        folder.write(event)
    folder.close()
    preview = next(event for event in reversed(events) if isinstance(event, Previewed))
    with RunFolder.open(folder.path, PRESET) as again:
        for event in (replace(events[0], step=6), preview, *events[-2:]):
            again.write(event)
    told = list(replay_events(folder.path))
    assert [event.step for event in told if isinstance(event, Previewed)] == [2, 4, 6]
    wanted = [event for event in events if not isinstance(event, Started)]
    kinds = [type(event) for event in told if not isinstance(event, Started)]
    assert kinds == [type(event) for event in wanted], "in the order of a run that went through"


def test_checkpoint_is_exact(folder: RunFolder) -> None:
    tensors = {
        "scalar": np.float64(1 / 3).reshape(()), "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "state": np.arange(256, dtype=np.uint8), "empty": np.zeros((0, 3), np.float32),
        "huge": np.array([2**63 - 1], np.int64), "flags": np.array([True, False]),
    }  # fmt: skip
    values = {"ema": 0.1 + 0.2, "list": [1, "two"], "nested": {"seed": 2**64}}
    folder.write(Checkpointed(step=7, tensors=tensors, values=values, time_s=1.5))
    found = latest_checkpoint(folder.path)
    assert found is not None and (found.step, found.time_s, found.values) == (7, 1.5, values)
    assert found.tensors.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found.tensors[name].dtype == array.dtype and found.tensors[name].shape == array.shape
        assert found.tensors[name].tobytes() == np.asarray(array, order="C").tobytes()


def test_the_last_two_checkpoints_stay(folder: RunFolder) -> None:
    for step in (1, 2, 9, 3):  # 9: left behind by a run that was resumed from 2
        folder.write(checkpoint(step))
    names = sorted(path.name for path in (folder.path / "checkpoints").iterdir())
    assert names == ["000002.json", "000002.safetensors", "000003.json", "000003.safetensors"]


@pytest.mark.parametrize("damage", ["no seal", "cut seal", "cut tensors", "no tensors"])
def test_half_written_checkpoint_is_passed_over(folder: RunFolder, damage: str) -> None:
    for step in (1, 2):
        folder.write(checkpoint(step))
    newest = folder.path / "checkpoints/000002.safetensors"
    broken = newest.with_suffix(".json") if "seal" in damage else newest
    broken.unlink() if damage.startswith("no") else broken.write_bytes(broken.read_bytes()[:-5])
    found = latest_checkpoint(folder.path)
    assert found is not None and found.step == 1 and found.values == {"step": 1}


def test_crash_while_rewriting_a_checkpoint_does_not_mix_two(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        folder.write(checkpoint(step))
    original = os.replace

    def crash_at_the_seal(new: Path, path: Path) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        original(new, path)

    monkeypatch.setattr(os, "replace", crash_at_the_seal)
    with pytest.raises(KeyboardInterrupt):
        folder.write(replace(checkpoint(2), values={"step": "new"}))
    found = latest_checkpoint(folder.path)
    assert found is not None and found.step == 1


@pytest.mark.parametrize("room", [0, 1], ids=["tensors", "seal"])
def test_a_disk_that_fills_while_rewriting_a_checkpoint_keeps_it(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    for step in (1, 2):
        folder.write(checkpoint(step))
    synced = []

    def filling(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > room:
            full_disk()

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(StoreError, match="disk is full"):
        folder.write(replace(checkpoint(2), values={"step": "new"}))
    found = latest_checkpoint(folder.path)
    assert found is not None and found.step == 2 and found.values == {"step": 2}
    assert len(list((folder.path / "checkpoints").iterdir())) == 4


def test_no_checkpoint_yet(folder: RunFolder) -> None:
    assert latest_checkpoint(folder.path) is None


def test_newer_schema_is_refused(folder: RunFolder) -> None:
    folder.write(checkpoint(1))
    folder.close()
    for path in (folder.path / "status.json", folder.path / "checkpoints/000001.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    for read in (read_status, latest_checkpoint, RunFolder.open, lambda path: list(replay_events(path))):
        with pytest.raises(StoreError, match="schema 99.*update"):
            read(folder.path)


def test_list_runs_newest_first_with_the_unreadable(tmp_path: Path) -> None:
    for seed in (1, 2):
        RunFolder.create(PRESET.with_values({"seed": seed}), tmp_path).close()
    old = tmp_path / "20200101-000000_old_s0_00000000"
    old.mkdir()
    (tmp_path / "notes").mkdir()
    runs = list_runs(tmp_path)
    assert [run.status.state for run in runs] == ["interrupted", "interrupted", "unreadable"]
    assert "_s2_" in runs[0].id and runs[2].folder == old and "not a run folder" in runs[2].status.message
    assert list_runs(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00", b"[]", b'{"state": 3}', b'{"state": "finished", "schema": "x"}',
     b'{"state": "finished", "step": "many"}', b'{"state": "finished", "prompt": null}'],
)  # fmt: skip
def test_one_damaged_status_hides_no_other_run(tmp_path: Path, content: bytes) -> None:
    good, bad = (RunFolder.create(PRESET.with_values({"seed": seed}), tmp_path) for seed in (1, 2))
    bad.close()
    (bad.path / "status.json").write_bytes(content)
    assert {run.id: run.status.state for run in list_runs(tmp_path)} == {good.id: "queued", bad.id: "interrupted"}
    good.close()


def test_two_readers_do_not_take_each_other_for_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    take_lock(path).release()
    original, seen = files.lock_descriptor, []

    def look_meanwhile(descriptor: int, *, blocking: bool) -> bool:
        monkeypatch.setattr(files, "lock_descriptor", original)
        other = os.open(path, os.O_RDONLY)
        assert original(other, blocking=False)  # another reader is looking just now
        seen.append(original(descriptor, blocking=blocking))
        os.close(other)  # it has looked, before the second try
        return seen[-1]

    monkeypatch.setattr(files, "lock_descriptor", look_meanwhile)
    assert not is_locked(path) and seen == [False]


def test_a_lock_is_seen_by_who_may_only_read(tmp_path: Path) -> None:
    lock = take_lock(tmp_path / "lock")
    (tmp_path / "lock").chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        assert is_locked(tmp_path / "lock") and not is_locked(tmp_path / "none")
        lock.release()
        lock.release()
        assert not is_locked(tmp_path / "lock")
    finally:
        tmp_path.chmod(0o755)


def test_a_lock_is_given_back_by_another_thread(tmp_path: Path) -> None:
    lock = take_lock(tmp_path / "lock")
    with pytest.raises(StoreError, match=r"written by another process: wait for that run"):
        take_lock(tmp_path / "lock")
    giver = threading.Thread(target=lock.release)
    giver.start()
    giver.join()
    take_lock(tmp_path / "lock").release()


def test_equal_runs_in_one_second_do_not_meet(tmp_path: Path) -> None:
    folders = [RunFolder.create(PRESET, tmp_path) for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3
    assert all(RUN_ID.fullmatch(folder.id) for folder in folders)
    for folder in folders:
        folder.close()


@pytest.mark.parametrize(
    "prompt", ["../../etc/passwd", "C:\\CON", "...", "a/b", "~", "\u200b", "紅い茸", "x" * 300, "-rf"]
)
def test_hostile_prompts_stay_inside_the_root(tmp_path: Path, prompt: str) -> None:
    with RunFolder.create(PRESET.with_values({"prompt": prompt}), tmp_path / "runs") as folder:
        assert folder.path.resolve().parent == (tmp_path / "runs").resolve()
        assert find_run(folder.id, tmp_path / "runs") == folder.path
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@given(st.text(max_size=80))
def test_any_slug_is_a_plain_name(prompt: str) -> None:
    assert RUN_ID.fullmatch(f"20260101-000000_{slugify_prompt(prompt)}_s0_00000000")
    assert len(slugify_prompt(prompt)) <= 40


@pytest.mark.parametrize(
    "run_id", ["..", "", "../x", "/etc", "20260101-000000_a_s0_00000000/..", "20260101-000000_a_s0_0000000\n"]
)
def test_run_ids_from_outside_are_only_names(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(StoreError, match="no run"):
        find_run(run_id, tmp_path)


def test_views_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "views.png"
    path.write_bytes(encode_views(views(1), lossless=True))
    assert np.array_equal(decode_views(path), views(1))
    with pytest.raises(ValueError, match="uint8"):
        encode_views(views(1)[:, :8], lossless=True)  # not square: how many there are could not be told


def test_preview_without_rgb_is_refused(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="it has normal"):
        folder.write(Previewed(step=1, images={"normal": views(1)}))


def test_films_play(tmp_path: Path) -> None:
    import imageio.v3 as imageio

    frames = np.stack([np.full((33, 33, 3), 20 * i, np.uint8) for i in range(8)])  # odd: h264 wants even
    write_films(frames, tmp_path)
    for name, size in (("turntable.mp4", 32), ("turntable.webp", 33)):
        film = np.stack(list(imageio.imiter(tmp_path / name)))
        assert film.shape == (8, size, size, 3)
        assert np.abs(film.mean((1, 2, 3)) - frames.mean((1, 2, 3))).max() < 6


def meshed() -> Meshed:
    """A tetrahedron."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 2, 1], [0, 3, 2], [0, 1, 3], [1, 2, 3]], np.int32)
    mesh = Mesh(vertices, faces, vertex_normals(vertices, faces), np.full((4, 3), 90, np.uint8))
    return Meshed(step=6, mesh=mesh, statistics={"faces": 4})


def test_an_obj_with_a_texture_is_zipped_with_it(folder: RunFolder) -> None:
    plain = meshed()
    assert plain.mesh is not None
    uv = plain.mesh.vertices[:, :2].copy()
    textured = replace(plain, mesh=replace(plain.mesh, uv=uv, texture=np.full((8, 8, 3), 90, np.uint8)))
    exports = folder.path / "public/exports"
    folder.write(textured)
    with zipfile.ZipFile(exports / "mesh.obj.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            name: (exports / name).read_bytes() for name in ("mesh.obj", "mesh.mtl", "mesh.png")
        }
    folder.write(plain)
    assert {path.name for path in exports.iterdir()} == {
        "mesh.glb", "mesh.obj", "mesh.ply", "mesh.stl", "statistics.json",
    }  # fmt: skip


def broken_ffmpeg(*_: Any, **__: Any) -> None:
    raise OSError("[Errno 32] Broken pipe\n\nFFMPEG COMMAND:\n...")  # imageio's, without an errno


@pytest.mark.parametrize("broken", [broken_ffmpeg, lambda *_, **__: None, full_disk], ids=["says so", "silent", "full"])
def test_a_film_that_fails_costs_no_mesh(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    events = [replace(meshed(), statistics={"faces": 5}), Finished(step=6, reason="completed")]
    assert [type(it) for it in drive_run(lambda *_: iter(events), folder, Controls(PRESET))] == [Meshed, Finished]
    exports = folder.path / "public/exports"
    with_film = {path.name for path in exports.iterdir()}
    assert {"turntable.mp4", "turntable.webp"} <= with_film
    monkeypatch.setattr("imageio.v3.imwrite", broken)
    told = list(drive_run(lambda *_: iter(events), folder, Controls(PRESET)))
    assert [type(event) for event in told] == [Meshed, Finished, Warned]
    warning = told[2]
    assert isinstance(warning, Warned) and "The mesh has no film: " in warning.message
    assert ("turntable.mp4" in warning.message and "libx264" in warning.message) or "disk is full" in warning.message
    # It would show an earlier mesh.
    assert {path.name for path in exports.iterdir()} == with_film - {"turntable.mp4"}
    assert read_status(folder.path).state == "finished"
    assert json.loads((exports / "statistics.json").read_text()) == {"faces": 5}


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")],
    ids=["", "torch"],
)
def test_a_film_that_has_no_room_costs_no_mesh(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr("psd.runs.store.films.render_turntable", refuse)
    events = [meshed(), Finished(step=6, reason="completed")]
    *_, finished, warned = drive_run(lambda *_: iter(events), folder, Controls(PRESET))
    assert isinstance(finished, Finished) and read_status(folder.path).state == "finished"
    assert isinstance(warned, Warned) and warned.message == "The mesh has no film: out of memory."
    assert (folder.path / "public/exports/mesh.glb").is_file()


def test_a_turntable_starts_at_the_front_and_becomes_a_film(tmp_path: Path) -> None:
    import imageio.v3 as imageio

    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.6)
    vertices, faces = np.asarray(ball.vertices, np.float32), np.asarray(ball.faces, np.int32)
    colours = np.where(vertices[:, :1] > 0, [230, 25, 25], [25, 25, 230]).astype(np.uint8)
    frames = films.render_turntable(Mesh(vertices, faces, vertex_normals(vertices, faces), colours))
    size, middle = films.SIZE, films.SIZE // 2
    assert frames.shape == (films.FRAMES, size, size, 3) and frames.dtype == np.uint8
    front, back = (frames[place, middle, middle].astype(int) for place in (0, films.FRAMES // 2))
    assert front[0] > 2 * front[2] and back[2] > 2 * back[0]  # red in front, blue behind
    assert (frames[:, 0, 0] == 255).all()
    write_films(frames, tmp_path)
    film = imageio.imread(tmp_path / "turntable.mp4")
    assert film.shape == frames.shape and np.abs(film.astype(int) - frames).mean() < 6


def test_films_come_when_the_mesh_is_there_to_look_at(folder: RunFolder) -> None:
    events = [meshed(), Finished(step=6, reason="completed")]
    film, there = folder.path / "public/exports/turntable.webp", []
    for event in drive_run(lambda *_: iter(events), folder, Controls(PRESET)):
        there.append((type(event), read_status(folder.path).state, film.exists()))
    assert there[-1] == (Finished, "finished", False) and film.exists()
    folder.write(meshed())
    assert not film.exists(), "the film of an earlier mesh"


def test_environment_is_kept(folder: RunFolder) -> None:
    folder.write(Started(step=0, preset={}, total_steps=9, views=4, environment={"torch": "2"}, notes=("cpu",)))
    assert json.loads((folder.path / "environment.json").read_text()) == {"torch": "2", "notes": ["cpu"]}
    assert read_provenance(folder.path, 5)["versions"] == {"torch": "2", "notes": ["cpu"]}


def test_what_a_run_started_from_is_kept_as_it_goes_on(folder: RunFolder) -> None:
    """Of the first start; what else was noted is as the run has it now."""
    origin, begun = "starts from mug.glb", {"preset": {}, "total_steps": 9, "views": 4, "environment": {}}
    folder.write(Started(step=0, notes=("cpu", origin), **begun))
    for _ in range(2):
        folder.write(Started(step=4, notes=("cuda",), **begun))
        assert read_provenance(folder.path, 5)["versions"]["notes"] == [origin, "cuda"]
