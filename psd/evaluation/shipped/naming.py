"""Which kinds a prior knows: ``python -m psd embedded naming --prior FOLDER --judge FOLDER [--ship]``.

For every noun a few guided samples, each named by a judge that chooses among 60 captions.  A kind is known whose
samples the judge names in at least half; what ships offers known kinds only.  ``assets/world/naming.json`` keeps the
figures of every measured checkpoint, as a curve of naming over iterations, and with ``--ship`` the kinds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from psd.embedded.captions.grammar import LOW_QUALITY, Caption, is_held_out
from psd.embedded.captions.kinds import COLOURS, NAMING, read_kinds
from psd.embedded.captions.lists import draw_distractors
from psd.embedded.training.prior import sample_views
from psd.models.load import load_judge, load_prior
from psd.models.prior.diffusers_prior import DiffusersPrior
from psd.models.rewards.text_image import ImageTextReward, score_prompts

GUIDANCE = 4.0  # of the samples, as in the default preset
BATCH = 12  # captions sampled together


def list_plain_captions() -> list[Caption]:
    """For every kind its caption without a colour word; a primitive has the first colour that it was trained in."""
    plain = []
    for noun, kind in read_kinds().items():
        colour = next(colour for colour in (*COLOURS, None) if not is_held_out(Caption(noun, colour)))
        plain.append(Caption(noun, None if None in kind.colours else colour))
    return plain


@torch.no_grad()
def draw_samples(
    prior: DiffusersPrior, captions: Sequence[Caption], seed: int, *, guidance_scale: float = GUIDANCE
) -> Float[Tensor, "b v 3 h w"]:
    """Guided samples, four orthogonal views each, in [0, 1]."""
    embeddings = torch.stack([prior.embed_prompt(caption.text) for caption in captions])
    z0 = sample_views(prior.unet, embeddings, prior.embed_prompt(LOW_QUALITY), guidance_scale=guidance_scale, seed=seed)
    return prior.decode(z0).clamp(0, 1)


@torch.no_grad()
def is_named(judge: ImageTextReward, images: Float[Tensor, "v 3 h w"], caption: Caption) -> bool:
    """Whether the judge prefers ``caption`` to all of its 59 distractors, on the mean over views."""
    texts = [caption.text, *draw_distractors(caption)]
    return int(score_prompts(judge, images[None], texts)[0].mean(0).argmax()) == 0


def measure_naming(
    prior: DiffusersPrior, judge: ImageTextReward, captions: Sequence[Caption], samples: int
) -> dict[str, int]:
    """How many of ``samples`` samples of each caption the judge names, by the caption's text."""
    named = dict.fromkeys((caption.text for caption in captions), 0)
    for seed in range(samples):
        for start in range(0, len(captions), BATCH):
            batch = captions[start : start + BATCH]
            drawn = draw_samples(prior, batch, 1000 * seed + start)
            for caption, images in zip(batch, drawn, strict=True):
                named[caption.text] += is_named(judge, images, caption)
    return named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m psd embedded naming``."""
    parser.add_argument("--prior", required=True, help="folder of the prior")
    parser.add_argument("--judge", required=True, help="folder of the judge")
    parser.add_argument("--samples", type=int, default=4, help="of each kind")
    parser.add_argument("--limit", type=int, help="only the first so many kinds, for a quick look; nothing is recorded")
    parser.add_argument("--ship", action="store_true", help="these kinds are the known ones from now on")


def main(args: argparse.Namespace) -> None:
    """Measure, print, and add to the curve."""
    device = torch.device("cpu")
    captions = list_plain_captions()[: args.limit]
    iterations = json.loads((Path(args.prior) / "training.json").read_text(encoding="utf-8"))["iterations"]
    named = measure_naming(
        load_prior(args.prior, device), load_judge(args.judge, device=device), captions, args.samples
    )
    known = [c.kind for c in captions if 2 * named[c.text] >= args.samples]
    share = sum(named.values()) / (args.samples * len(named))
    print(f"{iterations} iterations: {len(known)} of {len(named)} kinds known, {share:.3f} of the samples named")
    if args.limit is None:
        record = json.loads(NAMING.read_text(encoding="utf-8"))
        record["curve"].append({"iterations": iterations, "samples": args.samples, "share": share, "kinds": len(known)})
        if args.ship:
            record |= {"known": known, "named": named}
        NAMING.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
