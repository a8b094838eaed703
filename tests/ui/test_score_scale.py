"""Scores on a scale that a person can read: from a grey ball to the true object, where the prompt has one."""

from __future__ import annotations

import re

from psd.ui.state.view import Curve, View
from psd.ui.tabs.curves import TRUTH_HEAD, table_of_scores


def scale_of(caption: str, scorer: str) -> tuple[float, float] | None:
    """A fox scores 2 by the reward where a ball scores 1; nothing else was measured."""
    return (1.0, 2.0) if (caption, scorer) == ("a fox", "assets/reward") else None


def curves_at(**values: float) -> View:
    names = {"reward": "reward/assets/reward", "judge": "judge/assets/selector"}
    return View(curves={names[key]: Curve().add_newest(0, 0.0).add_newest(9, value) for key, value in values.items()})


def read_cells(table: str) -> list[list[str]]:
    rows = re.findall(r"<tr><th scope=row>(.*?)</tr>", table)
    return [re.split(r"</th><td>|</td><td>", row.removesuffix("</td>")) for row in rows]


def test_a_score_is_told_as_a_share_of_the_way_to_the_true_object():
    table = table_of_scores(curves_at(reward=1.75, judge=1.0), "a fox", [scale_of])
    assert TRUTH_HEAD in table
    reward, judge = read_cells(table)
    assert reward[3:5] == ["1.75", "75%"] and judge[4] == ""


def test_where_nothing_was_measured_there_is_no_such_column():
    for prompt, scales in (("a red unicorn", [scale_of]), ("a fox", [])):
        assert TRUTH_HEAD not in table_of_scores(curves_at(reward=1.75), prompt, scales)


def test_a_truth_below_the_ball_is_no_scale():
    assert TRUTH_HEAD not in table_of_scores(curves_at(reward=1.75), "a fox", [lambda *_: (2.0, 1.0)])
