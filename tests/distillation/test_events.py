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


def empty(kind: type[events.Event]) -> dict[str, Any]:
    """What array fields hold after reading: nothing, in the shape that the kind allows."""
    return {name: None if kind is events.Meshed else {} for name in kind.arrays}


@st.composite
def any_event(draw: st.DrawFn, kind: type[events.Event]) -> events.Event:
    return kind(
        **empty(kind), **{f.name: draw(BY_TYPE[str(f.type)]) for f in fields(kind) if f.name not in kind.arrays}
    )


@pytest.mark.parametrize("name", events.KINDS)
@given(data=st.data())
def test_every_kind_survives_its_line(name: str, data: st.DataObject) -> None:
    event = data.draw(any_event(events.KINDS[name]))
    line = events.to_json(event)
    assert not set("\n\r") & set(line)
    assert events.from_json(line) == event
    assert events.to_json(events.from_json(line)) == line


def test_every_event_class_has_a_kind() -> None:
    classes = {
        c
        for c in vars(events).values()
        if isinstance(c, type) and issubclass(c, events.Event) and c is not events.Event
    }
    assert set(events.KINDS.values()) == classes
    assert all(name == kind.__name__ for name, kind in events.KINDS.items())


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: events.Stepped(step=1, t=500, metrics={"reward/a": x}),
        lambda x: events.Warned(step=1, time_s=x, message=""),
        lambda x: events.Finished(step=1, reason="completed", scores={"judge": x}),
        lambda x: events.Previewed(step=1, images={}, rewards={"reward": [0.0, x]}),
        lambda x: events.Started(step=0, preset={"a": {"b": [x]}}, total_steps=1, views=4, environment={}),
    ],
)
def test_a_number_that_is_none_is_refused_wherever_it_hides(make: Any, number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        events.to_json(make(number))


def test_arrays_stay_out_of_the_line_and_the_file_name_stays_in() -> None:
    picture = np.zeros((4, 8, 8, 3), np.uint8)
    lines = [
        events.to_json(events.Previewed(step=5, images={"rgb": picture}, file="previews/5.jpg")),
        events.to_json(
            events.Checkpointed(step=5, tensors={"grid": picture}, values={"draws": [1]}, file="checkpoints/5")
        ),
        events.to_json(events.Meshed(step=9, mesh=None, statistics={"faces": 12}, file="mesh.glb")),
    ]
    for line in lines:
        assert not {"images", "tensors", "values", "mesh"} & set(json.loads(line))
    restored: list[Any] = [events.from_json(line) for line in lines]
    assert [event.file for event in restored] == [
        "previews/5.jpg",
        "checkpoints/5",
        "mesh.glb",
    ]  # noqa: B009


def test_events_cannot_be_changed_and_time_is_set_on_a_copy() -> None:
    event = events.Failed(step=3, message="z0 is not finite", cure="lower guidance_scale")
    with pytest.raises(FrozenInstanceError):
        event.step = 4  # pyright: ignore[reportAttributeAccessIssue]
    assert events.stamp_event(event, 1.5, 0) == events.Failed(
        step=3, time_s=1.5, message="z0 is not finite", cure="lower guidance_scale"
    )
    assert event.time_s == 0


def test_a_line_of_an_unknown_kind_is_no_event() -> None:
    with pytest.raises(KeyError, match="Exploded"):
        events.from_json('{"event": "Exploded", "step": 1}')
