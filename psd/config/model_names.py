"""The names of a run's models: folders and hub ids."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from psd.config.errors import format_value
from psd.config.strict_yaml import is_printable

ROOT = Path(__file__).resolve().parents[2]
MOST_MODELS = 8  # priors, rewards or judges of one run
LONGEST_NAME = 300  # characters of a folder or hub id
# Judges that no run may see, so that they can measure results.
EVIDENCE = [ROOT / "assets" / name for name in ("evidence", "referee")]


def check_names(named: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError for names of a run's models, by the preset's key, that are too many, twice or no names."""
    for key, names in named.items():
        if len(names) > MOST_MODELS:
            raise ValueError(f"{key} names {len(names)} models: at most {MOST_MODELS} work in one run")
        for name in names:
            if not name.strip() or len(name) > LONGEST_NAME or not is_printable(name):
                raise ValueError(
                    f"{key}: {format_value(name)} is no folder or hub id: 1 to {LONGEST_NAME} printable characters"
                )
            if find_path(name) in EVIDENCE:
                raise ValueError(f"{name} measures results, so no run may see it: name another reward or judge")
        if len({find_path(name) for name in names}) < len(names):
            raise ValueError(f"{key}={format_value(names)} names one twice: once is enough")


def find_path(name: str) -> Path:
    """The folder that a model's name leads to, so that two spellings of one folder are equal."""
    return (ROOT / os.path.expanduser(name)).resolve()
