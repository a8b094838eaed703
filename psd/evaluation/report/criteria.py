"""The bars of the project, asked of a suite's reference; they were named before the test captions were run.

A bar is met or missed when all runs that it rests on are there; until then its figure says what part of them it is of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psd.evaluation.experiments.suite import Suite
from psd.evaluation.report.statistics import (
    Interval,
    Line,
    bootstrap_mean,
    compare_at_reward,
    mean_measure,
    pair_differences,
)
from psd.evaluation.report.tables import (
    format_share,
    is_complete,
    judge_names,
    keep_common_runs,
    lines_by_row,
    markdown_table,
    pluralise,
)

NAMED_BAR = 0.85
SAME_IOU = 0.01  # "not below", as an interval can say it: a twelfth of a pixel's rim around a ball of half the width


@dataclass(frozen=True)
class Criterion:
    """One thing that was asked."""

    what: str
    figure: str
    met: bool | None  # None: the runs that would tell are missing, or cannot tell

    @property
    def verdict(self) -> str:
        if self.met is None:
            return "open" if self.figure else "not run yet"
        return "met" if self.met else "MISSED"


def suite_criteria(suite: Suite, lines: Sequence[Line]) -> list[Criterion]:
    found = lines_by_row(suite, lines)
    judge = judge_names(suite)[0]
    asked: list[Criterion] = []

    def add_criterion(what: str, figure: str, met: bool | None, over: Sequence[Line], *methods: str) -> None:
        """``over``: the reference's runs that the figure rests on; ``methods``: what has to be complete."""
        whole = is_complete(suite, lines, methods)
        asked.append(
            Criterion(
                what, figure + ("" if whole or not figure else progress_note(suite, over)), met if whole else None
            )
        )

    def add_lead(what: str, interval: Interval | None, over: Sequence[Line], *methods: str) -> None:
        add_criterion(what, str(interval or ""), interval.positive if interval else None, over, *methods)

    def shared_runs(other: str) -> tuple[list[Line], list[Line]]:
        """The reference's runs and the other's, where both have one."""
        shared = keep_common_runs({name: found.get(name, []) for name in (suite.reference, other)})
        return shared.get(suite.reference, []), shared.get(other, [])

    for measure, name in ((f"{judge}/score", f"{judge} judge"), ("colour_psnr", "colour PSNR inside the object")):
        for other in suite.beaten:
            own, its = shared_runs(other)
            what = f"{name} above `{other}`, interval above 0"
            add_lead(what, bootstrap_mean(pair_differences(own, its, measure)), own, suite.reference, other)
    if suite.sweep:
        result = compare_at_reward(
            found.get(suite.reference, []), {name: found.get(name, []) for name in suite.sweep}, f"{judge}/score"
        )
        what = f"{judge} judge above the pixel gradient at matched train reward, interval above 0"
        names = (result.bracket if result else None) or [name for name in suite.sweep if name in found]
        over = keep_common_runs({name: found.get(name, []) for name in (suite.reference, *names)}).get(
            suite.reference, []
        )
        if result is not None and result.bracket is None:
            add_criterion(what, f"{result.lead}, {result.note}", None, over, suite.reference, *names)
        else:
            add_lead(what, result.lead if result else None, over, suite.reference, *names)
    own, its = shared_runs(suite.baseline)
    overlap = bootstrap_mean(pair_differences(own, its, "iou"))
    met = None if overlap is None or overlap.ends is None else overlap.ends[0] >= -SAME_IOU
    what = f"IoU not below `{suite.baseline}` by more than {SAME_IOU}, interval above that"
    add_criterion(what, str(overlap or ""), met, own, suite.reference, suite.baseline)
    mine, theirs = mean_measure(own, "janus"), mean_measure(its, "janus")
    figure, met = "", None
    if mine is not None and theirs is not None:
        fronts = sum(line.get("janus") is not None for line in own)
        figure = f"{format_share(mine)} against {format_share(theirs)} of {pluralise(fronts, 'run')} with a front"
        met = mine <= theirs
    add_criterion(f"Janus rate not above `{suite.baseline}`'s", figure, met, own, suite.reference, suite.baseline)
    own = found.get(suite.reference, [])
    named, truth = mean_measure(own, f"{judge}/named"), mean_measure(own, f"{judge}/truth_named")
    figure = (
        ""
        if named is None
        else format_share(named) + ("" if truth is None else f" (the truth itself {format_share(truth)})")
    )
    met = None if named is None else named >= NAMED_BAR
    add_criterion(f"named among 60 captions in {format_share(NAMED_BAR)}", figure, met, own, suite.reference)
    return asked


def progress_note(suite: Suite, over: Sequence[Line]) -> str:
    """What part of the suite's full size the runs are."""
    prompts, asked = len({line["prompt"] for line in over}), suite.main.prompts
    if prompts < asked:
        return f" so far, {prompts} of {asked} captions"
    return f" so far, {len(over)} of {asked * suite.main.seeds} runs"


def criteria_table(asked: Sequence[Criterion]) -> list[str]:
    return markdown_table(
        ["bar", "found", ""],
        [[bar.what, bar.figure, "**MISSED**" if bar.met is False else bar.verdict] for bar in asked],
    )
