"""What training must know of the captions that it learns: a world is a grammar with its lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class World:
    """A closed grammar as functions of modules (which other processes can be sent).

    A caption is any hashable object with ``text``, ``meaning``, ``group`` and, for a pair, ``relation``.
    """

    vocabulary: Callable[[], list[str]]  # every word
    parse: Callable[[str], Any]  # a text's caption
    near_misses: Callable[..., list[Any]]  # (caption, n, seed, held_out=) -> captions with one thing wrong
    is_held_out: Callable[[Any], bool]  # whether a caption is never trained on
    list_examples: Callable[[], list[str]]  # captions that the prior's index names
    list_sheet_captions: Callable[[], list[str]]  # captions that a sheet of samples shows
