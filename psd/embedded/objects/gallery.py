"""One picture with every kind of the embedded world: ``python -m psd embedded gallery --objects DIR``.

The page shows its tiles (`psd.embedded.captions.kinds.locate_picture`), so that no run needs the collection of objects.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from psd.embedded.captions.grammar import Caption
from psd.embedded.captions.kinds import COLUMNS, GALLERY, TILE, locate_picture, read_kinds
from psd.embedded.objects.collection import Collection, open_collection
from psd.embedded.objects.truth import render_truth
from psd.geometry.cameras import Cameras, turntable_cameras

BATCH = 8
START_DEG, ELEVATION_DEG = 35.0, 20.0  # three quarters from the front, a little from above
PRIMITIVE_COLOUR = "red"  # as a prompt without a colour word is read (`psd.embedded.captions.wording`)


def render_gallery(collection: Collection) -> UInt8[Tensor, "h w 3"]:
    """The canonical object of every kind on white, in the order of `read_kinds`, ``COLUMNS`` in a row."""
    kinds = list(read_kinds().values())
    rows = -(-len(kinds) // COLUMNS)
    canvas = torch.full((rows * TILE, COLUMNS * TILE, 3), 255, dtype=torch.uint8)
    camera = turntable_cameras(4, elevation_deg=ELEVATION_DEG, start_deg=START_DEG)[:, :1]
    for start in range(0, len(kinds), BATCH):
        captions = [
            Caption(kind.noun, None if None in kind.colours else PRIMITIVE_COLOUR)
            for kind in kinds[start : start + BATCH]
        ]
        cameras = Cameras(
            **{name: value.expand(len(captions), *value.shape[1:]) for name, value in vars(camera).items()}
        )
        white = torch.ones(len(captions), 3)
        seen = render_truth(captions, cameras, TILE, collection=collection, background=white)
        for caption, image in zip(captions, seen.rgb[:, 0], strict=True):
            x, y = locate_picture(caption.kind)
            canvas[y : y + TILE, x : x + TILE] = (image.movedim(0, -1) * 255).round().byte()
    return canvas


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m psd embedded gallery``."""
    parser.add_argument("--objects", type=Path, help="the folder of objects (default: PSD_OBJECTS)")
    parser.add_argument("--out", type=Path, default=GALLERY)


def main(args: argparse.Namespace) -> None:
    """Render and write it."""
    image = render_gallery(open_collection(args.objects))
    Image.fromarray(image.numpy()).save(args.out, quality=85, optimize=True)
