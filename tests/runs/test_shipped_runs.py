"""Runs that ship with the program: open to everybody, nobody's to change, and no part of any limit."""

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from psd.config.preset import Preset
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.worker import Limits, Worker
from psd.runs.store import ownership
from psd.runs.store.files import StoreError
from psd.runs.store.folder import RunFolder
from psd.runs.store.library import ShippedError
from tests.runs.test_worker import PATIENCE_S, finish, wait_for
from tests.support.fake_run import fake_run

PRESET = Preset(prompt="a red mushroom", steps=4)
ALICE = "a" * 32


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A folder of two runs that ship."""
    (tmp_path / "shipped").mkdir()
    for hour, prompt in enumerate(("a burger", "a taxi"), start=10):
        preset = PRESET.with_values({"prompt": prompt})
        with RunFolder.create(preset, tmp_path / "made") as folder:
            for event in fake_run(preset, Controls(preset)):
                folder.write(event)
        shipped = folder.path.rename(tmp_path / "shipped" / f"20260101-{hour}0000{folder.id[15:]}")
        status = json.loads((shipped / "status.json").read_text())
        (shipped / "status.json").write_text(json.dumps(status | {"run": shipped.name}))
    return tmp_path / "shipped"


@pytest.fixture
def worker(tmp_path: Path, shipped: Path) -> Iterator[Worker]:
    worker = Worker(fake_run, tmp_path / "runs", limits=Limits(runs=1), shipped=shipped)
    yield worker
    assert worker.shutdown(PATIENCE_S)


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_everybody_may_look_at_a_run_that_ships(worker: Worker, shipped: Path) -> None:
    library = worker.library
    burger, taxi = library.list_shipped()
    assert (burger.status.prompt, taxi.status.prompt) == ("a burger", "a taxi"), "oldest first"
    assert library.find_folder(taxi.id) == shipped / taxi.id and library.is_shipped(taxi.id)
    assert library.read_status(taxi.id).state == "finished"
    assert library.list_runs() == [], "it is none of the runs that were made here"
    with zipfile.ZipFile(library.zip_run(taxi.id)) as archive:
        assert f"{taxi.id}/events.jsonl" in archive.namelist()


CHANGES: dict[str, Callable[[Worker, str, str], object]] = {
    "extend": lambda worker, run, owner: worker.extend(run, 3, owner),
    "delete": lambda worker, run, owner: worker.library.delete_run(run, owner),
    "bin": lambda worker, run, owner: worker.library.bin_run(run, owner),
    "pin": lambda worker, run, owner: worker.library.pin_run(run, True, owner),
    "name": lambda worker, run, owner: worker.library.label_run(run, owner, name="mine"),
    "tag": lambda worker, run, owner: worker.library.label_run(run, owner, tag="mine"),
}


@pytest.mark.parametrize("owner", ["", ALICE])
def test_nobody_changes_a_run_that_ships(worker: Worker, shipped: Path, owner: str) -> None:
    run_id = worker.library.list_shipped()[0].id
    ownership.claim_run(shipped / run_id, owner)  # not even who holds its secret
    before = snapshot(shipped)
    assert not worker.library.is_steerable_by(run_id, owner)
    for name, change in CHANGES.items():
        with pytest.raises(ShippedError, match="ships with this program: make your own"):
            change(worker, run_id, owner)
        assert snapshot(shipped) == before, name


def test_runs_that_ship_count_for_no_limit_and_stay(worker: Worker, shipped: Path) -> None:
    before = snapshot(shipped)
    for seed in (1, 2):  # one is kept
        finish(worker, worker.submit(PRESET.with_values({"seed": seed})))
    wait_for(lambda: [run.status.seed for run in worker.library.list_runs()] == [2])
    assert snapshot(shipped) == before


@pytest.mark.parametrize("name", ["", ".", "..", "../shipped", "/", "a taxi"])
def test_no_other_folder_passes_for_a_run_that_ships(worker: Worker, name: str) -> None:
    assert not worker.library.is_shipped(name)
    with pytest.raises(StoreError, match="no run"):
        worker.library.find_folder(name)


def test_without_the_folder_nothing_ships(tmp_path: Path) -> None:
    worker = Worker(fake_run, tmp_path / "runs", shipped=tmp_path / "nowhere")
    assert worker.library.list_shipped() == []
    assert worker.shutdown(PATIENCE_S)
