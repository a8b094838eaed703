"""Rehearse the settings of `mvdream` with the embedded models: do they make the named object at all?

    python -m tests.support.rehearse [--scene grid] [--captions 12] [--arms sds psd] [--steps 100] [--work FOLDER]

The preset is `mvdream` as it ships: guidance 50, rescale 0.5, its noise schedule, steered pair, gate.  What differs
is the scale: the embedded prior, the cameras that it was trained on, the embedded reward, 100 steps, one orbit.  The
prior is a copy without its latent clamp, which no large one has.  ``--scene hash`` keeps its scene too, at 32 px and
then 64 with 32 samples a ray, and at five times its rates: with its own, made for 10,000 steps, the hash grid stands
still for the first 25 of 100 even where it is shown its target.  Six minutes a run on one core; ``--scene grid`` has
the scene of `tiny`, at 64 px: a minute.  Three runs a caption of the tuning list: sds, psd, and "psd asked at 50", the
steered pair as it was before, which asked the reward's gradient at the guided prediction itself, at every noise level.
A run's line is kept, so an interrupted rehearsal goes on.  The last output is the table of docs/large-models.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch

from psd.config.preset import Preset
from psd.distillation.methods import base_term
from psd.embedded.captions import grammar, lists
from psd.evaluation.experiments.measure import measure_with_truth
from psd.evaluation.experiments.record import record_run
from psd.evaluation.report.statistics import bootstrap_mean
from psd.models.hub import ROOT

JUDGE = "assets/selector"  # as in all that is tuned: the evidence judge sees nothing of it
TINY = Preset.load("tiny")
SCALE = {
    "rewards": {"assets/reward": 1.0}, "judges": [], "reward_decoder": "", "compile": "none", "precision": "float32",
    "negative_prompt": "low quality blurry", "device": "cpu", "threads": 1, "preview_every": 10_000,
    "mesh_resolution": 64,
    **{name: getattr(TINY, name) for name in ("elevation_deg", "fovy_deg", "distance_factor")},  # the prior's own
}  # fmt: skip
HASH_STAGES = [{"share": 0.85, "groups": 1, "render_size": 32}, {"share": 0.15, "groups": 1, "render_size": 64}]
SCENES: dict[str, dict[str, Any]] = {
    "grid": {
        "scene": TINY.scene.model_dump(), "stages": [], "groups": 1, "render_size": 64,
        "lr_final": TINY.lr_final, "weight_decay": 0.0,
    },
    "hash": {"scene.ray_samples": 32, "scene.density_lr": 0.05, "scene.colour_lr": 0.05, "stages": HASH_STAGES},
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "sds": {"method": "sds"},
    "psd asked at 50": {"preference_t_max": 1.0, "reward_views": 0},
    "psd": {},
}
MEASURES = ("iou", "colour_psnr", "named", "raw")


def copy_without_clamp(folder: Path) -> Path:
    """The embedded prior, whose latents nothing bounds, in ``folder``."""
    shutil.copytree(ROOT / "assets/prior", folder, dirs_exist_ok=True)
    (folder / "README.md").unlink()  # it states the digest of the index that changes here
    index = json.loads((folder / "model_index.json").read_text())
    index.pop("latent_clamp", None)
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return folder


@contextmanager
def asked_at_the_guided_prediction() -> Iterator[None]:
    """The steered pair as it was before it asked at a prediction that a reward can read."""

    def ask(step: Any, found: Any) -> tuple[torch.Tensor, Any]:
        x0_pred = step.clean(found.z_t, found.guided_noise_pred(step.preset.guidance_scale))
        x0_pred_c = step.clean(found.z_t, found.noise_pred_c)
        return x0_pred, base_term.scalar((x0_pred.std((-4, -3, -2, -1)) / x0_pred_c.std((-4, -3, -2, -1))).mean())

    with patch("psd.distillation.methods.preference.steering_prediction", ask):
        yield


def rehearse_caption(arm: str, text: str, others: list[str], prior: Path, steps: int, scene: str) -> dict[str, Any]:
    given = {**SCALE, **SCENES[scene], **ARMS[arm]}
    preset = Preset.load("mvdream", {**given, "prior": str(prior), "prompt": text, "steps": steps})
    if arm == "psd asked at 50":
        with asked_at_the_guided_prediction():
            made = record_run(preset)
    else:
        made = record_run(preset)
    found = measure_with_truth(made, preset, [grammar.parse(other) for other in others], [JUDGE])
    measured = {"iou": found["iou"], "colour_psnr": found["colour_psnr"]}
    measured |= {name: found[f"selector/{name}"] for name in ("named", "raw")}
    return {
        "arm": arm,
        "scene": scene,
        "caption": text,
        "steps": steps,
        "failed": made.facts.get("failed", ""),
        **measured,
    }


def format_summary(lines: list[dict[str, Any]]) -> str:
    """A row an arm: means, and paired differences to sds with 95 % intervals over captions."""
    table = pd.DataFrame(lines)
    rows = ["| arm | runs | named | IoU | colour PSNR, dB | selector over truth |", "|---|---|---|---|---|---|"]
    for arm in filter(set(table.arm).__contains__, ARMS):
        own = table[table.arm == arm]
        means = [f"{fmean(own[name]):.2f}" for name in ("named", "iou", "colour_psnr", "raw")]
        rows.append(f"| {arm} | {len(own)} | " + " | ".join(means) + " |")
    rows.append("")
    for arm in list(ARMS)[1:]:
        for name in MEASURES:
            wide = table.pivot_table(index="caption", columns="arm", values=name)
            if {arm, "sds"} <= set(wide.columns):
                difference = pd.Series(wide[arm] - wide["sds"]).dropna().rename_axis("prompt")
                rows.append(f"{arm} - sds, {name}: {bootstrap_mean(difference)}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scene", choices=SCENES, default="grid")
    parser.add_argument("--captions", type=int, default=12)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "rehearsal")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    path, prior = arguments.work / "lines.jsonl", copy_without_clamp(arguments.work / "prior")
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    listed = lists.load_list("tuning")
    for text in list(listed)[: arguments.captions]:
        for arm in arguments.arms:
            key = {"arm": arm, "scene": arguments.scene, "caption": text, "steps": arguments.steps}
            if any(key.items() <= line.items() for line in lines):
                continue
            others = listed[text]
            lines.append(rehearse_caption(arm, text, others, prior, arguments.steps, arguments.scene))
            with path.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(json.dumps(lines[-1]), flush=True)
    asked = {"scene": arguments.scene, "steps": arguments.steps}
    print(format_summary([line for line in lines if asked.items() <= line.items()]))


if __name__ == "__main__":
    main()
