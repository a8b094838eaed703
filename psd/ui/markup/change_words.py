"""Live changes in words, for the time line, the charts and the log: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psd.distillation.events import LiveChanged
from psd.ui.markup.html import format_number


def change_rules(changes: Sequence[LiveChanged]) -> list[tuple[int, str]]:
    """Each step at which live values changed, with what they became."""
    merged: dict[int, Mapping] = {}
    for change in changes:
        merged[change.step] = {**merged.get(change.step, {}), **change.values}
    return [
        (step, ", ".join(describe_value(name, value) for name, value in values.items()))
        for step, values in merged.items()
    ]


def describe_value(name: str, value: object) -> str:
    """A live value as a person reads it; of rewards each weight by the reward's own name."""
    if not isinstance(value, Mapping):
        return f"{name} = {format_number(value)}"
    return ", ".join(f"{name} {str(key).rsplit('/', 1)[-1]} = {format_number(each)}" for key, each in value.items())
