"""The training set: objects rendered into shards that any number of processes make, resume and repeat exactly.

A shard is ``shard-00007.safetensors`` (see ``Shard``) with its captions in ``shard-00007.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from psd.embedded.captions.grammar import LOW_QUALITY, Caption
from psd.embedded.captions.lists import sample_training_captions
from psd.embedded.degrade import degrade_views
from psd.embedded.objects.assemble import build_shape
from psd.embedded.render import main_colours, render_shapes
from psd.embedded.surroundings import sample_background, sample_light
from psd.geometry.cameras import Cameras, mvdream_condition, sample_orbits
from psd.runtime.process_pool import map_unordered

VIEWS, ELEVATION_DEG, FOVY_DEG, DISTANCE_FACTOR = 4, (0.0, 30.0), (40.0, 40.0), (1.1, 1.1)
OBJECTS_PER_SHARD, BATCH = 500, 20
DEGRADED_SHARE = 0.05
HELD_OUT = "Held-out colour-object and pair combinations were never trained on"
EVERY_CAPTION = "All captions were trained on, held-out ones too, in other proportions than those that it measures"
LOW_QUALITY_KINDS = ("blur", "noise", "floaters", "holes", "fog", "washed_out")


@dataclass(frozen=True)
class Shard:
    """``n`` objects, in order; fields that were not asked for are empty."""

    captions: list[str]
    rgb: Tensor  # uint8 n v h w 3
    mask: Tensor  # uint8 n v h w: coverage, 255 = all
    camera: Tensor  # float n v 16: psd.geometry.cameras.mvdream_condition
    background: Tensor  # float n 3


FIELDS = ("rgb", "mask", "camera", "background")


def load_shards(folder: Path | str, shards: Sequence[int] | None = None, *, fields: Sequence[str] = FIELDS) -> Shard:
    """The finished shards of ``folder`` (or those numbered) joined in memory: 64 KiB an object at 64 px, four views."""
    folder = Path(folder)
    paths = sorted(folder.glob("shard-*.safetensors")) if shards is None else [_shard_path(folder, i) for i in shards]
    if not paths:
        raise FileNotFoundError(
            f"no finished shard in {folder}: make some with `python -m psd embedded data --out {folder}`"
        )
    captions: list[str] = []
    columns: dict[str, list[Tensor]] = {name: [] for name in fields}
    for path in paths:
        captions += [json.loads(line)["caption"] for line in path.with_suffix(".jsonl").read_text().splitlines()]
        with safetensors.safe_open(path, framework="pt") as file:
            for name in fields:
                columns[name].append(file.get_tensor(name))
    return Shard(captions, **{name: torch.cat(columns[name]) if name in fields else torch.empty(0) for name in FIELDS})


@dataclass(frozen=True)
class Sample:
    """One object as it will be seen: everything that is random about it, drawn from the seed and its index alone."""

    text: str
    fault: str | None  # the degradation, where the object stands for "low quality"
    rgb: UInt8[Tensor, "v h w 3"]
    mask: UInt8[Tensor, "v h w"]
    camera: Float[Tensor, "v 16"]
    background: Float[Tensor, " 3"]


def render_samples(captions: Sequence[Caption], indices: Sequence[int], size: int, *, seed: int) -> list[Sample]:
    """Render the objects with these ``indices`` of the data set that ``seed`` stands for."""
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in indices]
    shapes = [build_shape(caption, generator) for caption, generator in zip(captions, generators, strict=True)]
    orbits = [
        sample_orbits(
            1,
            VIEWS,
            elevation_deg=ELEVATION_DEG,
            fovy_deg=FOVY_DEG,
            distance_factor=DISTANCE_FACTOR,
            generator=generator,
        )
        for generator in generators
    ]
    light = torch.cat([sample_light(orbit, generator) for orbit, generator in zip(orbits, generators, strict=True)])
    backgrounds = [
        sample_background(main_colours(shape), generator) for shape, generator in zip(shapes, generators, strict=True)
    ]
    cameras = Cameras(**{name: torch.cat([getattr(orbit, name) for orbit in orbits]) for name in vars(orbits[0])})
    views = render_shapes(shapes, cameras, size, light=light, background=torch.stack(backgrounds))
    samples = []
    for i, (caption, generator) in enumerate(zip(captions, generators, strict=True)):
        rgb, text, fault = views.rgb[i], caption.text, None
        if torch.rand((), generator=generator) < DEGRADED_SHARE:
            text = LOW_QUALITY
            fault = LOW_QUALITY_KINDS[int(torch.randint(len(LOW_QUALITY_KINDS), (), generator=generator))]
            strength = 0.5 + 0.5 * float(torch.rand((), generator=generator))
            rgb = degrade_views(fault, strength, rgb, views.mask[i], backgrounds[i], generator)
        samples.append(
            Sample(
                text,
                fault,
                (rgb.movedim(1, -1) * 255).round().byte(),
                (views.mask[i] * 255).round().byte(),
                mvdream_condition(cameras)[i],
                backgrounds[i],
            )
        )
    return samples


@dataclass(frozen=True)
class Source:
    """Where a data set's objects come from; both are functions of modules, which other processes can be sent."""

    sample_captions: Callable[..., Sequence[Any]]  # (n, seed=, held_out=) -> n captions
    render_samples: Callable[..., list[Sample]]  # (captions, indices, size, seed=) -> a sample for each


HAND_DRAWN = Source(sample_training_captions, render_samples)


def write_shard(
    folder: Path, number: int, source: Source = HAND_DRAWN, *, shard_objects: int, size: int, seed: int, held_out: bool
) -> None:
    """Render shard ``number`` and put it in place whole: the tensors last, as the sign that it is finished."""
    start, stop = number * shard_objects, (number + 1) * shard_objects
    captions = source.sample_captions(stop, seed=seed, held_out=held_out)
    samples: list[Sample] = []
    for low in range(start, stop, BATCH):
        indices = range(low, min(low + BATCH, stop))
        samples += source.render_samples([captions[i] for i in indices], indices, size, seed=seed)
    path = _shard_path(folder, number)
    lines = [
        json.dumps(
            {"index": start + i, "caption": sample.text, "meant": captions[start + i].text, "fault": sample.fault}
        )
        for i, sample in enumerate(samples)
    ]
    draft = path.with_suffix(f".{os.getpid()}.draft")
    draft.write_text("\n".join(lines) + "\n")
    draft.replace(path.with_suffix(".jsonl"))
    tensors = {name: torch.stack([getattr(sample, name) for sample in samples]) for name in FIELDS}
    safetensors.torch.save_file(tensors, draft)
    draft.replace(path)


def build_dataset(
    folder: Path, *, objects: int, size: int, seed: int, processes: int, shard_objects: int = OBJECTS_PER_SHARD,
    held_out: bool = False, source: Source = HAND_DRAWN,
) -> None:  # fmt: skip
    """Render every shard that ``folder`` lacks of the first ``objects``, rounded up to whole shards; prints progress.

    A later call with more objects adds to the same data set: object i depends on the seed and i alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"shard_objects": shard_objects, "size": size, "seed": seed, "held_out": held_out}
    record = folder / "dataset.json"
    if record.exists() and json.loads(record.read_text()) != settings:
        raise SystemExit(
            f"{folder} holds shards made with {record.read_text().strip()}, not {settings}: use another --out"
        )
    record.write_text(json.dumps(settings) + "\n")
    jobs = [
        (folder, number, source, settings)
        for number in range(-(-objects // shard_objects))
        if not _shard_path(folder, number).exists()
    ]
    begun = time.monotonic()
    for done, number in enumerate(map_unordered(_write_shard, jobs, processes), start=1):
        elapsed_s = time.monotonic() - begun
        left_s = elapsed_s / done * (len(jobs) - done)
        speed = done * shard_objects / elapsed_s
        print(f"shard {number}: {done} of {len(jobs)}, {speed:.0f} objects/s, {left_s:.0f} s left", flush=True)


def _write_shard(job: tuple[Path, int, Source, dict[str, Any]]) -> int:
    torch.set_num_threads(1)  # the processes share the cores out
    folder, number, source, settings = job
    write_shard(folder, number, source, **settings)
    return number


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m psd embedded data``."""
    parser.add_argument("--objects", type=int, default=16_000)
    parser.add_argument("--size", type=int, default=64, help="pixels along a side")
    parser.add_argument("--out", type=Path, default=Path("work/data"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--held-out", action="store_true", help="the held-out captions too: for judges alone, which are measures"
    )
    parser.add_argument("--processes", type=int, default=2, help="each renders with one thread")


def main(args: argparse.Namespace) -> None:
    """Make or complete the data set."""
    build_dataset(
        args.out, objects=args.objects, size=args.size, seed=args.seed, processes=args.processes, held_out=args.held_out
    )
