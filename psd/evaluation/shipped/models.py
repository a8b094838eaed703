"""What the embedded models are worth, on committed captions: ``python -m psd embedded evaluate``.

``critics``, ``prior`` and ``scenes`` print each figure beside its bar and keep them in
``assets/results/embedded-<name>.json``.  ``scenes`` runs the default preset on the list of nouns, resumes, and is the
only one that takes long.  Ground truth needs the collection of objects (``--objects`` or ``PSD_OBJECTS``).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from psd.config.preset import DEFAULT_PRESET
from psd.embedded.objects.collection import choose_collection
from psd.evaluation.shipped.critics import CRITICS, evaluate_critics
from psd.evaluation.shipped.figures import record_file
from psd.evaluation.shipped.naming import GUIDANCE
from psd.evaluation.shipped.samples import evaluate_prior
from psd.evaluation.shipped.scenes import JUDGES, evaluate_scenes

PARTS: dict[str, Callable[[argparse.Namespace], dict]] = {
    "critics": evaluate_critics,
    "prior": evaluate_prior,
    "scenes": evaluate_scenes,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m psd embedded evaluate``."""
    parser.add_argument("what", nargs="?", choices=tuple(PARTS), help="default: all")
    parser.add_argument(
        "--critic", action="append", choices=CRITICS, help="only this one of the critics; may be repeated"
    )
    parser.add_argument("--limit", type=int, help="only the first captions, for a quick look; nothing is recorded")
    parser.add_argument("--guidance-scale", type=float, default=GUIDANCE, help="of the prior's samples")
    parser.add_argument(
        "--list", choices=tuple(JUDGES), default="nouns", help="of scenes; tuning: to choose defaults by"
    )
    parser.add_argument("--preset", default=DEFAULT_PRESET, help="of scenes")
    parser.add_argument("--set", default="{}", help="overrides of the preset for scenes, as JSON")
    parser.add_argument("--tag", default="", help="keeps an experiment's scenes apart; nothing is recorded")
    parser.add_argument("--processes", type=int, default=2, help="scenes at a time, one thread each")
    parser.add_argument("--objects", type=Path, metavar="DIR", help="the folder of objects (default: PSD_OBJECTS)")


def asks_for_all(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask for the figures of what ships, on all captions: any others are a trial."""
    given = (arguments.limit, arguments.guidance_scale, arguments.list, arguments.preset, arguments.set, arguments.tag)
    return given == (None, GUIDANCE, "nouns", DEFAULT_PRESET, "{}", "")


def main(arguments: argparse.Namespace) -> int:
    """Measure what is asked for; raises MissingError where the collection of objects is not here."""
    if arguments.objects:
        choose_collection(arguments.objects)
    arguments.is_default = asks_for_all(arguments)
    for name in [arguments.what] if arguments.what else PARTS:
        start = time.monotonic()
        figures = PARTS[name](arguments)
        if arguments.is_default:
            path = record_file(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            # figures bring their own seconds where only a part was measured again: those of the whole
            record = {"seconds": round(time.monotonic() - start), **figures}
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0
