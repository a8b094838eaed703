"""Command line of the objects' world: ``python -m psd.embedded.world COMMAND --help``.

Each command is the module of its name, with ``add_arguments(parser)`` and ``main(args)``.
"""

from __future__ import annotations

import argparse
import sys

from psd.config.errors import MissingError
from psd.embedded.world import caption_lists, dataset, gallery, milestone, naming, outside, teach

COMMANDS = {
    "captions": caption_lists,
    "data": dataset,
    "train": teach,
    "milestone": milestone,
    "naming": naming,
    "outside": outside,
    "gallery": gallery,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m psd.embedded.world", description="Make the world of objects.")
    commands = parser.add_subparsers(required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        module.add_arguments(command)
        command.set_defaults(main=module.main)
    args = parser.parse_args()
    try:
        sys.exit(args.main(args))
    except MissingError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
