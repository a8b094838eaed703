"""``python -m psd embedded data|train|evaluate|ship ...``: make, train and measure the models that ship.

Each command is the module of its name, with ``add_arguments(parser)`` and ``main(args)``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from psd.embedded.captions import lists
from psd.embedded.objects import gallery
from psd.embedded.training import data, loop
from psd.evaluation.metrics import outside
from psd.evaluation.shipped import model_cards, models, naming, showcase, true_scores

COMMANDS = {
    "captions": lists, "gallery": gallery, "data": data, "train": loop, "ship": model_cards, "naming": naming,
    "outside": outside, "true-scores": true_scores, "evaluate": models, "showcase": showcase,
}  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m psd embedded", description="Make the embedded models.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        module.add_arguments(command)
        command.set_defaults(main=module.main)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands and return its exit code; raises `MissingError` for what is not here."""
    args = make_parser().parse_args(arguments)
    return args.main(args) or 0
