"""The Negative tab: what the run has learned to avoid, as distances, directions and words."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import gradio as gr

from psd.ui.context import Tab
from psd.ui.markup.change_words import list_rules
from psd.ui.markup.charts import heat_map, line_chart
from psd.ui.markup.html import note_html, table_html
from psd.ui.state.page import Pane
from psd.ui.state.view import View
from psd.ui.tabs.curves import chart_key


def negative_tab() -> Tab:
    """How the learned negative embedding moves: a sentence, its charts, and the words it is nearest to."""
    sentence = gr.HTML(describe_negative(View()), elem_id="negative-words")
    charts = gr.HTML(negative_charts(View()), elem_id="negative-charts")
    words = gr.HTML(tokens_table(View()), elem_id="tokens", elem_classes="table")
    return Tab([
        Pane([sentence], lambda p: describe_negative(p.run.view), lambda p: [describe_negative(p.run.view)],
             "Negative"),
        Pane([charts], lambda p: chart_key(p.run.view, "negative/"), lambda p: [negative_charts(p.run.view)],
             "Negative"),
        Pane([words], lambda p: p.run.view.negatives.last, lambda p: [tokens_table(p.run.view)], "Negative"),
    ])  # fmt: skip


def describe_negative(view: View) -> str:
    """What the run has learned to avoid, as a sentence."""
    now, start = view.negatives.last, view.negative_start
    if now is None or start is None:
        if view.preset.get("negative") is False:
            return note_html("This run keeps its negative prompt as it is (negative is off).", "hint")
        return note_html("What the run learns to steer away from shows here after the first update.", "hint")
    rms = (sum(value * value for value in now.drift) / max(len(now.drift), 1)) ** 0.5
    radius = view.preset.get("negative_radius")
    bound = f" of at most {radius:g}" if isinstance(radius, float) else ""
    names = [token_name(token) for token, _ in groupby(now.tokens)]
    before, after = words_of(start.tokens, start.nearest), words_of(now.tokens, now.nearest)
    changed = [f"“{name}” now reads “{new}”" for name, old, new in zip(names, before, after, strict=True) if old != new]
    read = "; ".join(changed[:4]) or "every token still reads as the word it began as"
    return note_html(
        f"At step {now.step} the negative has drifted {rms:.3f}{bound} from "
        f"“{view.preset.get('negative_prompt', '')}”: {read}. The run steers away from it.", "hint",
    )  # fmt: skip


def token_name(token: str) -> str:
    """Special tokens without their signs."""
    return {"<|startoftext|>": "(start)", "<|endoftext|>": "(end)", "<|pad|>": "(padding)"}.get(token, token)


def negative_charts(view: View) -> str:
    """Draws how far the embedding drifted, its cosines, and the reward before and after each update."""
    steps, rules = view.total_steps or 1, list_rules(view)

    def select_curves(**names: str) -> dict:
        chosen = {said: view.curves.get(f"negative/{name}") for name, said in names.items()}
        return {said: curve for said, curve in chosen.items() if curve}

    charts = [
        line_chart("Drift from the start", "RMS", select_curves(drift="drift"), steps=steps, rules=rules),
        line_chart("Direction", "cosine", select_curves(cosine_start="to its start", cosine_prompt="to the prompt"),
                   steps=steps, rules=rules),
        line_chart("Reward at each update", "of the image the negative steers",
                   select_curves(reward_before="before", reward_after="after"), steps=steps, rules=rules),
        drift_map(view),
    ]  # fmt: skip
    return f'<div class="charts">{"".join(charts)}</div>'


def drift_map(view: View) -> str:
    """Drift of each token over the run; neighbours with the same token (padding) share a row."""
    moments = view.negatives.items
    if not moments:
        return heat_map([], [], "RMS")
    columns = [merge_equal_tokens(moment.tokens, moment.drift) for moment in moments]
    rows = [(name, [column[i][1] for column in columns]) for i, (name, _) in enumerate(columns[-1])]
    return heat_map(rows, [moment.step for moment in moments], "RMS")


def merge_equal_tokens(names: Sequence[str], drift: Sequence[float]) -> list[tuple[str, float]]:
    """Each run of equal tokens with the RMS of their drifts."""
    found = []
    for token, group in groupby(zip(names, drift, strict=True), key=lambda position: position[0]):
        values = [value for _, value in group]
        rms = (sum(value * value for value in values) / len(values)) ** 0.5
        name = token_name(token)
        found.append((f"{name} × {len(values)}" if len(values) > 1 else name, rms))
    return found


def words_of(names: Sequence[str], nearest: Sequence[str]) -> list[str]:
    """The most common nearest word of each run of equal tokens."""
    pairs = groupby(zip(names, nearest, strict=True), key=lambda position: position[0])
    return [Counter(word for _, word in group).most_common(1)[0][0] for _, group in pairs]


def tokens_table(view: View) -> str:
    """Each token of the negative prompt: how far it has moved, the word it was nearest to and is nearest to now."""
    now, start = view.negatives.last, view.negative_start
    heads = ("token", "drift (RMS)", "nearest word at the start*", "now*")
    if now is None or start is None:
        return table_html(heads, (), "The negative embedding has not moved yet.")
    found = merge_equal_tokens(now.tokens, now.drift)
    largest = max(drift for _, drift in found) or 1.0
    rows = []
    for (name, drift), before, after in zip(
        found, words_of(start.tokens, start.nearest), words_of(now.tokens, now.nearest), strict=True
    ):
        bar = f'<i style="width:{drift / largest:.0%}"></i><span>{drift:.4f}</span>'
        moved = html.escape(after)
        rows.append([html.escape(name), bar, html.escape(before), moved if after == before else f"<b>{moved}</b>"])
    body = table_html(heads, rows, "").replace("<td><i", '<td class="bar"><i')
    return f"{body}<p class=\"none\">* of the prior's vocabulary, by cosine of the text encoder's outputs</p>"
