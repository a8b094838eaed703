"""The kinds of things of the embedded world, read from ``assets/world/kinds.csv``, and the ten colours.

A kind is a noun ("fire truck") with one or more meshes (``psd.embedded.objects.collection``) or a primitive ("cone").
"""

from __future__ import annotations

import csv
import functools
import json
from dataclasses import dataclass
from pathlib import Path

from psd.embedded.captions.colours import COLOURS

WORLD = Path(__file__).resolve().parents[3] / "assets" / "world"
PRIMITIVES = ("sphere", "cone", "cylinder", "torus", "capsule", "cube", "pyramid", "diamond", "prism", "star")
NAMING = WORLD / "naming.json"  # which kinds the prior that ships draws: `python -m psd embedded naming --ship`
TRUE_SCORES = WORLD / "true_scores.json"  # `python -m psd embedded true-scores`
GALLERY, TILE, COLUMNS = WORLD / "kinds.jpg", 96, 24  # a picture of every kind: px along a side, pictures in a row
FLAT_PRIMITIVES = ("cube", "cylinder", "prism")  # with a flat top, on which something can stand


@dataclass(frozen=True)
class Kind:
    """A noun and what may be said of it."""

    noun: str
    article: str  # "a", "an", or "" ("broccoli")
    category: str  # "animal", "food", ..., "primitive"
    colours: tuple[str | None, ...]  # None: the noun without a colour word, in its own colours
    is_placed: bool  # may stand next to, or on top of, something
    is_carrier: bool  # something may stand on top of it
    synonyms: tuple[str, ...]


@functools.cache
def read_kinds() -> dict[str, Kind]:
    """All kinds by noun: the ten primitives first, then the objects in the order of the table.

    The star is a primitive that is also an object: it may come without a colour word too.
    """
    kinds = {
        noun: Kind(noun, "a", "primitive", tuple(COLOURS), True, noun in FLAT_PRIMITIVES, ()) for noun in PRIMITIVES
    }
    with (WORLD / "kinds.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            noun, first = row["noun"], row["caption"].split()[0]
            kinds[noun] = Kind(
                noun=noun,
                article=first if first in ("a", "an") else "",
                category="primitive" if noun in PRIMITIVES else row["category"],
                colours=(None, *COLOURS) if row["paintable"] == "1" else (None,),
                is_placed="placed" in row["pair"].split() or noun in PRIMITIVES,
                is_carrier="carrier" in row["pair"].split(),
                synonyms=tuple(word.strip() for word in row["synonyms"].split(";") if word.strip()),
            )
    return kinds


@functools.cache
def list_known() -> tuple[str, ...]:
    """The nouns that the prior that ships draws well enough to be offered: a judge names half of their samples."""
    return tuple(json.loads(NAMING.read_text(encoding="utf-8"))["known"])


def find_true_scores(caption: str, scorer: str) -> tuple[float, float] | None:
    """What a grey ball and the true object score by ``scorer`` ("assets/reward"); None where that was not measured."""
    found = _read_true_scores().get(caption, {}).get(scorer)
    return (found[0], found[1]) if found else None


@functools.cache
def _read_true_scores() -> dict[str, dict[str, list[float]]]:
    return json.loads(TRUE_SCORES.read_text(encoding="utf-8"))["scores"]


def list_objects() -> list[str]:
    """The nouns that are no primitives."""
    return [noun for noun, kind in read_kinds().items() if kind.category != "primitive"]


def locate_picture(noun: str) -> tuple[int, int]:
    """Where the kind's picture of ``TILE`` x ``TILE`` px begins in `GALLERY`: px from the left, px from the top."""
    row, column = divmod(list(read_kinds()).index(noun), COLUMNS)
    return column * TILE, row * TILE
