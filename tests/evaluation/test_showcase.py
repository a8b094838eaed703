"""The runs that ship: which are made, how they are made small, and what lies in assets."""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Previewed, Stepped
from psd.distillation.interfaces import Control
from psd.embedded.captions import grammar
from psd.embedded.captions.unknown import UnknownCaption
from psd.evaluation.shipped import showcase
from psd.geometry.read import read_mesh
from psd.runs.store.archive import list_runs, preview_file, read_preset, read_status, replay_events
from psd.runs.store.films import STRIP, STRIP_SIZE, STRIP_VIEWS
from psd.runs.store.library import SHOWCASE
from psd.runs.store.media import decode_views
from psd.runs.store.ownership import claim_run
from psd.runs.store.retention import size_bytes
from tests.support.browsing import LOWER, UPPER, scripted, store_run
from tests.support.shelf import PROMPT, STEPS

SECRET = "a secret of sixteen letters at least"
FEWEST = 12  # runs that ship, once some do


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with one finished run, which somebody owns."""
    work = tmp_path_factory.mktemp("work")
    run = store_run(work, Preset.load("tiny", {"prompt": PROMPT, "steps": STEPS}))
    claim_run(work / run, SECRET)
    (work / run / "log.txt").write_text(f"a warning that names {work}\n")
    return work


@pytest.fixture(scope="module")
def slim(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (run,) = list_runs(work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(showcase, "MOST_FACES", 400)
        patch.setattr(showcase, "MOST_PREVIEWS", 3)
        return showcase.slim_run(run.folder, tmp_path_factory.mktemp("shipped"))


def test_the_prompts_are_captions_of_the_world() -> None:
    captions = [grammar.parse(text) for text in showcase.PROMPTS]
    assert [caption.text for caption in captions] == list(showcase.PROMPTS)
    assert list(showcase.PROMPTS) == sorted(set(showcase.PROMPTS)), "in the order of the sheet, each once"
    groups = Counter(caption.group for caption in captions)
    assert groups["pair"] == 1 and sum(caption.colour is not None for caption in captions) >= 5


def test_a_plain_call_makes_the_sheet_that_ships() -> None:
    """As many runs as the picture has places, seed 0 of each, and the shelf's runs are among them."""
    parser = argparse.ArgumentParser()
    showcase.add_arguments(parser)
    wanted = showcase.plan_runs(showcase.PROMPTS, parser.parse_args([]).seeds, {})
    with Image.open(showcase.SHEET) as sheet:
        columns, rows = sheet.width // showcase.TILE, sheet.height // (showcase.TILE + showcase.LABEL)
    assert len(wanted) == columns * rows == 36
    made = {(run.status.prompt, run.status.seed) for run in list_runs(SHOWCASE)}
    assert made <= {(preset.prompt, preset.seed) for preset in wanted}


def test_prompts_come_from_words_and_files(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a horse\n\n  a cactus\n")
    assert showcase.read_prompts(["a taxi", str(tmp_path / "list.txt")]) == ["a taxi", "a horse", "a cactus"]
    planned = showcase.plan_runs(["TAXI!"], 2, {"steps": 7})
    assert [(preset.prompt, preset.seed, preset.steps) for preset in planned] == [("a taxi", 0, 7), ("a taxi", 1, 7)]
    with pytest.raises(UnknownCaption):
        showcase.plan_runs(["qwertz"], 1, {})


def test_a_finished_run_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make_events(preset: Preset, control: Control, resume: object) -> Iterator[Event]:
        made.append(preset.seed)
        yield from scripted(preset, control, resume)

    monkeypatch.setattr(showcase, "prepare_events", lambda preset: make_events)
    monkeypatch.setattr("psd.runs.store.folder.film_run", lambda *_: "")
    wanted = showcase.plan_runs(["a taxi"], 2, {"steps": 1})
    assert showcase.make_runs(wanted[:1], tmp_path) == 0
    assert showcase.make_runs(wanted, tmp_path) == 0
    assert made == [0, 1]
    assert [showcase.name_run(run) for run in showcase.find_made(tmp_path)] == ["a-taxi_s0", "a-taxi_s1"]


def test_a_slim_run_holds_what_opens_it_and_no_more(slim: Path) -> None:
    files = {path.relative_to(slim).as_posix() for path in slim.rglob("*") if path.is_file()}
    pictures = {name for name in files if name.startswith("public/previews/")}
    assert files - pictures == {
        "preset.yaml", "preset.resolved.yaml", "environment.json", "status.json", "events.jsonl",
        "public/exports/mesh.glb", "public/exports/turntable.mp4", STRIP,
    }  # fmt: skip
    assert pictures == {preview_file(step, "rgb") for step in (1, 3, 6)}
    status = read_status(slim)
    assert (status.state, status.step, status.prompt, status.pid) == ("finished", STEPS, PROMPT, 0)
    assert (slim / status.preview).is_file() and read_preset(slim).prompt == PROMPT


def test_a_slim_run_tells_its_story(work: Path, slim: Path) -> None:
    (whole,) = list_runs(work)
    before = list(replay_events(whole.folder, images=False))
    after = list(replay_events(slim))
    steps = [event for event in after if isinstance(event, Stepped)]
    assert [event.step for event in steps] == list(range(1, STEPS + 1))
    for event, old in zip(steps, (event for event in before if isinstance(event, Stepped)), strict=True):
        assert event.metrics == pytest.approx(old.metrics, rel=1e-3)
    assert not [event for event in after if isinstance(event, Checkpointed)]
    assert all(event.images["rgb"].shape[0] == 4 for event in after if isinstance(event, Previewed))
    assert {type(event) for event in after} == {type(event) for event in before}


def test_the_lighter_mesh_has_the_colours_of_the_whole(work: Path, slim: Path) -> None:
    (whole,) = list_runs(work)
    heavy, light = read_mesh(showcase.mesh_file(whole)), read_mesh(slim / "public/exports/mesh.glb")
    assert len(light.faces) <= 400 < len(heavy.faces)
    high = np.abs(light.vertices[:, 2]) > 0.1
    expected = np.where(light.vertices[:, 2:] > 0, UPPER, LOWER)
    assert np.abs(light.colours.astype(int) - expected)[high].max() <= 1


def test_the_strip_is_one_turn(slim: Path) -> None:
    with Image.open(slim / STRIP) as strip:
        assert strip.size == (STRIP_VIEWS * STRIP_SIZE, STRIP_SIZE)


def test_the_best_preview_is_kept() -> None:
    told = [Previewed(step=step, images={}) for step in range(0, 105, 5)]
    chosen = showcase.choose_previews(told, best_step=85)
    assert {0, 85, 100} <= chosen and len(chosen) <= showcase.MOST_PREVIEWS + 1
    assert showcase.choose_previews([], best_step=0) == set()


def test_runs_ship_by_name_and_only_if_small(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slim_to_a_file(folder: Path, root: Path) -> Path:
        (root / folder.name).mkdir(parents=True)
        (root / folder.name / "events.jsonl").write_bytes(b"1" * 1000)
        return root / folder.name

    monkeypatch.setattr(showcase, "slim_run", slim_to_a_file)
    shelf, name = tmp_path / "showcase", f"{PROMPT.replace(' ', '-')}_s0"
    (shelf / "earlier").mkdir(parents=True)
    with pytest.raises(PresetError, match=f"no finished run 'a-taxi_s0'.*{name}"):
        showcase.ship_runs(["a-taxi_s0"], work, shelf)
    monkeypatch.setattr(showcase, "LARGEST", 999)
    with pytest.raises(PresetError, match="leave some out"):
        showcase.ship_runs([name], work, shelf)
    assert [path.name for path in shelf.iterdir()] == ["earlier"]
    monkeypatch.setattr(showcase, "LARGEST", 1000)
    assert showcase.ship_runs([name], work, shelf) == 1000
    assert [path.name for path in shelf.iterdir()] == [list_runs(work)[0].id], "earlier runs go"


def test_a_judge_gives_a_place_among_sixty(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def score(judge: object, images: torch.Tensor, captions: list[grammar.Caption]) -> torch.Tensor:
        asked.append(len(captions))
        return torch.tensor([2.0, 3.0, 2.5, *[1.0] * (len(captions) - 3)])

    monkeypatch.setattr(showcase, "score_captions", score)
    (run,) = list_runs(work)
    nobody: Any = None  # what it would be asked is patched above
    place = showcase.judge_place(nobody, read_mesh(showcase.mesh_file(run)), grammar.parse("a taxi"))
    assert place == 3 and asked == [60]


def test_the_sheet_has_a_place_for_each_run(tmp_path: Path) -> None:
    grey = np.full((showcase.TILE, showcase.TILE, 3), 90, np.uint8)
    showcase.draw_sheet([(grey, "a-taxi_s0", "selector 1")] * (showcase.COLUMNS + 1), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (2 * (showcase.TILE + showcase.LABEL), showcase.COLUMNS * showcase.TILE, 3)
    below = pixels[showcase.TILE + showcase.LABEL :]
    assert (below[: showcase.TILE, : showcase.TILE] == 90).all() and (below[:, showcase.TILE :] == 255).all()
    assert pixels[showcase.TILE : showcase.TILE + showcase.LABEL, : showcase.TILE].min() < 90, "words stand below"


def find_telltales(folder: Path, secrets: list[bytes]) -> list[str]:
    """Files that hold one of ``secrets``, and those that no run that ships may have."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    private = [path.name for path in files if path.name in ("owner", "lock", "log.txt")]
    return private + [path.name for path in files for secret in secrets if secret in path.read_bytes()]


def test_a_slim_run_names_no_machine_and_no_owner(work: Path, slim: Path) -> None:
    (whole,) = list_runs(work)
    secrets = [str(work).encode(), SECRET.encode(), str(Path.home()).encode()]
    assert find_telltales(whole.folder, secrets), "the whole run has what must not ship"
    assert not find_telltales(slim, secrets)


def test_the_runs_in_assets_are_small_whole_and_nobodys() -> None:
    runs = list_runs(SHOWCASE)
    assert len(runs) >= FEWEST and size_bytes(SHOWCASE) <= showcase.LARGEST
    paths = [b"/" + name + b"/" for name in (b"work", b"root", b"home", b"tmp", b"Users")]
    assert not find_telltales(SHOWCASE, paths)
    assert len({run.status.prompt for run in runs}) >= FEWEST, "each shows something else"
    for run in runs:
        assert run.status.state == "finished" and run.status.run == run.id, run.id
        assert grammar.parse(read_preset(run.folder).prompt).text == run.status.prompt, run.id
        told = list(replay_events(run.folder))
        previews = [event for event in told if isinstance(event, Previewed)]
        assert len(previews) >= 8 and all(event.images for event in previews), run.id
        assert len(read_mesh(showcase.mesh_file(run)).faces) <= showcase.MOST_FACES, run.id
        with Image.open(run.folder / STRIP) as strip:
            assert strip.size == (STRIP_VIEWS * STRIP_SIZE, STRIP_SIZE), run.id
        assert run.last_view is not None and len(decode_views(run.last_view)) == 4, run.id
