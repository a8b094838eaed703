"""The criteria of the project, asked of a suite's reference; they were named before the test captions were run.

A criterion is met or missed when all runs that it rests on are there; until then its figure says what part of them it
is of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psd.evaluation.experiments.suite import Suite
from psd.evaluation.report.statistics import (
    NO_RUNS,
    SHARE,
    Interval,
    Line,
    Runs,
    bootstrap_mean,
    format_figure,
    match_control,
    mean_measure,
    measure_values,
    pair_differences,
)
from psd.evaluation.report.tables import (
    is_complete,
    judge_names,
    keep_common_runs,
    markdown_table,
    pluralise,
    split_rows,
)

NAMED_AT_LEAST = 0.85
SAME_IOU = 0.01  # "not below", as an interval can say it: a twelfth of a pixel's rim around a ball of half the width


@dataclass(frozen=True)
class Criterion:
    """A bar, what was found, and whether that meets it."""

    what: str
    figure: str
    met: bool | None  # None: the runs that would decide are missing, or cannot decide

    @property
    def verdict(self) -> str:
        if self.met is None:
            return "open" if self.figure else "not run yet"
        return "met" if self.met else "MISSED"


def check_criteria(suite: Suite, lines: Sequence[Line]) -> list[Criterion]:
    """Every bar that the project asks of ``suite.reference``, with intervals over captions, from ``lines``."""
    rows, judge, reference, baseline = split_rows(suite, lines), judge_names(suite)[0], suite.reference, suite.baseline
    checked: list[Criterion] = []

    def add(what: str, figure: str, met: bool | None, over: Runs, *methods: str) -> None:
        """``over``: the reference's runs that the figure rests on; ``methods``: what has to be complete beside it."""
        whole = is_complete(suite, rows, (reference, *methods))
        part = "" if whole or not figure else describe_part(suite, over)
        checked.append(Criterion(what, figure + part, met if whole else None))

    def add_lead(what: str, interval: Interval | None, over: Runs, *methods: str) -> None:
        add(what, str(interval or ""), interval.positive if interval else None, over, *methods)

    def share_runs(*others: str) -> list[Runs]:
        """The reference's runs and the others', where all have one."""
        names = (reference, *others)
        shared = keep_common_runs({name: rows.get(name, NO_RUNS) for name in names})
        return [shared.get(name, NO_RUNS) for name in names]

    for measure, name in ((f"{judge}/score", f"{judge} judge"), ("colour_psnr", "colour PSNR inside the object")):
        for other in suite.beaten:
            own, its = share_runs(other)
            lead = bootstrap_mean(pair_differences(own, its, measure))
            add_lead(f"{name} above `{other}`, interval above 0", lead, own, other)
    if suite.sweep:
        sweep = {name: rows.get(name, NO_RUNS) for name in suite.sweep}
        result = match_control(rows.get(reference, NO_RUNS), sweep, f"{judge}/score")
        what = f"{judge} judge above the pixel gradient at matched train reward, interval above 0"
        names = (result.bracket if result else None) or [name for name in suite.sweep if name in rows]
        over = share_runs(*names)[0]
        if result is not None and result.bracket is None:
            add(what, f"{result.lead}, {result.note}", None, over, *names)
        else:
            add_lead(what, result.lead if result else None, over, *names)
    own, its = share_runs(baseline)
    overlap = bootstrap_mean(pair_differences(own, its, "iou"))
    met = None if overlap is None or overlap.ends is None else overlap.ends[0] >= -SAME_IOU
    what = f"IoU not below `{baseline}` by more than {SAME_IOU}, interval above that"
    add(what, str(overlap or ""), met, own, baseline)
    mine, theirs = mean_measure(own, "janus"), mean_measure(its, "janus")
    figure, met = "", None
    if mine is not None and theirs is not None:
        fronts = pluralise(measure_values(own, "janus").count(), "run")
        shares = f"{format_figure(mine, SHARE)} against {format_figure(theirs, SHARE)}"
        figure, met = f"{shares} of {fronts} with a front", mine <= theirs
    add(f"Janus rate not above `{baseline}`'s", figure, met, own, baseline)
    own = rows.get(reference, NO_RUNS)
    named, truth = mean_measure(own, f"{judge}/named"), mean_measure(own, f"{judge}/truth_named")
    ceiling = "" if truth is None else f" (the truth itself {format_figure(truth, SHARE)})"
    figure, met = ("", None) if named is None else (format_figure(named, SHARE) + ceiling, named >= NAMED_AT_LEAST)
    add(f"named among 60 captions in {format_figure(NAMED_AT_LEAST, SHARE)}", figure, met, own)
    return checked


def describe_part(suite: Suite, over: Runs) -> str:
    """What part of the suite's full size the runs are."""
    prompts, full = len(over.index.unique("prompt")), suite.main.prompts
    if prompts < full:
        return f" so far, {prompts} of {full} captions"
    return f" so far, {len(over)} of {full * suite.main.seeds} runs"


def criteria_table(criteria: Sequence[Criterion]) -> list[str]:
    body = [[it.what, it.figure, "**MISSED**" if it.met is False else it.verdict] for it in criteria]
    return markdown_table(["bar", "found", ""], body)
