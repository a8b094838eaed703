"""What a person calls a run: a name and a tag, in ``labels.json`` of its folder; the prompt stays what it is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from psd.config.errors import PresetError, format_value
from psd.config.strict_yaml import is_printable
from psd.runs.store.files import StoreError, read_plain_file, replace_file

FILE = "labels.json"
LONGEST = 60  # characters of a name, and of a tag


@dataclass(frozen=True)
class Labels:
    """Empty where nobody gave one.  Raises PresetError for what is too long or cannot be printed."""

    name: str = ""
    tag: str = ""

    def __post_init__(self) -> None:
        for key, text in asdict(self).items():
            if len(text) > LONGEST or not is_printable(text):
                raise PresetError(f"{key}={format_value(text)} must be at most {LONGEST} printable characters")


def read_labels(folder: Path) -> Labels:
    """Those of a run; none where the file is not there or does not say."""
    try:
        values = json.loads(read_plain_file(folder / FILE))
        return Labels(str(values["name"]), str(values["tag"]))
    except (StoreError, PresetError, OSError, ValueError, KeyError, TypeError):
        return Labels()


def write_labels(folder: Path, labels: Labels) -> None:
    replace_file(folder / FILE, json.dumps(asdict(labels), ensure_ascii=False).encode())
