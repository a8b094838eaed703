"""Paired statistics over the recorded lines of a suite: the same caption and seed under two methods.

Intervals are bootstrap percentiles over captions, because the seeds of a caption are not independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval over ``prompts`` captions."""

    value: float
    low: float
    high: float
    prompts: int

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def bootstrap(differences: Mapping[str, Sequence[float]]) -> Interval | None:
    """Mean over captions of the mean over their seeds, with its interval; None without any caption."""
    means = np.array([np.mean(values) for values in differences.values() if len(values)])
    if not len(means):
        return None
    draws = np.random.default_rng(0).integers(len(means), size=(RESAMPLES, len(means)))
    low, high = np.percentile(means[draws].mean(1), [2.5, 97.5])
    return Interval(float(means.mean()), float(low), float(high), len(means))


def paired(one: Sequence[Line], other: Sequence[Line], measure: str) -> dict[str, list[float]]:
    """By caption the differences of the runs with one seed, where both have the measure."""
    theirs = {(line["prompt"], line["seed"]): line.get(measure) for line in other}
    found: dict[str, list[float]] = {}
    for line in one:
        mine, its = line.get(measure), theirs.get((line["prompt"], line["seed"]))
        if mine is not None and its is not None:
            found.setdefault(line["prompt"], []).append(mine - its)
    return found


def matched(
    reference: Sequence[Line], sweep: Mapping[str, Sequence[Line]], measure: str
) -> tuple[Interval, str] | None:
    """The reference's lead in ``measure`` over the swept control at the reference's own mean train reward.

    On the runs that all have, the two neighbouring weights are mixed linearly, run by run, so that their mean reward is
    the reference's; beyond the sweep its end is taken, and the note says so.  None where no run is common.
    """

    def keyed(lines: Sequence[Line]) -> dict[tuple, Line]:
        return {
            (x["prompt"], x["seed"]): x for x in lines if x.get("reward") is not None and x.get(measure) is not None
        }

    tables = {name: keyed(lines) for name, lines in sweep.items() if lines}
    own = keyed(reference)
    common = sorted(set(own).intersection(*tables.values()) if tables else ())
    if not common:
        return None
    reward = {name: float(np.mean([table[key]["reward"] for key in common])) for name, table in tables.items()}
    target = float(np.mean([own[key]["reward"] for key in common]))
    ordered = sorted(reward, key=lambda name: reward[name])
    below = [name for name in ordered if reward[name] <= target]
    above = [name for name in ordered if reward[name] > target]
    if below and above:
        low, high = below[-1], above[0]
        share = (target - reward[low]) / (reward[high] - reward[low])
        note = f"between {low} and {high}"
    else:
        low = high = (below or above)[-1 if below else 0]
        share = 0.0
        note = f"{low}, the end of the sweep, at {reward[low]:+.2f} where the reference has {target:+.2f}"
    found: dict[str, list[float]] = {}
    for key in common:
        control = (1 - share) * tables[low][key][measure] + share * tables[high][key][measure]
        found.setdefault(key[0], []).append(own[key][measure] - control)
    interval = bootstrap(found)
    assert interval is not None
    return interval, note


def average(lines: Iterable[Line], measure: str) -> float | None:
    """Over the runs that have the measure."""
    values = [line[measure] for line in lines if line.get(measure) is not None]
    return float(np.mean(values)) if values else None


def diverging(line: Line) -> bool:
    """Hacking in time: over the last quarter of the run the reward rose while every judge fell."""
    curve = np.array(line["curve"])
    if len(curve) < 4:
        return False
    quarter = max(1, len(curve) // 4)
    change = curve[-quarter:, 1:].mean(0) - curve[-2 * quarter : -quarter, 1:].mean(0)
    return bool(change[0] > 0 and (change[1:] < 0).all())
