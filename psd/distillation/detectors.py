"""Does a rising reward mean a better object?  Plateau and hacking detectors over what the previews score.

``monitor, alarms = fold(monitor, step, judge, reward)``: pure, small enough for a checkpoint, and without torch.
``reward`` is what the run optimises (weighted, in Bradley-Terry units), ``judge`` the selector judge, which nothing
optimises.

Raw scores share neither zero nor unit, so changes are given in percent of the *span* that a curve has covered so far
(5th to 95th percentile) and must exceed both a share of it and what *noise* does: the median absolute second
difference, as a standard deviation, which a trend does not inflate.  Medians over W previews smooth both curves; W
grows with the run, and their standard error falls with its root.

- hacking: since the judge's best moment the judge has fallen and the reward has risen, both clearly, at `PATIENCE`
  previews in a row.
- plateau: from the last quarter but one of the previews to the last one the judge has not gained `PLATEAU_SPANS` of its
  span, even if its error is added.

Each is raised once, and again only after the judge has risen in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

LEAST_WINDOW, WINDOW_SHARE = 5, 0.1  # previews that a median smooths, and their share of all
PATIENCE = 3  # previews in a row that must agree
FALL_SPANS, FALL_ERRORS = 0.03, 6.0  # the best of many smoothed values flatters itself by two errors or three
PLATEAU_SPANS, PLATEAU_ERRORS, LEAST_QUARTER = 0.05, 3.0, 5
MOST_POINTS = 400  # of a curve; beyond that every other one goes
SECOND_DIFFERENCE = 1.4826 / 6**0.5  # median |x[i-1] - 2 x[i] + x[i+1]| -> standard deviation of independent noise
MEDIAN_ERROR = 1.2533  # standard error of a median, in deviations over the root of the count


@dataclass(frozen=True)
class Monitor:
    """The memory of the detectors.  ``rewards`` is empty where the run optimises none."""

    steps: tuple[int, ...] = ()
    judges: tuple[float, ...] = ()
    rewards: tuple[float, ...] = ()
    stride: int = 1  # previews for one point
    skipped: int = 0
    suspicions: int = 0  # previews in a row that look like hacking
    raised: tuple[str, ...] = ()  # alarms that hold

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Monitor:
        found: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        if "told" in found:  # as former checkpoints name it
            found["raised"] = found.pop("told")
        return cls(**found)


@dataclass(frozen=True)
class Alarm:
    kind: str  # hacking or plateau
    since: int  # step
    message: str


def fold_preview(monitor: Monitor, step: int, judge: float, reward: float | None) -> tuple[Monitor, list[Alarm]]:
    """Returns the monitor after one more preview, and the alarms that it raises."""
    if monitor.skipped + 1 < monitor.stride:
        return replace(monitor, skipped=monitor.skipped + 1), []
    monitor = _add_preview(monitor, step, judge, reward)
    monitor, hacking = _detect_hacking(monitor)
    if "hacking" in monitor.raised:
        return monitor, hacking  # a judge that falls has no plateau
    monitor, plateau = _detect_plateau(monitor)
    return monitor, [*hacking, *plateau]


def covered_span(values: Sequence[float]) -> float:
    """The span of a curve so far: from its 5th to its 95th percentile, so that one outlier does not set the scale."""
    ordered = sorted(values)
    cut = len(ordered) // 20
    return ordered[len(ordered) - 1 - cut] - ordered[cut]


def noise_deviation(values: Sequence[float]) -> float:
    """Standard deviation of the noise on a smooth curve; 0 for one without any."""
    second = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:])]
    return SECOND_DIFFERENCE * median(second) if second else 0.0


def _detect_hacking(monitor: Monitor) -> tuple[Monitor, list[Alarm]]:
    window = max(LEAST_WINDOW, int(WINDOW_SHARE * len(monitor.steps)))
    if not monitor.rewards or len(monitor.steps) <= window:
        return monitor, []
    judges, rewards = _moving_median(monitor.judges, window), _moving_median(monitor.rewards, window)
    best = max(range(len(judges)), key=judges.__getitem__)
    if best == len(judges) - 1:
        return replace(monitor, suspicions=0, raised=_drop_alarm("hacking", monitor.raised)), []
    rise, fall = rewards[-1] - rewards[best], judges[best] - judges[-1]
    if not (_is_clear(rise, monitor.rewards, window) and _is_clear(fall, monitor.judges, window)):
        return replace(monitor, suspicions=0), []
    monitor = replace(monitor, suspicions=monitor.suspicions + 1)
    if monitor.suspicions < PATIENCE or "hacking" in monitor.raised:
        return monitor, []
    up, down = 100 * rise / covered_span(monitor.rewards), 100 * fall / covered_span(monitor.judges)
    since = monitor.steps[best + window // 2]
    message = f"train reward +{up:.0f} %, judge -{down:.0f} % since step {since}: likely reward hacking"
    return replace(monitor, raised=(*monitor.raised, "hacking")), [Alarm("hacking", since, message)]


def _is_clear(change: float, values: Sequence[float], window: int) -> bool:
    error = MEDIAN_ERROR * noise_deviation(values) / window**0.5
    return change > max(FALL_SPANS * covered_span(values), FALL_ERRORS * error)


def _detect_plateau(monitor: Monitor) -> tuple[Monitor, list[Alarm]]:
    quarter = len(monitor.judges) // 4
    if quarter < LEAST_QUARTER:
        return monitor, []
    gain = median(monitor.judges[-quarter:]) - median(monitor.judges[-2 * quarter : -quarter])
    error = MEDIAN_ERROR * noise_deviation(monitor.judges) * (2 / quarter) ** 0.5
    enough = PLATEAU_SPANS * covered_span(monitor.judges)
    if gain > 2 * enough:
        return replace(monitor, raised=_drop_alarm("plateau", monitor.raised)), []
    if gain + PLATEAU_ERRORS * error > enough or "plateau" in monitor.raised:
        return monitor, []
    since = monitor.steps[-2 * quarter]
    message = f"the selector judge has hardly risen since step {since}: a plateau"
    return replace(monitor, raised=(*monitor.raised, "plateau")), [Alarm("plateau", since, message)]


def _moving_median(values: Sequence[float], window: int) -> list[float]:
    """Medians over ``window`` values; entry i is centred at value i + window // 2."""
    return [median(values[i : i + window]) for i in range(len(values) - window + 1)]


def _drop_alarm(kind: str, raised: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(other for other in raised if other != kind)


def _add_preview(monitor: Monitor, step: int, judge: float, reward: float | None) -> Monitor:
    steps, judges, rewards = (*monitor.steps, step), (*monitor.judges, judge), monitor.rewards
    if reward is not None:
        rewards = (*rewards, reward)
    if rewards and len(rewards) != len(steps):
        raise ValueError(f"a reward for {len(rewards)} of {len(steps)} previews: fold those that have both, or none")
    if len(steps) <= MOST_POINTS:
        return replace(monitor, steps=steps, judges=judges, rewards=rewards, skipped=0)
    stride = 2 * monitor.stride
    return replace(monitor, steps=steps[::2], judges=judges[::2], rewards=rewards[::2], stride=stride, skipped=0)
