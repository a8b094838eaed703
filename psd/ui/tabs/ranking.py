"""Rank the runs of a comparison by their selector judge."""

from __future__ import annotations

from collections.abc import Sequence

from psd.ui.state.page import WatchedRun

CONSISTENCY = "image/view_consistency"


def short_label(watched: WatchedRun) -> str:
    """What tells compared runs apart."""
    return f"{watched.method} · seed {watched.seed}" + ("" if watched.method else f" · {watched.run_id}")


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
