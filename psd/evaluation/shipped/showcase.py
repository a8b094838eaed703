"""The runs that ship: ``python -m psd embedded showcase``, then ``... showcase --ship NAME ...`` with the good ones.

The first makes the missing runs of a list of prompts (36, seed 0 of each) with the default preset, one after the other,
and draws one sheet of all of them (`SHEET`) with the places that two judges give them.  A person looks at it and names
the runs that ship: the second copies these, slimmed (`slim_run`), into ``assets/showcase`` in the place of what was
there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from psd.config.assignments import parse_assignments
from psd.config.errors import PresetError
from psd.config.preset import DEFAULT_PRESET, Preset
from psd.distillation import events
from psd.embedded.captions import grammar, lists
from psd.embedded.captions.wording import read_prompt, reword_text
from psd.evaluation.metrics.ground_truth import mesh_sides, score_captions
from psd.geometry.cameras import turntable_cameras
from psd.geometry.cleanup import decimate_surface, vertex_normals
from psd.geometry.export import encode_mesh
from psd.geometry.mesh import Mesh
from psd.geometry.mesh_picture import rasterise_mesh
from psd.geometry.read import read_mesh
from psd.models.load import load_judge
from psd.models.rewards.text_image import ImageTextReward
from psd.runs.engine import prepare_events
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import drive_run
from psd.runs.store.archive import (
    Run,
    list_runs,
    preview_file,
    read_preset,
    read_provenance,
    read_status,
    replay_events,
)
from psd.runs.store.films import (
    ELEVATION_DEG,
    FPS,
    STRIP,
    STRIP_START_DEG,
    render_strip,
    render_turntable,
    shrink_views,
)
from psd.runs.store.folder import RunFolder
from psd.runs.store.library import SHOWCASE
from psd.runs.store.media import decode_views, write_films
from psd.runs.store.retention import size_bytes
from psd.runs.terminal import Progress

PROMPTS = (  # those of `SHEET` as it ships, in its order
    "a barrel", "a birthday cake", "a blue tent", "a bone", "a burger", "a cactus", "a castle tower", "a cupcake",
    "a dog", "a donut", "a fire truck", "a fox", "a goldfish", "a green cube on top of a yellow cylinder", "a horse",
    "a loaf of bread", "a lollipop", "a palm tree", "a pineapple", "a pirate ship", "a police car", "a pumpkin",
    "a purple armchair", "a red apple", "a red mushroom", "a rock", "a shark", "a snowy tree", "a spaceship",
    "a strawberry", "a taxi", "a traffic light", "a treasure chest", "a watermelon", "an ice cream cone", "cheese",
)  # fmt: skip
WORK = Path("work/showcase")
SHEET = Path(__file__).resolve().parents[3] / "assets" / "pictures" / "showcase.png"
JUDGES = ("assets/selector", "assets/evidence")
LARGEST = 6_000_000  # bytes of all runs that ship
COPIED = ("preset.yaml", "preset.resolved.yaml", "environment.json")
DROPPED = ("loss/", "memory/", "time/")  # metrics that no chart of a finished run shows, but for the next
SPEED = "time/step"
DIGITS = 4  # of the numbers that are kept
MOST_PREVIEWS, JPEG_QUALITY, WEBP_QUALITY = 13, 75, 80
MOST_FACES, FILM_SIZE = 6000, 256  # of the mesh; px of the turntable
TILE, LABEL, COLUMNS = 176, 34, 12  # px of the sheet's pictures and of the words below; pictures in a row
CPU = torch.device("cpu")


def plan_runs(prompts: Sequence[str], seeds: int, changes: Mapping[str, Any]) -> list[Preset]:
    """A preset for each prompt and seed, in the prior's own wording.

    Raises `PresetError` for a prompt that names nothing that the prior knows.
    """
    return [
        Preset.load(DEFAULT_PRESET, {**changes, "prompt": reword_text(prompt), "seed": seed})
        for prompt in prompts
        for seed in range(seeds)
    ]


def read_prompts(given: Sequence[str]) -> list[str]:
    """Prompts as they are given, or the lines of the files that are named."""
    found = []
    for text in given:
        lines = Path(text).read_text(encoding="utf-8").splitlines() if Path(text).is_file() else [text]
        found += [line.strip() for line in lines if line.strip()]
    return found


def find_made(work: Path) -> list[Run]:
    """The finished runs with a mesh in the work folder, oldest first."""
    return [run for run in reversed(list_runs(work)) if run.status.state == "finished" and mesh_file(run).is_file()]


def mesh_file(run: Run) -> Path:
    return run.folder / "public" / "exports" / "mesh.glb"


def name_run(run: Run) -> str:
    """What a person calls a run on the command line: ``a-red-mushroom_s0``."""
    return "_".join(run.id.split("_")[1:3])


def make_runs(wanted: Sequence[Preset], work: Path) -> int:
    """Make the runs that are not in the work folder yet; returns how many failed."""
    made = [read_preset(run.folder) for run in find_made(work)]
    missing, failed = [preset for preset in wanted if preset not in made], 0
    for number, preset in enumerate(missing, start=1):
        print(f"{number}/{len(missing)}  {preset.prompt}, seed {preset.seed}", file=sys.stderr, flush=True)
        progress, last = Progress(sys.stderr), None
        with RunFolder.create(preset, work) as folder:
            for last in drive_run(prepare_events(preset), folder, Controls(preset)):
                progress.show(last)
        progress.close()
        failed += isinstance(last, events.Failed)
    return failed


# ---------------------------------------------------------------------------------------------------------- the sheet


@torch.no_grad()
def judge_place(judge: ImageTextReward, mesh: Mesh, caption: grammar.Caption) -> int:
    """The caption's place among itself and its distractors, by the judge's score of four sides of the mesh; 1: best."""
    others = [grammar.parse(text) for text in lists.draw_distractors(caption)]
    scores = score_captions(judge, mesh_sides(mesh).shown, [caption, *others])
    return 1 + int((scores[1:] > scores[0]).sum())


def draw_mesh(mesh: Mesh) -> UInt8[np.ndarray, "h w 3"]:
    """The mesh at three quarters, `TILE` px wide."""
    camera = turntable_cameras(1, elevation_deg=ELEVATION_DEG, start_deg=STRIP_START_DEG)
    large = (rasterise_mesh(mesh, camera, 2 * TILE).rgb[0] * 255).round().astype(np.uint8)
    return shrink_views(large, TILE)[0]


def draw_sheet(tiles: Sequence[tuple[UInt8[np.ndarray, "h w 3"], str, str]], path: Path) -> None:
    """Write a picture of all ``tiles``: each a picture and two lines of words below it."""
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * TILE, rows * (TILE + LABEL)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, (picture, name, words) in enumerate(tiles):
        x, y = place % columns * TILE, place // columns * (TILE + LABEL)
        sheet.paste(Image.fromarray(picture), (x, y))
        while pen.textlength(name, font) > TILE - 12:
            name = name[:-2] + "…"
        pen.text((x + 6, y + TILE), name, fill="black", font=font)
        pen.text((x + 6, y + TILE + 14), words, fill="#606060", font=font)
    sheet.save(path, optimize=True)


def draw_runs(runs: Sequence[Run], path: Path) -> None:
    """The sheet of ``runs`` in the order of their prompts, with each judge's place for them, which is printed too."""
    judges = {name.rpartition("/")[2]: load_judge(name, device=CPU) for name in JUDGES}
    tiles = []
    for run in sorted(runs, key=lambda run: (run.status.prompt, run.status.seed)):
        mesh, caption = read_mesh(mesh_file(run)), grammar.parse(run.status.prompt)
        places = {name: judge_place(judge, mesh, caption) for name, judge in judges.items()}
        words = ", ".join(f"{name} {place}" for name, place in places.items())
        print(f"{name_run(run):48} {words}", flush=True)
        tiles.append((draw_mesh(mesh), name_run(run), words))
    draw_sheet(tiles, path)


# ----------------------------------------------------------------------------------------------------------- slim runs


def slim_run(folder: Path, root: Path) -> Path:
    """Copy what opens a finished run into a folder of its name below ``root``, made small; returns that.

    Kept are its preset, its versions, its state, its events with fewer digits, a dozen previews, a lighter mesh with
    its turntable, and the strip of views that turns under a pointer.  No checkpoint, no log, no owner.
    """
    target = root / folder.name
    exports = target / "public" / "exports"
    exports.mkdir(parents=True)
    (target / "public" / "previews").mkdir()
    for name in COPIED:
        shutil.copyfile(folder / name, target / name)
    mesh = lighten_mesh(folder / "public" / "exports" / "mesh.glb")
    told = list(slim_events(folder, len(mesh.vertices), len(mesh.faces)))
    text = "".join(f"{line}\n" for line in map(events.to_json, told))
    (target / "events.jsonl").write_text(text, encoding="utf-8")
    steps = [event.step for event in told if isinstance(event, events.Previewed)]
    for step in steps:
        _copy_preview(folder / preview_file(step, "rgb"), target / preview_file(step, "rgb"))
    last = preview_file(steps[-1], "rgb") if steps else ""
    status = replace(read_status(folder), preview=last, message="", pid=0)
    (target / "status.json").write_text(json.dumps(asdict(status), indent=2, ensure_ascii=False), encoding="utf-8")
    glb = encode_mesh(mesh, "mesh.glb", provenance=read_provenance(folder, status.step))["mesh.glb"]
    (exports / "mesh.glb").write_bytes(glb)
    strip = np.concatenate(list(render_strip(mesh)), axis=1)
    Image.fromarray(strip).save(target / STRIP, quality=WEBP_QUALITY, method=6)
    write_films(shrink_views(render_turntable(mesh), FILM_SIZE), exports, fps=FPS)
    (exports / "turntable.webp").unlink()  # the page shows the other one
    return target


def lighten_mesh(path: Path) -> Mesh:
    """The mesh of a file with at most `MOST_FACES` faces, each vertex in the colour of the nearest that was there."""
    from scipy.spatial import KDTree

    mesh = read_mesh(path)
    points, faces = decimate_surface(mesh.vertices, mesh.faces, MOST_FACES)
    nearest = KDTree(mesh.vertices).query(points)[1]
    return Mesh(points, faces, vertex_normals(points, faces), mesh.colours[nearest])


def slim_events(folder: Path, vertices: int, faces: int) -> Iterator[events.Event]:
    """The events of a run that a page shows: without checkpoints, with the previews of `choose_previews`, and the
    counts of the lighter mesh."""
    told = list(replay_events(folder, images=False))
    kept = choose_previews(told, read_status(folder).best_step)
    for event in told:
        match event:
            case events.Checkpointed():
                continue
            case events.Previewed():
                if event.step in kept:
                    yield replace(event, rewards=_round_values(event.rewards), file=preview_file(event.step, "rgb"))
            case events.Stepped():
                metrics = {
                    name: value
                    for name, value in event.metrics.items()
                    if name == SPEED or not name.startswith(DROPPED)
                }
                yield replace(event, metrics=_round_values(metrics), time_s=round(event.time_s, 1))
            case events.NegativeUpdated():
                yield replace(event, drift=_round_values(event.drift), metrics=_round_values(event.metrics))
            case events.Meshed():
                yield replace(event, statistics={**event.statistics, "vertices": vertices, "faces": faces})
            case _:
                yield event


def choose_previews(told: Sequence[events.Event], best_step: int) -> set[int]:
    """The steps of at most `MOST_PREVIEWS` previews, evenly, the first and the last among them, and the best one's."""
    steps = [event.step for event in told if isinstance(event, events.Previewed)]
    count = min(len(steps), MOST_PREVIEWS)
    return {steps[round(place)] for place in np.linspace(0, len(steps) - 1, count)} | ({best_step} & set(steps))


def _copy_preview(source: Path, target: Path) -> None:
    row = np.concatenate(list(decode_views(source)), axis=1)
    Image.fromarray(row).save(target, quality=JPEG_QUALITY, optimize=True)


def _round_values(values: Any) -> Any:
    """The same with `DIGITS` digits, in mappings and lists too."""
    if isinstance(values, Mapping):
        return {key: _round_values(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_round_values(value) for value in values)
    return float(f"{values:.{DIGITS}g}") if isinstance(values, float) else values


def ship_runs(names: Sequence[str], work: Path, showcase: Path = SHOWCASE) -> int:
    """Put the named runs of the work folder, slimmed, in the place of all that ``showcase`` holds; returns the bytes.

    Raises `PresetError` for a name that no finished run has, and where all of them are larger than `LARGEST`: then what
    was there stays.
    """
    made = {name_run(run): run for run in find_made(work)}
    if unknown := [name for name in names if name not in made]:
        raise PresetError(f"no finished run {unknown[0]!r} in {work}: there are {', '.join(sorted(made))}")
    new = work / "slim"
    shutil.rmtree(new, ignore_errors=True)
    for name in names:
        target = slim_run(made[name].folder, new)
        print(f"{name:48} {size_bytes(target) / 1e3:.0f} kB", flush=True)
    size = size_bytes(new)
    if size > LARGEST:
        raise PresetError(f"{len(names)} runs take {size / 1e6:.2f} MB, at most {LARGEST / 1e6:g} ship: leave some out")
    shutil.rmtree(showcase, ignore_errors=True)
    shutil.move(new, showcase)
    return size


# ---------------------------------------------------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m psd embedded showcase``."""
    parser.add_argument("--prompts", nargs="+", default=[], metavar="PROMPT|FILE", help="other prompts")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each prompt (1: seed 0)")
    parser.add_argument("--work", type=Path, default=WORK, help="where the runs are made, and looked for")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="a trial with other parameters")
    parser.add_argument("--ship", nargs="+", metavar="NAME", help="make nothing: copy these runs into assets/showcase")


def main(args: argparse.Namespace) -> int:
    """Make and draw the runs, or ship some; returns 1 where a run failed."""
    if args.ship:
        size = ship_runs(args.ship, args.work)
        print(f"{len(args.ship)} runs, {size / 1e6:.2f} MB, in {SHOWCASE.name}")
        return 0
    wanted = plan_runs(read_prompts(args.prompts) or PROMPTS, args.seeds, parse_assignments(args.set))
    for prompt in dict.fromkeys(preset.prompt for preset in wanted):
        for note in read_prompt(prompt).notes:
            print(f"{prompt}: {note}", file=sys.stderr)
    failed = make_runs(wanted, args.work)
    draw_runs([run for run in find_made(args.work) if read_preset(run.folder) in wanted], SHEET)
    return 1 if failed else 0
