"""The training set of the objects' world: ``python -m psd embedded world data --objects DIR``.

The shards have the format of `psd.embedded.training.data`; object i of a data set depends on its seed and i alone.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from psd.embedded import degrade
from psd.embedded.surroundings import sample_background, sample_light
from psd.embedded.training import data
from psd.embedded.world.assemble import assemble_object
from psd.embedded.world.caption_lists import sample_training_captions
from psd.embedded.world.collection import Collection, find_collection
from psd.embedded.world.grammar import LOW_QUALITY, Caption
from psd.embedded.world.picture import main_colours, render_bodies
from psd.geometry.cameras import Cameras, mvdream_condition, sample_orbits

BATCH = 8  # objects rendered together: more are no faster


@functools.cache
def open_collection(folder: Path) -> Collection:
    """One for each process, so that every mesh is read once."""
    return Collection(folder)


def render_samples(
    folder: Path, captions: Sequence[Caption], indices: Sequence[int], size: int, *, seed: int
) -> list[data.Sample]:
    """Render the objects with these ``indices`` of the data set that ``seed`` stands for."""
    samples: list[data.Sample] = []
    for start in range(0, len(captions), BATCH):
        part = slice(start, start + BATCH)
        samples += _render_batch(open_collection(folder), captions[part], indices[part], size, seed)
    return samples


def _render_batch(
    collection: Collection, captions: Sequence[Caption], indices: Sequence[int], size: int, seed: int
) -> list[data.Sample]:
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in indices]
    bodies = [assemble_object(c, collection, generator) for c, generator in zip(captions, generators, strict=True)]
    orbits = [
        sample_orbits(
            1,
            data.VIEWS,
            elevation_deg=data.ELEVATION_DEG,
            fovy_deg=data.FOVY_DEG,
            distance_factor=data.DISTANCE_FACTOR,
            generator=generator,
        )
        for generator in generators
    ]
    light = torch.cat([sample_light(orbit, generator) for orbit, generator in zip(orbits, generators, strict=True)])
    colours = map(main_colours, bodies)
    background = torch.stack(
        [sample_background(c, generator) for c, generator in zip(colours, generators, strict=True)]
    )
    cameras = Cameras(**{name: torch.cat([getattr(orbit, name) for orbit in orbits]) for name in vars(orbits[0])})
    pictures = render_bodies(bodies, cameras, size, light=light, background=background)
    conditions = mvdream_condition(cameras)
    samples = []
    for i, (caption, generator) in enumerate(zip(captions, generators, strict=True)):
        rgb, text, fault = pictures.rgb[i], caption.text, None
        if torch.rand((), generator=generator) < data.DEGRADED_SHARE:
            text = LOW_QUALITY
            fault = data.LOW_QUALITY_KINDS[int(torch.randint(len(data.LOW_QUALITY_KINDS), (), generator=generator))]
            strength = 0.5 + 0.5 * float(torch.rand((), generator=generator))
            rgb = degrade.degrade_views(fault, strength, rgb, pictures.mask[i], background[i], generator)
        samples.append(
            data.Sample(
                text=text,
                fault=fault,
                rgb=(rgb.movedim(1, -1) * 255).round().byte(),
                mask=(pictures.mask[i] * 255).round().byte(),
                camera=conditions[i],
                background=background[i],
            )
        )
    return samples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m psd embedded world data``."""
    parser.add_argument("--objects", type=Path, help="the folder of objects (default: PSD_OBJECTS)")
    parser.add_argument("--count", type=int, default=40_000, help="objects to render in all")
    parser.add_argument("--size", type=int, default=64, help="pixels along a side")
    parser.add_argument("--out", type=Path, default=Path("work/world/data"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--held-out", action="store_true", help="the held-out captions too: for judges alone, which are measures"
    )
    parser.add_argument("--processes", type=int, default=1, help="each renders with one thread")
    parser.add_argument("--shard", type=int, default=1000, help="objects a file")


def main(args: argparse.Namespace) -> None:
    """Make or complete the data set."""
    source = data.Source(
        sample_training_captions, functools.partial(render_samples, find_collection(args.objects).resolve())
    )
    data.build_dataset(
        args.out, objects=args.count, size=args.size, seed=args.seed, processes=args.processes,
        shard_objects=args.shard, held_out=args.held_out, source=source,
    )  # fmt: skip
