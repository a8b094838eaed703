"""What the embedded models are worth, on committed captions that none of them was trained on.

``python -m psd.tiny evaluate [critics|prior|prior-early|scenes]`` prints each figure beside its bar and keeps them in
``assets/results/embedded-<name>.json``.  ``scenes`` runs the default preset on the 24 test captions, resumes, and is
the only one that takes long.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from psd.cameras import Cameras, turntable
from psd.hub import ROOT
from psd.models import load_judge, load_prior
from psd.tiny import captions as lists
from psd.tiny import degrade, grammar
from psd.tiny.consistency import reprojection_error
from psd.tiny.denoiser import sample
from psd.tiny.measures import SEED, judged
from psd.tiny.render import Views, ground_truth

CPU = torch.device("cpu")
RESULTS = ROOT / "assets" / "results"
CRITICS = ("reward", "selector", "evidence", "referee", "reward-early")  # the last one coarse on purpose: no bars
MILDEST = {  # the strengths at which pair accuracy is asked; 1 is gross
    "blur": 0.25, "noise": 0.25, "holes": 0.4, "floaters": 0.3, "warp": 0.4, "washed_out": 0.3, "fog": 0.3,
    "dark": 0.4, "oversaturated": 0.4, "stained": 0.3, "wrong_colour": 1.0, "wrong_part": 1.0,
}  # fmt: skip
COMPARED, COMPARED_SAMPLES = "confirm24", 4  # the captions of `compare`'s main suite
VIEWS = 4
GUIDANCE = 4.0  # of the prior's samples, as in the default preset

Asked = list[tuple[grammar.Caption, list[grammar.Caption]]]  # captions with their distractors


def truth(
    caption: grammar.Caption, seed: int, cameras: Cameras, *, size: int = 64, background: Tensor | None = None
) -> Views:
    """Ground truth with proportions, light and background drawn from ``seed``."""
    generator = torch.Generator().manual_seed(SEED + seed)
    return ground_truth([caption], cameras, size, generator=generator, background=background)


def rows(name: str) -> Asked:
    """The captions of a committed list with their distractors."""
    return [(grammar.parse(text), [grammar.parse(d) for d in others]) for text, others in lists.load_list(name).items()]


# ------------------------------------------------------------------------------------------------------------- critics


@torch.no_grad()
def critics(arguments: argparse.Namespace) -> dict:
    """Top-1 and hard text on ground-truth renders, pair accuracy for each degradation, for each critic asked for.

    Beside them the recorded figures of the others: what each is asked does not depend on who else is.
    """
    judges = {name: load_judge(f"assets/{name}", CPU) for name in arguments.critic or CRITICS}
    cameras = turntable(VIEWS, start_deg=20)
    top, hard = defaultdict(list), defaultdict(list)
    pair: dict[str, dict[str, list[bool]]] = {name: defaultdict(list) for name in judges}
    asked = rows("evaluation")[: arguments.limit]
    for index, (caption, others) in enumerate(asked):
        views = truth(caption, index, cameras)
        spoilt = {}
        for kind, strength in MILDEST.items():
            generator = torch.Generator().manual_seed(index)
            mistaken = None
            if kind in degrade.CAPTION_KINDS:
                wrong = degrade.mistake(kind, caption, generator)
                if wrong is None:
                    continue
                mistaken = truth(wrong, index, cameras, background=views.background).rgb[0]
            spoilt[kind] = degrade.degrade(
                kind, strength, views.rgb[0], views.mask[0], views.background[0], generator, mistaken=mistaken
            )
        for name, judge in judges.items():
            scores = judged(judge, views.rgb[0], [caption, *others])
            top[name].append(bool(scores.argmax() == 0))
            hard[name] += (scores[0] > scores[1 : 1 + lists.NEAR_MISSES]).tolist()
            for kind, images in spoilt.items():
                pair[name][kind].append(bool(scores[0] > judged(judge, images, [caption])[0]))
    figures = json.loads(recording("critics").read_text()) if arguments.critic else {}
    for name in judges:
        kinds = {kind: mean(hits) for kind, hits in pair[name].items()}
        figures[name] = {
            "top1_of_60_on_ground_truth": mean(top[name]),
            "hard_text": mean(hard[name]),
            "pair_accuracy": mean([hit for hits in pair[name].values() for hit in hits]),
            **{f"pair_{kind}": value for kind, value in kinds.items()},
        }
        whole = not name.endswith("-early")
        report(f"{name}: hard text", figures[name]["hard_text"], at_least=0.97 if whole else None)
        report(f"{name}: pairs", figures[name]["pair_accuracy"], at_least=0.95 if whole else None)
        for kind, value in kinds.items():
            report(f"{name}: {kind} at {MILDEST[kind]}", value, at_least=0.90 if whole else None)
        report(f"{name}: top-1 of 60, ground truth", figures[name]["top1_of_60_on_ground_truth"])
    return {**figures, "captions": len(asked), "mildest": MILDEST}


# --------------------------------------------------------------------------------------------------------------- prior


def prior_early(arguments: argparse.Namespace) -> dict:
    """The same of the early checkpoint, which is coarse on purpose: no bars, no sheet."""
    return prior(arguments, "prior-early")


@torch.no_grad()
def prior(arguments: argparse.Namespace, name: str = "prior") -> dict:
    """Guided samples of the evaluation captions: named by the evidence judge among 60, consistent between views.

    Beside them the ground truth, as it is and through the autoencoder: what samples of the very truth would be worth;
    and how many samples of the captions of ``compare`` are named: what its methods could hope for.
    """
    model, judge, whole = load_prior(f"assets/{name}", CPU), load_judge("assets/evidence", CPU), name == "prior"
    cameras = turntable(VIEWS)
    asked = rows("evaluation")[: arguments.limit]
    hits: dict[str, list[bool]] = defaultdict(list)
    errors: dict[str, list[float]] = defaultdict(list)
    pictures = []
    negative = model.embed(grammar.LOW_QUALITY)

    def samples(batch: Asked, seed: int) -> Float[Tensor, "b v 3 h w"]:
        embeddings = torch.stack([model.embed(caption.text) for caption, _ in batch])
        z0 = sample(model.unet, embeddings, negative, guidance_scale=arguments.guidance_scale, seed=seed)
        return model.decode(z0).clamp(0, 1)

    for start in range(0, len(asked), 10):
        batch = asked[start : start + 10]
        for index, (images, (caption, others)) in enumerate(zip(samples(batch, start), batch, strict=True), start):
            true = truth(caption, index, cameras).rgb[0]
            autoencoded = model.decode(model.encode(true[None]))[0].clamp(0, 1)
            for name, seen in (("sample", images), ("ground truth", true), ("autoencoded truth", autoencoded)):
                hits[name].append(bool(judged(judge, seen, [caption, *others]).argmax() == 0))
                errors[name].append(reprojection_error(seen, cameras))
            hits[caption.group].append(hits["sample"][-1])
            pictures.append((caption.text, images, hits["sample"][-1]))
    compared = rows(COMPARED)[: arguments.limit]
    for seed in range(COMPARED_SAMPLES):
        for start in range(0, len(compared), 12):
            batch = compared[start : start + 12]
            for images, (caption, others) in zip(samples(batch, 1000 * seed + start), batch, strict=True):
                hits[COMPARED].append(bool(judged(judge, images, [caption, *others]).argmax() == 0))
    consistency = {name: finite_mean(values) for name, values in errors.items()}
    ratios = {name: value / consistency["ground truth"] for name, value in consistency.items()}
    report("samples named by the evidence judge, top-1 of 60", mean(hits["sample"]), at_least=0.85 if whole else None)
    for group in ("primitive", "pair", "thing"):
        report(f"  of which {group}", mean(hits[group]))
    report(f"  of {COMPARED}, {COMPARED_SAMPLES} samples each", mean(hits[COMPARED]))
    report("  the judge on ground truth", mean(hits["ground truth"]))
    report("  the judge on ground truth through the autoencoder", mean(hits["autoencoded truth"]))
    report("reprojected colour error over the ground truth's own", ratios["sample"], at_most=1.5 if whole else None)
    report("  of the ground truth through the autoencoder", ratios["autoencoded truth"])
    if whole and recorded(arguments):
        sheet(pictures, ROOT / "assets" / "pictures" / "prior-samples.png")
    return {
        "captions": len(asked), "guidance_scale": arguments.guidance_scale,
        "top1_of_60": {name: mean(values) for name, values in hits.items()},
        "consistency": {**consistency, "ratio": ratios["sample"], "autoencoded_ratio": ratios["autoencoded truth"]},
    }  # fmt: skip


def sheet(
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


# -------------------------------------------------------------------------------------------------------------- figures


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def finite_mean(values: Iterable[float]) -> float:
    return mean([value for value in values if value == value])


def report(what: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
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


def recorded(arguments: argparse.Namespace) -> bool:
    """Whether the figures are those of what ships, on all captions: anything else is a trial."""
    given = (arguments.limit, arguments.guidance_scale, arguments.list, arguments.preset, arguments.set, arguments.tag)
    return given == (None, GUIDANCE, "test24", "tiny", "{}", "")


def recording(name: str) -> Path:
    return RESULTS / f"embedded-{name}.json"


def main(arguments: argparse.Namespace) -> int:
    from psd.tiny.scenes import scenes

    parts: dict[str, Callable[[argparse.Namespace], dict]] = {
        "critics": critics, "prior": prior, "prior-early": prior_early, "scenes": scenes
    }  # fmt: skip
    for name in [arguments.what] if arguments.what else parts:
        start = time.monotonic()
        figures = parts[name](arguments)
        if recorded(arguments):
            RESULTS.mkdir(parents=True, exist_ok=True)
            # figures bring their own seconds where only a part was measured again: those of the whole
            record = {"seconds": round(time.monotonic() - start), **figures}
            recording(name).write_text(json.dumps(record, indent=1) + "\n")
    return 0
