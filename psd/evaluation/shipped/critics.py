"""What reward and judges are worth: right captions and spoilt pictures, on true views of the evaluation list."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor

from psd.embedded import degrade
from psd.embedded.captions.grammar import Caption
from psd.embedded.captions.lists import NEAR_MISSES
from psd.embedded.objects.collection import Collection, open_collection
from psd.embedded.objects.picture import Pictures
from psd.embedded.objects.truth import render_truth
from psd.evaluation.metrics.ground_truth import SEED, SIZE, score_captions
from psd.evaluation.shipped.figures import mean_or_nan, print_figure, read_captions, record_file
from psd.geometry.cameras import Cameras, turntable_cameras
from psd.models.load import load_judge

CRITICS = ("reward", "selector", "evidence", "referee")
MILDEST = {  # the strengths at which pair accuracy is asked; 1 is gross
    "blur": 0.25, "noise": 0.25, "holes": 0.4, "floaters": 0.3, "warp": 0.4, "washed_out": 0.3, "fog": 0.3,
    "dark": 0.4, "oversaturated": 0.4, "stained": 0.3, "wrong_colour": 1.0, "wrong_part": 1.0,
}  # fmt: skip
VIEWS, START_DEG = 4, 20


def draw_truth(
    caption: Caption,
    seed: int,
    cameras: Cameras,
    collection: Collection,
    background: Float[Tensor, "1 3"] | None = None,
) -> Pictures:
    """The caption's object with mesh, proportions, light and background drawn from ``seed``."""
    generator = torch.Generator().manual_seed(SEED + seed)
    return render_truth([caption], cameras, SIZE, collection=collection, generator=generator, background=background)


def spoil_views(
    caption: Caption, index: int, views: Pictures, cameras: Cameras, collection: Collection
) -> dict[str, Float[Tensor, "v 3 h w"]]:
    """The views spoilt in each way at its mildest; without those that the caption has no room for."""
    spoilt = {}
    for kind, strength in MILDEST.items():
        generator = torch.Generator().manual_seed(index)
        mistaken = None
        if kind in degrade.CAPTION_KINDS:
            wrong = degrade.make_mistake(kind, caption, generator)
            if wrong is None:
                continue
            mistaken = draw_truth(wrong, index, cameras, collection, views.background).rgb[0]
        spoilt[kind] = degrade.degrade_views(
            kind, strength, views.rgb[0], views.mask[0], views.background[0], generator, mistaken=mistaken
        )
    return spoilt


@torch.no_grad()
def evaluate_critics(arguments: argparse.Namespace) -> dict:
    """Top-1 and hard text on true views, pair accuracy for each degradation, for each critic asked for.

    Beside them the recorded figures of the others: what each is asked does not depend on who else is.
    """
    collection = open_collection()
    judges = {name: load_judge(f"assets/{name}", device=torch.device("cpu")) for name in arguments.critic or CRITICS}
    cameras = turntable_cameras(VIEWS, start_deg=START_DEG)
    top, hard = defaultdict(list), defaultdict(list)
    pair: dict[str, dict[str, list[bool]]] = {name: defaultdict(list) for name in judges}
    asked = read_captions("evaluation", arguments.limit)
    for index, (caption, others) in enumerate(asked):
        views = draw_truth(caption, index, cameras, collection)
        spoilt = spoil_views(caption, index, views, cameras, collection)
        for name, judge in judges.items():
            scores = score_captions(judge, views.rgb[0], [caption, *others])
            top[name].append(bool(scores.argmax() == 0))
            hard[name] += (scores[0] > scores[1 : 1 + NEAR_MISSES]).tolist()
            for kind, images in spoilt.items():
                pair[name][kind].append(bool(scores[0] > score_captions(judge, images, [caption])[0]))
    path = record_file("critics")
    figures = json.loads(path.read_text(encoding="utf-8")) if arguments.critic and path.is_file() else {}
    for name in judges:
        kinds = {kind: mean_or_nan(hits) for kind, hits in pair[name].items()}
        figures[name] = {
            "top1_of_60_on_ground_truth": mean_or_nan(top[name]),
            "hard_text": mean_or_nan(hard[name]),
            "pair_accuracy": mean_or_nan([hit for hits in pair[name].values() for hit in hits]),
            **{f"pair_{kind}": value for kind, value in kinds.items()},
        }
        print_figure(f"{name}: hard text", figures[name]["hard_text"], at_least=0.97)
        print_figure(f"{name}: pairs", figures[name]["pair_accuracy"], at_least=0.95)
        for kind, value in kinds.items():
            print_figure(f"{name}: {kind} at {MILDEST[kind]}", value, at_least=0.90)
        print_figure(f"{name}: top-1 of 60, ground truth", figures[name]["top1_of_60_on_ground_truth"])
    return {**figures, "captions": len(asked), "mildest": MILDEST}
