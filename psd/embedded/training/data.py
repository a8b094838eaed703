"""The training set: ``python -m psd embedded data --objects DIR`` renders captions' objects into shards.

Any number of processes make them, resume and repeat them exactly: object i of a data set depends on its seed and i
alone.  A shard is ``shard-00007.safetensors`` (see ``Shard``) with its captions in ``shard-00007.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
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
from psd.embedded.objects.assemble import assemble_object
from psd.embedded.objects.collection import Collection, find_collection, open_collection
from psd.embedded.objects.picture import main_colours, render_bodies
from psd.embedded.objects.surroundings import sample_background, sample_light
from psd.geometry.cameras import Cameras, mvdream_condition, sample_orbits
from psd.runtime.process_pool import map_unordered

VIEWS, ELEVATION_DEG, FOVY_DEG, DISTANCE_FACTOR = 4, (0.0, 30.0), (40.0, 40.0), (1.1, 1.1)
OBJECTS_PER_SHARD = 1000
BATCH = 8  # objects rendered together: more are no faster
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


def render_samples(
    collection: Collection, captions: Sequence[Caption], indices: Sequence[int], size: int, *, seed: int
) -> list[Sample]:
    """Render the objects with these ``indices`` of the data set that ``seed`` stands for."""
    samples: list[Sample] = []
    for start in range(0, len(captions), BATCH):
        part = slice(start, start + BATCH)
        samples += _render_batch(collection, captions[part], indices[part], size, seed)
    return samples


def _render_batch(
    collection: Collection, captions: Sequence[Caption], indices: Sequence[int], size: int, seed: int
) -> list[Sample]:
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in indices]
    bodies = [assemble_object(c, collection, generator) for c, generator in zip(captions, generators, strict=True)]
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
        if torch.rand((), generator=generator) < DEGRADED_SHARE:
            text = LOW_QUALITY
            fault = LOW_QUALITY_KINDS[int(torch.randint(len(LOW_QUALITY_KINDS), (), generator=generator))]
            strength = 0.5 + 0.5 * float(torch.rand((), generator=generator))
            rgb = degrade_views(fault, strength, rgb, pictures.mask[i], background[i], generator)
        samples.append(
            Sample(
                text=text,
                fault=fault,
                rgb=(rgb.movedim(1, -1) * 255).round().byte(),
                mask=(pictures.mask[i] * 255).round().byte(),
                camera=conditions[i],
                background=background[i],
            )
        )
    return samples


def write_shard(
    folder: Path, number: int, collection: Collection, *, shard_objects: int, size: int, seed: int, held_out: bool
) -> None:
    """Render shard ``number`` and put it in place whole: the tensors last, as the sign that it is finished."""
    start, stop = number * shard_objects, (number + 1) * shard_objects
    captions = sample_training_captions(stop, seed=seed, held_out=held_out)[start:]
    samples = render_samples(collection, captions, range(start, stop), size, seed=seed)
    path = _shard_path(folder, number)
    lines = [
        json.dumps({"index": start + i, "caption": sample.text, "meant": caption.text, "fault": sample.fault})
        for i, (sample, caption) in enumerate(zip(samples, captions, strict=True))
    ]
    draft = path.with_suffix(f".{os.getpid()}.draft")
    draft.write_text("\n".join(lines) + "\n")
    draft.replace(path.with_suffix(".jsonl"))
    tensors = {name: torch.stack([getattr(sample, name) for sample in samples]) for name in FIELDS}
    safetensors.torch.save_file(tensors, draft)
    draft.replace(path)


def build_dataset(
    folder: Path, collection: Path, *, objects: int, size: int, seed: int, processes: int,
    shard_objects: int = OBJECTS_PER_SHARD, held_out: bool = False,
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
        (folder, number, collection.resolve(), settings)
        for number in range(-(-objects // shard_objects))
        if not _shard_path(folder, number).exists()
    ]
    begun = time.monotonic()
    for done, number in enumerate(map_unordered(_write_shard, jobs, processes), start=1):
        elapsed_s = time.monotonic() - begun
        left_s = elapsed_s / done * (len(jobs) - done)
        speed = done * shard_objects / elapsed_s
        print(f"shard {number}: {done} of {len(jobs)}, {speed:.0f} objects/s, {left_s:.0f} s left", flush=True)


def _write_shard(job: tuple[Path, int, Path, dict[str, Any]]) -> int:
    torch.set_num_threads(1)  # the processes share the cores out
    folder, number, collection, settings = job
    write_shard(folder, number, open_collection(collection), **settings)
    return number


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m psd embedded data``."""
    parser.add_argument("--objects", type=Path, help="the folder of objects (default: PSD_OBJECTS)")
    parser.add_argument("--count", type=int, default=40_000, help="objects to render in all")
    parser.add_argument("--size", type=int, default=64, help="pixels along a side")
    parser.add_argument("--out", type=Path, default=Path("work/data"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--held-out", action="store_true", help="the held-out captions too: for judges alone, which are measures"
    )
    parser.add_argument("--processes", type=int, default=2, help="each renders with one thread")
    parser.add_argument("--shard", type=int, default=OBJECTS_PER_SHARD, help="objects a file")


def main(args: argparse.Namespace) -> None:
    """Make or complete the data set."""
    build_dataset(
        args.out, find_collection(args.objects), objects=args.count, size=args.size, seed=args.seed,
        processes=args.processes, shard_objects=args.shard, held_out=args.held_out,
    )  # fmt: skip
