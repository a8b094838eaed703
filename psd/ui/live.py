"""The Live tab: what the object looks like from four sides, now or at an earlier step, and what each view scores."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from psd.archive import preview_file
from psd.events import Previewed
from psd.ui.markup import number, plain, table, url
from psd.ui.page import QUIET, Look, Page, Pane, Watched

if TYPE_CHECKING:
    from psd.ui.desk import Desk

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
            self.step = gr.Slider(
                0, 120, value=0, step=1, label="look back to [step]", elem_id="scrub", min_width=260,
                info="The preview made at this step or before it.",
            )  # fmt: skip
            self.follow = gr.Checkbox(
                True, label="follow live", elem_id="follow", info="Always the newest preview.", min_width=140
            )
        picture = gr.HTML(pictures(Watched(), start), elem_id="picture")
        scores = gr.HTML(scores_of_views(Watched(), start), elem_id="view-scores", elem_classes="table")
        self.panes = [
            Pane([picture], lambda p: pictures(p.run, p.look), lambda p: [pictures(p.run, p.look)], "Live"),
            Pane([scores], _moment, lambda p: [scores_of_views(p.run, p.look)], "Live"),
            Pane([self.step], _scale, _slider, "Live"),
        ]

    def wire(self, desk: Desk) -> None:
        """Looking back stops following; the picture is that of the last preview asked for."""
        moved = {"outputs": [self.at, self.follow], "trigger_mode": "always_last", **QUIET}
        self.step.input(lambda step: (step, False), self.step, **moved).then(**desk.news)
        for component in (self.kinds, self.follow):
            component.input(**desk.news)


def _moment(page: Page) -> object:
    seen = _seen(page.run, page.look)
    return page.run.run_id, seen and seen.step


def _scale(page: Page) -> tuple[int, int | None]:
    """What the slider shows: it moves by itself while the newest is followed."""
    newest = page.run.view.previews.last
    return page.run.view.total_steps or 1, (newest.step if newest else 0) if page.look.follow else None


def _slider(page: Page) -> list[Any]:
    total, step = _scale(page)
    return [gr.Slider(maximum=total, value=min(page.look.step, total) if step is None else step)]


def _seen(watched: Watched, look: Look) -> Previewed | None:
    previews = watched.view.previews
    return previews.last if look.follow else previews.at(look.step)


def pictures(watched: Watched, look: Look) -> str:
    """A row of views for each kind of picture; of each colour view what it scores, the worst outlined."""
    kinds = [kind for kind in KINDS if kind in look.kinds] or ["rgb"]
    seen, names = _seen(watched, look), shot_names(watched.shots)
    if seen is None or seen.file is None:
        empty = '<div class="shot empty"></div>' * 4
        return f'<div class="shots" style="--views:4">{empty * len(kinds)}<p class="hint">{_waiting(watched)}</p></div>'
    scores = view_scores(watched, seen)
    worst = scores.index(min(scores)) if len(set(scores)) > 1 else None
    cells = []
    for kind in kinds:
        file = preview_file(seen.step, kind)
        there = kind == "rgb" or (watched.folder / file).is_file()
        for i, name in enumerate(names):
            if not there:
                cells.append(f'<div class="shot empty"><span>no {KINDS[kind]} in this run</span></div>')
                continue
            score = f" · {number(scores[i])}" if kind == "rgb" and scores else ""
            low = kind == "rgb" and i == worst
            said = f"{name}, {KINDS[kind]}, step {seen.step}{score}{', the worst view' if low else ''}"
            cells.append(
                f'<div class="shot{" worst" if low else ""}"><img src="{url(watched, file, seen.step)}" '
                f'alt="{html.escape(said)}" style="width:{len(names)}00%;margin-left:-{i}00%">'
                f"<span>{html.escape(name)}{score}{' · worst' if low else ''}</span></div>"
            )
    return f'<div class="shots" style="--views:{len(names)}">{"".join(cells)}</div>'


def _waiting(watched: Watched) -> str:
    text = {
        "idle": "Describe an object and press Run. Its views sharpen here.",
        "queued": "Waiting for the run before this one.",
        "loading": "Loading the models. The first picture follows within seconds.",
    }
    late = "This run made no picture." if watched.is_over else "The first picture is on its way."
    return text.get(watched.state, late)


def shot_names(count: int) -> list[str]:
    """What the fixed preview cameras show: an orbit that starts at the front (+x) and turns counter-clockwise."""
    return {1: ["front"], 4: ["front", "left", "back", "right"]}.get(
        count, [f"{360 * i // count}°" for i in range(count)]
    )


def view_scores(watched: Watched, seen: Previewed) -> list[float]:
    """The weighted reward of each view; empty where the preview has no scores of the run's rewards."""
    weights = watched.view.weights
    if not weights or not all(f"reward/{name}" in seen.rewards for name in weights):
        return []
    columns = zip(*(seen.rewards[f"reward/{name}"] for name in weights), strict=True)
    return [sum(w * score for w, score in zip(weights.values(), column, strict=True)) for column in columns]


def scores_of_views(watched: Watched, look: Look) -> str:
    """Every reward and judge of every view, with their mean."""
    seen = _seen(watched, look)
    rewards = seen.rewards if seen else {}
    count = max((len(scores) for scores in rewards.values()), default=4)

    def row(name: str, scores: Sequence[float]) -> list[str]:
        role = "optimised" if name.startswith("reward/") else "only watches"
        low = min(scores) if len(set(scores)) > 1 else None
        cells = [f"<b class=low>{number(score)} ▾</b>" if score == low else number(score) for score in scores]
        return [html.escape(plain(name)), role, *cells, number(sum(scores) / len(scores))]

    heads = ["score", "role", *shot_names(count), "mean"]
    step = f"at step {seen.step}; ▾ marks the worst view" if seen else ""
    rows = [row(name, scores) for name, scores in rewards.items()]
    return table(heads, rows, "No scores yet.") + f'<p class="none">{step}</p>'
