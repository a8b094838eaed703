"""Events: each survives its JSON line, and no run can report a number that is none."""

import json
import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psd.distillation import events
from psd.distillation.events import (
    KINDS,
    Checkpointed,
    Event,
    Failed,
    Finished,
    Meshed,
    Previewed,
    Started,
    Stepped,
    Warned,
    from_json,
    to_json,
    with_time,
)

NUMBER = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30)
WORDS = st.lists(TEXT, max_size=4).map(tuple)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
BY_TYPE: dict[str, st.SearchStrategy] = {
    "int": st.integers(0, 10**9),
    "int | None": st.none() | st.integers(0, 10**9),
    "float": NUMBER,
    "str": TEXT,
    "str | None": st.none() | TEXT,
    "tuple[str, ...]": WORDS,
    "tuple[float, ...]": st.lists(NUMBER, max_size=4).map(tuple),
    "dict[str, float]": st.dictionaries(TEXT, NUMBER, max_size=4),
    "dict[str, str]": st.dictionaries(TEXT, TEXT, max_size=4),
    "dict[str, Any]": st.dictionaries(TEXT, JSON, max_size=4),
    "dict[str, list[float]]": st.dictionaries(TEXT, st.lists(NUMBER, max_size=4), max_size=3),
}


def empty(kind: type[Event]) -> dict[str, Any]:
    """What array fields hold after reading: nothing, in the shape that the kind allows."""
    return {name: None if kind is Meshed else {} for name in kind.arrays}


@st.composite
def any_event(draw: st.DrawFn, kind: type[Event]) -> Event:
    return kind(
        **empty(kind), **{f.name: draw(BY_TYPE[str(f.type)]) for f in fields(kind) if f.name not in kind.arrays}
    )


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_every_kind_survives_its_line(name: str, data: st.DataObject) -> None:
    event = data.draw(any_event(KINDS[name]))
    line = to_json(event)
    assert not set("\n\r") & set(line)
    assert from_json(line) == event
    assert to_json(from_json(line)) == line


def test_every_event_class_has_a_kind() -> None:
    classes = {c for c in vars(events).values() if isinstance(c, type) and issubclass(c, Event) and c is not Event}
    assert set(KINDS.values()) == classes
    assert all(name == kind.__name__ for name, kind in KINDS.items())


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: Stepped(step=1, t=500, metrics={"reward/a": x}),
        lambda x: Warned(step=1, time_s=x, message=""),
        lambda x: Finished(step=1, reason="completed", scores={"judge": x}),
        lambda x: Previewed(step=1, images={}, rewards={"reward": [0.0, x]}),
        lambda x: Started(step=0, preset={"a": {"b": [x]}}, total_steps=1, views=4, environment={}),
    ],
)
def test_a_number_that_is_none_is_refused_wherever_it_hides(make: Any, number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json(make(number))


def test_arrays_stay_out_of_the_line_and_the_file_name_stays_in() -> None:
    picture = np.zeros((4, 8, 8, 3), np.uint8)
    lines = [
        to_json(Previewed(step=5, images={"rgb": picture}, file="previews/5.jpg")),
        to_json(Checkpointed(step=5, tensors={"grid": picture}, values={"draws": [1]}, file="checkpoints/5")),
        to_json(Meshed(step=9, mesh=None, turntable=picture, statistics={"faces": 12}, file="mesh.glb")),
    ]
    for line in lines:
        assert not {"images", "tensors", "values", "mesh", "turntable"} & set(json.loads(line))
    assert [getattr(from_json(line), "file") for line in lines] == ["previews/5.jpg", "checkpoints/5", "mesh.glb"]  # noqa: B009


def test_events_cannot_be_changed_and_time_is_set_on_a_copy() -> None:
    event = Failed(step=3, message="z0 is not finite", cure="lower guidance_scale")
    with pytest.raises(FrozenInstanceError):
        event.step = 4  # pyright: ignore[reportAttributeAccessIssue]
    assert with_time(event, 1.5) == Failed(step=3, time_s=1.5, message="z0 is not finite", cure="lower guidance_scale")
    assert event.time_s == 0


def test_a_line_of_an_unknown_kind_is_no_event() -> None:
    with pytest.raises(KeyError, match="Exploded"):
        from_json('{"event": "Exploded", "step": 1}')
