"""What a grey ball and the true object score: ``python -m psd embedded true-scores``.

A run begins at a grey ball, and cannot be asked for more than the true object; the page tells how far between the two a
score is.  ``assets/world/true_scores.json`` keeps both for every caption of one thing, by the reward and by the judge
that the default preset has, on the four views and the white background of a preview.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from psd.config.preset import DEFAULT_PRESET, Preset
from psd.distillation.preview import VIEWS
from psd.embedded.captions.grammar import Caption, all_captions
from psd.embedded.captions.kinds import TRUE_SCORES
from psd.embedded.objects.assemble import Body, count_choices
from psd.embedded.objects.collection import Collection, open_collection
from psd.embedded.objects.forms import make_sphere
from psd.embedded.objects.picture import render_bodies
from psd.embedded.objects.truth import render_truth
from psd.geometry.cameras import turntable_cameras
from psd.models.checkpoints.digests import compute_digest
from psd.models.hub import ROOT
from psd.models.load import load_judge
from psd.models.rewards.text_image import ImageTextReward

BALL_RADIUS, BALL_GREY = 0.5, 0.5


def list_scorers() -> list[str]:
    """The reward and the judge of the default preset."""
    preset = Preset.load(DEFAULT_PRESET)
    return [*preset.rewards, *preset.judges]


def render_ball(size: int) -> Float[Tensor, "1 v 3 h w"]:
    """The grey ball that a run begins with, before white."""
    vertices, faces = make_sphere(None)
    grey = torch.full((1, 3), BALL_GREY)
    body = Body(BALL_RADIUS * vertices, faces, torch.zeros(len(faces), dtype=torch.long), grey)
    cameras = turntable_cameras(VIEWS)
    return render_bodies([body], cameras, size, light=cameras.c2w[..., :3, 2], background=torch.ones(1, 3)).rgb


def render_objects(caption: Caption, collection: Collection, size: int) -> Float[Tensor, "b v 3 h w"]:
    """The caption's true objects, one for each of its kind's meshes, before white."""
    cameras, white = turntable_cameras(VIEWS), torch.ones(1, 3)
    seen = [
        render_truth([caption], cameras, size, collection=collection, choice=choice, background=white).rgb
        for choice in range(count_choices(caption, collection))
    ]
    return torch.cat(seen)


@torch.no_grad()
def score_caption(
    scorer: ImageTextReward, caption: str, ball: Float[Tensor, "1 v 3 h w"], objects: Float[Tensor, "b v 3 h w"]
) -> list[float]:
    """The mean scores of the ball and of the objects for ``caption``."""
    return [round(float(scorer(images, caption).mean()), 3) for images in (ball, objects)]


def measure_scores(captions: Sequence[Caption], collection: Collection) -> dict[str, dict[str, list[float]]]:
    """By caption and scorer: what the grey ball scores, and the true object."""
    scorers = {name: load_judge(name, device=torch.device("cpu")) for name in list_scorers()}
    size = Preset.load(DEFAULT_PRESET).preview_size
    ball = render_ball(size)
    measured = {}
    for caption in captions:
        objects = render_objects(caption, collection, size)
        measured[caption.text] = {
            name: score_caption(scorer, caption.text, ball, objects) for name, scorer in scorers.items()
        }
    return measured


def digest_scorers() -> dict[str, str]:
    """The SHA-256 of each scorer's weights: the table holds for these alone."""
    return {name: compute_digest(ROOT / name / "model.safetensors") for name in list_scorers()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m psd embedded true-scores``."""
    parser.add_argument("--objects", type=Path, help="the folder of objects (default: PSD_OBJECTS)")


def main(args: argparse.Namespace) -> None:
    """Measure every caption of one thing and write the table."""
    scores = measure_scores(list(all_captions(pairs=False)), open_collection(args.objects))
    lines = ",\n".join(f" {json.dumps(text)}: {json.dumps(found)}" for text, found in scores.items())
    head = json.dumps(digest_scorers())
    TRUE_SCORES.write_text(f'{{"weights": {head},\n"scores": {{\n{lines}\n}}}}\n', encoding="utf-8")
    print(f"{TRUE_SCORES.relative_to(ROOT)}: {len(scores)} captions")
