"""``python -m psd embedded data|train|evaluate|ship ...``: make, train and measure the models that ship.

Each command is the module of its name, with ``add_arguments(parser)`` and ``main(args)``.  ``embedded world ...`` holds
the same for the world of objects, which is to follow the hand-drawn one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from psd.embedded.captions import lists
from psd.embedded.training import data, loop
from psd.embedded.world import caption_lists, dataset, gallery, milestone, naming, outside, teach
from psd.evaluation.shipped import model_cards, models

COMMANDS = {"captions": lists, "data": data, "train": loop, "evaluate": models, "ship": model_cards}
WORLD = {
    "captions": caption_lists,
    "data": dataset,
    "train": teach,
    "milestone": milestone,
    "naming": naming,
    "outside": outside,
    "gallery": gallery,
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m psd embedded", description="Make the embedded models.")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_commands(commands, COMMANDS)
    world = commands.add_parser("world", help="The same for the world of objects (world --help).")
    _add_commands(world.add_subparsers(required=True, metavar="command"), WORLD)
    return parser


def _add_commands(commands: Any, modules: Mapping[str, ModuleType]) -> None:
    for name, module in modules.items():
        command = commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        module.add_arguments(command)
        command.set_defaults(main=module.main)


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands and return its exit code; raises `MissingError` for what is not here."""
    args = make_parser().parse_args(arguments)
    return args.main(args) or 0
