"""Figures and cards of the models that ship: what `evaluate` counts and prints, what `ship` leaves behind."""

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from psd.config.errors import MissingError
from psd.embedded.captions.grammar import Caption, parse
from psd.embedded.objects.collection import VARIABLE, find_collection
from psd.evaluation.experiments.record import RecordedRun
from psd.evaluation.experiments.suite import SUITES, Suite, expand_jobs
from psd.evaluation.metrics import outside
from psd.evaluation.metrics.outside import CLASSES, read_classes, true_pictures
from psd.evaluation.shipped import figures, model_cards, models, samples, scenes
from psd.evaluation.shipped.critics import MILDEST, evaluate_critics
from psd.evaluation.shipped.samples import evaluate_prior
from psd.evaluation.shipped.scenes import measure_outside


class Believer:
    """An outside judge that takes whatever is no white picture for each noun of a list."""

    def __init__(self, *nouns: str) -> None:
        self.classes = [read_classes()[noun][0] for noun in nouns]

    def rate_classes(self, images: torch.Tensor) -> torch.Tensor:
        rated = torch.zeros(len(images), CLASSES)
        rated[:, :10] = torch.linspace(0.1, 0.2, 10)  # what comes first where nothing is seen
        for row, seen in enumerate(images.amin((1, 2, 3, 4)) < 0.9):
            rated[row, self.classes] = float(seen)
        return rated


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    models.add_arguments(parser)
    return parser.parse_args(words)


# ------------------------------------------------------------------------------------------------------------- figures


def test_a_figure_is_met_or_missed_at_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    figures.print_figure("named", 0.8, at_least=0.8)
    figures.print_figure("named", 0.79, at_least=0.8)
    figures.print_figure("error", 1.51, at_most=1.5)
    figures.print_figure("told", 0.5)
    ends = [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert ends == ["met", "MISSED", "MISSED", "0.500"]
    assert math.isnan(figures.mean_or_nan([])) and figures.finite_mean([1.0, math.nan, 2.0]) == 1.5


def test_a_caption_is_offered_where_all_of_its_kinds_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "list_known", lambda: ("fox", "frog"))
    offered = {text: figures.is_offered(parse(text)) for text in ("a fox", "a cow", "a frog on top of a red crate")}
    assert offered == {"a fox": True, "a cow": False, "a frog on top of a red crate": False}
    assert figures.is_offered(Caption("fox", None, "next to", "frog"))


def test_evaluate_measures_by_the_objects_of_the_folder_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def look(arguments: argparse.Namespace) -> dict:
        seen.append(find_collection())
        return {}

    (tmp_path / "meshes").mkdir()
    monkeypatch.setenv(VARIABLE, "nowhere")
    monkeypatch.setattr(models, "PARTS", {"critics": look})
    assert models.main(asked("critics", "--limit", "1", "--objects", str(tmp_path))) == 0 and seen == [tmp_path]
    with pytest.raises(MissingError, match="has no folder `meshes`"):
        models.main(asked("--objects", str(tmp_path / "meshes")))


@pytest.mark.parametrize("words", ["--limit 3", "--list tuning", "--tag x", "--guidance-scale 2", "--preset sd15"])
def test_only_the_figures_of_all_captions_are_kept(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "record_file", lambda name: tmp_path / "results" / f"{name}.json")
    monkeypatch.setattr(models, "PARTS", {"critics": lambda arguments: {"kept": 1}})
    assert models.main(asked(*words.split())) == 0 and not (tmp_path / "results").exists()
    assert models.main(asked()) == 0
    assert json.loads((tmp_path / "results" / "critics.json").read_text()) == {"seconds": 0, "kept": 1}


@pytest.mark.usefixtures("collection")
def test_critics_are_asked_about_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """Of two captions: primitives, whose colour and part can be wrong.  Figures are shares."""
    found = evaluate_critics(asked("critics", "--critic", "reward", "--limit", "2"))
    assert found["captions"] == 2 and {f"pair_{kind}" for kind in MILDEST} <= set(found["reward"])
    assert all(0 <= value <= 1 for value in found["reward"].values())
    told = capsys.readouterr().out
    assert all(f"reward: {kind} at {strength}" in told for kind, strength in MILDEST.items())


@pytest.mark.usefixtures("collection")
def test_the_prior_is_asked_beside_the_truth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One caption, drawn by the prior that ships; `is_default` decides whether the sheet is drawn anew."""
    monkeypatch.setattr(samples, "read_captions", lambda name, limit: [(parse("a cow"), [parse("a fox")])])
    monkeypatch.setattr(samples, "is_offered", lambda caption: True)
    monkeypatch.setattr(samples, "COMPARED_SAMPLES", 1)
    monkeypatch.setattr(samples, "open_judge", lambda: Believer("cow"))
    monkeypatch.setattr(samples, "list_asked", lambda name: [parse("a cow")])
    monkeypatch.setattr(samples, "draw_sample_sheet", None)
    arguments = asked("prior", "--limit", "1")
    arguments.is_default = False
    found = evaluate_prior(arguments)
    assert found["counts"] == {
        "sample": 1, "ground truth": 1, "autoencoded truth": 1, "thing": 1, "known kinds": 1, "confirm": 1,
        "outside, sample": 1, "outside, ground truth": 1,
    }  # fmt: skip
    assert found["outside_among_five"] == {"sample": 1.0, "ground truth": 1.0}
    assert set(found["top1_of_60"]) == set(found["counts"]) - {"outside, sample", "outside, ground truth"}
    assert found["consistency"]["ratio"] > 0 and "known kinds (1 captions)" in capsys.readouterr().out


@pytest.mark.usefixtures("collection")
def test_meshes_are_set_against_the_truth_seen_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two a mesh like the truth and none at all; a pair and a noun without a class are not asked about."""
    for text in ("a fox", "a cow"):
        pictures = (true_pictures(parse(text)).movedim(1, -1).numpy() * 255).round().astype(np.uint8)
        strip = np.concatenate(list(pictures if text == "a fox" else np.full_like(pictures, 255)), axis=1)
        Image.fromarray(strip).save(tmp_path / f"{text}.png")
    judge: Any = Believer("fox", "cow")
    monkeypatch.setattr(scenes, "open_judge", lambda: judge)
    found = measure_outside(["a fox", "a cow", "a red cube next to a blue cone", "a gingerbread man"], tmp_path)
    assert found == {"mesh": 0.5, "ground truth": 1.0, "ratio": 0.5, "captions": 2}
    assert "bar >= 0.65: MISSED" in capsys.readouterr().out
    monkeypatch.setattr(scenes, "open_judge", lambda: None)
    assert measure_outside(["a fox"], tmp_path) == {}


def test_the_outside_judge_is_asked_about_the_meshes_of_a_suite_that_are_here(
    collection: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of captions that have a class, beside the truth in the same views; what is not here does not count."""
    suite = Suite.load(SUITES / "pipelines.yaml")
    monkeypatch.setattr(outside, "made_file", lambda job: tmp_path / f"{job.line_hash}.npz")
    jobs = {job.preset.prompt: job for job in expand_jobs(suite, []) if job.method == "steered_n"}
    white = np.full((8, 96, 96, 3), 255, np.uint8)
    true = (true_pictures(parse("a flower")).movedim(1, -1).numpy() * 255).round().astype(np.uint8)
    for prompt, pictures in {"a flower": true, "a mushroom": white, "a yellow sphere": true}.items():
        RecordedRun({"pictures": pictures}, {}).save(tmp_path / f"{jobs[prompt].line_hash}.npz")
    outside.ask_of_suite(Believer("flower", "mushroom"), suite)  # pyright: ignore[reportArgumentType]
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()}
    assert lines["steered_n"] == "2 meshes: among five 1, the truth 2"
    assert lines["sds_2"] == "0 meshes: among five 0, the truth 0" and len(lines) == len(suite.methods)


def test_what_the_outside_judge_would_say_is_left_out_aloud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise MissingError("the outside judge needs a package")

    monkeypatch.setattr(outside, "OutsideJudge", refuse)
    assert outside.open_judge() is None
    assert "is left out: the outside judge needs a package" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------------- cards


def test_what_ships_names_no_place_of_the_machine_that_trained_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither do the parts of a model; other settings stay, and a configuration without the key keeps its bytes."""
    shipped = tmp_path / "work" / "prior" / "shipped"
    (shipped / "vae").mkdir(parents=True)
    (shipped / "training.json").write_text('{"model": "prior", "iterations": 7}')
    (shipped / "vae" / "config.json").write_text('{"_name_or_path": "/somewhere/else", "channels": 8}')
    (shipped / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    (shipped / "config.json").write_text('{"kept":1}')
    monkeypatch.setattr(model_cards, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    arguments = argparse.Namespace(models=["prior"], work=str(tmp_path / "work"), cards_only=False)
    assert model_cards.main(arguments) == 0
    target = tmp_path / "assets" / "prior"
    assert json.loads((target / "vae" / "config.json").read_text()) == {"channels": 8}
    assert (target / "config.json").read_text() == '{"kept":1}'
    card = (target / "README.md").read_text()
    assert f"{hashlib.sha256(b'weights').hexdigest()}  vae/diffusion_pytorch_model.safetensors" in card
    assert "Kenney and Quaternius" in card and "CC0 1.0" in card and "Measured" not in card


def test_a_card_holds_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    (tmp_path / "training.json").write_text('{"model": "prior", "iterations": 7}')
    record: dict[str, Any] = {"top1_of_60": {"sample": 0.9, "known kinds": 0.95}}
    record |= {"outside_among_five": {"sample": 0.4}, "consistency": {"ratio": 1.25, "autoencoded_ratio": 1.125}}
    (tmp_path / "embedded-prior.json").write_text(json.dumps(record))
    critics = {"selector": {"hard_text": 0.98, "pair_fog": 0.97}}
    (tmp_path / "embedded-critics.json").write_text(json.dumps(critics))
    card = model_cards.card_text("prior", tmp_path)
    for line in ("top-1 of 60, known kinds: 0.950", "outside judge, among five, sample: 0.400", "truth's: 1.25"):
        assert line in card
    assert "## Autoencoder" not in card
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "training.json").write_text('{"model": "vae", "iterations": 9, "measured": "31 dB"}')
    part = model_cards.card_text("prior", tmp_path).partition("## Autoencoder")[2].partition("## Weights")[0]
    assert "- iterations: 9\n- measured: 31 dB\n" in part and "model: vae" not in part
    card = model_cards.card_text("selector", tmp_path)
    assert "- hard text: 0.980" in card and "pair fog at strength 0.3: 0.970" in card
    assert "Measured" not in model_cards.card_text("referee", tmp_path)
