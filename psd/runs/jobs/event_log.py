"""The events of one run from any index on, read from its folder when asked for: a long run costs 8 bytes an event."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path

from psd.distillation.events import Event, Warned, to_json, without_arrays
from psd.runs.store.event_lines import parse_event_line
from psd.runs.store.files import explain_os_errors, open_plain

UNSTORED = -1  # in place of an offset


class EventLog:
    """An index of offsets into events.jsonl.  One thread adds; any number read meanwhile.

    It begins with the lines at ``offsets``, an earlier run's.  Events that a full disk did not take are kept here.
    """

    def __init__(self, folder: Path, offsets: Iterable[int] = ()) -> None:
        self._path = folder / "events.jsonl"
        self._offsets = array("q", offsets)
        self._unstored: dict[int, bytes] = {}  # index -> line
        self._end = self._path.stat().st_size if self._path.is_file() else 0

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, event: Event) -> None:
        """Take in an event that was just stored, or that could not be."""
        if not self.catch_up():
            self._unstored[len(self._offsets)] = to_json(without_arrays(event)).encode()
            self._offsets.append(UNSTORED)

    def catch_up(self) -> int:
        """Take in the lines that were written since, without those that are no events; returns how many."""
        before = len(self._offsets)
        if self._path.is_file():
            with explain_os_errors(self._path), open(self._path, "rb", opener=open_plain) as file:
                file.seek(self._end)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    if _is_event(line):
                        self._offsets.append(self._end)
                    self._end += len(line)
        return len(self._offsets) - before

    def read_since(self, index: int, most: int | None = None) -> list[Event]:
        """Events from ``index`` on, which is at least 0; the first ``most`` of them.  Raises StoreError."""
        offsets = self._offsets[index : None if most is None else index + most]
        if not offsets:
            return []
        lines = []
        with explain_os_errors(self._path), open(self._path, "rb", opener=open_plain) as file:
            for number, offset in enumerate(offsets, index):
                if offset == UNSTORED:
                    lines.append(self._unstored[number])
                else:
                    file.seek(offset)
                    lines.append(file.readline())
        return [_read_line(line) for line in lines]


def _is_event(line: bytes) -> bool:
    try:
        parse_event_line(line)
    except ValueError:  # of another program, or damaged: nobody waits for it
        return False
    return True


def _read_line(line: bytes) -> Event:
    """The event of a line that was one when it was taken in; in its place a Warned where the file changed since."""
    try:
        return parse_event_line(line)
    except ValueError as error:
        return Warned(step=0, message=f"an event is lost: events.jsonl was changed by somebody else ({error})")
