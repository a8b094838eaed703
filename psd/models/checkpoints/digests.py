"""Model files held to the sums in their folder's card, so that a flipped bit is refused and not distilled.

The card is README.md of a shipped model: lines of ``sha256  file``.  A folder without such lines is taken as it is.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from psd.config.errors import MissingError

CARD_LINE = re.compile(r"\b([0-9a-f]{64})\b[\s|`*]+([\w./-]+)")
DECISIVE = ("*.safetensors", "*.json")  # files of a shipped model that decide what it computes
RECORD = "training.json"  # how the model was made; nothing is read from it


def read_card_digests(folder: Path) -> dict[str, str]:
    """File -> sha256 as the folder's card states them; empty without a card, or in one without sums."""
    card = folder / "README.md"
    if not card.is_file():
        return {}
    return {file: digest for digest, file in CARD_LINE.findall(card.read_text(encoding="utf-8", errors="replace"))}


def list_decisive_files(folder: Path) -> list[str]:
    """The files of a shipped model that its card should state, sorted."""
    found = {path for pattern in DECISIVE for path in folder.rglob(pattern) if path.name != RECORD}
    return sorted(path.relative_to(folder).as_posix() for path in found)


def compute_digest(path: Path) -> str:
    """sha256 of a file, read once a process while its size and time stay.

    Line ends of text count as one character, for git may write them in two on Windows.
    """
    status = path.stat()
    return _hash_file(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_file(path: Path, size: int, time_ns: int) -> str:
    data = path.read_bytes()
    return hashlib.sha256(data.replace(b"\r\n", b"\n") if path.suffix == ".json" else data).hexdigest()


def find_wrong_files(folder: Path) -> list[str]:
    """Files that the card states and that are absent or others, in the card's order."""
    return [
        file
        for file, digest in read_card_digests(folder).items()
        if not (folder / file).is_file() or compute_digest(folder / file) != digest
    ]


def refuse_wrong_files(folder: Path, source: str) -> None:
    """Raises `MissingError` that names the first file of ``folder`` which is not the one that its card states."""
    if wrong := find_wrong_files(folder):
        raise MissingError(
            f"{source}: {wrong[0]} is not the file whose sha256 its README.md states, so it is damaged or was changed:"
            " get it again (`git checkout`, `git lfs pull`), or take that line out of a copy that you changed yourself"
        )
