"""``python -m psd embedded world milestone``: what training shipped last into ``assets/next-NAME``, with a card.

A committed milestone is what a training goes on from where its machine is lost (``--from``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from psd.embedded.training.loop import NAMES, record_folder
from psd.models.hub import ROOT

CREDIT = (
    "Trained on pictures of 611 low-poly objects by Kenney and Quaternius, both under CC0 1.0 (`docs/embedded.md`), of "
    'primitives, and of pairs of them. About 5 % of the pictures are degraded and captioned "low quality blurry".'
)


def write_milestone(name: str, shipped: Path, target: Path) -> None:
    """Copy a shipped folder and give it a card: history, figures of training, sums of the weights."""
    if not (record_folder(name, shipped) / "training.json").is_file():
        raise SystemExit(f"{shipped} holds no trained {name}: it has no training.json; train it first, or name --from")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(shipped, target)
    record = json.loads((record_folder(name, target) / "training.json").read_text(encoding="utf-8"))
    (target / "README.md").write_text(write_card(name, record, target), encoding="utf-8")


def write_card(name: str, record: dict[str, Any], folder: Path) -> str:
    """The text of a milestone's README."""
    lines = ["---", "license: apache-2.0", "---", "", f"# {folder.name}", ""]
    lines += [f"A milestone of the objects' world ({name}), still in training; no preset uses it.", "", CREDIT, ""]
    lines += [f"- {key.replace('_', ' ')}: {value}" for key, value in record.items() if key != "model"]
    lines += ["", "## Weights", "", "```"]
    for path in sorted(folder.rglob("*.safetensors")):
        lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}")
    return "\n".join([*lines, "```", ""])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m psd embedded world milestone``."""
    parser.add_argument("model", choices=NAMES)
    parser.add_argument("--from", dest="shipped", type=Path, help="default: work/world/train/MODEL/shipped")
    parser.add_argument("--to", type=Path, help="default: assets/next-MODEL")


def main(args: argparse.Namespace) -> None:
    """Copy and say how large it is."""
    shipped = args.shipped or Path("work/world/train") / args.model / "shipped"
    target = args.to or ROOT / "assets" / f"next-{args.model}"
    write_milestone(args.model, shipped, target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")
