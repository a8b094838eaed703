"""Tables of a suite's lines as Markdown: measures, paired differences, equal cost, drift.

Every row of a table is over the same runs, so that no mean differs because its captions do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from psd.evaluation.experiments.suite import Suite
from psd.evaluation.report.statistics import (
    LEVEL,
    Interval,
    Line,
    bootstrap_mean,
    compare_at_reward,
    differences_to_wins,
    is_diverging,
    mean_measure,
    pair_differences,
)

RAW = ("reward", "inconsistency", "watertight", "cost", "seconds")  # measures that ask for no truth
AT_EQUAL_COST = " at equal cost"

Rows = Mapping[str, Sequence[Line]]


class Column(NamedTuple):
    head: str
    measure: str
    say: Callable[[float], str]
    brief: bool = False  # in README.md too


def format_share(value: float) -> str:
    return f"{100 * value:.0f} %"


def format_signed(value: float) -> str:
    return f"{value:+.2f}"


def make_formatter(places: int, unit: str = "") -> Callable[[float], str]:
    return lambda value: f"{value:.{places}f}{unit}"


def judge_names(suite: Suite) -> list[str]:
    """By their folders' names, which their measures begin with."""
    return [name.rpartition("/")[2] for name in suite.judges]


def measure_columns(suite: Suite) -> list[Column]:
    first = judge_names(suite)[0]
    found = [
        *(Column(name, f"{name}/score", format_signed, True) for name in judge_names(suite)),
        Column("named", f"{first}/named", format_share, True),
        Column("misbound", f"{first}/misbound", format_share),
        Column("PSNR", "colour_psnr", make_formatter(1), True),
        Column("IoU", "iou", make_formatter(3), True),
        Column("depth", "depth_error", make_formatter(3)),
        Column("normal", "normal_error_deg", make_formatter(0, "°")),
        Column("Janus", "janus", format_share, True),
        Column("front elsewhere", "front_elsewhere", format_share),
        Column("train reward", "reward", format_signed, True),
        Column("term", "pair_ratio", make_formatter(2)),
        Column("first wins", "pair_win_first", format_share),
        Column("half agrees", "pair_half_agrees", format_share),
        Column("texture", "texture", make_formatter(1)),
        Column("saturation", "image/saturation_over_truth", make_formatter(2)),
        Column("contrast", "image/contrast_over_truth", make_formatter(2)),
        Column("edges", "image/edge_density_over_truth", make_formatter(2)),
        Column("floaters", "floaters", format_share),
        Column("fog", "fog", format_share),
        Column("inconsistency", "inconsistency", make_formatter(2)),
        Column("closed", "watertight", format_share),
        Column("cost", "cost", make_formatter(0), True),
        Column("seconds", "seconds", make_formatter(0)),
        Column("GB", "peak_memory_bytes", lambda value: f"{value / 1e9:.1f}"),
    ]
    return [it for it in found if suite.truth or it.measure in RAW or it.measure.endswith("/score")]


def leading_columns(suite: Suite) -> list[Column]:
    """What methods are compared by, difference by difference."""
    wanted = {"colour_psnr", "iou", *suite.compared_by}
    return [
        column for column in measure_columns(suite) if column.measure.endswith("/score") or column.measure in wanted
    ]


def drop_other_rewards(suite: Suite, found: Rows) -> dict[str, Sequence[Line]]:
    """The rows whose methods climb what the reference climbs: rewards of two models have no common scale."""
    climbed = suite.rewards(suite.reference)
    return {label: own for label, own in found.items() if suite.rewards(method_of(label)) == climbed}


def method_of(label: str) -> str:
    """The method that a row is of."""
    return label.removesuffix(AT_EQUAL_COST)


# ----------------------------------------------------------------------------------------------------------------- rows


def lines_by_row(suite: Suite, lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each method in the suite's order; those at the reference's cost as a row of their own."""
    found: dict[str, list[Line]] = {}
    for name in suite.methods:
        for budget, label in (("steps", name), ("cost", name + AT_EQUAL_COST)):
            own = [line for line in lines if line["method"] == name and line["budget"] == budget]
            if own:
                found[label] = own
    return found


def keep_common_runs(found: Rows) -> dict[str, list[Line]]:
    """Of each row the runs, by caption and seed, that all rows have; nothing where there is none."""
    keys = [{(line["prompt"], line["seed"]) for line in own} for own in found.values()]
    shared = set.intersection(*keys) if keys else set()
    return {
        label: [line for line in own if (line["prompt"], line["seed"]) in shared] for label, own in found.items()
    } if shared else {}  # fmt: skip


def main_rows(suite: Suite, lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The main methods, over the runs that they share; all methods where none is main.

    Those that are not complete wait while the reference is: a row that has just begun would leave few runs to all.
    """
    found = lines_by_row(suite, lines)
    main = {label: own for label, own in found.items() if label in suite.methods and suite.methods[label].main}
    if main and is_complete(suite, lines, [suite.reference]):
        main = {label: own for label, own in main.items() if is_complete(suite, lines, [label])}
    return keep_common_runs(main or found)


def table_groups(suite: Suite, lines: Sequence[Line]) -> dict[str, dict[str, list[Line]]]:
    """One table's rows each: the main methods on all their captions, and all methods on those that all have."""
    every, main = keep_common_runs(lines_by_row(suite, lines)), main_rows(suite, lines)
    both = {"main methods": main, "all methods": every}
    if not any(method.main for method in suite.methods.values()) or suite.main == suite.others:
        both = {"all methods": every}
    elif every.keys() <= main.keys():
        both = {"main methods": main}
    return {name: found for name, found in both.items() if found}


def describe_extent(suite: Suite, found: Rows) -> str:
    """Which runs a table is over, and how sure the first judge can be of them."""
    lines = next(iter(found.values()))
    prompts = len({line["prompt"] for line in lines})
    words = f"Every row is over the same {pluralise(len(lines), 'run')}, of {pluralise(prompts, 'caption')}."
    truth = mean_measure(lines, f"{judge_names(suite)[0]}/truth_named")
    return (
        words
        if truth is None
        else f"{words} The {judge_names(suite)[0]} judge names {format_share(truth)} of their truths."
    )


def pluralise(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def is_complete(suite: Suite, lines: Sequence[Line], methods: Iterable[str]) -> bool:
    """Whether each method has all runs of the suite's full size."""
    found, runs = lines_by_row(suite, lines), suite.main.prompts * suite.main.seeds
    return all(len(found.get(name, ())) >= runs for name in methods)


# --------------------------------------------------------------------------------------------------------------- tables


def markdown_table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
        *("| " + " | ".join(cells) + " |" for cells in body),
    ]


def measures_table(suite: Suite, found: Rows, *, brief: bool = False) -> list[str]:
    """A row a method: means over its runs.  ``brief`` leaves out what README.md has no room for.

    What no line tells has no column.
    """
    told = {name for own in found.values() for line in own for name, value in line.items() if value is not None}
    wanted = [it for it in measure_columns(suite) if it.measure in told and (it.brief or not brief)]
    alike, body = drop_other_rewards(suite, found), []
    for label, own in found.items():
        left_out = () if label in alike else ("reward",)
        values = [None if column.measure in left_out else mean_measure(own, column.measure) for column in wanted]
        worded = ["" if value is None else column.say(value) for value, column in zip(values, wanted, strict=True)]
        hacked = sum(line.get("reward") is not None and line["reward"] > 0 for line in own) / len(own)
        apart = sum(map(is_diverging, own)) / len(own)
        last = [format_share(hacked)] if suite.truth else []
        failed = sum("failed" in line for line in own)
        body.append([f"`{label}`", *worded, *last, format_share(apart), str(failed)])
    above = ["above truth"] if suite.truth else []
    return markdown_table(["method", *(column.head for column in wanted), *above, "diverging", "failed"], body)


def difference_cells(suite: Suite, found: Rows, label: str, other: str) -> list[str]:
    """Cells of one row against another: captions, cost, the leading measures' differences, each judge's win rate.

    Empty where nothing is paired.
    """
    shared = keep_common_runs({label: found.get(label, []), other: found.get(other, [])})
    if not shared:
        return []
    own, its = shared[label], shared[other]
    left_out = () if suite.rewards(method_of(label)) == suite.rewards(method_of(other)) else ("reward",)
    gained = [
        None if column.measure in left_out else bootstrap_mean(pair_differences(own, its, column.measure))
        for column in leading_columns(suite)
    ]
    won = [win_rate(suite, own, its, judge) for judge in judge_names(suite)]
    if not any(gained):
        return []
    prompts = max(interval.prompts for interval in gained if interval)
    mine, theirs = mean_measure(own, "cost"), mean_measure(its, "cost")
    times = f"x {mine / theirs:.2f}" if mine and theirs else ""
    rates = ["" if rate is None else rate.format_with(format_share) for rate in won]
    return [f"{prompts}", times, *("" if interval is None else str(interval) for interval in gained), *rates]


def win_rate(suite: Suite, own: Sequence[Line], other: Sequence[Line], judge: str) -> Interval | None:
    """The share of captions in which the judge prefers the one to the other; by raw scores, which are not clipped."""
    return bootstrap_mean(
        differences_to_wins(pair_differences(own, other, f"{judge}/{'raw' if suite.truth else 'score'}"))
    )


def differences_heads(suite: Suite) -> list[str]:
    prefers = [f"{name} prefers" for name in judge_names(suite)]
    return ["captions", "cost", *(column.head for column in leading_columns(suite)), *prefers]


def differences_table(suite: Suite, found: Rows) -> list[str]:
    """Every row against what its method is compared with, at equal steps."""
    body = []
    for label in found:
        other = suite.against(method_of(label))
        cells = difference_cells(suite, found, label, other) if label != other else []
        if cells:
            body.append([f"`{label}`", f"`{other}`", *cells])
    return markdown_table(["method", "against", *differences_heads(suite)], body) if body else []


def reference_table(suite: Suite, lines: Sequence[Line]) -> list[str]:
    """The reference against each row, at equal cost too where that was asked, on all runs that the two have."""
    found, body = lines_by_row(suite, lines), []
    for label in found:
        if label != suite.reference and (cells := difference_cells(suite, found, suite.reference, label)):
            body.append([f"`{label}`", *cells])
    return markdown_table([f"`{suite.reference}` against", *differences_heads(suite)], body) if body else []


def drift_table(suite: Suite, lines: Sequence[Line]) -> list[str]:
    """Whether each method moved away from what it is compared with, beside whether it should have.

    Intervals of all cells together (Bonferroni): that any of them misses 0 by chance happens once in twenty.
    """
    found, body = lines_by_row(suite, lines), []
    measures = {(judge := judge_names(suite)[0]): f"{judge}/score", "PSNR": "colour_psnr", "train reward": "reward"}
    level = 1 - (1 - LEVEL) / max(1, len(measures) * len(suite.drift))
    said = {True: " misses 0", False: " holds 0", None: ""}
    for name, expected in suite.drift.items():
        other = suite.against(name)
        moved = [
            bootstrap_mean(pair_differences(found.get(name, []), found.get(other, []), key), level)
            for key in measures.values()
        ]
        cells = ["" if it is None else f"{it}{said[it.excludes_zero]}" for it in moved]
        told = all(it is not None and it.ends for it in moved) and is_complete(suite, lines, (name, other))
        drifts = any(it.excludes_zero for it in moved if it is not None)
        verdict = ("yes" if drifts == (expected == "some") else "**NO**") if told else "not all run yet"
        body.append([f"`{name}`", f"`{other}`", expected, *cells, verdict])
    return markdown_table(["method", "against", "drift expected", *measures, "as expected"], body) if body else []


def matched_table(suite: Suite, lines: Sequence[Line]) -> list[str]:
    """Every method against the swept control at the method's own train reward."""
    found = drop_other_rewards(suite, lines_by_row(suite, lines))
    control = {name: found.get(name, []) for name in suite.sweep}
    wanted = [column for column in leading_columns(suite) if column.measure != "reward"]
    body = []
    for name in suite.methods:
        if name in suite.sweep:
            continue
        results = [compare_at_reward(found.get(name, []), control, column.measure) for column in wanted]
        if told := [result for result in results if result is not None]:
            cells = ["" if result is None else str(result.lead) for result in results]
            body.append([f"`{name}`", f"{max(result.lead.prompts for result in told)}", *cells, told[0].note])
    return markdown_table(["method", "captions", *(column.head for column in wanted), "control"], body) if body else []
