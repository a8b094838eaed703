"""The default preset against ground truth: meshes of a committed list of captions, named, measured and pictured.

A line of JSON a caption accumulates in ``work/scenes-<list>.jsonl``, so that an interrupted evaluation goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from psd.cameras import Cameras, turntable
from psd.events import Failed, Meshed, Stepped
from psd.hub import ROOT
from psd.mesh import Mesh
from psd.models import load_judge, load_models
from psd.preset import Preset
from psd.rasterise import rasterise
from psd.run import run
from psd.tiny import grammar
from psd.tiny.evaluate import CPU, judged, mean, report, rows, truth

PROPORTIONS = 12  # ground truths with other proportions; the best silhouette agreement counts
SIZE = 64


@dataclass(frozen=True)
class Measured:
    """One mesh against the truth; ``named`` by the evidence judge among 60 captions."""

    caption: str
    group: str
    named: bool
    iou: float
    evidence: float
    evidence_truth: float
    watertight: bool
    faces: int
    seconds: float


def silhouette_iou(mask: Bool[np.ndarray, "v h w"], caption: grammar.Caption, cameras: Cameras) -> float:
    """Mean over views of intersection over union, best over the truth's proportions; the pose is fixed (canonical)."""
    best = 0.0
    for seed in range(PROPORTIONS):
        true = (truth(caption, seed, cameras, size=SIZE).mask[0] > 0.5).numpy()
        best = max(best, float(np.mean((mask & true).sum((1, 2)) / (mask | true).sum((1, 2)).clip(1))))
    return best


def measure(caption: grammar.Caption, others: Sequence[grammar.Caption], mesh: Mesh, seconds: float) -> Measured:
    from psd.mesh import statistics

    around, four = turntable(8), turntable(4)
    judge = load_judge("assets/evidence", CPU)
    rgb = torch.from_numpy(rasterise(mesh, four, SIZE).rgb[0])
    with torch.no_grad():
        scores = judged(judge, rearrange(rgb, "v h w c -> v c h w"), [caption, *others])
        true = truth(caption, 0, four, background=torch.ones(1, 3)).rgb[0]
        true_score = judged(judge, true, [caption])[0]
    facts = statistics(mesh)
    iou = silhouette_iou(rasterise(mesh, around, SIZE).mask[0], caption, around)
    return Measured(
        caption.text, caption.group, bool(scores.argmax() == 0), iou, scores[0].item(), true_score.item(),
        bool(facts["watertight"]), int(facts["faces"]), seconds,
    )  # fmt: skip


def distil(job: tuple[str, list[str], dict, str]) -> tuple[str, UInt8[np.ndarray, "v h w 3"]]:
    """Run one caption to its mesh and measure it; returns the JSON line and eight pictures of the mesh."""
    text, others, overrides, name = job
    torch.set_num_threads(1)
    preset = Preset.load(name, {**overrides, "prompt": text, "threads": 1, "preview_every": 10_000})
    start = time.monotonic()
    mesh = None
    for event in run(preset, load_models(preset)):
        if isinstance(event, Meshed):
            mesh = event.mesh
        elif isinstance(event, Failed):
            raise RuntimeError(f"{text}: {event.message}")
        elif isinstance(event, Stepped) and event.step % 40 == 0:
            print(f"  {text}: step {event.step}", flush=True)
    if mesh is None:
        raise RuntimeError(f"{text}: no surface; see the run's warnings")
    seconds = time.monotonic() - start
    found = measure(grammar.parse(text), [grammar.parse(other) for other in others], mesh, seconds)
    pictures = (rasterise(mesh, turntable(8), 96).rgb[0] * 255).round().astype(np.uint8)
    return json.dumps(asdict(found)), pictures


def scenes(arguments: argparse.Namespace) -> dict:
    """Bars: the evidence judge names >= 80 % of the meshes; silhouette IoU >= 0.75 on average, >= 0.6 in each group."""
    folder = Path("work") / f"scenes-{arguments.list}{arguments.tag}"
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "measured.jsonl"
    done = {json.loads(line)["caption"] for line in lines.read_text().splitlines()} if lines.exists() else set()
    overrides = json.loads(arguments.set)
    jobs = [
        (caption.text, [other.text for other in others], overrides, arguments.preset)
        for caption, others in rows(arguments.list)[: arguments.limit]
        if caption.text not in done
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool, lines.open("a") as file:
        for line, pictures in pool.imap_unordered(distil, jobs):
            file.write(line + "\n")
            file.flush()
            found = json.loads(line)
            Image.fromarray(rearrange(pictures, "v h w c -> h (v w) c")).save(folder / f"{found['caption']}.png")
            print(
                f"{found['caption']:50s} named {found['named']}  IoU {found['iou']:.3f}  {found['seconds']:.0f} s",
                flush=True,
            )
    measured = [Measured(**json.loads(line)) for line in lines.read_text().splitlines()]
    report("meshes named by the evidence judge, top-1 of 60", mean(m.named for m in measured), at_least=0.80)
    report("silhouette IoU", mean(m.iou for m in measured), at_least=0.75)
    for group in ("primitive", "pair", "thing"):
        report(f"  IoU, {group}", mean(m.iou for m in measured if m.group == group), at_least=0.6)
        report(f"  named, {group}", mean(m.named for m in measured if m.group == group))
    if arguments.list == "test24" and not arguments.tag and arguments.limit is None:
        turntables(measured, folder, ROOT / "assets" / "pictures" / "test24.png")
    return {
        "preset": arguments.preset, "named": mean(m.named for m in measured), "iou": mean(m.iou for m in measured),
        "scenes": [asdict(m) for m in measured],
    }  # fmt: skip


def turntables(measured: Sequence[Measured], folder: Path, path: Path) -> None:
    """All meshes, eight sides each, two columns."""
    line, rows_count = 14, -(-len(measured) // 2)
    canvas = Image.new("RGB", (2 * 8 * 96 + 8, rows_count * (96 + line)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, m in enumerate(measured):
        x, y = index // rows_count * (8 * 96 + 8), index % rows_count * (96 + line)
        canvas.paste(Image.open(folder / f"{m.caption}.png"), (x, y + line))
        draw.text(
            (x + 2, y + 1),
            f"{'' if m.named else '• '}{m.caption}   IoU {m.iou:.2f}",
            fill="black" if m.named else (190, 0, 90),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, optimize=True)
