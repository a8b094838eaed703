"""Figures of what ships: means, a line for each beside its bar, and the file that keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from psd.embedded.captions import lists
from psd.embedded.captions.grammar import Caption, parse
from psd.embedded.captions.kinds import list_known
from psd.evaluation.experiments.suite import RESULTS

Asked = list[tuple[Caption, list[Caption]]]  # captions with their distractors


def read_captions(name: str, limit: int | None = None) -> Asked:
    """The captions of a committed list with their distractors, or the first ``limit`` of them."""
    listed = list(lists.load_list(name).items())[:limit]
    return [(parse(text), [parse(other) for other in others]) for text, others in listed]


def is_offered(caption: Caption) -> bool:
    """Whether the prior that ships knows all of the caption's kinds, so that the page offers them."""
    return {caption.kind, caption.other_kind or caption.kind} <= set(list_known())


def mean_or_nan(values: Iterable[float]) -> float:
    """The mean; of nothing it is no number."""
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def finite_mean(values: Iterable[float]) -> float:
    """The mean without what is no number."""
    return mean_or_nan([value for value in values if value == value])


def print_figure(what: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
    """A line of the terminal: what, how much, and whether the bar is met."""
    bar = ""
    if at_least is not None:
        bar = f"  bar >= {at_least}: {'met' if value >= at_least else 'MISSED'}"
    if at_most is not None:
        bar = f"  bar <= {at_most}: {'met' if value <= at_most else 'MISSED'}"
    print(f"{what:58s} {value:7.3f}{bar}", flush=True)


def record_file(name: str) -> Path:
    """Where the figures of ``critics``, ``prior`` or ``scenes`` are kept."""
    return RESULTS / f"embedded-{name}.json"
