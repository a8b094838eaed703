"""Paired statistics of recorded runs: the same caption and seed under two methods.

Intervals are bootstrap percentiles over captions, because the seeds of a caption are not independent.  The percentiles
are expanded for few captions (Hesterberg 2015), as plain ones are too narrow: at 12 captions they miss the truth in
9 %, not in 5 %.
"""

# pandas ships no types, and what pyright infers of groups and columns is wider than what they hold.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, t

RESAMPLES = 10_000
LEVEL = 0.95
LEAST = 5  # captions; the percentiles of fewer are no interval
RUN_KEY = ["prompt", "seed"]
OWN = "the reference"  # beside the names of a sweep

SIGNED, SHARE = "{:+.2f}", "{:.0%}"  # forms of `format_figure`

Line = Mapping[str, Any]
Runs = pd.DataFrame  # a row a run, by caption and seed; a column a key of its line, NaN or None where it has none


@dataclass(frozen=True)
class Interval:
    """A mean over ``prompts`` captions, and the ``ends`` of its bootstrap interval (95 %): None below `LEAST`."""

    value: float
    ends: tuple[float, float] | None
    prompts: int

    def format(self, form: str) -> str:
        ends = ", ".join(format_figure(end, form) for end in self.ends or ())
        return format_figure(self.value, form) + (f" [{ends}]" if self.ends else "")

    def __str__(self) -> str:
        return self.format(SIGNED)

    @property
    def positive(self) -> bool | None:
        """Whether all of the interval is above 0; None where there is none."""
        return None if self.ends is None else self.ends[0] > 0


NO_RUNS = pd.DataFrame(index=pd.MultiIndex.from_arrays([[], []], names=RUN_KEY))
NO_VALUES = pd.Series(index=NO_RUNS.index, dtype=float)


def format_figure(value: float, form: str) -> str:
    """As `str.format` does, with a space before a percent sign."""
    return form.format(value).replace("%", " %")


def tabulate_runs(lines: Iterable[Line]) -> Runs:
    runs = pd.DataFrame(list(lines))
    return NO_RUNS if runs.empty else runs.set_index(RUN_KEY)


def measure_values(runs: Runs, measure: str) -> pd.Series:
    """The measure of each run, NaN where it has none; empty where no run has it."""
    return runs.loc[:, measure].astype(float) if measure in runs else NO_VALUES


def mean_measure(runs: Runs, measure: str) -> float | None:
    """Mean over the runs that have the measure."""
    mean = float(measure_values(runs, measure).mean())
    return None if math.isnan(mean) else mean


def pair_differences(one: Runs, other: Runs, measure: str) -> pd.Series:
    """``one`` minus ``other`` by caption and seed, where both have the measure."""
    values = measure_values(one, measure)
    return (values - measure_values(other, measure).reindex(values.index)).dropna()


def count_wins(differences: pd.Series) -> pd.Series:
    """1 for each difference above 0, 0 below, 1/2 for a tie: their mean is a win rate."""
    return differences.gt(0) + differences.eq(0) / 2


@lru_cache(maxsize=8)
def draw_resamples(count: int) -> np.ndarray:
    """Indices of the captions in each resample, resample x caption: the same for everything that is compared."""
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def bootstrap_mean(differences: pd.Series) -> Interval | None:
    """Mean over captions of the mean over their seeds, with its interval; None without any caption."""
    means = np.asarray(differences.groupby(level="prompt", sort=False).mean())
    if not len(means):
        return None
    return percentile_interval(means.mean(), means[draw_resamples(len(means))].mean(1), len(means))


def percentile_interval(value: float, drawn: np.ndarray, prompts: int) -> Interval:
    """``drawn`` is the value in each resample."""
    if prompts < LEAST:
        return Interval(float(value), None, prompts)
    low, high = np.percentile(drawn, expanded_percentiles(prompts))
    return Interval(float(value), (float(low), float(high)), prompts)


def expanded_percentiles(count: int) -> tuple[float, float]:
    """The percentiles that make a 95 % interval of the mean of ``count`` values: 2.5 and 97.5 in the limit.

    Resampling takes n for n - 1 and the normal for Student's distribution (Hesterberg 2015, section 4.6).
    """
    tail = 100 * float(norm.cdf(math.sqrt(count / (count - 1)) * t.ppf((1 - LEVEL) / 2, count - 1)))
    return tail, 100 - tail


@dataclass(frozen=True)
class MatchedLead:
    """The reference's lead at its own train reward; without a ``bracket``, over the nearest weight of the control."""

    lead: Interval
    bracket: tuple[str, str] | None
    note: str


def match_control(reference: Runs, sweep: Mapping[str, Runs], measure: str) -> MatchedLead | None:
    """The reference's lead in ``measure`` over the swept control at the reference's own mean train reward.

    The two weights whose mean rewards enclose the reference's, on the runs that all have, decide which runs count:
    those that these two have.  The control there is the line through all weights that have these runs, read at the
    reference's reward; in each resample anew, since that is as uncertain as the line.  None where no run is common.
    """
    tables = {
        name: pd.DataFrame({key: measure_values(runs, key) for key in ("reward", measure)}).dropna()
        for name, runs in {OWN: reference, **sweep}.items()
    }
    runs = tables[OWN].index
    tables = {name: table.reindex(runs) for name, table in tables.items() if len(table)}
    if OWN not in tables or len(tables) == 1:
        return None
    wide = pd.concat(tables, axis=1)
    rewards = wide.dropna().xs("reward", axis=1, level=1)
    if rewards.empty:
        return None
    above: Any = rewards.sub(rewards[OWN], axis=0).mean().drop(OWN).sort_values(kind="stable")
    low, high = above[above <= 0], above[above > 0]
    enclosing: list[str] = [*([low.idxmax()] if len(low) else []), *([high.idxmin()] if len(high) else [])]
    counted = wide.loc[wide[[OWN, *enclosing]].dropna().index].dropna(axis=1)
    curve = [name for name in above.index if name in counted]
    means = counted[[OWN, *curve]].groupby(level="prompt").mean()
    drawn = means.to_numpy().reshape(len(means), 1 + len(curve), 2)  # caption x (own, *curve) x (reward, measure)

    leads, outside = lead_at_same_reward(drawn[draw_resamples(len(drawn))].mean(1))
    (value,), (beyond_all,) = lead_at_same_reward(drawn.mean(0, keepdims=True))
    lead = percentile_interval(value, leads, len(drawn))
    if len(enclosing) == 1 or beyond_all:
        reached = means.xs("reward", axis=1, level=1).mean()
        nearest = [f"{name} {reached[name]:+.2f}" for name in curve if name in enclosing]
        note = f"no bracket: its train reward is {reached[OWN]:+.2f}, that of {', '.join(nearest)}"
        return MatchedLead(lead, None, note)
    share = float(np.mean(outside))
    outside_note = f", outside the sweep in {share:.0%} of the resamples" if share else ""
    note = f"between {' and '.join(enclosing)}{outside_note}"
    return MatchedLead(lead, (enclosing[0], enclosing[1]), note)


def lead_at_same_reward(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lead over the control at the own reward, at the nearest end of the line where that is beyond it, which is the
    second answer; of many resamples at once.

    ``drawn``: resample x (own, control's weights) x (reward, measure).
    """
    reward, line = drawn[:, :1, 0], drawn[:, 1:]
    line = np.take_along_axis(line, line[:, :, :1].argsort(axis=1), axis=1)
    right = (line[:, :, 0] < reward).sum(1, keepdims=True).clip(1, None).clip(None, line.shape[1] - 1)
    (start, low), (end, high) = (
        np.moveaxis(np.take_along_axis(line, at[:, :, None], axis=1), 2, 0) for at in ((right - 1).clip(0, None), right)
    )
    apart = np.where(end > start, end - start, 1.0)
    share = ((reward - start) / apart).clip(0.0, 1.0)
    inside = (line[:, :1, 0] <= reward) & (reward <= line[:, -1:, 0])
    return (drawn[:, :1, 1] - (low + share * (high - low)))[:, 0], ~inside[:, 0]


def is_diverging(curve: Sequence[Sequence[float]]) -> bool:
    """Hacking in time: over the last quarter of the run the reward rose while every judge fell."""
    if len(curve) < 4:
        return False
    quarter, values = max(1, len(curve) // 4), np.array(curve)[:, 1:]
    change = values[-quarter:].mean(0) - values[-2 * quarter : -quarter].mean(0)
    return bool(change[0] > 0 and (change[1:] < 0).all())
