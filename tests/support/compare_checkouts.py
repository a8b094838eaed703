"""Compare what two checkouts make of the same runs: events, previews and mesh.

    python tests/support/compare_checkouts.py OLD NEW [--steps 120] [--python .venv/bin/python]

Each run is made by each checkout's own command line, in a process of its own, with one thread.  Compared are all events
but times and memory, the pictures of every preview, and the mesh's geometry and colours as trimesh reads them from the
GLB.  A line a run says what differs; the exit code is the number of runs that differ.  Between the commit before the
rooms (7e1bf54) and any later one, keys that were renamed are given to each side in its own words.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

PROMPTS = ("a red mushroom", "a blue cube on top of a yellow sphere")
SEEDS = (0, 1)
# Run -> what it sets, in the words of the rooms; OLD_WORDS turns them into those of commit 7e1bf54.
VARIANTS = {"default": [], "sds": ["method=sds"], "random pair": ["pair=random"]}
OLD_WORDS = {"pair=random": "reading=A"}
CLOCK = ("time/", "memory/", "speed/")  # metrics that follow the machine
UNTIMED = {"time_s", "versions", "git", "notes", "device"}  # keys of an event that follow the machine or the checkout


def make_run(checkout: Path, python: str, prompt: str, settings: list[str], out: Path) -> Path:
    """Run the checkout's command line and return the run's folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    old = not (checkout / "psd" / "distillation").is_dir()
    words = [OLD_WORDS.get(word, word) if old else word for word in settings]
    command = [python, "-m", "psd", "run", prompt, "--out", str(out), "--set", *words]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{checkout}: {' '.join(command)}\n{done.stderr[-2000:]}")
    return next(path.parent for path in out.rglob("events.jsonl"))


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events that say something of the result, without what the clock decides."""
    kept = []
    for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = {key: value for key, value in json.loads(line).items() if key not in UNTIMED}
        if event["event"] in ("Started", "Checkpointed"):
            continue  # versions and paths; checkpoints come by the clock
        if isinstance(metrics := event.get("metrics"), dict):
            event["metrics"] = {name: value for name, value in metrics.items() if not name.startswith(CLOCK)}
        kept.append(event)
    return kept


def read_mesh(folder: Path) -> dict[str, np.ndarray]:
    """Vertices, faces and colours, in an order that does not depend on the writer."""
    mesh: Any = trimesh.load_mesh(folder / "public" / "exports" / "mesh.glb", process=False)
    colours = np.asarray(mesh.visual.vertex_colors)[:, :3] if mesh.visual.kind == "vertex" else np.zeros((0, 3))
    return {"vertices": np.asarray(mesh.vertices, np.float32), "faces": np.asarray(mesh.faces), "colours": colours}


def differences(old: Path, new: Path) -> list[str]:
    """What differs between two run folders, in words; empty where nothing does."""
    found = []
    before, after = read_events(old), read_events(new)
    if len(before) != len(after):
        found.append(f"{len(before)} events against {len(after)}")
    for index, (one, other) in enumerate(zip(before, after)):
        keys = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
        if keys:
            found.append(f"event {index} (step {one.get('step')}): {', '.join(keys)}")
            break
    pictures = [sorted(path.relative_to(run) for path in run.glob("previews/**/*.*")) for run in (old, new)]
    if pictures[0] != pictures[1]:
        found.append(f"{len(pictures[0])} preview files against {len(pictures[1])}")
    unlike = [
        str(name)
        for name in pictures[0]
        if name in pictures[1] and (old / name).read_bytes() != (new / name).read_bytes()
    ]
    if unlike:
        found.append(f"{len(unlike)} of {len(pictures[0])} preview files, first {unlike[0]}")
    meshes = read_mesh(old), read_mesh(new)
    for name in meshes[0]:
        if not np.array_equal(meshes[0][name], meshes[1][name]):
            found.append(f"mesh {name} {meshes[0][name].shape} against {meshes[1][name].shape}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args()
    failed = 0
    for variant in args.variants:
        for prompt in PROMPTS if variant == "default" else PROMPTS[:1]:
            for seed in SEEDS if variant == "default" else SEEDS[:1]:
                settings = [*VARIANTS[variant], f"seed={seed}", f"steps={args.steps}", "threads=1"]
                with tempfile.TemporaryDirectory() as place:
                    runs = [
                        make_run(checkout.resolve(), args.python, prompt, settings, Path(place) / name)
                        for name, checkout in (("old", args.old), ("new", args.new))
                    ]
                    found = differences(*runs)
                failed += bool(found)
                print(f"{variant}, {prompt!r}, seed {seed}: {'; '.join(found) or 'equal'}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
