"""From a preset to a measured mesh: what `psd.compare` repeats for its methods and ``evaluate scenes`` for the default.

`distil` runs a preset and keeps what it made; `assess` measures that against ground truth and asks the judges.  The two
are apart so that a better judge needs no new run: what was made stays in a file under ``work``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from psd import memory
from psd.bench import Call, Recorder
from psd.cameras import turntable
from psd.events import Checkpointed, Failed, Finished, Meshed, Previewed, Stepped, Warned
from psd.hub import ROOT
from psd.mesh import Mesh
from psd.models import choose_device, choose_precision, load_judge, load_models
from psd.preset import Preset
from psd.preview import VIEWS
from psd.rasterise import rasterise
from psd.rewards import fit
from psd.run import run
from psd.suite import COSTS, Job, read_lines
from psd.tiny import grammar
from psd.tiny.consistency import reprojection_error
from psd.tiny.evaluate import CPU, mean, recorded, report, rows
from psd.tiny.measures import (
    COMPARED,
    JUDGED,
    SIDES,
    SIZE,
    Sides,
    against_truth,
    closest,
    empty_sides,
    floaters,
    fog,
    judged,
    mesh_sides,
    statistics_over_truth,
    true_sides,
    verdict,
)
from psd.workers import unordered

PICTURE = 96  # px
NO_MESH = {"watertight": False, "faces": 0, "components": 0}
# Means over the steps that have a pair.
PAIRS = {"pair_ratio": "pair/ratio", "pair_win_first": "pair/win_first", "pair_half_agrees": "pair/half_agrees"}
PREVIEWED = ("inconsistency", "fog", "floaters", *(f"image/{name}_over_truth" for name in COMPARED))


@dataclass(frozen=True)
class Distilled:
    """What a run made and what it cost; arrays, and facts that JSON can hold."""

    arrays: dict[str, np.ndarray]  # of the mesh, and steps, previews, opacity, pictures, negative
    facts: dict[str, Any]

    @property
    def mesh(self) -> Mesh | None:
        """None where the field had no surface or the run broke off; ``facts["failed"]`` says why."""
        if "failed" in self.facts:
            return None
        arrays = self.arrays
        return Mesh(arrays["vertices"], arrays["faces"], arrays["normals"], arrays["colours"])

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft.npz")
        arrays: dict[str, Any] = {**self.arrays, "facts": np.array(json.dumps(self.facts))}
        np.savez_compressed(draft, **arrays)
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Distilled:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return cls(arrays, json.loads(str(arrays.pop("facts"))))


def distil(preset: Preset) -> Distilled:
    """Runs ``preset`` to its mesh, counting the images that each network sees.

    A run that fails, on a value that is not finite for instance, would fail again: that is its outcome, kept as
    ``facts["failed"]`` with the step it reached and the previews until then, of which there may be none.
    """
    calls = {kind: [0, 0] for kind in COSTS}  # images without and with a backward pass

    def counting(kind: str) -> Callable[[str, Call], None]:
        def note(_: str, call: Call) -> None:
            calls[kind][call.grad] += call.args[0].shape[0] * call.args[0].shape[1]

        return note

    models = load_models(preset)
    prior: Any = models.prior
    for kind, method in (("unet", "predict_noise"), ("encode", "encode"), ("decode", "decode")):
        prior = Recorder(prior, method, counting(kind), kind)
    rewards: Any = {name: Recorder(it, "", counting("reward"), name) for name, it in models.rewards.items()}
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    previews: dict[int, np.ndarray] = {}
    pairs: dict[str, list[float]] = {name: [] for name in PAIRS}
    start = time.monotonic()
    for event in run(preset, replace(models, prior=prior, rewards=rewards)):
        match event:
            case Previewed():
                previews[event.step] = event.images["rgb"]
                arrays["opacity"] = event.images["opacity"][..., 0]
            case Stepped():
                facts |= {name: value for name, value in event.metrics.items() if name.startswith("image/")}
                for name, metric in PAIRS.items():
                    pairs[name] += [event.metrics[metric]] if metric in event.metrics else []
            case Checkpointed():
                arrays["negative"] = event.tensors["negative_value"]
            case Meshed() if event.mesh is not None:
                mesh = event.mesh
                arrays |= {name: getattr(mesh, name) for name in ("vertices", "faces", "normals", "colours")}
                facts |= {name: event.statistics[name] for name in ("watertight", "faces", "components")}
                arrays["pictures"] = (rasterise(mesh, turntable(SIDES), PICTURE).rgb[0] * 255).round().astype(np.uint8)
            case Warned() if event.message.startswith("There is no mesh"):
                facts["failed"] = event.message
            case Failed():
                facts |= {"failed": event.message, "steps": event.step}
            case Finished():
                facts["steps"] = event.step
    shape = (len(previews), VIEWS, preset.preview_size, preset.preview_size, 3)
    pictures = np.array(list(previews.values()), np.uint8).reshape(shape)
    arrays |= {"steps": np.array(list(previews), np.int64), "previews": pictures}
    facts |= {
        "calls": calls, "seconds": round(time.monotonic() - start, 1),
        "peak_memory_bytes": memory.process_peak_bytes(),
        **{name: mean(values) if values else None for name, values in pairs.items()},
    }  # fmt: skip
    return Distilled(arrays, facts)


# -------------------------------------------------------------------------------------------------------- measuring


def assess(made: Distilled, preset: Preset, others: Sequence[grammar.Caption], judges: Sequence[str]) -> dict[str, Any]:
    """Every measure of `psd.tiny.measures`, of the mesh; ``reward`` over the truth's own, raw.

    ``curve`` holds (step, reward, judge ...) of the field's previews.  Of the last one are ``inconsistency``, the
    field's reprojected colour error over the truth's, and the rest of `PREVIEWED`; None where there is no preview.
    Without a mesh nothing is there to be seen, and that is measured: such runs count in every mean that they can.
    """
    caption = grammar.parse(preset.prompt)
    sides = empty_sides() if made.mesh is None else mesh_sides(made.mesh)
    true = true_sides(caption)
    found: dict[str, Any] = {**NO_MESH, **made.facts, "group": caption.group}
    found |= {"curve": curve(made, preset, caption, judges), **against_truth(sides, caption)}
    found["reward"] = mixture(sides.shown, preset, caption) - mixture(true.shown, preset, caption)
    for name in judges:
        seen = verdict(load_judge(name, CPU), sides, caption, others)
        found |= {f"{short(name)}/{key}": value for key, value in seen.items()}
    return found | previewed(made, caption, sides)


def previewed(made: Distilled, caption: grammar.Caption, sides: Sides) -> dict[str, float | None]:
    """The measures of the field's last preview, `PREVIEWED`; ``sides`` are the mesh's."""
    if not len(made.arrays["previews"]):
        return dict.fromkeys(PREVIEWED)
    last = fit(as_images(made.arrays["previews"][-1]), SIZE)
    opacity = fit(as_images(made.arrays["opacity"][..., None]).expand(-1, 3, -1, -1), SIZE)[:, 0]
    errors = [reprojection_error(images, turntable(VIEWS)) for images in (last, true_sides(caption).rgb[JUDGED])]
    ratio = errors[0] / errors[1]
    return {
        "inconsistency": ratio if ratio == ratio else None,
        "fog": fog(opacity, sides),
        "floaters": floaters(opacity, closest(sides, caption)),
        **statistics_over_truth(last, opacity, caption),
    }


@torch.no_grad()
def observe(made: Distilled, preset: Preset, judges: Sequence[str]) -> dict[str, Any]:
    """What can be told without a truth, of large models' runs: raw scores of the field's last preview, by ``reward``
    and each judge; ``curve`` as in `assess`, of raw scores; ``inconsistency`` is the reprojected colour error itself.

    All of them None, and the curve empty, where a run failed before its first preview.
    """
    device, _ = choose_device(preset.device)
    dtype = choose_precision(preset.precision, device)
    loaded = {name: load_judge(name, device, dtype, batch=preset.network_batch) for name in (*preset.rewards, *judges)}

    def scores(pictures: UInt8[np.ndarray, "v h w 3"]) -> list[float]:
        images = as_images(pictures).to(device)[None]
        raw = {name: float(judge(images, preset.prompt).mean()) for name, judge in loaded.items()}
        weights = preset.rewards
        mixed = sum(weight * raw[name] for name, weight in weights.items()) / sum(weights.values())
        return [mixed, *(raw[name] for name in judges)]

    rows = list(zip(made.arrays["steps"].tolist(), map(scores, made.arrays["previews"]), strict=True))
    names = ["reward", *(f"{short(name)}/score" for name in judges)]
    error = float("nan")
    if rows:
        last = as_images(made.arrays["previews"][-1])
        error = reprojection_error(last, turntable(len(last)))
    return {
        **NO_MESH,
        **made.facts,
        "curve": [[step, *(round(value, 4) for value in values)] for step, values in rows],
        **(dict(zip(names, rows[-1][1], strict=True)) if rows else dict.fromkeys(names)),
        "inconsistency": error if error == error else None,
    }


@torch.no_grad()
def mixture(images: Float[Tensor, "v 3 h w"], preset: Preset, caption: grammar.Caption) -> float:
    """The rewards that were trained on, weighted, mean over views."""
    weight = sum(preset.rewards.values())
    scores = {name: float(judged(load_judge(name, CPU), images, [caption])) for name in preset.rewards}
    return sum(preset.rewards[name] * score for name, score in scores.items()) / weight


@torch.no_grad()
def curve(made: Distilled, preset: Preset, caption: grammar.Caption, judges: Sequence[str]) -> list[list[float]]:
    """(step, reward, judge ...) of each preview, raw differences to the truth's own: unbounded, so take medians."""

    def values(images: Float[Tensor, "v 3 h w"]) -> np.ndarray:
        scores = (judged(load_judge(name, CPU), images, [caption]) for name in judges)
        return np.array([mixture(images, preset, caption), *map(float, scores)])

    true = values(true_sides(caption).rgb[JUDGED])
    looks = zip(made.arrays["steps"].tolist(), made.arrays["previews"], strict=True)
    return [[step, *(values(as_images(pictures)) - true).round(4).tolist()] for step, pictures in looks]


def as_images(pictures: UInt8[np.ndarray, "v h w c"]) -> Float[Tensor, "v c h w"]:
    return rearrange(torch.from_numpy(pictures).float() / 255, "v h w c -> v c h w")


def short(name: str) -> str:
    """A judge by its folder's name."""
    return name.rpartition("/")[2]


# ------------------------------------------------------------------------------------------------- evaluate scenes

JUDGES = {"test24": "assets/evidence", "tuning": "assets/selector"}  # defaults are chosen without the evidence judge


def measured(asked: tuple[Job, list[str]]) -> tuple[dict, UInt8[np.ndarray, "v h w 3"]]:
    """One caption's line and eight pictures of its mesh."""
    job, others = asked
    torch.set_num_threads(1)
    made = distil(job.preset)
    found = assess(made, job.preset, [grammar.parse(other) for other in others], job.judges)
    nothing = np.full((SIDES, PICTURE, PICTURE, 3), 255, np.uint8)
    return {"caption": job.preset.prompt, "hash": job.hash, **found}, made.arrays.get("pictures", nothing)


def scenes(arguments: argparse.Namespace) -> dict:
    """Bars: the evidence judge names >= 80 % of the meshes; silhouette IoU >= 0.75 on average, >= 0.6 in each group.

    A line of JSON a caption accumulates in ``work``, so that an interrupted evaluation goes on; what another preset or
    other weights gave does not count (`psd.suite.Job.hash`).
    """
    folder = Path("work") / f"scenes-{arguments.list}{arguments.tag}"
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "measured.jsonl"
    given = {**json.loads(arguments.set), "threads": 1, "judges": [], "preview_every": 10_000}
    preset, judge = Preset.load(arguments.preset, given), JUDGES[arguments.list]
    asked = []
    for caption, others in rows(arguments.list)[: arguments.limit]:
        job = Job("scenes", "default", "steps", preset.changed({"prompt": caption.text}), (judge,))
        asked.append((job, [other.text for other in others]))
    done = {line["hash"] for line in read_lines(lines)}
    named = f"{short(judge)}/named"
    with lines.open("a") as file:
        for found, pictures in unordered(measured, [it for it in asked if it[0].hash not in done], arguments.processes):
            file.write(json.dumps(found) + "\n")
            file.flush()
            Image.fromarray(rearrange(pictures, "v h w c -> h (v w) c")).save(folder / f"{found['caption']}.png")
            print(
                f"{found['caption']:50s} named {found[named]:.0f}  IoU {found['iou']:.3f}  {found['seconds']:.0f} s",
                flush=True,
            )
    wanted = {job.hash for job, _ in asked}
    all_found = [line for line in read_lines(lines) if line["hash"] in wanted]
    report(f"meshes named by the {short(judge)} judge, top-1 of 60", mean(m[named] for m in all_found), at_least=0.80)
    report("silhouette IoU", mean(m["iou"] for m in all_found), at_least=0.75)
    for group in ("primitive", "pair", "thing"):
        report(f"  IoU, {group}", mean(m["iou"] for m in all_found if m["group"] == group), at_least=0.6)
        report(f"  named, {group}", mean(m[named] for m in all_found if m["group"] == group))
    if recorded(arguments):
        turntables(all_found, folder, ROOT / "assets" / "pictures" / "test24.png", named)
    return {
        "preset": arguments.preset, "named": mean(m[named] for m in all_found),
        "iou": mean(m["iou"] for m in all_found), "scenes": all_found,
    }  # fmt: skip


def turntables(found: Sequence[dict], folder: Path, path: Path, named: str) -> None:
    """All meshes, eight sides each, two columns; a cross where the judge named it wrongly (the measure ``named``)."""
    line, rows_count = 14, -(-len(found) // 2)
    canvas = Image.new("RGB", (2 * 8 * PICTURE + 8, rows_count * (PICTURE + line)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, m in enumerate(found):
        x, y = index // rows_count * (8 * PICTURE + 8), index % rows_count * (PICTURE + line)
        canvas.paste(Image.open(folder / f"{m['caption']}.png"), (x, y + line))
        draw.text(
            (x + 2, y + 1),
            f"{'' if m[named] else 'x  '}{m['caption']}   IoU {m['iou']:.2f}",
            fill="black" if m[named] else (190, 0, 90),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, optimize=True)
