"""The runs of a comparison: what tells them apart, and which is the best by its selector judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.ui.inputs.origin import name_preset
from psd.ui.markup.html import format_number
from psd.ui.state.page import WatchedRun

CONSISTENCY = "image/view_consistency"


def name_runs(compared: Sequence[WatchedRun]) -> dict[str, str]:
    """Run id -> name, by what differs: prompt, else method, else seed, else other values, else the time it was made.

    Each of these is part of the names only where the ones before it leave two runs alike.
    """
    traits = {
        "prompt": [run.prompt for run in compared],
        "method": [run.method for run in compared],
        "seed": ["" if run.seed is None else f"seed {run.seed}" for run in compared],
        "values": _describe_values(compared),
        "time": [_read_time(run.run_id) for run in compared],
        "id": [run.run_id for run in compared],
    }
    parts: list[tuple[str, ...]] = [()] * len(compared)
    for texts in traits.values():
        if len(set(parts)) == len(compared) and all(parts):
            break
        if len(set(texts)) > 1 or (texts is traits["id"] and not any(parts)):
            parts = [(*part, text) if text else part for part, text in zip(parts, texts, strict=True)]
    if len(compared) == 1:
        parts = [tuple(filter(None, (traits["method"][0], traits["seed"][0]))) or (compared[0].run_id,)]
    return {run.run_id: " · ".join(part) for run, part in zip(compared, parts, strict=True)}


def _describe_values(compared: Sequence[WatchedRun]) -> list[str]:
    """The one or two other values that differ; of more, the preset that each run comes from."""
    presets = [_flatten_values(run.view.preset) for run in compared]
    names = dict.fromkeys(name for preset in presets for name in preset if name not in ("prompt", "method", "seed"))
    differing = [name for name in names if any(preset.get(name) != presets[0].get(name) for preset in presets)]
    if len(differing) <= 2:
        return [", ".join(f"{name} {preset.get(name)}" for name in differing) for preset in presets]
    origins = []
    for run in compared:
        try:
            origins.append(name_preset(Preset.make(run.view.preset)))
        except PresetError:  # of another version: the time tells it apart
            origins.append("")
    return origins


def _flatten_values(preset: Mapping[str, Any]) -> dict[str, Any]:
    """A stored preset's values by the names of its settings (`psd.config.preset.flatten`), of any version."""
    scene = preset.get("scene")
    nested = {f"scene.{key}": value for key, value in scene.items()} if isinstance(scene, Mapping) else {}
    return {**{name: value for name, value in preset.items() if name != "scene"}, **nested}


def _read_time(run_id: str) -> str:
    """When a run was made, as its id says: hours, minutes and seconds."""
    time = run_id.partition("_")[0].partition("-")[2]
    return f"{time[:2]}:{time[2:4]}:{time[4:]}" if len(time) == 6 and time.isdigit() else run_id


def last_value(watched: WatchedRun, name: str) -> float | None:
    curve = watched.view.curves.get(name)
    return curve.last[1] if curve and curve.last else None


def selector_score(watched: WatchedRun) -> float | None:
    """The newest score of the first judge, which selects."""
    name = next((name for name in watched.view.curves if name.startswith("judge/")), "")
    return last_value(watched, name)


def rank_runs(compared: Sequence[WatchedRun]) -> list[tuple[WatchedRun, float]]:
    """Best first: each run with the mean of its places by selector judge and by consistency of its views.

    Places instead of values, since the two have no unit in common; runs without a score come last.
    """
    places = {watched.run_id: 0.0 for watched in compared}
    for measure in (selector_score, lambda watched: last_value(watched, CONSISTENCY)):
        values = {watched.run_id: measure(watched) for watched in compared}
        known = [value for value in values.values() if value is not None]
        for run_id, value in values.items():
            above = sum(other > value for other in known) if value is not None else len(compared)
            places[run_id] += (above + 1) / 2
    scored = [(watched, places[watched.run_id]) for watched in compared]
    return sorted(scored, key=lambda entry: (entry[1], -(selector_score(entry[0]) or 0.0)))


def is_comparable(compared: Sequence[WatchedRun]) -> bool:
    """Whether places mean anything: scores of another judge, or for another prompt, are on another scale."""
    judges = {next((name for name in run.view.curves if name.startswith("judge/")), "") for run in compared}
    return len(judges - {""}) <= 1 and len({run.prompt for run in compared}) <= 1


def best_to_continue(compared: Sequence[WatchedRun]) -> WatchedRun | None:
    """The best of runs that compare, if it has steps left: nothing while any of them still goes on."""
    if not compared or not is_comparable(compared) or not all(watched.is_over for watched in compared):
        return None
    best = rank_runs(compared)[0][0]
    return best if best.view.step < best.view.total_steps else None


def verdict_sentence(compared: Sequence[WatchedRun]) -> str:
    """Which run the judge prefers, by how much, and what it cost in time, against the one that comes next."""
    if len(compared) < 2:
        return ""
    if not is_comparable(compared):
        return "Runs of several prompts or judges: their scores have no scale in common."
    scored = [(score, run) for run in compared if (score := selector_score(run)) is not None]
    if len(scored) < 2:
        return "The judge has not seen two of them yet."
    called = name_runs(compared)
    (high, best), (low, second) = sorted(scored, key=lambda entry: -entry[0])[:2]
    names = called[best.run_id], called[second.run_id]
    going = "" if all(run.is_over for run in compared) else " so far"
    if format_number(high) == format_number(low):
        return f"{names[0]} and {names[1]} tie by the judge{going}."
    said = f"{names[0]} leads {names[1]} by {format_number(float(high - low))} of the judge's score{going}"
    if going or not (best.view.time_s and second.view.time_s):
        return f"{said}."
    return f"{said}, in {best.view.time_s / second.view.time_s:.1f} times the time."
