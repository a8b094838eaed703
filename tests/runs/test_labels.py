"""What a person does with a run that is over: names it, deletes it, brings it back, shows how it grew."""

import os
from pathlib import Path

import numpy as np
import pytest

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.runs.store import retention
from psd.runs.store.archive import list_runs
from psd.runs.store.files import StoreError
from psd.runs.store.folder import RunFolder
from psd.runs.store.labels import LONGEST, Labels, read_labels
from psd.runs.store.library import Library
from psd.runs.store.media import LAPSE_FPS, LAPSE_FRAMES, LAPSE_SIZE, encode_views, join_previews
from psd.runs.store.ownership import NotYoursError, claim_run, new_owner

ALICE, BOB = new_owner(), new_owner()


@pytest.fixture
def run(tmp_path: Path) -> str:
    with RunFolder.create(Preset(prompt="a red mug"), tmp_path) as folder:
        claim_run(folder.path, ALICE)
        folder.set_state("finished")
    return folder.id


def test_a_run_has_a_name_and_a_tag_of_its_owner_s(run: str, tmp_path: Path) -> None:
    library = Library(tmp_path)
    assert list_runs(tmp_path)[0].labels == Labels()
    library.label_run(run, ALICE, name="  my   mug ")
    library.label_run(run, ALICE, tag="gift")
    assert list_runs(tmp_path)[0].labels == Labels("my mug", "gift")
    with pytest.raises(NotYoursError):
        library.label_run(run, BOB, name="mine")
    with pytest.raises(PresetError, match=f"name=.* must be at most {LONGEST} printable"):
        library.label_run(run, ALICE, name="x" * (LONGEST + 1))
    with pytest.raises(PresetError, match="printable"):
        library.label_run(run, ALICE, tag="a\0b")
    (tmp_path / run / "labels.json").write_text("{")
    assert read_labels(tmp_path / run) == Labels()


def test_a_deleted_run_comes_back_for_a_day(run: str, tmp_path: Path) -> None:
    library = Library(tmp_path)
    with pytest.raises(NotYoursError):
        library.bin_run(run, BOB)
    library.bin_run(run, ALICE)
    assert not list_runs(tmp_path)
    with pytest.raises(NotYoursError):
        library.restore_run(run, BOB)
    library.restore_run(run, ALICE)
    assert [entry.id for entry in list_runs(tmp_path)] == [run]
    library.bin_run(run, ALICE)
    binned = tmp_path / (retention.BINNED + run)
    library.make_room()
    assert binned.is_dir()
    os.utime(binned, (0, 0))
    library.make_room()
    assert not binned.exists()
    with pytest.raises(StoreError, match="gone for good"):
        library.restore_run(run, ALICE)
    for name in ("../x", "", "20200101-000000_a_s0_00000000"):
        with pytest.raises(StoreError):
            library.restore_run(name, ALICE)


def test_a_run_that_goes_on_is_not_deleted(tmp_path: Path) -> None:
    with RunFolder.create(Preset(prompt="a red mug"), tmp_path) as folder, pytest.raises(StoreError, match="going"):
        Library(tmp_path).bin_run(folder.id)


def test_the_timelapse_is_the_front_of_each_preview_and_stays_at_the_end(tmp_path: Path) -> None:
    files = []
    for step in range(100):
        views = np.full((4, 16, 16, 3), 2 * step, np.uint8)
        views[1:] = 255
        files.append(tmp_path / f"{step:06d}.jpg")
        files[-1].write_bytes(encode_views(views, lossless=False))
    frames = join_previews(files)
    assert frames is not None and frames.shape == (LAPSE_FRAMES + LAPSE_FPS, LAPSE_SIZE, LAPSE_SIZE, 3)
    means = frames[:, :300, :300].mean((1, 2, 3))
    assert np.all(np.diff(means[:LAPSE_FRAMES]) > 0) and means[0] < 5 and abs(means[-1] - 198) < 5
    files[3].write_bytes(b"no picture")
    assert join_previews(files[3:5]) is None and join_previews([]) is None
