"""From a run to its line: what `record_run` keeps of runs that break off, and how such runs are measured."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psd.config.preset import Preset
from psd.distillation.events import Event, Failed, Finished, Previewed, Stepped, Warned
from psd.embedded.captions import grammar
from psd.evaluation.experiments.measure import PREVIEWED, measure_with_truth, measure_without_truth
from psd.evaluation.experiments.record import RecordedRun, record_run
from psd.evaluation.experiments.suite import PlannedRun, read_caption_list
from psd.evaluation.metrics.ground_truth import JUDGED, true_views
from psd.evaluation.shipped import scenes
from psd.evaluation.shipped.scenes import measure_caption
from psd.runs import engine

JUDGE, CAPTION = "assets/evidence", grammar.parse("a red crate")
PRESET = Preset.load("tiny", {"prompt": CAPTION.text, "judges": [], "threads": 1, "preview_size": 64})
OTHERS = [grammar.parse("a blue cone"), grammar.parse("a burger")]
BROKEN = "step 3, t = 500: score is not finite"


@dataclass
class NoModels:
    priors: dict = field(default_factory=dict)
    rewards: dict = field(default_factory=dict)


def looked(step: int, value: int = 200) -> Previewed:
    rgb = np.full((4, 64, 64, 3), 255, np.uint8)
    opacity = np.zeros_like(rgb)
    rgb[:, 20:44, 20:44], opacity[:, 20:44, 20:44] = (value, 30, 30), 255
    return Previewed(step=step, images={"rgb": rgb, "opacity": opacity})


def made_of(monkeypatch: pytest.MonkeyPatch, *events: Event) -> RecordedRun:
    def prepare_events(preset: Preset, load: Callable[[Preset], Any]) -> Callable[..., Iterator[Event]]:
        load(preset)
        return lambda *_: iter(events)

    monkeypatch.setattr(engine, "prepare_events", prepare_events)
    monkeypatch.setattr(engine, "load_models", lambda preset: NoModels())
    return record_run(PRESET)


def test_a_run_that_breaks_off_is_kept_with_its_message_and_can_be_read_again(monkeypatch, tmp_path: Path) -> None:
    first = Stepped(step=1, t=5, metrics={"pair/ratio": 0.5, "pair/half_agrees": 1.0, "pair/win_first": 0.0})
    second = Stepped(step=2, t=5, metrics={"pair/ratio": 0.25})
    made = made_of(monkeypatch, looked(0), first, looked(2), second, Failed(step=2, message=BROKEN))
    assert made.mesh is None and made.facts["failed"] == BROKEN and made.facts["steps"] == 2
    assert {"calls", "seconds"} <= set(made.facts)
    assert made.facts["pair_ratio"] == 0.375 and made.facts["pair_half_agrees"] == 1.0  # means of what was measured
    assert made.facts["pair_win_first"] == 0.0
    made.save(tmp_path / "made.npz")
    again = RecordedRun.load(tmp_path / "made.npz")
    assert again.facts == made.facts and again.arrays["steps"].tolist() == [0, 2]
    assert again.arrays["previews"].shape == (2, 4, 64, 64, 3)


@pytest.mark.usefixtures("collection")
def test_a_run_without_mesh_or_preview_has_a_whole_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many keys as one with previews; JSON takes it."""
    unseen = made_of(monkeypatch, Failed(step=0, message=BROKEN))
    end = (Warned(step=3, message="There is no mesh"), Finished(step=3, reason="completed"))
    seen = made_of(monkeypatch, looked(0), looked(3), *end)
    lines = [measure_with_truth(made, PRESET, OTHERS, [JUDGE]) for made in (unseen, seen)]
    assert set(lines[0]) == set(lines[1])
    for line in lines:
        json.dumps(line, allow_nan=False)
        assert line["iou"] == 0 and 0 < line["colour_psnr"] < 20 and line["reward"] < 0
        assert line["evidence/score"] < 0 and line["evidence/named"] == 0 and line["evidence/truth_named"] in (0, 1)
        assert (line["watertight"], line["faces"], line["components"]) == (False, 0, 0)
        assert line["depth_error"] is line["normal_error_deg"] is line["texture"] is None and "failed" in line
    assert lines[0]["curve"] == [] and {lines[0][name] for name in PREVIEWED} == {None}
    assert [len(row) for row in lines[1]["curve"]] == [3, 3]
    assert lines[1]["fog"] == 1 and lines[1]["floaters"] == 0 and lines[1]["image/saturation_over_truth"] > 0
    found = measure_without_truth(unseen, PRESET, [JUDGE])
    assert found["reward"] is found["evidence/score"] is found["inconsistency"] is None and found["curve"] == []
    assert found["watertight"] is False and set(found) <= set(measure_without_truth(seen, PRESET, [JUDGE]))


@pytest.mark.usefixtures("collection")
def test_the_truths_own_pictures_have_a_flat_curve_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Previews of the truth, no mesh: what is said of the field is ideal."""
    views = true_views(CAPTION)
    rgb, opacity = ((x * 255).round().byte().numpy() for x in (views.rgb[0, JUDGED], views.mask[0, JUDGED]))
    images = {"rgb": rgb.transpose(0, 2, 3, 1), "opacity": np.repeat(opacity[..., None], 3, 3)}
    made = made_of(monkeypatch, Previewed(step=0, images=images), Failed(step=0, message=BROKEN))
    line = measure_with_truth(made, PRESET, OTHERS, [JUDGE])
    assert line["curve"][0] == pytest.approx([0, 0, 0], abs=0.2)
    assert line["floaters"] == 0 and line["inconsistency"] == pytest.approx(1, abs=0.01)
    over = [line[name] for name in PREVIEWED if name.endswith("over_truth")]
    assert over == pytest.approx([1] * 4, abs=0.02)


@pytest.mark.usefixtures("collection")
def test_scenes_counts_a_run_that_broke_off_as_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "record_run", lambda preset: made_of(monkeypatch, Failed(step=1, message=BROKEN)))
    others = read_caption_list("tuning")["a yellow fridge"]
    job = PlannedRun("scenes", "default", "steps", Preset.load("tiny", {"prompt": "a yellow fridge"}), (JUDGE,))
    line, pictures = measure_caption((job, others[:3]))
    assert line["evidence/named"] == 0 and line["iou"] == 0 and (pictures == 255).all() and len(pictures) == 8
