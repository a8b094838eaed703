"""The Negative tab: what the run has learned to avoid, as distances, directions and words."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import gradio as gr

from psd.ui.chart import heat_map, line_chart
from psd.ui.curves import change_rules, drawn
from psd.ui.markup import table
from psd.ui.page import Pane
from psd.ui.view import View


def negative_tab() -> list[Pane]:
    charts = gr.HTML(charts_of_the_negative(View()), elem_id="negative-charts")
    words = gr.HTML(tokens(View()), elem_id="tokens", elem_classes="table")
    return [
        Pane([charts], lambda p: drawn(p.run.view, "negative/"), lambda p: [charts_of_the_negative(p.run.view)],
             "Negative"),
        Pane([words], lambda p: p.run.view.negatives.last, lambda p: [tokens(p.run.view)], "Negative"),
    ]  # fmt: skip


def charts_of_the_negative(view: View) -> str:
    steps, rules = view.total_steps or 1, change_rules(view.changes)

    def named(**names: str) -> dict:
        chosen = {said: view.curves.get(f"negative/{name}") for name, said in names.items()}
        return {said: curve for said, curve in chosen.items() if curve}

    charts = [
        line_chart("Drift from the start", "RMS", named(drift="drift"), steps=steps, rules=rules),
        line_chart("Direction", "cosine", named(cosine_start="to its start", cosine_prompt="to the prompt"),
                   steps=steps, rules=rules),
        line_chart("Reward at each update", "of the image the negative steers",
                   named(reward_before="before", reward_after="after"), steps=steps, rules=rules),
        heat(view),
    ]  # fmt: skip
    return f'<div class="charts">{"".join(charts)}</div>'


def heat(view: View) -> str:
    """Drift of each token over the run; neighbours with the same token (padding) share a row."""
    moments = view.negatives.items
    if not moments:
        return heat_map([], [], "RMS")
    columns = [merged(moment.tokens, moment.drift) for moment in moments]
    rows = [(name, [column[i][1] for column in columns]) for i, (name, _) in enumerate(columns[-1])]
    return heat_map(rows, [moment.step for moment in moments], "RMS")


def merged(names: Sequence[str], drift: Sequence[float]) -> list[tuple[str, float]]:
    """Each run of equal tokens with the RMS of their drifts."""
    found = []
    for token, group in groupby(zip(names, drift, strict=True), key=lambda position: position[0]):
        values = [value for _, value in group]
        rms = (sum(value * value for value in values) / len(values)) ** 0.5
        found.append((f"{token} × {len(values)}" if len(values) > 1 else token, rms))
    return found


def words_of(names: Sequence[str], nearest: Sequence[str]) -> list[str]:
    """The most common nearest word of each run of equal tokens."""
    pairs = groupby(zip(names, nearest, strict=True), key=lambda position: position[0])
    return [Counter(word for _, word in group).most_common(1)[0][0] for _, group in pairs]


def tokens(view: View) -> str:
    """Each token of the negative prompt: how far it has moved, the word it was nearest to and is nearest to now."""
    now, start = view.negatives.last, view.negative_start
    heads = ("token", "drift (RMS)", "nearest word at the start", "nearest word now")
    if now is None or start is None:
        return table(heads, (), "The negative embedding has not moved yet.")
    found = merged(now.tokens, now.drift)
    largest = max(drift for _, drift in found) or 1.0
    rows = []
    for (name, drift), before, after in zip(
        found, words_of(start.tokens, start.nearest), words_of(now.tokens, now.nearest), strict=True
    ):
        bar = f'<i style="width:{drift / largest:.0%}"></i><span>{drift:.4f}</span>'
        moved = html.escape(after)
        rows.append([html.escape(name), bar, html.escape(before), moved if after == before else f"<b>{moved}</b>"])
    return table(heads, rows, "").replace("<td><i", '<td class="bar"><i')
