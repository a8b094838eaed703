"""Runs on the shelf: whose they are, which go, what a zip holds, and what the worker does with all of it."""

import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Failed, Finished, LiveChanged, Started, Stepped
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.estimate import Pacer, RunEstimate, measure_warm_up, workload_key
from psd.runs.jobs.worker import Limits, Worker
from psd.runs.store import ownership, retention
from psd.runs.store.archive import list_runs, read_preset, read_status, replay_events
from psd.runs.store.files import StoreError
from psd.runs.store.folder import RunFolder
from psd.runs.store.schema import RUN_FILES
from tests.runs.test_worker import (
    PATIENCE_S,
    Gate,
    finish,
    hire,  # noqa: F401  (a fixture)
    steps,
    until,
    wait_for,
)
from tests.support.fake_run import fake_run

PRESET = Preset(prompt="a red mushroom", steps=6)
ALICE, BOB = "a" * 32, "b" * 32
Hire = Callable[..., Worker]


def finished(root: Path, seed: int = 0, **values: object) -> Path:
    """A run that is over, written without a worker."""
    preset = PRESET.with_values({"seed": seed, **values})
    with RunFolder.create(preset, root) as folder:
        for event in fake_run(preset, Controls(preset)):
            folder.write(event)
    return folder.path


# ---- owners


def test_a_folder_holds_no_secret(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    ownership.claim_run(folder, ALICE)
    assert (
        ownership.is_owner(folder, ALICE) and not ownership.is_owner(folder, BOB) and not ownership.is_owner(folder, "")
    )
    assert not [path for path in folder.rglob("*") if path.is_file() and ALICE.encode() in path.read_bytes()]
    assert len({ownership.new_owner() for _ in range(100)}) == 100 and len(ownership.new_owner()) >= 32


STEERING: dict[str, Callable[[Worker, str, str], object]] = {
    "stop": lambda worker, run, owner: worker.stop(run, owner),
    "pause": lambda worker, run, owner: worker.pause(run, owner),
    "resume": lambda worker, run, owner: worker.resume(run, owner),
    "change": lambda worker, run, owner: worker.change(run, {"guidance_scale": 2.0}, owner),
    "extend": lambda worker, run, owner: worker.extend(run, 3, owner),
    "delete": lambda worker, run, owner: worker.library.delete_run(run, owner),
    "pin": lambda worker, run, owner: worker.library.pin_run(run, True, owner),
}


@pytest.mark.parametrize("owner", ["", BOB, ALICE + "a", ALICE[:-1]])
def test_nobody_steers_the_run_of_another(hire: Hire, owner: str) -> None:  # noqa: F811
    gate = Gate()
    worker = hire(gate.run)
    run_id = worker.submit(PRESET, owner=ALICE)
    for name, steer in STEERING.items():
        with pytest.raises(ownership.NotYoursError, match="another browser"):
            steer(worker, run_id, owner)
        assert name and not worker.library.is_steerable_by(run_id, owner)
    gate.open(6)
    events = finish(worker, run_id)
    assert isinstance(events[-1], Finished) and events[-1].reason == "completed"
    assert not any(isinstance(event, LiveChanged) for event in events)
    assert (
        worker.library.is_steerable_by(run_id, ALICE)
        and [run.id for run in worker.library.list_runs(ALICE)] == [run_id]
        and not worker.library.list_runs(BOB)
    )


# ---- continue


def test_an_extended_run_goes_on_in_the_same_stream(hire: Hire) -> None:  # noqa: F811
    worker = hire(fake_run)
    run_id = worker.submit(PRESET, owner=ALICE)
    before = finish(worker, run_id)
    worker.extend(run_id, 4, ALICE)
    events = finish(worker, run_id)
    assert events[: len(before)] == before, "who watches goes on counting"
    assert steps(events) == [*range(1, 11)]
    preset = read_preset(worker.library.find_folder(run_id))
    assert (preset.steps, preset.extra_steps, worker.snapshot_job(run_id).status.total) == (6, 4, 10)
    with pytest.raises(PresetError, match="say how many more"):
        worker.extend(run_id, 0, ALICE)
    with pytest.raises(PresetError, match="extra_steps"):
        worker.extend(run_id, 10**9, ALICE)


def test_a_run_cut_short_goes_on_after_a_restart_with_its_live_changes(hire: Hire, tmp_path: Path) -> None:  # noqa: F811
    """The process dies at step 5, after the checkpoint of step 4, with changes at steps 2, 4 and 5."""

    class Hand(Controls):
        def live(self) -> dict:
            return {**super().live(), **self.moves}

        moves: dict = {}

    preset, hand = PRESET.with_values({"steps": 8}), Hand(PRESET)
    with RunFolder.create(preset, tmp_path) as folder:
        for event in fake_run(preset, hand):
            folder.write(event)
            if isinstance(event, Stepped):
                hand.moves = {2: {"guidance_scale": 2.0}, 4: {"guidance_scale": 4.0}}.get(event.step, hand.moves)
            if event.step == 5:
                folder.write(LiveChanged(step=5, values={"negative_lr": 0.5}))
                break
    assert read_status(folder.path).state == "interrupted"
    worker = hire(fake_run)
    worker.extend(folder.id)
    events = finish(worker, folder.id)
    assert steps(events) == [*range(1, 9)], "what came before the checkpoint is told as well"
    changes = [(event.step, event.values) for event in events if isinstance(event, LiveChanged)]
    assert changes == [(2, {"guidance_scale": 2.0}), (4, {"guidance_scale": 4.0}), (5, changes[-1][1])]
    assert changes[-1][1] == {"guidance_scale": 4.0, "negative_lr": 0.5}
    told = [event for event in replay_events(folder.path) if isinstance(event, LiveChanged)]
    assert len(told) == 3, "made again, told once"


def test_the_user_s_hand_goes_over_what_is_replayed() -> None:
    control = Controls(PRESET)
    control.replay_changes([(2, {"guidance_scale": 2.0}), (3, {"guidance_scale": 3.0, "negative_lr": 0.1})])
    control.reach_step(1)
    assert control.live() == {}
    control.reach_step(3)
    assert control.live() == {"guidance_scale": 3.0, "negative_lr": 0.1}
    control.change({"guidance_scale": 9.0})
    assert control.live() == {"guidance_scale": 9.0, "negative_lr": 0.1}


# ---- listing, deleting, room


def test_the_list_tells_what_a_run_is(hire: Hire) -> None:  # noqa: F811
    worker = hire(fake_run)
    run_id = worker.submit(PRESET.with_values({"seed": 7, "method": "sds"}))
    finish(worker, run_id)
    worker.library.pin_run(run_id, True)
    (run,) = worker.library.list_runs()
    status = run.status
    assert (run.id, status.prompt, status.seed, status.method, status.state) == (
        run_id, "a red mushroom", 7, "sds", "finished",
    )  # fmt: skip
    assert run.is_pinned and run.thumbnail == run.folder / "public/previews/000004.jpg"
    assert (status.best_step, status.best_score) == (4, 4.0)
    worker.library.pin_run(run_id, False)
    assert not worker.library.list_runs()[0].is_pinned


def test_delete_removes_a_run_that_is_over(hire: Hire, tmp_path: Path) -> None:  # noqa: F811
    gate = Gate()
    worker = hire(gate.run)
    run_id = worker.submit(PRESET)
    until_running = worker.wait(run_id, 0, PATIENCE_S)
    assert until_running
    with pytest.raises(StoreError, match="stop it first"):
        worker.library.delete_run(run_id)
    gate.open(6)
    finish(worker, run_id)
    wait_for(lambda: read_status(worker.library.find_folder(run_id)).state == "finished")
    worker.library.delete_run(run_id)
    assert list(tmp_path.iterdir()) == [] and worker.library.list_runs() == [] and worker.list_jobs() == []
    with pytest.raises(StoreError, match="no run"):
        worker.library.delete_run(run_id)


def test_room_is_made_oldest_first_and_never_of_the_pinned(tmp_path: Path) -> None:
    folders = [finished(tmp_path, seed) for seed in range(5)]
    for age, folder in enumerate(folders):  # names begin with the time of making
        folder.rename(tmp_path / f"2026010{age + 1}-000000{folder.name[15:]}")
    ids = sorted(run.id for run in list_runs(tmp_path))
    retention.pin_run(tmp_path / ids[0], True)
    assert retention.delete_oldest(tmp_path, Limits(runs=10)) == []
    assert retention.delete_oldest(tmp_path, Limits(runs=3), spare=[ids[1]]) == [ids[2], ids[3]]
    with RunFolder.open(tmp_path / ids[4]) as going:
        going.set_state("running")
        assert retention.delete_oldest(tmp_path, Limits(runs=1)) == [ids[1]]
    size = retention.size_bytes(tmp_path / ids[0])
    assert size > 1000 and retention.delete_oldest(tmp_path, Limits(total_bytes=size + 1)) == [ids[4]]


def test_an_interrupted_deletion_is_finished_later(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    folder.rename(folder.with_name(retention.DELETED + folder.name))
    retention.delete_oldest(tmp_path, Limits())
    assert list(tmp_path.iterdir()) == []


def test_the_worker_keeps_to_its_limits(tmp_path: Path) -> None:
    worker = Worker(fake_run, tmp_path, limits=Limits(runs=2))
    for seed in range(4):
        finish(worker, worker.submit(PRESET.with_values({"seed": seed})))
    assert worker.shutdown(PATIENCE_S)
    assert sorted(run.status.seed for run in list_runs(tmp_path)) == [2, 3]


def test_a_disk_that_is_nearly_full_starts_nothing(hire: Hire, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    worker = hire(fake_run)
    monkeypatch.setattr("psd.runs.store.retention.LEAST_FREE_BYTES", 2**80)
    with pytest.raises(StoreError, match="disk is full.*PSD_RUNS"):
        worker.submit(PRESET)
    assert worker.library.list_runs() == []


def test_a_zip_holds_what_a_watcher_may_see(hire: Hire) -> None:  # noqa: F811
    worker = hire(fake_run)
    run_id = worker.submit(PRESET, owner=ALICE)
    finish(worker, run_id)
    with zipfile.ZipFile(path := worker.library.zip_run(run_id)) as archive:
        assert archive.testzip() is None
        names = {name.removeprefix(f"{run_id}/") for name in archive.namelist()}
    assert path.name == f"{run_id}.zip" and worker.library.zip_run(run_id) == path
    worker.library.delete_run(run_id, ALICE)
    assert not path.exists(), "zips of runs that are gone would pile up"
    assert {"preset.yaml", "events.jsonl", "metrics.jsonl", "public/previews/000002.jpg"} <= names
    assert not {name for name in names if name.startswith(("checkpoints", "log", "lock", "owner"))}


def test_what_cannot_be_read_can_be_deleted_and_pushes_nothing_out(tmp_path: Path) -> None:
    broken, good = finished(tmp_path), finished(tmp_path, seed=1)
    for name in RUN_FILES:
        (broken / name).write_text("{")
    shutil.rmtree(broken / "checkpoints")
    assert [run.status.state for run in list_runs(tmp_path)] == ["finished", "unreadable"]
    assert retention.delete_oldest(tmp_path, Limits(runs=1)) == [] and good.is_dir()
    retention.delete_run(broken, "a test")
    assert [run.folder for run in list_runs(tmp_path)] == [good]


def test_without_a_judgement_the_thumbnail_is_the_last_picture(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (run,) = list_runs(tmp_path)
    (folder / "public/previews/000000.jpg").write_bytes(b"the first, which no judge chose")
    unjudged = replace(run, status=replace(run.status, best_step=0, best_score=None))
    assert unjudged.thumbnail == folder / run.status.preview


# ---- how long


def test_a_pace_tells_the_time_left() -> None:
    pacer = Pacer()
    assert pacer.run_estimate is None
    pacer.add(Started(step=10, preset={}, total_steps=20, views=4, environment={}, time_s=5.0))
    for step in range(11, 21):
        pacer.add(Stepped(step=step, t=1, metrics={"memory/peak_bytes": 100.0 * step}, time_s=5.0 + 2.0 * (step - 10)))
    pacer.add(Finished(step=20, reason="completed", time_s=28.0))
    assert pacer.run_estimate == RunEstimate({0: 2.0}, end_s=3.0, memory_bytes=2000.0)
    assert (
        pacer.run_estimate is not None
        and pacer.run_estimate.left_s(PRESET.with_values({"extra_steps": 4}), done=3) == 7 * 2.0 + 3.0
    )
    assert (
        pacer.run_estimate.left_s(PRESET, done=3, until=4) == 2.0 + 3.0
        and pacer.run_estimate.left_s(PRESET, until=99) == 15.0
    )


STAGED = PRESET.with_values({"steps": 10, "stages": [{"share": 0.6}, {"share": 0.4, "render_size": 32}]})


def staged_events(steps: int, first_s: float, second_s: float, between_s: float) -> Iterator[Event]:
    """Steps of two stages, 6 and 4 of ten."""
    now = 0.0
    yield Started(step=0, preset={}, total_steps=steps, views=4, environment={})
    for step in range(1, steps + 1):
        stage = int(step > 0.6 * steps)
        is_first = stage == 1 and step - 1 <= 0.6 * steps
        now += (second_s if stage else first_s) + (between_s if is_first else 0.0)
        yield Stepped(step=step, t=1, time_s=now, stage=stage)
    yield Finished(step=steps, reason="completed", time_s=now + 5.0, stage=1)


def test_an_estimate_counts_every_stage_and_each_beginning_once() -> None:
    pacer = Pacer()
    for event in staged_events(10, 1.0, 3.0, 7.0):
        pacer.add(event)
    pace = pacer.run_estimate
    assert pace is not None and pace == RunEstimate({0: 1.0, 1: 3.0}, {1: 7.0}, 5.0)
    longer = STAGED.with_values({"steps": 1000})
    assert pace.left_s(longer) == 600 * 1.0 + 7.0 + 400 * 3.0 + 5.0
    assert [pace.left_s(longer, done) for done in (600, 601, 1000)] == [7.0 + 1200.0 + 5.0, 399 * 3.0 + 5.0, 5.0]
    assert pace.left_s(longer, until=600) == 605.0, "the second stage is never begun"
    assert RunEstimate({0: 2.0}).left_s(STAGED) == 20.0, "of a stage that nobody saw"


def test_a_slow_warm_up_reaches_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psd.runs.jobs.estimate.WARM_UP_S", 1.0)

    def runs(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        for event in staged_events(preset.steps, 10.0, 20.0, 5.0):
            yield event
            if control.stopping():
                return

    pace = measure_warm_up(runs, STAGED)
    assert pace is not None and pace == RunEstimate({0: 10.0, 1: 20.0}, {1: 5.0})


def test_only_what_costs_changes_the_shape() -> None:
    same = {"seed": 3, "prompt": "a blue cube", "steps": 9, "guidance_scale": 9.0, "rewards": {"assets/reward": 0.5}}
    assert workload_key(PRESET) == workload_key(PRESET.with_values(same))
    for name, value in {"render_size": 32, "method": "sds", "rewards": {"other": 1.0}, "mesh_resolution": 32}.items():
        assert workload_key(PRESET) != workload_key(PRESET.with_values({name: value})), name


def test_an_estimate_is_measured_once_and_never_beside_a_run(hire: Hire) -> None:  # noqa: F811
    gate, calls = Gate(), []

    def runs(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        calls.append(preset)
        return gate.run(preset, control, resume)

    worker = hire(runs)
    gate.open(100)
    pace = worker.estimate(PRESET)
    assert pace is not None and pace.step_s == {0: pytest.approx(0.5)} and len(calls) == 1
    assert worker.estimate(PRESET.with_values({"seed": 5, "steps": 77})) == pace and len(calls) == 1
    assert worker.library.list_runs() == [], "a warm-up writes nothing"
    other = PRESET.with_values({"render_size": 32})
    gate.permits = type(gate.permits)(0)
    run_id = worker.submit(other)
    wait_for(lambda: gate.waiting)
    assert worker.estimate(other.with_values({"render_size": 16})) is None and len(calls) == 2
    queued = worker.submit(PRESET)
    job = worker.snapshot_job(queued)
    assert job.ahead == 1 and job.wait_s is None and job.left_s == pytest.approx(pace.left_s(PRESET))
    gate.open(4)
    until(worker, run_id, 4)
    wait_for(lambda: worker.snapshot_job(queued).wait_s is not None)
    assert worker.snapshot_job(queued).wait_s == pytest.approx(2 * 0.5)
    gate.open(100)
    finish(worker, queued)
    assert worker.snapshot_job(queued).wait_s == 0 == worker.snapshot_job(queued).left_s


def test_a_warm_up_says_what_cannot_run() -> None:
    def fails(preset: Preset, *_: object) -> Iterator[Event]:
        yield Failed(step=0, message="out of memory", cure="lower render_size")

    with pytest.raises(PresetError, match="out of memory: lower render_size"):
        measure_warm_up(fails, PRESET)


def test_a_warm_up_without_a_pace_is_no_estimate() -> None:
    def ends(preset: Preset, *_: object) -> Iterator[Event]:
        yield Started(step=0, preset={}, total_steps=1, views=4, environment={})
        yield Finished(step=0, reason="stopped")

    with pytest.raises(PresetError, match="ended before its pace was known"):
        measure_warm_up(ends, PRESET)


def test_a_warm_up_says_in_words_what_it_met() -> None:
    def missing(*_: object) -> Iterator[Event]:
        raise OSError("no weights")

    with pytest.raises(PresetError, match="OSError: no weights: log.txt"):
        measure_warm_up(missing, PRESET)


def test_a_slow_warm_up_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psd.runs.jobs.estimate.WARM_UP_S", 1.0)  # a fake step takes half a second
    seen: list[Event] = []

    def runs(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        for event in fake_run(preset, control, resume):
            seen.append(event)
            yield event

    pace = measure_warm_up(runs, PRESET)
    assert pace is not None and pace.step_s == {0: 0.5} and steps(seen) == [1, 2, 3]


def test_an_estimate_loads_nothing_that_a_run_may_not(tmp_path: Path) -> None:
    def admit(preset: Preset) -> None:
        if preset.prior == "evil/weights":
            raise PresetError("no such model here")

    def runs(*_: object) -> Iterator[Event]:
        raise AssertionError("loaded")

    worker = Worker(runs, tmp_path, admit=admit)
    with pytest.raises(PresetError, match="no such model"):
        worker.estimate(PRESET.with_values({"prior": "evil/weights"}))
    assert worker.shutdown(PATIENCE_S)


def test_a_warm_up_makes_way_for_a_run(hire: Hire) -> None:  # noqa: F811
    gate = Gate()
    worker = hire(gate.run)
    found: list[RunEstimate | None] = []
    estimate = threading.Thread(target=lambda: found.append(worker.estimate(PRESET.with_values({"steps": 5000}))))
    estimate.start()
    wait_for(lambda: gate.waiting)
    run_id = worker.submit(PRESET)
    gate.open(1)
    estimate.join(PATIENCE_S)
    assert found == [None]
    gate.open(6)
    assert isinstance(finish(worker, run_id)[-1], Finished)


def test_shutdown_waits_for_the_end_of_a_warm_up(hire: Hire) -> None:  # noqa: F811
    """A thread that is still in torch when Python ends aborts the process: "terminate called ..."."""
    gate = Gate()
    worker = hire(gate.run)
    found: list[RunEstimate | None] = []
    estimate = threading.Thread(target=lambda: found.append(worker.estimate(PRESET.with_values({"steps": 5000}))))
    estimate.start()
    wait_for(lambda: gate.waiting)
    assert not worker.shutdown(0.2), "the warm-up still computes"
    gate.open(1)
    assert worker.shutdown(PATIENCE_S)
    estimate.join(PATIENCE_S)
    assert found == [None] and worker.estimate(PRESET) is None, "none begins any more"


def test_the_pace_is_measured_anew_after_a_pause() -> None:
    pacer = Pacer()  # as `Worker.resume` makes it: no Started comes
    for step in range(11, 20):
        pacer.add(Stepped(step=step, t=1, time_s=100.0 + 2.0 * step))
    assert pacer.run_estimate == RunEstimate({0: 2.0})


def test_memory_of_jobs_that_are_over_is_given_back(hire: Hire, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("psd.runs.jobs.worker.MOST_OVER", 2)
    worker = hire(fake_run)
    ids = [worker.submit(PRESET.with_values({"seed": seed})) for seed in range(4)]
    wait_for(
        lambda: (
            ids[-1] in [job.id for job in worker.list_jobs()]
            and read_status(worker.library.find_folder(ids[-1])).state == "finished"
        )
    )
    wait_for(lambda: [job.id for job in worker.list_jobs()] == ids[-2:])
    assert len(worker.library.list_runs()) == 4


def test_the_queue_has_an_end(hire: Hire, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("psd.runs.jobs.worker.MOST_QUEUED", 1)
    gate = Gate()
    worker = hire(gate.run)
    worker.submit(PRESET)
    wait_for(lambda: gate.waiting)
    worker.submit(PRESET)
    with pytest.raises(StoreError, match="waiting already"):
        worker.submit(PRESET)
    gate.open(100)
