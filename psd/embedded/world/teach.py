"""Training of the models of the objects' world: ``python -m psd embedded world train {vae,prior,reward,...}``.

The loop and the networks are those of `psd.embedded.training.loop`; this says which captions they learn.
"""

from __future__ import annotations

import argparse

from psd.embedded.training import loop
from psd.embedded.training.world import World
from psd.embedded.world import caption_lists, grammar


def list_examples() -> list[str]:
    """Every caption of one thing."""
    return [caption.text for caption in grammar.all_captions(pairs=False)]


def list_sheet_captions() -> list[str]:
    """The list to tune on."""
    return list(caption_lists.load_list("tuning"))


OBJECTS = World(
    vocabulary=grammar.vocabulary,
    parse=grammar.parse,
    near_misses=grammar.near_misses,
    is_held_out=grammar.is_held_out,
    list_examples=list_examples,
    list_sheet_captions=list_sheet_captions,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m psd embedded world train``: those of `psd.embedded.training.loop` with this world's
    folders.
    """
    loop.add_arguments(parser)
    parser.set_defaults(
        data="work/world/data", work="work/world/train", vae="work/world/train/vae/shipped/vae", world=OBJECTS
    )


def main(args: argparse.Namespace) -> int:
    """Train until ``--iterations``."""
    return loop.main(args)
