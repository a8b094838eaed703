"""What the default preset is worth: whole runs on the list of nouns, their meshes judged."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from psd.config.preset import Preset
from psd.embedded.captions import grammar
from psd.evaluation.experiments.measure import as_images, measure_with_truth
from psd.evaluation.experiments.record import PICTURE_SIZE, record_run
from psd.evaluation.experiments.suite import ROOT, PlannedRun, folder_name, read_lines
from psd.evaluation.metrics.ground_truth import SIDES
from psd.evaluation.metrics.outside import AMONG, find_beside_truth, has_class, open_judge
from psd.evaluation.shipped.figures import is_offered, mean_or_nan, print_figure, read_captions
from psd.runtime import lanes
from psd.runtime.process_pool import map_unordered

JUDGES = {"nouns": "assets/evidence", "tuning": "assets/selector"}  # defaults are chosen without the evidence judge
SHEET = ROOT / "assets" / "pictures" / "nouns.jpg"
KEPT = ("caption", "hash", "iou", "colour_psnr", "faces", "seconds")  # of each scene's line, in the record


def measure_caption(asked: tuple[PlannedRun, list[str]]) -> tuple[dict, UInt8[np.ndarray, "v h w 3"]]:
    """One caption's line and eight pictures of its mesh."""
    job, others = asked
    lanes.limit_cores(1)
    made = record_run(job.preset)
    found = measure_with_truth(made, job.preset, [grammar.parse(other) for other in others], job.judges)
    nothing = np.full((SIDES, PICTURE_SIZE, PICTURE_SIZE, 3), 255, np.uint8)
    return {"caption": job.preset.prompt, "hash": job.line_hash, **found}, made.arrays.get("pictures", nothing)


def evaluate_scenes(arguments: argparse.Namespace) -> dict:
    """Bars: the evidence judge names >= 80 % of the meshes; an outside judge has the right class among five for
    >= 0.65 of what it has of the truth; silhouette IoU >= 0.75 on average, >= 0.6 in each group.

    A line of JSON a caption accumulates in ``work``, so that an interrupted evaluation goes on; what another preset or
    other weights gave does not count (`psd.evaluation.experiments.suite.PlannedRun.line_hash`).
    """
    folder = Path("work") / f"scenes-{arguments.list}{arguments.tag}"
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "measured.jsonl"
    given = {**json.loads(arguments.set), "threads": 1, "judges": [], "preview_every": 10_000}
    preset, judge = Preset.load(arguments.preset, given), JUDGES[arguments.list]
    asked = []
    for caption, others in read_captions(arguments.list, arguments.limit):
        job = PlannedRun("scenes", "default", "steps", preset.with_values({"prompt": caption.text}), (judge,))
        asked.append((job, [other.text for other in others]))
    done = {line["hash"] for line in read_lines(lines)}
    named = f"{folder_name(judge)}/named"
    with lines.open("a") as file:
        todo = [it for it in asked if it[0].line_hash not in done]
        for found, pictures in map_unordered(measure_caption, todo, arguments.processes):
            Image.fromarray(rearrange(pictures, "v h w c -> h (v w) c")).save(folder / f"{found['caption']}.png")
            file.write(json.dumps(found) + "\n")
            file.flush()
            print(
                f"{found['caption']:50s} named {found[named]:.0f}  IoU {found['iou']:.3f}  {found['seconds']:.0f} s",
                flush=True,
            )
    wanted = {job.line_hash for job, _ in asked}
    all_found = [line for line in read_lines(lines) if line["hash"] in wanted]
    known = [line for line in all_found if is_offered(grammar.parse(line["caption"]))]
    share, iou = (mean_or_nan(line[key] for line in all_found) for key in (named, "iou"))
    print_figure(f"meshes named by the {folder_name(judge)} judge, top-1 of 60", share, at_least=0.80)
    print_figure(f"  of known kinds ({len(known)} captions)", mean_or_nan(line[named] for line in known))
    outside = measure_outside([line["caption"] for line in all_found], folder)
    print_figure("silhouette IoU", iou, at_least=0.75)
    for group in sorted({line["group"] for line in all_found}):
        own = [line for line in all_found if line["group"] == group]
        print_figure(f"  IoU, {group}", mean_or_nan(line["iou"] for line in own), at_least=0.6)
        print_figure(f"  named, {group}", mean_or_nan(line[named] for line in own))
    if arguments.is_default:
        draw_turntables(all_found, folder, SHEET, named)
    return {
        "preset": arguments.preset, "named": share, "named_of_known": mean_or_nan(line[named] for line in known),
        "known": len(known), "iou": iou, "outside_among_five": outside,
        "scenes": [{key: line[key] for key in (*KEPT, named)} for line in all_found],
    }  # fmt: skip


@torch.no_grad()
def measure_outside(texts: Sequence[str], folder: Path) -> dict[str, float]:
    """The shares of meshes and of truths, seen alike, that the outside judge has right among five; printed, with the
    bar.  Nothing where its packages are not here, which is said."""
    judge, captions = open_judge(), [grammar.parse(text) for text in texts]
    captions = [it for it in captions if has_class(it)]
    if judge is None or not captions:
        return {}
    hits: dict[str, list[bool]] = {"mesh": [], "ground truth": []}
    for caption in captions:
        with Image.open(folder / f"{caption.text}.png") as picture:
            mesh = as_images(rearrange(np.array(picture), "h (v w) c -> v h w c", v=SIDES))
        for name, hit in zip(hits, find_beside_truth(judge, mesh, caption), strict=True):
            hits[name].append(hit)
    shares = {name: mean_or_nan(values) for name, values in hits.items()}
    ratio = shares["mesh"] / shares["ground truth"] if shares["ground truth"] else float("nan")
    print_figure(f"the outside judge among {AMONG} ({len(captions)} captions), meshes", shares["mesh"])
    print_figure("  ground truth", shares["ground truth"])
    print_figure("  the one over the other", ratio, at_least=0.65)
    return {**shares, "ratio": ratio, "captions": len(captions)}


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
    canvas.save(path, quality=85, optimize=True)
