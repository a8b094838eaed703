"""What the embedded models are worth, on committed captions that none of them was trained on.

``python -m psd embedded evaluate [critics|prior|prior-early|scenes]`` prints each figure beside its bar and keeps them
in ``assets/results/embedded-<name>.json``.  ``scenes`` runs the default preset on the 24 test captions, resumes, and is
the only one that takes long.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from psd.config.preset import Preset
from psd.embedded import degrade
from psd.embedded.captions import grammar, lists
from psd.embedded.render import RenderedViews, ground_truth
from psd.embedded.training.prior import sample_views
from psd.evaluation.experiments.measure import measure_with_truth
from psd.evaluation.experiments.record import PICTURE_SIZE, record_run
from psd.evaluation.experiments.suite import RESULTS, ROOT, PlannedRun, folder_name, read_lines
from psd.evaluation.metrics.ground_truth import SEED, SIDES, score_captions
from psd.evaluation.metrics.view_consistency import reprojection_error
from psd.geometry.cameras import Cameras, turntable_cameras
from psd.models.load import load_judge, load_prior
from psd.runtime import lanes
from psd.runtime.process_pool import map_unordered

CPU = torch.device("cpu")
CRITICS = ("reward", "selector", "evidence", "referee", "reward-early")  # the last one coarse on purpose: no bars
MILDEST = {  # the strengths at which pair accuracy is asked; 1 is gross
    "blur": 0.25, "noise": 0.25, "holes": 0.4, "floaters": 0.3, "warp": 0.4, "washed_out": 0.3, "fog": 0.3,
    "dark": 0.4, "oversaturated": 0.4, "stained": 0.3, "wrong_colour": 1.0, "wrong_part": 1.0,
}  # fmt: skip
COMPARED, COMPARED_SAMPLES = "confirm24", 4  # the captions of `compare`'s main suite
VIEWS = 4
GUIDANCE = 4.0  # of the prior's samples, as in the default preset

Asked = list[tuple[grammar.Caption, list[grammar.Caption]]]  # captions with their distractors


def render_truth(
    caption: grammar.Caption, seed: int, cameras: Cameras, *, size: int = 64, background: Tensor | None = None
) -> RenderedViews:
    """Ground truth with proportions, light and background drawn from ``seed``."""
    generator = torch.Generator().manual_seed(SEED + seed)
    return ground_truth([caption], cameras, size, generator=generator, background=background)


def read_captions(name: str) -> Asked:
    """The captions of a committed list with their distractors."""
    return [(grammar.parse(text), [grammar.parse(d) for d in others]) for text, others in lists.load_list(name).items()]


# ------------------------------------------------------------------------------------------------------------- critics


@torch.no_grad()
def evaluate_critics(arguments: argparse.Namespace) -> dict:
    """Top-1 and hard text on ground-truth renders, pair accuracy for each degradation, for each critic asked for.

    Beside them the recorded figures of the others: what each is asked does not depend on who else is.
    """
    judges = {name: load_judge(f"assets/{name}", device=CPU) for name in arguments.critic or CRITICS}
    cameras = turntable_cameras(VIEWS, start_deg=20)
    top, hard = defaultdict(list), defaultdict(list)
    pair: dict[str, dict[str, list[bool]]] = {name: defaultdict(list) for name in judges}
    asked = read_captions("evaluation")[: arguments.limit]
    for index, (caption, others) in enumerate(asked):
        views = render_truth(caption, index, cameras)
        spoilt = {}
        for kind, strength in MILDEST.items():
            generator = torch.Generator().manual_seed(index)
            mistaken = None
            if kind in degrade.CAPTION_KINDS:
                wrong = degrade.make_mistake(kind, caption, generator)
                if wrong is None:
                    continue
                mistaken = render_truth(wrong, index, cameras, background=views.background).rgb[0]
            spoilt[kind] = degrade.degrade_views(
                kind, strength, views.rgb[0], views.mask[0], views.background[0], generator, mistaken=mistaken
            )
        for name, judge in judges.items():
            scores = score_captions(judge, views.rgb[0], [caption, *others])
            top[name].append(bool(scores.argmax() == 0))
            hard[name] += (scores[0] > scores[1 : 1 + lists.NEAR_MISSES]).tolist()
            for kind, images in spoilt.items():
                pair[name][kind].append(bool(scores[0] > score_captions(judge, images, [caption])[0]))
    figures = json.loads(record_file("critics").read_text()) if arguments.critic else {}
    for name in judges:
        kinds = {kind: mean_or_nan(hits) for kind, hits in pair[name].items()}
        figures[name] = {
            "top1_of_60_on_ground_truth": mean_or_nan(top[name]),
            "hard_text": mean_or_nan(hard[name]),
            "pair_accuracy": mean_or_nan([hit for hits in pair[name].values() for hit in hits]),
            **{f"pair_{kind}": value for kind, value in kinds.items()},
        }
        whole = not name.endswith("-early")
        print_figure(f"{name}: hard text", figures[name]["hard_text"], at_least=0.97 if whole else None)
        print_figure(f"{name}: pairs", figures[name]["pair_accuracy"], at_least=0.95 if whole else None)
        for kind, value in kinds.items():
            print_figure(f"{name}: {kind} at {MILDEST[kind]}", value, at_least=0.90 if whole else None)
        print_figure(f"{name}: top-1 of 60, ground truth", figures[name]["top1_of_60_on_ground_truth"])
    return {**figures, "captions": len(asked), "mildest": MILDEST}


# --------------------------------------------------------------------------------------------------------------- prior


def evaluate_early_prior(arguments: argparse.Namespace) -> dict:
    """The same of the early checkpoint, which is coarse on purpose: no bars, no sheet."""
    return evaluate_prior(arguments, "prior-early")


@torch.no_grad()
def evaluate_prior(arguments: argparse.Namespace, name: str = "prior") -> dict:
    """Guided samples of the evaluation captions: named by the evidence judge among 60, consistent between views.

    Beside them the ground truth, as it is and through the autoencoder: what samples of the very truth would be worth;
    and how many samples of the captions of ``compare`` are named: what its methods could hope for.
    """
    model, judge, whole = load_prior(f"assets/{name}", CPU), load_judge("assets/evidence", device=CPU), name == "prior"
    cameras = turntable_cameras(VIEWS)
    asked = read_captions("evaluation")[: arguments.limit]
    hits: dict[str, list[bool]] = defaultdict(list)
    errors: dict[str, list[float]] = defaultdict(list)
    pictures = []
    negative = model.embed_prompt(grammar.LOW_QUALITY)

    def samples(batch: Asked, seed: int) -> Float[Tensor, "b v 3 h w"]:
        embeddings = torch.stack([model.embed_prompt(caption.text) for caption, _ in batch])
        z0 = sample_views(model.unet, embeddings, negative, guidance_scale=arguments.guidance_scale, seed=seed)
        return model.decode(z0).clamp(0, 1)

    for start in range(0, len(asked), 10):
        batch = asked[start : start + 10]
        for index, (images, (caption, others)) in enumerate(zip(samples(batch, start), batch, strict=True), start):
            true = render_truth(caption, index, cameras).rgb[0]
            autoencoded = model.decode(model.encode(true[None]))[0].clamp(0, 1)
            for name, seen in (("sample", images), ("ground truth", true), ("autoencoded truth", autoencoded)):
                hits[name].append(bool(score_captions(judge, seen, [caption, *others]).argmax() == 0))
                errors[name].append(reprojection_error(seen, cameras))
            hits[caption.group].append(hits["sample"][-1])
            pictures.append((caption.text, images, hits["sample"][-1]))
    compared = read_captions(COMPARED)[: arguments.limit]
    for seed in range(COMPARED_SAMPLES):
        for start in range(0, len(compared), 12):
            batch = compared[start : start + 12]
            for images, (caption, others) in zip(samples(batch, 1000 * seed + start), batch, strict=True):
                hits[COMPARED].append(bool(score_captions(judge, images, [caption, *others]).argmax() == 0))
    consistency = {name: finite_mean(values) for name, values in errors.items()}
    ratios = {name: value / consistency["ground truth"] for name, value in consistency.items()}
    named = mean_or_nan(hits["sample"])
    print_figure("samples named by the evidence judge, top-1 of 60", named, at_least=0.85 if whole else None)
    for group in ("primitive", "pair", "thing"):
        print_figure(f"  of which {group}", mean_or_nan(hits[group]))
    print_figure(f"  of {COMPARED}, {COMPARED_SAMPLES} samples each", mean_or_nan(hits[COMPARED]))
    print_figure("  the judge on ground truth", mean_or_nan(hits["ground truth"]))
    print_figure("  the judge on ground truth through the autoencoder", mean_or_nan(hits["autoencoded truth"]))
    ratio = ratios["sample"]
    print_figure("reprojected colour error over the ground truth's own", ratio, at_most=1.5 if whole else None)
    print_figure("  of the ground truth through the autoencoder", ratios["autoencoded truth"])
    if whole and is_default(arguments):
        draw_samples(pictures, ROOT / "assets" / "pictures" / "prior-samples.png")
    return {
        "captions": len(asked), "guidance_scale": arguments.guidance_scale,
        "top1_of_60": {name: mean_or_nan(values) for name, values in hits.items()},
        "consistency": {**consistency, "ratio": ratios["sample"], "autoencoded_ratio": ratios["autoencoded truth"]},
    }  # fmt: skip


def draw_samples(
    pictures: Sequence[tuple[str, Float[Tensor, "v 3 h w"], bool]], path: Path, *, columns: int = 4, most: int = 80
) -> None:
    """Four views a picture with the caption; a cross where the judge named it wrongly."""
    step = max(1, len(pictures) // most)
    chosen = pictures[::step][:most]
    size, line = chosen[0][1].shape[-1], 12
    width, height = size * VIEWS, size + line
    canvas = Image.new("RGB", (columns * (width + 6), -(-len(chosen) // columns) * (height + 4)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (text, images, named) in enumerate(chosen):
        x, y = index % columns * (width + 6), index // columns * (height + 4)
        tile = (rearrange(images, "v c h w -> h (v w) c").clamp(0, 1) * 255).round().byte().numpy()
        canvas.paste(Image.fromarray(tile), (x, y + line))
        draw.text((x + 1, y), text if named else f"x  {text}", fill="black" if named else (190, 0, 90))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, optimize=True)


# --------------------------------------------------------------------------------------------------------------- scenes

JUDGES = {"test24": "assets/evidence", "tuning": "assets/selector"}  # defaults are chosen without the evidence judge


def measure_caption(asked: tuple[PlannedRun, list[str]]) -> tuple[dict, UInt8[np.ndarray, "v h w 3"]]:
    """One caption's line and eight pictures of its mesh."""
    job, others = asked
    lanes.limit_cores(1)
    made = record_run(job.preset)
    found = measure_with_truth(made, job.preset, [grammar.parse(other) for other in others], job.judges)
    nothing = np.full((SIDES, PICTURE_SIZE, PICTURE_SIZE, 3), 255, np.uint8)
    return {"caption": job.preset.prompt, "hash": job.line_hash, **found}, made.arrays.get("pictures", nothing)


def evaluate_scenes(arguments: argparse.Namespace) -> dict:
    """Bars: the evidence judge names >= 80 % of the meshes; silhouette IoU >= 0.75 on average, >= 0.6 in each group.

    A line of JSON a caption accumulates in ``work``, so that an interrupted evaluation goes on; what another preset or
    other weights gave does not count (`psd.evaluation.experiments.suite.PlannedRun.line_hash`).
    """
    folder = Path("work") / f"scenes-{arguments.list}{arguments.tag}"
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "measured.jsonl"
    given = {**json.loads(arguments.set), "threads": 1, "judges": [], "preview_every": 10_000}
    preset, judge = Preset.load(arguments.preset, given), JUDGES[arguments.list]
    asked = []
    for caption, others in read_captions(arguments.list)[: arguments.limit]:
        job = PlannedRun("scenes", "default", "steps", preset.with_values({"prompt": caption.text}), (judge,))
        asked.append((job, [other.text for other in others]))
    done = {line["hash"] for line in read_lines(lines)}
    named = f"{folder_name(judge)}/named"
    with lines.open("a") as file:
        todo = [it for it in asked if it[0].line_hash not in done]
        for found, pictures in map_unordered(measure_caption, todo, arguments.processes):
            file.write(json.dumps(found) + "\n")
            file.flush()
            Image.fromarray(rearrange(pictures, "v h w c -> h (v w) c")).save(folder / f"{found['caption']}.png")
            print(
                f"{found['caption']:50s} named {found[named]:.0f}  IoU {found['iou']:.3f}  {found['seconds']:.0f} s",
                flush=True,
            )
    wanted = {job.line_hash for job, _ in asked}
    all_found = [line for line in read_lines(lines) if line["hash"] in wanted]
    share = mean_or_nan(m[named] for m in all_found)
    print_figure(f"meshes named by the {folder_name(judge)} judge, top-1 of 60", share, at_least=0.80)
    print_figure("silhouette IoU", mean_or_nan(m["iou"] for m in all_found), at_least=0.75)
    for group in ("primitive", "pair", "thing"):
        print_figure(f"  IoU, {group}", mean_or_nan(m["iou"] for m in all_found if m["group"] == group), at_least=0.6)
        print_figure(f"  named, {group}", mean_or_nan(m[named] for m in all_found if m["group"] == group))
    if is_default(arguments):
        draw_turntables(all_found, folder, ROOT / "assets" / "pictures" / "test24.png", named)
    return {
        "preset": arguments.preset, "named": share,
        "iou": mean_or_nan(m["iou"] for m in all_found), "scenes": all_found,
    }  # fmt: skip


def draw_turntables(found: Sequence[dict], folder: Path, path: Path, named: str) -> None:
    """All meshes, eight sides each, two columns; a cross where the judge named it wrongly (the measure ``named``)."""
    line, rows_count = 14, -(-len(found) // 2)
    canvas = Image.new("RGB", (2 * 8 * PICTURE_SIZE + 8, rows_count * (PICTURE_SIZE + line)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, m in enumerate(found):
        x, y = index // rows_count * (8 * PICTURE_SIZE + 8), index % rows_count * (PICTURE_SIZE + line)
        canvas.paste(Image.open(folder / f"{m['caption']}.png"), (x, y + line))
        draw.text(
            (x + 2, y + 1),
            f"{'' if m[named] else 'x  '}{m['caption']}   IoU {m['iou']:.2f}",
            fill="black" if m[named] else (190, 0, 90),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, optimize=True)


# -------------------------------------------------------------------------------------------------------------- figures


def mean_or_nan(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def finite_mean(values: Iterable[float]) -> float:
    return mean_or_nan([value for value in values if value == value])


def print_figure(what: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
    bar = ""
    if at_least is not None:
        bar = f"  bar >= {at_least}: {'met' if value >= at_least else 'MISSED'}"
    if at_most is not None:
        bar = f"  bar <= {at_most}: {'met' if value <= at_most else 'MISSED'}"
    print(f"{what:58s} {value:7.3f}{bar}", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=("critics", "prior", "prior-early", "scenes"), help="default: all")
    parser.add_argument(
        "--critic", action="append", choices=CRITICS, help="only this one of the critics; may be repeated"
    )
    parser.add_argument("--limit", type=int, help="only the first captions, for a quick look; nothing is recorded")
    parser.add_argument("--guidance-scale", type=float, default=GUIDANCE, help="of the prior's samples")
    parser.add_argument(
        "--list",
        choices=("test24", "tuning"),
        default="test24",
        help="of scenes; tuning: to choose defaults by",
    )
    parser.add_argument("--preset", default="tiny", help="of scenes")
    parser.add_argument("--set", default="{}", help="overrides of the preset for scenes, as JSON")
    parser.add_argument("--tag", default="", help="keeps an experiment's scenes apart; nothing is recorded")
    parser.add_argument("--processes", type=int, default=2, help="scenes at a time, one thread each")


def is_default(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask for the figures of what ships, on all captions: any others are a trial."""
    given = (arguments.limit, arguments.guidance_scale, arguments.list, arguments.preset, arguments.set, arguments.tag)
    return given == (None, GUIDANCE, "test24", "tiny", "{}", "")


def record_file(name: str) -> Path:
    return RESULTS / f"embedded-{name}.json"


def main(arguments: argparse.Namespace) -> int:
    parts: dict[str, Callable[[argparse.Namespace], dict]] = {
        "critics": evaluate_critics,
        "prior": evaluate_prior,
        "prior-early": evaluate_early_prior,
        "scenes": evaluate_scenes,
    }
    for name in [arguments.what] if arguments.what else parts:
        start = time.monotonic()
        figures = parts[name](arguments)
        if is_default(arguments):
            RESULTS.mkdir(parents=True, exist_ok=True)
            # figures bring their own seconds where only a part was measured again: those of the whole
            record = {"seconds": round(time.monotonic() - start), **figures}
            record_file(name).write_text(json.dumps(record, indent=1) + "\n")
    return 0
