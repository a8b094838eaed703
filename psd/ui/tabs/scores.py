"""What every reward and judge says of each view of a preview."""

from __future__ import annotations

import html
from collections.abc import Sequence

from psd.ui.markup.html import format_number, metric_label, shot_names, table_html
from psd.ui.panels.stage import find_preview
from psd.ui.state.page import Look, WatchedRun


def find_worst(scores: Sequence[float]) -> int | None:
    """The place of the lowest score; None where another one reads the same, and so none can be seen to be worse."""
    if len(scores) < 2:
        return None
    shown = [format_number(score) for score in scores]
    worst = min(range(len(scores)), key=scores.__getitem__)
    return worst if shown.count(shown[worst]) == 1 else None


def scores_of_views(watched: WatchedRun, look: Look) -> str:
    """Every reward and judge of every view, with their mean."""
    seen = find_preview(watched, look)
    rewards = seen.rewards if seen else {}
    count = max((len(scores) for scores in rewards.values()), default=4)

    def score_row(name: str, scores: Sequence[float]) -> list[str]:
        role = "optimised" if name.startswith("reward/") else "only watches"
        worst = find_worst(scores)
        cells = [
            f"<b class=low>{format_number(score)} ▾</b>" if i == worst else format_number(score)
            for i, score in enumerate(scores)
        ]
        return [html.escape(metric_label(name)), role, *cells, format_number(sum(scores) / len(scores))]

    heads = ["score", "role", *shot_names(count), "mean"]
    step = f"at step {seen.step}; ▾ marks the lowest" if seen else ""
    rows = [score_row(name, scores) for name, scores in rewards.items()]
    return table_html(heads, rows, "No scores yet.") + f'<p class="none">{step}</p>'
