"""Command line of the embedded world: ``python -m psd.tiny data|train|... --help``.

Each command is the module of its name, with ``add_arguments(parser)`` and ``main(args)``.
"""

from __future__ import annotations

import argparse
import sys

from psd.preset import MissingError
from psd.tiny import captions, card, data, evaluate, train

COMMANDS = {"captions": captions, "data": data, "train": train, "evaluate": evaluate, "ship": card}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m psd.tiny", description="Make the embedded world.")
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
