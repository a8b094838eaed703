"""Measure a recorded run: its mesh against ground truth, its previews, and what rewards and judges say of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from psd.config.preset import Preset
from psd.distillation.preview import VIEWS
from psd.embedded.captions import grammar
from psd.evaluation.experiments.record import RecordedRun
from psd.evaluation.experiments.suite import SELECTOR, folder_name
from psd.evaluation.metrics.ground_truth import (
    COMPARED,
    JUDGED,
    SIZE,
    EightViews,
    against_truth,
    closest_truth,
    empty_sides,
    floater_share,
    fog_share,
    judge_against_truth,
    mesh_sides,
    score_captions,
    statistics_over_truth,
    true_sides,
)
from psd.evaluation.metrics.view_consistency import reprojection_error
from psd.geometry.cameras import turntable_cameras
from psd.models.load import load_judge
from psd.models.rewards.text_image import resize_square
from psd.runtime.devices import choose_device, choose_precision

CPU = torch.device("cpu")
NO_MESH = {"watertight": False, "faces": 0, "components": 0}
PREVIEWED = ("inconsistency", "fog", "floaters", *(f"image/{name}_over_truth" for name in COMPARED))


def measure_with_truth(
    made: RecordedRun, preset: Preset, others: Sequence[grammar.Caption], judges: Sequence[str]
) -> dict[str, Any]:
    """Every measure of `psd.evaluation.metrics.ground_truth` of the mesh, each judge's, and ``reward`` over the truth's
    own, raw.

    ``curve`` holds (step, reward, judge ...) of the field's previews.  Of the last one are ``inconsistency``, the
    field's reprojected colour error over the truth's, and the rest of `PREVIEWED`; None where there is no preview.
    Without a mesh nothing is there to be seen, and that is measured: such runs count in every mean that they can.
    """
    caption = grammar.parse(preset.prompt)
    sides = empty_sides() if made.mesh is None else mesh_sides(made.mesh)
    true = true_sides(caption)
    found: dict[str, Any] = {**NO_MESH, **made.facts, "group": caption.group}
    found |= {"curve": score_curve(made, preset, caption, judges), **against_truth(sides, caption)}
    found["reward"] = weighted_reward(sides.shown, preset, caption) - weighted_reward(true.shown, preset, caption)
    for name in judges:
        seen = judge_against_truth(load_judge(name, device=CPU), sides, caption, others)
        found |= {f"{folder_name(name)}/{key}": value for key, value in seen.items()}
    return found | measure_preview(made, caption, sides)


def measure_preview(made: RecordedRun, caption: grammar.Caption, sides: EightViews) -> dict[str, float | None]:
    """The measures of the field's last preview, `PREVIEWED`; ``sides`` are the mesh's."""
    if not len(made.arrays["previews"]):
        return dict.fromkeys(PREVIEWED)
    last = resize_square(as_images(made.arrays["previews"][-1]), SIZE)
    opacity = resize_square(as_images(made.arrays["opacity"][..., None]).expand(-1, 3, -1, -1), SIZE)[:, 0]
    errors = [
        reprojection_error(images, turntable_cameras(VIEWS)) for images in (last, true_sides(caption).rgb[JUDGED])
    ]
    ratio = errors[0] / errors[1]
    return {
        "inconsistency": ratio if ratio == ratio else None,
        "fog": fog_share(opacity, sides),
        "floaters": floater_share(opacity, closest_truth(sides, caption)),
        **statistics_over_truth(last, opacity, caption),
    }


@torch.no_grad()
def measure_without_truth(made: RecordedRun, preset: Preset, judges: Sequence[str]) -> dict[str, Any]:
    """Raw scores of the field's last preview, for runs of large models: ``reward`` and each judge's.

    ``curve`` is that of `measure_with_truth`, of raw scores; ``inconsistency`` is the reprojected colour error itself.
    All of them are None, and the curve empty, where a run failed before its first preview.
    """
    device, _ = choose_device(preset.device)
    dtype = choose_precision(preset.precision, device)
    weights = preset.at(1.0).rewards
    loaded = {
        name: load_judge(name, device=device, dtype=dtype, batch=preset.network_batch) for name in (*weights, *judges)
    }

    def raw_scores(pictures: UInt8[np.ndarray, "v h w 3"]) -> list[float]:
        images = as_images(pictures).to(device)[None]
        raw = {name: float(judge(images, preset.prompt).mean()) for name, judge in loaded.items()}
        mixed = sum(weight * raw[name] for name, weight in weights.items()) / sum(weights.values())
        return [mixed, *(raw[name] for name in judges)]

    rows = list(zip(made.arrays["steps"].tolist(), map(raw_scores, made.arrays["previews"]), strict=True))
    names = ["reward", *(f"{folder_name(name)}/score" for name in judges)]
    error = float("nan")
    if rows:
        last = as_images(made.arrays["previews"][-1])
        error = reprojection_error(last, turntable_cameras(len(last)))
    return {
        **NO_MESH,
        **made.facts,
        "curve": [[step, *(round(value, 4) for value in values)] for step, values in rows],
        **(dict(zip(names, rows[-1][1], strict=True)) if rows else dict.fromkeys(names)),
        "inconsistency": error if error == error else None,
    }


@torch.no_grad()
def choose_run(runs: Sequence[RecordedRun], prompt: str) -> RecordedRun:
    """The run whose last preview `SELECTOR` scores best (mean over views), with what all of them cost.

    ``calls`` and ``seconds`` are sums and ``peak_memory_bytes`` the highest; ``chosen`` is the place of the run that is
    kept.  One that broke off or has no mesh is kept only where all did.
    """
    judge = load_judge(SELECTOR, device=CPU)

    def rate_run(run: RecordedRun) -> float:
        if run.mesh is None or not len(run.arrays["previews"]):
            return -math.inf
        return float(judge(as_images(run.arrays["previews"][-1])[None], prompt).mean())

    scores = [rate_run(run) for run in runs]
    chosen = scores.index(max(scores))
    every = [run.facts for run in runs]
    calls = {kind: [sum(facts["calls"][kind][i] for facts in every) for i in (0, 1)] for kind in every[0]["calls"]}
    total = {
        "calls": calls,
        "seconds": round(sum(facts["seconds"] for facts in every), 1),
        "peak_memory_bytes": max(facts["peak_memory_bytes"] for facts in every),
        "chosen": chosen,
    }
    return RecordedRun(runs[chosen].arrays, {**runs[chosen].facts, **total})


@torch.no_grad()
def weighted_reward(images: Float[Tensor, "v 3 h w"], preset: Preset, caption: grammar.Caption) -> float:
    """Weighted mean of the rewards that the run climbed at its end, mean over views."""
    weights = preset.at(1.0).rewards
    scores = {name: float(score_captions(load_judge(name, device=CPU), images, [caption])) for name in weights}
    return sum(weights[name] * score for name, score in scores.items()) / sum(weights.values())


@torch.no_grad()
def score_curve(
    made: RecordedRun, preset: Preset, caption: grammar.Caption, judges: Sequence[str]
) -> list[list[float]]:
    """(step, reward, judge ...) of each preview, raw differences to the truth's own: unbounded, so take medians."""

    def all_scores(images: Float[Tensor, "v 3 h w"]) -> np.ndarray:
        scores = (score_captions(load_judge(name, device=CPU), images, [caption]) for name in judges)
        return np.array([weighted_reward(images, preset, caption), *map(float, scores)])

    true = all_scores(true_sides(caption).rgb[JUDGED])
    looks = zip(made.arrays["steps"].tolist(), made.arrays["previews"], strict=True)
    return [[step, *(all_scores(as_images(pictures)) - true).round(4).tolist()] for step, pictures in looks]


def as_images(pictures: UInt8[np.ndarray, "v h w c"]) -> Float[Tensor, "v c h w"]:
    return rearrange(torch.from_numpy(pictures).float() / 255, "v h w c -> v c h w")
