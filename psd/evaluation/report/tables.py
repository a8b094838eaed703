"""Tables of a suite's lines as Markdown: measures, paired differences, equal cost.

Every row of a table is over the same runs, so that no mean differs because its captions do.
"""

# pandas ships no types, and what pyright infers of groups and columns is wider than what they hold.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import pandas as pd

from psd.evaluation.experiments.suite import Suite, folder_name
from psd.evaluation.report.statistics import (
    NO_RUNS,
    SHARE,
    SIGNED,
    Interval,
    Line,
    Runs,
    bootstrap_mean,
    count_wins,
    format_figure,
    is_diverging,
    match_control,
    mean_measure,
    measure_values,
    pair_differences,
    tabulate_runs,
)

RAW = ("reward", "inconsistency", "watertight", "cost", "seconds")  # measures that ask for no truth
AT_EQUAL_COST = " at equal cost"

Rows = Mapping[str, Runs]  # by the row's label


class Column(NamedTuple):
    """A column of a results table: a measure and how it is written; ``unit`` divides it."""

    head: str
    measure: str
    form: str  # of `format_figure`
    brief: bool = False  # in docs/evidence.md too
    unit: float = 1.0


def judge_names(suite: Suite) -> list[str]:
    """Their folders' names, which their measures begin with; the first is the primary one."""
    return [folder_name(source) for source in suite.judges]


def measure_columns(suite: Suite) -> list[Column]:
    """The columns of a suite's table; without a truth only those of `RAW` and the judges' scores."""
    first = judge_names(suite)[0]
    columns = [
        *(Column(name, f"{name}/score", SIGNED, True) for name in judge_names(suite)),
        Column("named", f"{first}/named", SHARE, True),
        Column("misbound", f"{first}/misbound", SHARE),
        Column("PSNR", "colour_psnr", "{:.1f}", True),
        Column("IoU", "iou", "{:.3f}", True),
        Column("depth", "depth_error", "{:.3f}"),
        Column("normal", "normal_error_deg", "{:.0f}°"),
        Column("Janus", "janus", SHARE, True),
        Column("front elsewhere", "front_elsewhere", SHARE),
        Column("train reward", "reward", SIGNED, True),
        Column("term", "pair_ratio", "{:.2f}"),
        Column("first wins", "pair_win_first", SHARE),
        Column("half agrees", "pair_half_agrees", SHARE),
        Column("texture", "texture", "{:.1f}"),
        Column("saturation", "image/saturation_over_truth", "{:.2f}"),
        Column("contrast", "image/contrast_over_truth", "{:.2f}"),
        Column("edges", "image/edge_density_over_truth", "{:.2f}"),
        Column("floaters", "floaters", SHARE),
        Column("fog", "fog", SHARE),
        Column("inconsistency", "inconsistency", "{:.2f}"),
        Column("closed", "watertight", SHARE),
        Column("cost", "cost", "{:.0f}", True),
        Column("seconds", "seconds", "{:.0f}"),
        Column("GB", "peak_memory_bytes", "{:.1f}", unit=1e9),
    ]
    return [it for it in columns if suite.truth or it.measure in RAW or it.measure.endswith("/score")]


def leading_columns(suite: Suite) -> list[Column]:
    """The measures that methods are compared by, difference by difference."""
    wanted = {"colour_psnr", "iou", *suite.compared_by}
    return [it for it in measure_columns(suite) if it.measure.endswith("/score") or it.measure in wanted]


# ----------------------------------------------------------------------------------------------------------------- rows


def label_of(method: str, budget: str) -> str:
    return method + (AT_EQUAL_COST if budget == "cost" else "")


def method_of(label: str) -> str:
    """The method that a row is of."""
    return label.removesuffix(AT_EQUAL_COST)


def split_rows(suite: Suite, lines: Sequence[Line]) -> dict[str, Runs]:
    """The runs of each method in the suite's order; those at the reference's cost as a row of their own."""
    runs = tabulate_runs(lines)
    by_row = dict(list(runs.groupby(["method", "budget"]))) if lines else {}
    labels = {(name, budget): label_of(name, budget) for name in suite.methods for budget in ("steps", "cost")}
    return {label: by_row[row] for row, label in labels.items() if row in by_row}


def keep_common_runs(rows: Rows) -> dict[str, Runs]:
    """Of each row the runs, by caption and seed, that all rows have; nothing where there is none."""
    shared = reduce(pd.Index.intersection, (runs.index for runs in rows.values())) if rows else NO_RUNS.index
    return {label: runs.loc[runs.index.isin(shared)] for label, runs in rows.items()} if len(shared) else {}


def main_rows(suite: Suite, lines: Sequence[Line]) -> dict[str, Runs]:
    """The main methods, over the runs that they share; all methods where none is main.

    Those that are not complete wait while the reference is: a row that has just begun would leave few runs to all.
    """
    rows = split_rows(suite, lines)
    main = {label: runs for label, runs in rows.items() if label in suite.methods and suite.methods[label].main}
    if main and is_complete(suite, rows, [suite.reference]):
        main = {label: runs for label, runs in main.items() if is_complete(suite, rows, [label])}
    return keep_common_runs(main or rows)


def table_groups(suite: Suite, lines: Sequence[Line]) -> dict[str, dict[str, Runs]]:
    """The rows of each table: the main methods on all their captions, and all methods on those that all have."""
    every, main = keep_common_runs(split_rows(suite, lines)), main_rows(suite, lines)
    both = {"main methods": main, "all methods": every}
    if not any(method.main for method in suite.methods.values()) or suite.main == suite.others:
        both = {"all methods": every}
    elif every.keys() <= main.keys():
        both = {"main methods": main}
    return {name: rows for name, rows in both.items() if rows}


def is_complete(suite: Suite, rows: Rows, methods: Iterable[str]) -> bool:
    """Whether each method has all runs of the suite's full size."""
    return all(len(rows.get(name, ())) >= suite.main.prompts * suite.main.seeds for name in methods)


# --------------------------------------------------------------------------------------------------------------- tables


def pluralise(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def markdown_table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """The table's lines; none without any row."""
    rows = ["| " + " | ".join(cells) + " |" for cells in body]
    return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *rows] if rows else []


def describe_runs(suite: Suite, rows: Rows) -> str:
    """Which runs a table is over, and how sure the first judge can be of them."""
    runs, judge = next(iter(rows.values())), judge_names(suite)[0]
    prompts = len(runs.index.unique("prompt"))
    words = f"Every row is over the same {pluralise(len(runs), 'run')}, of {pluralise(prompts, 'caption')}."
    truth = mean_measure(runs, f"{judge}/truth_named")
    return words if truth is None else f"{words} The {judge} judge names {format_figure(truth, SHARE)} of their truths."


def measures_table(suite: Suite, rows: Rows, *, brief: bool = False) -> list[str]:
    """A row a method: means over its runs.  ``brief`` leaves out what docs/evidence.md has no room for.

    A measure that no line has is no column.
    """
    every = pd.concat(rows.values())
    columns = [it for it in measure_columns(suite) if it.brief or not brief]
    columns = [it for it in columns if measure_values(every, it.measure).count()]
    body = []
    for label, runs in rows.items():
        means = [mean_measure(runs, it.measure) for it in columns]
        cells = ["" if mean is None else format_figure(mean / it.unit, it.form) for mean, it in zip(means, columns)]
        shares = [(measure_values(runs, "reward") > 0).sum() / len(runs)] if suite.truth else []
        shares.append(runs["curve"].map(is_diverging).mean())
        failed = runs["failed"].count() if "failed" in runs else 0
        body.append([f"`{label}`", *cells, *(format_figure(share, SHARE) for share in shares), f"{failed}"])
    last = [*(["above truth"] if suite.truth else []), "diverging", "failed"]
    return markdown_table(["method", *(it.head for it in columns), *last], body)


def difference_cells(suite: Suite, rows: Rows, label: str, other: str) -> list[str]:
    """Cells of one row against another: captions, cost, the leading measures' differences, each judge's win rate.

    Empty where nothing is paired.
    """
    shared = keep_common_runs({name: rows.get(name, NO_RUNS) for name in (label, other)})
    if not shared:
        return []
    own, its = shared[label], shared[other].reindex(shared[label].index)
    leads = [bootstrap_mean(pair_differences(own, its, it.measure)) for it in leading_columns(suite)]
    if not any(leads):
        return []
    wins = [win_rate(suite, own, its, judge) for judge in judge_names(suite)]
    prompts = max(lead.prompts for lead in leads if lead)
    mine, theirs = mean_measure(own, "cost"), mean_measure(its, "cost")
    times = f"x {mine / theirs:.2f}" if mine and theirs else ""
    return [f"{prompts}", times, *("" if lead is None else str(lead) for lead in leads),
            *("" if rate is None else rate.format(SHARE) for rate in wins)]  # fmt: skip


def win_rate(suite: Suite, own: Runs, other: Runs, judge: str) -> Interval | None:
    """The share of captions in which the judge prefers the one to the other; by raw scores, which are not clipped."""
    return bootstrap_mean(count_wins(pair_differences(own, other, f"{judge}/{'raw' if suite.truth else 'score'}")))


def difference_heads(suite: Suite) -> list[str]:
    prefers = [f"{name} prefers" for name in judge_names(suite)]
    return ["captions", "cost", *(it.head for it in leading_columns(suite)), *prefers]


def differences_table(suite: Suite, rows: Rows) -> list[str]:
    """Every row against what its method is compared with, at equal steps."""
    pairs = [(label, other) for label in rows if (other := suite.against(method_of(label))) != label]
    found = [(label, other, difference_cells(suite, rows, label, other)) for label, other in pairs]
    body = [[f"`{label}`", f"`{other}`", *cells] for label, other, cells in found if cells]
    return markdown_table(["method", "against", *difference_heads(suite)], body)


def reference_table(suite: Suite, lines: Sequence[Line]) -> list[str]:
    """The reference against each row, at equal cost too where that was asked, on all runs that the two have."""
    rows, reference = split_rows(suite, lines), suite.reference
    found = [(label, difference_cells(suite, rows, reference, label)) for label in rows if label != reference]
    body = [[f"`{label}`", *cells] for label, cells in found if cells]
    return markdown_table([f"`{reference}` against", *difference_heads(suite)], body)


def matched_table(suite: Suite, lines: Sequence[Line]) -> list[str]:
    """Every method against the swept control at the method's own train reward."""
    rows = split_rows(suite, lines)
    control = {name: rows.get(name, NO_RUNS) for name in suite.sweep}
    columns, body = [it for it in leading_columns(suite) if it.measure != "reward"], []
    for name in suite.methods if suite.sweep else ():
        if name in suite.sweep:
            continue
        results = [match_control(rows.get(name, NO_RUNS), control, it.measure) for it in columns]
        if known := [result for result in results if result is not None]:
            cells = ["" if result is None else str(result.lead) for result in results]
            body.append([f"`{name}`", f"{max(result.lead.prompts for result in known)}", *cells, known[0].note])
    return markdown_table(["method", "captions", *(it.head for it in columns), "control"], body)
