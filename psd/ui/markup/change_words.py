"""Live changes and stages in words, for the time line, the charts and the log: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psd.config.glossary import explain_options
from psd.config.settings import merge
from psd.distillation.events import LiveChanged
from psd.runs.jobs.controls import LIVE_FIELDS
from psd.ui.markup.html import format_number
from psd.ui.state.view import View


def list_rules(view: View) -> list[tuple[int, str]]:
    """Each step at which a stage began or live values changed, with what then held."""
    begun = [(step, _describe_stage(view, step, stage)) for step, stage in view.stages]
    return sorted([*begun, *change_rules(view.changes)])


def list_moves(view: View) -> list[tuple[int, str]]:
    """Each step at which live values became others: moved by hand, or brought along by a stage."""
    begun = [(step, stage) for step, stage in ((0, 0), *view.stages) if list_own_values(view, stage, step)]
    return sorted([*((step, _describe_stage(view, step, stage)) for step, stage in begun), *change_rules(view.changes)])


def _describe_stage(view: View, step: int, stage: int) -> str:
    """What a stage that began at ``step`` optimises, and the live values that it brought along."""
    own = list_own_values(view, stage, step).items()
    return f"stage {stage + 1}: " + ", ".join([name_stage(view, stage), *(describe_value(*each) for each in own)])


def list_own_values(view: View, stage: int, step: int) -> dict[str, Any]:
    """The live values that a stage names itself, but those that were moved up to ``step``: they hold everywhere."""
    named = (view.preset.get("stages") or [{}])[stage]
    moved = {name for change in view.changes if change.step <= step for name in change.values} - {"rewards"}
    return {name: named[name] for name in LIVE_FIELDS if name in named and name not in moved}


def name_stage(view: View, stage: int) -> str:
    """What a stage optimises."""
    values = view.preset
    for changes in values.get("stages", [])[: stage + 1]:
        values = merge(values, {name: value for name, value in changes.items() if name != "share"})
    kind = values.get("scene", {}).get("kind", "")
    meaning = explain_options("scene.kind").get(kind)
    return meaning.name if meaning else str(kind)


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
