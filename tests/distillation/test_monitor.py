"""The detectors on curves whose story is known: both up, one flat, one down, with and without noise."""

import json
import math
import random
from collections.abc import Callable

import pytest

from psd.distillation.detectors import MOST_POINTS, Alarm, Monitor, covered_span, fold_preview, noise_deviation

Story = Callable[[float], tuple[float, float]]  # share of the run -> judge, reward


def both_up(x: float) -> tuple[float, float]:
    return x, x


def hacked(x: float) -> tuple[float, float]:
    return min(x, 1 - x), x


def saturated(x: float) -> tuple[float, float]:
    return min(x, 0.4), x


def collect_alarms(
    story: Story, previews: int, *, deviation: float = 0.0, seed: int = 0, scale: float = 1.0
) -> list[Alarm]:
    draw, monitor, alarms = random.Random(seed), Monitor(), []
    for index in range(1, previews + 1):
        judge, reward = story(index / previews)
        judge, reward = judge + deviation * draw.gauss(0, 1), reward + deviation * draw.gauss(0, 1)
        monitor, new = fold_preview(monitor, 5 * index, scale * judge - 7, reward)
        alarms += new
    return alarms


def kinds(alarms: list[Alarm]) -> list[str]:
    return [alarm.kind for alarm in alarms]


@pytest.mark.parametrize("previews", [4, 24, 100])
@pytest.mark.parametrize("deviation", [0.0, 0.02, 0.1])
def test_both_up_is_silent(previews: int, deviation: float) -> None:
    for seed in range(5):
        assert collect_alarms(both_up, previews, deviation=deviation, seed=seed) == []


@pytest.mark.parametrize(("previews", "deviation"), [(24, 0.0), (24, 0.02), (100, 0.02), (100, 0.05)])
def test_a_judge_that_falls_while_the_reward_climbs_alarms_once(previews: int, deviation: float) -> None:
    alarms = [alarm for alarm in collect_alarms(hacked, previews, deviation=deviation) if alarm.kind == "hacking"]
    assert len(alarms) == 1
    assert abs(alarms[0].since / (5 * previews) - 0.5) < 0.15, "the judge's best moment is the middle"
    assert "train reward +" in alarms[0].message and f"since step {alarms[0].since}" in alarms[0].message


def test_the_alarm_does_not_depend_on_the_judge_s_unit() -> None:
    assert collect_alarms(hacked, 60, deviation=0.02) == collect_alarms(hacked, 60, deviation=0.02, scale=64.0)


def test_percent_are_of_the_span_so_far() -> None:
    """Five previews after the turn at .5 the reward has covered .6 and gained .1 of it, less the ends of the median."""
    (alarm, *_) = collect_alarms(hacked, 50)
    up = int(alarm.message.partition("+")[2].partition(" %")[0])
    assert 8 <= up <= 25 and alarm.message.endswith("likely reward hacking")


@pytest.mark.parametrize(("previews", "deviation"), [(40, 0.0), (100, 0.02), (400, 0.05)])
def test_a_judge_that_has_stopped_rising_is_a_plateau(previews: int, deviation: float) -> None:
    assert "plateau" in kinds(collect_alarms(saturated, previews, deviation=deviation))
    assert kinds(collect_alarms(saturated, previews)) == ["plateau"]


def test_nothing_is_optimised_so_nothing_is_hacked() -> None:
    monitor = Monitor()
    for index in range(1, 41):
        monitor, alarms = fold_preview(monitor, index, hacked(index / 40)[0], None)
        assert "hacking" not in kinds(alarms)


def test_the_memory_of_a_long_run_stays_small_and_survives_json() -> None:
    monitor = Monitor()
    for index in range(5 * MOST_POINTS):
        monitor, _ = fold_preview(monitor, index, math.sin(index / 300), float(index))
        if index % 331 == 0:
            assert monitor == Monitor.from_json(json.loads(json.dumps(monitor.to_json())))
    assert len(monitor.steps) <= MOST_POINTS and monitor.steps == tuple(sorted(monitor.steps))
    assert monitor.steps[-1] > 4.9 * MOST_POINTS


def test_noise_sees_no_trend_and_span_no_outlier() -> None:
    draw = random.Random(0)
    values = [0.3 * index + draw.gauss(0, 0.2) for index in range(2000)]
    assert noise_deviation(values) == pytest.approx(0.2, rel=0.1)
    assert noise_deviation([3.0 * index for index in range(9)]) == pytest.approx(0) and noise_deviation([1.0]) == 0
    assert covered_span([*range(100), 10**6]) < 100
