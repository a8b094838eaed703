"""The lines of events.jsonl: the one place that reads them, checking types, bounds and finiteness.

A line that is torn, blank, foreign or wrong is skipped and counted (`LineProblems`): the rest of the run is as good as
before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from psd.distillation.events import (
    KINDS,
    Event,
    LiveChanged,
    Meshed,
    NegativeUpdated,
    Previewed,
    Started,
)
from psd.runs.store.files import StoreError, explain_os_errors, open_plain
from psd.runs.store.schema import is_finite

MOST_STEPS = 10**9
STEP = Annotated[int, Field(ge=0, le=MOST_STEPS)]
FILE = Annotated[str, Field(pattern=r"^(public/(previews|exports)|checkpoints)/[A-Za-z0-9_.-]+$")] | None
STEP_OR_NONE = Annotated[int | None, Field(ge=0, le=MOST_STEPS)]
BOUNDED = {"step": STEP, "total_steps": STEP, "since": STEP, "scene_step": STEP_OR_NONE, "file": FILE}


@dataclass
class LineProblems:
    """What was skipped in a file, for one warning."""

    count: int = 0
    first: str = ""

    def add(self, place: str, reason: str) -> None:
        self.first = self.first or f"{place}: {reason}"
        self.count += 1

    def __str__(self) -> str:
        return f"{self.count} line{'s' if self.count > 1 else ''} skipped, the first at {self.first}"


def parse_event_line(line: bytes) -> Event:
    """The event of one line; array fields come back empty.  Raises ValueError, with the reason in one line."""
    try:
        name = _NamedLine.model_validate_json(line).event
        if name not in KINDS:
            raise ValueError(f"unknown event {name[:40]!r}")
        record = dict(_line_model(name).model_validate_json(line))
    except ValidationError as error:
        issue = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, issue["loc"]))[:60]
        raise ValueError(f"not an event ({place and place + ': '}{issue['msg']})") from None
    kind = KINDS[record.pop("event")]
    absent: dict[str, Any] = {part: None if kind is Meshed else {} for part in kind.arrays}
    event = kind(**record, **absent)
    if reason := _find_contradiction(event):
        raise ValueError(f"not an event ({reason})")
    return event


def read_event_lines(
    path: Path, words: Sequence[bytes] = (), problems: LineProblems | None = None
) -> Iterator[tuple[int, Event]]:
    """The events of a file, each with where its line begins, or only those whose line holds one of ``words``.

    What cannot be read is added to ``problems``: lines, or the whole file where it is missing or no plain file.
    """
    problems = LineProblems() if problems is None else problems
    try:
        with explain_os_errors(path), open(path, "rb", opener=open_plain) as file:
            end = 0
            for number, line in enumerate(file, 1):
                offset, end = end, end + len(line)
                if not line.endswith(b"\n"):
                    problems.add(f"{path.name}:{number}", "it ends in the middle of a line")
                elif not words or any(word in line for word in words):
                    try:
                        event = parse_event_line(line)
                    except ValueError as error:
                        problems.add(f"{path.name}:{number}", str(error))
                    else:
                        yield offset, event
    except StoreError as error:
        problems.add(path.name, str(error.__cause__ or error) if path.is_dir() else "it is missing or cannot be read")


def effective_events(path: Path, problems: LineProblems | None = None) -> Iterator[tuple[int, Event]]:
    """Events without what a resumed run did over, each with its offset: a long run's never stand in memory together."""
    again = list(read_event_lines(path, (b'"Started"', b'"LiveChanged"')))
    starts = [(offset, event.step) for offset, event in again if isinstance(event, Started)]
    changes = [(offset, event) for offset, event in again if isinstance(event, LiveChanged)]
    previewed = set()  # resumed between its last checkpoint and its mesh, a run makes its last preview again
    for offset, event in read_event_lines(path, problems=problems):
        undone = any(offset < later and event.step > step for later, step in starts)
        if isinstance(event, Previewed) and not undone:
            undone = event.step in previewed
            previewed.add(event.step)
        if isinstance(event, LiveChanged):  # made again after a resume
            undone |= any(offset < later and replace(event, time_s=same.time_s) == same for later, same in changes)
        if not undone:
            yield offset, event


class _NamedLine(BaseModel):
    model_config = ConfigDict(strict=True)
    event: str


def _find_contradiction(event: Event) -> str:
    """What types alone do not tell; empty when there is nothing."""
    if isinstance(event, Started | Meshed | LiveChanged):
        values = {Started: "preset", Meshed: "statistics", LiveChanged: "values"}[type(event)]
        if not is_finite(getattr(event, values)):
            return f"{values} holds a number that is not finite"
    if isinstance(event, NegativeUpdated) and not len(event.tokens) == len(event.drift) == len(event.nearest):
        return "tokens, drift and nearest differ in length"
    if isinstance(event, Previewed) and any(not scores for scores in event.rewards.values()):
        return "a reward without a score"
    return ""


@cache
def _line_model(name: str) -> type[BaseModel]:
    """What the JSON of one kind of event must be."""
    kind = KINDS[name]
    hints = get_type_hints(kind, localns={"Mesh": object})
    parts: dict[str, Any] = {"event": (Literal[name], ...)}
    for part in fields(kind):
        if part.name in kind.arrays:
            continue
        default = part.default
        if part.default_factory is not MISSING:
            default = part.default_factory()
        parts[part.name] = (BOUNDED.get(part.name, hints[part.name]), ... if default is MISSING else default)
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return create_model(name, __config__=config, **parts)
