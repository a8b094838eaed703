"""The order of waiting runs: in turns between their owners, and noted in their folders for a server that is killed."""

from __future__ import annotations

import json
import time
from bisect import insort
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path

from psd.runs.store.files import StoreError, replace_file
from psd.runs.store.schema import SCHEMA, read_json

PLACE_FILE = "queued.json"


@dataclass(frozen=True, order=True)
class _Place:
    turn: int
    number: int  # of arrival
    run_id: str
    owner: str


class FairQueue:
    """Owners take turns; runs of one owner go first in, first out.  Not safe to use from several threads at once.

    A run's turn is one after its owner's last one, or one after the turn that is being served: whoever comes later
    never puts off a run for more than one turn.
    """

    def __init__(self) -> None:
        self._places: list[_Place] = []
        self._numbers, self._turn = count(), 0

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter([place.run_id for place in self._places])

    def __contains__(self, run_id: object) -> bool:
        return any(place.run_id == run_id for place in self._places)

    def add_run(self, run_id: str, owner: str) -> None:
        turn = max([self._turn, *(place.turn for place in self._places if place.owner == owner)]) + 1
        insort(self._places, _Place(turn, next(self._numbers), run_id, owner))

    def take_next(self) -> str:
        place = self._places.pop(0)
        self._turn = place.turn
        return place.run_id

    def remove_run(self, run_id: str) -> None:
        self._places = [place for place in self._places if place.run_id != run_id]

    def list_before(self, run_id: str) -> list[str]:
        """The runs that go first; empty for one that does not wait."""
        waiting = list(self)
        return waiting[: waiting.index(run_id)] if run_id in waiting else []

    def count_of(self, owner: str) -> int:
        return sum(place.owner == owner for place in self._places)


@dataclass(frozen=True)
class SavedPlace:
    """What a folder keeps of a run that waits, until it starts."""

    extra_steps: int = 0  # of the preset that it is to run with
    until: int | None = None
    owner: str = ""  # digest of whoever asked
    asked_s: float = 0.0  # since the epoch
    schema: int = SCHEMA


def save_place(folder: Path, extra_steps: int, until: int | None, owner: str) -> None:
    place = SavedPlace(extra_steps, until, owner, time.time())
    replace_file(folder / PLACE_FILE, json.dumps(asdict(place)).encode(), durable=True)


def drop_place(folder: Path) -> None:
    """The run waits no longer."""
    (folder / PLACE_FILE).unlink(missing_ok=True)


def list_saved_places(root: Path) -> list[tuple[Path, SavedPlace]]:
    """The folders of runs that waited when their server died, or wait in another one, in the order of asking."""
    found = []
    for path in root.glob(f"*/{PLACE_FILE}"):
        try:
            record = read_json(path)
            place = SavedPlace(**{field.name: record[field.name] for field in fields(SavedPlace)})
        except (StoreError, KeyError):
            place = SavedPlace()  # that it waited is what counts
        whole = isinstance(place.extra_steps, int) and isinstance(place.until, int | None)
        whole = whole and isinstance(place.owner, str) and isinstance(place.asked_s, int | float)
        found.append((path.parent, place if whole else SavedPlace()))
    return sorted(found, key=lambda item: (item[1].asked_s, item[0].name))
