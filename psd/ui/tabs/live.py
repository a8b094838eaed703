"""The Live tab: what the object looks like from four sides, now or at an earlier step, and what each view scores."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from psd.distillation.events import Previewed
from psd.runs.store.archive import preview_file
from psd.ui.inputs.components import FreeSlider
from psd.ui.markup.html import file_url, file_version, format_number, metric_label, shot_names, table_html
from psd.ui.state.page import QUIET, Look, Page, Pane, WatchedRun

if TYPE_CHECKING:
    from psd.ui.context import PageContext

KINDS = {"rgb": "colour", "normal": "normals", "depth": "depth", "opacity": "opacity"}


class LiveTab:
    """The tab's components, in the current Blocks context."""

    def __init__(self) -> None:
        start = Look()
        with gr.Row(elem_id="look", equal_height=True):
            self.kinds = gr.CheckboxGroup(
                [(name, kind) for kind, name in KINDS.items()], value=list(start.kinds), label="Show",
                elem_id="kinds", min_width=260,
            )  # fmt: skip
            self.at = gr.State(0)
            self.step = FreeSlider(
                0, 120, value=0, step=1, label="look back to [step]", elem_id="scrub", min_width=260, buttons=[],
                info="The preview made at this step or before it.",
            )  # fmt: skip
            self.follow = gr.Checkbox(
                True, label="follow live", elem_id="follow", info="Always the newest preview.", min_width=140
            )
        picture = gr.HTML(live_views_html(WatchedRun(), start), elem_id="picture")
        scores = gr.HTML(scores_of_views(WatchedRun(), start), elem_id="view-scores", elem_classes="table")
        self.panes = [
            Pane(
                [picture], lambda p: live_views_html(p.run, p.look), lambda p: [live_views_html(p.run, p.look)], "Live"
            ),
            Pane([scores], _preview_key, lambda p: [scores_of_views(p.run, p.look)], "Live"),
            Pane([self.step], _slider_state, _update_slider, "Live"),
        ]

    def wire_events(self, desk: PageContext) -> None:
        """Looking back stops following; the picture is that of the last preview asked for."""
        moved = {"outputs": [self.at, self.follow], "trigger_mode": "always_last", **QUIET}
        self.step.input(lambda step: (step, False), self.step, **moved).then(**desk.news)
        for component in (self.kinds, self.follow):
            component.input(**desk.news)


def _preview_key(page: Page) -> object:
    seen = _find_preview(page.run, page.look)
    return page.run.run_id, seen and seen.step


def _slider_state(page: Page) -> tuple[int, int | None]:
    """What the slider shows: it moves by itself while the newest is followed."""
    newest = page.run.view.previews.last
    return page.run.view.total_steps or 1, (newest.step if newest else 0) if page.look.follow else None


def _update_slider(page: Page) -> list[Any]:
    total, step = _slider_state(page)
    return [gr.Slider(maximum=total, value=min(page.look.step, total) if step is None else step)]


def _find_preview(watched: WatchedRun, look: Look) -> Previewed | None:
    previews = watched.view.previews
    return previews.last if look.follow else previews.at(look.step)


def live_views_html(watched: WatchedRun, look: Look) -> str:
    """A row of views for each kind of picture; of each colour view what it scores, the worst outlined."""
    kinds = [kind for kind in KINDS if kind in look.kinds] or ["rgb"]
    seen, names = _find_preview(watched, look), shot_names(watched.shots)
    if seen is None or seen.file is None:
        empty = '<div class="shot empty"></div>' * 4
        hint = f'<p class="hint"><span class="over">{_waiting_text(watched)}</span></p>'
        return f'<div class="shots" style="--views:4">{empty * len(kinds)}{hint}</div>'
    scores = view_scores(watched, seen)
    worst = find_worst(scores)
    cells = []
    for kind in kinds:
        file = preview_file(seen.step, kind)
        version = file_version(watched.folder / file)
        address = file_url(watched.run_id, file, version)
        for i, name in enumerate(names):
            if kind != "rgb" and not version:
                cells.append(f'<div class="shot empty"><span>no {KINDS[kind]} in this run</span></div>')
                continue
            score = f" · {format_number(scores[i])}" if kind == "rgb" and scores else ""
            low = kind == "rgb" and i == worst
            text = f"{name}, {KINDS[kind]}, step {seen.step}{score}{', the worst view' if low else ''}"
            cells.append(
                f'<div class="shot{" worst" if low else ""}"><img src="{address}" '
                f'alt="{html.escape(text)}" style="width:{len(names)}00%;margin-left:-{i}00%">'
                f"<span>{html.escape(name)}{score}{' · worst' if low else ''}</span></div>"
            )
    return f'<div class="shots" style="--views:{len(names)}">{"".join(cells)}</div>'


def _waiting_text(watched: WatchedRun) -> str:
    text = {
        "idle": "Describe an object and press Run. Its views sharpen here.",
        "queued": "Waiting for the run before this one.",
        "loading": "Loading the models. The first picture follows within seconds.",
    }
    late = "This run made no picture." if watched.is_over else "The first picture is on its way."
    return text.get(watched.state, late)


def view_scores(watched: WatchedRun, seen: Previewed) -> list[float]:
    """The weighted reward of each view; empty where the preview has no scores of the run's rewards."""
    weights = watched.view.weights
    if not weights or not all(f"reward/{name}" in seen.rewards for name in weights):
        return []
    columns = zip(*(seen.rewards[f"reward/{name}"] for name in weights), strict=True)
    return [sum(w * score for w, score in zip(weights.values(), column, strict=True)) for column in columns]


def find_worst(scores: Sequence[float]) -> int | None:
    """The place of the lowest score; None where another one reads the same, and so none can be seen to be worse."""
    if len(scores) < 2:
        return None
    shown = [format_number(score) for score in scores]
    worst = min(range(len(scores)), key=scores.__getitem__)
    return worst if shown.count(shown[worst]) == 1 else None


def scores_of_views(watched: WatchedRun, look: Look) -> str:
    """Every reward and judge of every view, with their mean."""
    seen = _find_preview(watched, look)
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
    step = f"at step {seen.step}; ▾ marks the worst view" if seen else ""
    rows = [score_row(name, scores) for name, scores in rewards.items()]
    return table_html(heads, rows, "No scores yet.") + f'<p class="none">{step}</p>'
