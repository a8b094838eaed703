"""What the prior is worth: guided samples of captions, by the evidence judge, an outside judge and between views."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from psd.embedded.objects.collection import open_collection
from psd.evaluation.experiments.suite import ROOT
from psd.evaluation.metrics.ground_truth import score_captions
from psd.evaluation.metrics.outside import AMONG, find_hits, list_asked, open_judge
from psd.evaluation.metrics.view_consistency import reprojection_error
from psd.evaluation.shipped.critics import VIEWS, draw_truth
from psd.evaluation.shipped.figures import Asked, finite_mean, is_offered, mean_or_nan, print_figure, read_captions
from psd.evaluation.shipped.naming import draw_samples
from psd.geometry.cameras import turntable_cameras
from psd.models.load import load_judge, load_prior

COMPARED, COMPARED_SAMPLES = "confirm", 4  # the captions of `compare`'s main suite
BATCH = 10  # captions sampled together
SHEET = ROOT / "assets" / "pictures" / "prior-samples.jpg"


@torch.no_grad()
def evaluate_prior(arguments: argparse.Namespace) -> dict:
    """Guided samples of the evaluation captions: named by the evidence judge among 60, consistent between views.

    Beside them the ground truth, as it is and through the autoencoder: what samples of the very truth would be worth;
    the captions whose kinds are all known; what an outside judge says of samples and truths; and how many samples of
    the captions of ``compare`` are named: what its methods could hope for.
    """
    device = torch.device("cpu")
    model, judge = load_prior("assets/prior", device), load_judge("assets/evidence", device=device)
    outside, collection, cameras = open_judge(), open_collection(), turntable_cameras(VIEWS)
    recognised = {caption.text for caption in list_asked("evaluation")} if outside else set()
    hits: dict[str, list[bool]] = defaultdict(list)
    errors: dict[str, list[float]] = defaultdict(list)
    pictures = []

    def sampled(asked: Asked, seed: int):
        """Each caption with its distractors and its sample."""
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            scale = arguments.guidance_scale
            drawn = draw_samples(model, [caption for caption, _ in batch], seed + start, guidance_scale=scale)
            yield from zip(batch, drawn, strict=True)

    def is_first(images: Float[Tensor, "v 3 h w"], texts: Sequence) -> bool:
        return bool(score_captions(judge, images, texts).argmax() == 0)

    asked = read_captions("evaluation", arguments.limit)
    for index, ((caption, others), images) in enumerate(sampled(asked, 0)):
        true = draw_truth(caption, index, cameras, collection).rgb[0]
        autoencoded = model.decode(model.encode(true[None]))[0].clamp(0, 1)
        for name, seen in (("sample", images), ("ground truth", true), ("autoencoded truth", autoencoded)):
            hits[name].append(is_first(seen, [caption, *others]))
            errors[name].append(reprojection_error(seen, cameras))
        if outside and caption.text in recognised:
            found = find_hits(outside.rate_classes(torch.stack([images, true])), [caption.kind] * 2, AMONG)
            for name, hit in zip(("outside, sample", "outside, ground truth"), found.tolist(), strict=True):
                hits[name].append(hit)
        for group in (caption.group, *(["known kinds"] if is_offered(caption) else [])):
            hits[group].append(hits["sample"][-1])
        pictures.append((caption.text, images, hits["sample"][-1]))
    for seed in range(COMPARED_SAMPLES):
        for (caption, others), images in sampled(read_captions(COMPARED, arguments.limit), 1000 * seed):
            hits[COMPARED].append(is_first(images, [caption, *others]))

    shares = {name: mean_or_nan(values) for name, values in hits.items()}
    consistency = {name: finite_mean(values) for name, values in errors.items()}
    ratios = {name: value / consistency["ground truth"] for name, value in consistency.items()}
    print_figure("samples named by the evidence judge, top-1 of 60", shares["sample"], at_least=0.85)
    for group in ("primitive", "pair", "thing", "known kinds"):
        if group in hits:
            print_figure(f"  of which {group} ({len(hits[group])} captions)", shares[group])
    print_figure(f"  of {COMPARED}, {COMPARED_SAMPLES} samples each", shares[COMPARED])
    print_figure("  the judge on ground truth", shares["ground truth"])
    print_figure("  the judge on ground truth through the autoencoder", shares["autoencoded truth"])
    if "outside, sample" in hits:
        count = len(hits["outside, sample"])
        print_figure(f"samples that the outside judge has among {AMONG} ({count} captions)", shares["outside, sample"])
        print_figure("  the same of ground truth", shares["outside, ground truth"])
    print_figure("reprojected colour error over the ground truth's own", ratios["sample"], at_most=1.5)
    print_figure("  of the ground truth through the autoencoder", ratios["autoencoded truth"])
    if arguments.is_default:
        draw_sample_sheet(pictures, SHEET)
    return {
        "captions": len(asked), "guidance_scale": arguments.guidance_scale,
        "top1_of_60": {name: share for name, share in shares.items() if not name.startswith("outside")},
        "outside_among_five": {
            name.removeprefix("outside, "): share for name, share in shares.items() if name.startswith("outside")
        },
        "counts": {name: len(values) for name, values in hits.items()},
        "consistency": {**consistency, "ratio": ratios["sample"], "autoencoded_ratio": ratios["autoencoded truth"]},
    }  # fmt: skip


def draw_sample_sheet(
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
    canvas.save(path, quality=88, optimize=True)
