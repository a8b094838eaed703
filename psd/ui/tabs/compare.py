"""The Compare tab: several runs side by side at the same step, their curves in one chart, and which one won."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from psd.config.errors import PresetError
from psd.config.glossary import explain_options
from psd.config.preset import Preset, list_presets
from psd.runs.store.archive import Run
from psd.runs.store.files import StoreError
from psd.ui.context import require_whole
from psd.ui.inputs.components import FreeDropdown, FreeSlider
from psd.ui.markup.charts import line_chart, swatch_html
from psd.ui.markup.html import (
    file_url,
    file_version,
    format_minutes,
    format_number,
    metric_label,
    note_html,
    shot_names,
    state_badge,
    table_html,
)
from psd.ui.panels.stage import FILMS, has_mesh
from psd.ui.state.page import MOST, QUIET, Page, Pane, WatchedRun
from psd.ui.state.view import Curve
from psd.ui.tabs.curves import chart_key
from psd.ui.tabs.ranking import (
    CONSISTENCY,
    best_to_continue,
    is_comparable,
    last_value,
    name_runs,
    rank_runs,
    verdict_sentence,
)

if TYPE_CHECKING:
    from psd.ui.context import PageContext
FIRST_STEPS = 60  # of the slider, until there is a run
LONGEST_SWEEP = 100_000  # steps of each run
# One slider, or a drag over any of them, sets the same camera for all.
TURN_TOGETHER = """
const turn = share => {
  for (const film of element.querySelectorAll('video'))
    if (film.duration) film.currentTime = share * film.duration * .999
}
element.addEventListener('input', event => turn(event.target.value / 360))
element.addEventListener('pointermove', event => {
  const slider = element.querySelector('input')
  if (!event.buttons || event.target.tagName !== 'VIDEO') return
  slider.value = (+slider.value - event.movementX + 360) % 360
  turn(slider.value / 360)
})
"""


def run_label(run: Run) -> str:
    """A run in a list."""
    status = run.status
    named = run.labels.name or status.prompt
    return f"{named} · {status.method} · seed {status.seed} · {status.created[5:16].replace('T', ' ')}"


def compared_views_html(page: Page) -> str:
    """A row of views for each run, all at the same step."""
    rows, called = [], name_runs(page.compared)
    for place, watched in enumerate(page.compared):
        seen = watched.view.previews.at(page.look.compared_step)
        names = shot_names(watched.shots)
        head = f'<p class="who">{_heading_html(place, called[watched.run_id])} {state_badge(watched.state)} '
        if seen is None or seen.file is None:
            rows.append(head + "</p>" + f'<div class="shots" style="--views:4">{"<div class=shot></div>" * 4}</div>')
            continue
        address = file_url(watched.run_id, seen.file, file_version(watched.folder / seen.file))
        shots = "".join(
            f'<div class="shot"><img src="{address}" '
            f'alt="{html.escape(f"{called[watched.run_id]}, {name}, step {seen.step}")}"'
            f' style="width:{len(names)}00%;margin-left:-{i}00%"><span>{html.escape(name)}</span></div>'
            for i, name in enumerate(names)
        )
        rows.append(f'{head}<small>step {seen.step}</small></p><div class="shots" style="--views:{len(names)}">'
                    f"{shots}</div>")  # fmt: skip
    return "".join(rows) or '<p class="none">Choose runs above, or start some.</p>'


def turned_html(page: Page) -> str:
    """The turntables of the runs that have one, side by side under one camera.

    Films and not viewers: Gradio's tells nobody where its camera is until it is let go, so it cannot lead another.
    """
    films, called = [], name_runs(page.compared)
    for place, watched in enumerate(page.compared):
        version = file_version(watched.folder / FILMS["Turntable"])
        if version and has_mesh(watched):
            name = called[watched.run_id]
            address = file_url(watched.run_id, FILMS["Turntable"], version)
            films.append(
                f'<figure><video src="{address}" muted playsinline preload="auto" aria-label="{html.escape(name)}">'
                f"</video><figcaption>{_heading_html(place, name)}</figcaption></figure>"
            )
    if len(films) < 2:
        return ""
    slider = '<label>Turn all of them<input type="range" min="0" max="360" value="0"></label>'
    return f'<div class="together-films">{"".join(films)}</div>{slider}'


def _heading_html(place: int, name: str) -> str:
    """A run's name with the sign of its line in the charts."""
    return f"{swatch_html(place)}<b>{html.escape(name)}</b>"


def compared_charts_html(compared: Sequence[WatchedRun]) -> str:
    """The same curve of every run in one chart, a chart for each judge and for the reward."""
    steps = max((watched.view.total_steps for watched in compared), default=1)
    names = dict.fromkeys(
        name for watched in compared for name in watched.view.curves if name.startswith(("judge/", "weighted/"))
    )
    drawn, called = [], name_runs(compared)
    places = {called[watched.run_id]: place for place, watched in enumerate(compared)}
    for name in [*names, CONSISTENCY]:
        series: dict[str, Curve] = {
            called[watched.run_id]: watched.view.curves[name] for watched in compared if name in watched.view.curves
        }
        title = f"Judge {metric_label(name)}" if name.startswith("judge/") else metric_label(name).capitalize()
        unit = "raw score" if name != CONSISTENCY else "share"
        drawn.append(line_chart(title, unit, series, steps=steps, places=places))
    return f'<div class="charts">{"".join(drawn)}</div>'


def scores_table(compared: Sequence[WatchedRun]) -> str:
    """Final scores in the order of the rows above, with each run's place where they can be ranked."""
    called, ranked = name_runs(compared), is_comparable(compared)
    placed = {watched.run_id: place for watched, place in rank_runs(compared)}
    names = dict.fromkeys(
        name for watched in compared for name in watched.view.curves if name.startswith(("reward/", "judge/"))
    )
    scores = [metric_label(name) + (" (judge)" if name.startswith("judge/") else "") for name in names]
    heads = ["run", "place", *scores, "consistency", "step", "time", "state"]

    def format_cell(value: float | None) -> str:
        return "–" if value is None else format_number(value)

    rows = [
        [f'<a href="?run={html.escape(watched.run_id)}">{_heading_html(position, called[watched.run_id])}</a>',
         format_cell(placed[watched.run_id] if ranked else None),
         *(format_cell(last_value(watched, name)) for name in names), format_cell(last_value(watched, CONSISTENCY)),
         f"{watched.view.step} / {watched.view.total_steps}", format_minutes(watched.view.time_s or None),
         state_badge(watched.state)]
        for position, watched in enumerate(compared)
    ]  # fmt: skip
    return table_html(heads, rows, "No runs to compare.")


def curtain_html(page: Page) -> str:
    """The front views of the first two runs at the chosen step, one over the other, with a curtain between them."""
    layers, called = [], name_runs(page.compared)
    for watched, side in zip(page.compared, ("left", "right")):
        seen = watched.view.previews.at(page.look.compared_step)
        if seen is None or seen.file is None:
            break
        address = file_url(watched.run_id, seen.file, file_version(watched.folder / seen.file))
        name = called[watched.run_id]
        layers.append(
            f'<div class="shot {side}"><img src="{address}" alt="{html.escape(f"{name}, front, step {seen.step}")}">'
            f"<span>{html.escape(name)}</span></div>"
        )
    if len(layers) < 2:
        return '<p class="none">Two runs with a picture each meet here behind a curtain.</p>'
    curtain = (
        '<label>left run | right run<input type="range" min="0" max="100" value="50" '
        "oninput=\"document.documentElement.style.setProperty('--curtain', this.value + '%')\"></label>"
    )
    return f'<div class="pair"><div class="layers">{"".join(layers)}</div>{curtain}</div>'


def preset_variants(wanted: Preset, methods: Sequence[str], presets: Sequence[str]) -> list[Preset]:
    """The same prompt and seed under each method, and under each named preset as it stands.

    The siblings keep the plain negative prompt, so that they are what their authors describe.
    """
    same = {"prompt": wanted.prompt, "seed": wanted.seed}
    made = [wanted.with_values({"method": name, "negative": wanted.negative and name == "psd"}) for name in methods]
    return [*made, *(Preset.load(name, same) for name in presets)]


def seed_variants(wanted: Preset, count: int) -> list[Preset]:
    """The same preset under ``count`` seeds, its own first."""
    return [wanted.with_values({"seed": (wanted.seed + i) % 2**31}) for i in range(count)]


def continue_hint(compared: Sequence[WatchedRun]) -> str:
    """Which run would continue, or why none can."""
    if best := best_to_continue(compared):
        left = best.view.total_steps - best.view.step
        return f"Best by judge and consistency: {name_runs(compared)[best.run_id]}. It has {left} steps left."
    if not compared:
        return "Start a sweep, or choose runs below: the best of them can go on to its end."
    if not is_comparable(compared):
        return "Runs of several prompts or judges: none of them is the best."
    going = sum(not watched.is_over for watched in compared)
    return f"{going} of {len(compared)} still go on." if going else "The best of them is at its end already."


class CompareTab:
    """The tab's components, in the current Blocks context."""

    def __init__(self) -> None:
        with gr.Row(elem_id="compare-start"):
            with gr.Group():
                self.methods = gr.CheckboxGroup(
                    [(f"{method} · {named.name}", method) for method, named in explain_options("method").items()],
                    value=["psd", "sds"], label="Methods side by side",
                    info="Prompt, seed and every other value as they stand under Make.", elem_id="compare-methods",
                )  # fmt: skip
                self.presets = gr.Dropdown(
                    list_presets(), value=[], multiselect=True, label="Presets beside them",
                    info="The same prompt and seed under each preset as it stands.",
                )  # fmt: skip
                self.start = gr.Button("Start comparison", variant="primary", elem_id="compare-button")
            with gr.Group():
                self.count = FreeSlider(
                    2, MOST, value=4, step=1, label="Seeds (n)", info="The seed under Make, and the next.", buttons=[],
                    elem_id="sweep-seeds",
                )  # fmt: skip
                self.until = FreeSlider(
                    5, 500, value=30, step=5, label="Steps of each", buttons=[],
                    info="Then each is kept, and the best can go on to the end.", elem_id="sweep-steps",
                )  # fmt: skip
                self.sweep = gr.Button("Start seed sweep", variant="primary", elem_id="sweep-button")
                self.go_on = gr.Button("Continue the best", interactive=False, elem_id="continue-best")
                why = gr.HTML(note_html(continue_hint(()), "hint"), elem_id="continue-why")
        self.message = gr.HTML("", elem_id="compare-message")
        self.runs = FreeDropdown(
            [], value=[], multiselect=True, max_choices=MOST, label="Runs", elem_id="compared",
            info="Any runs of this server; the first two are in the slider below.",
        )  # fmt: skip
        self.at = gr.State(FIRST_STEPS)
        self.step = FreeSlider(
            0, FIRST_STEPS, value=FIRST_STEPS, step=1, label="Step", elem_id="compare-scrub", buttons=[],
            info="All runs at this step, or the last before it.",
        )  # fmt: skip
        nobody = Page()
        verdict = gr.HTML("", elem_id="compare-verdict")
        views = gr.HTML(compared_views_html(nobody), elem_id="compare-views")
        turned = gr.HTML("", elem_id="compare-turned", js_on_load=TURN_TOGETHER)
        table_ = gr.HTML(scores_table(()), elem_id="compare-scores", elem_classes="table")
        curtain = gr.HTML(curtain_html(nobody), elem_id="pair")
        lines = gr.HTML(compared_charts_html(()), elem_id="compare-charts")
        self.panes = [
            Pane([verdict], lambda p: verdict_sentence(p.compared),
                 lambda p: [note_html(verdict_sentence(p.compared), "hint")], "Compare"),
            Pane([turned], turned_html, lambda p: [turned_html(p)], "Compare"),
            Pane([views], lambda p: compared_views_html(p), lambda p: [compared_views_html(p)], "Compare"),
            Pane([table_], lambda p: scores_table(p.compared), lambda p: [scores_table(p.compared)], "Compare"),
            Pane([curtain], curtain_html, lambda p: [curtain_html(p)], "Compare"),
            Pane([lines], lambda p: [chart_key(w.view, "judge/", "weighted/", CONSISTENCY) for w in p.compared],
                 lambda p: [compared_charts_html(p.compared)], "Compare"),
            Pane([self.step, self.at], most_steps,
                 lambda p: [gr.Slider(maximum=most_steps(p), value=most_steps(p)), most_steps(p)], "Compare"),
            Pane([self.go_on, why], lambda p: continue_hint(p.compared),
                 lambda p: [gr.Button(interactive=best_to_continue(p.compared) is not None),
                            note_html(continue_hint(p.compared), "hint")], "Compare"),
        ]  # fmt: skip

    @staticmethod
    def list_choices(desk: PageContext, chosen: list[str] | None) -> Any:
        """All runs to choose from, those that ship last, with those of ``chosen`` that are there."""
        library = desk.worker.library
        known = {run.id: run_label(run) for run in (*library.list_runs(), *library.list_shipped())}
        return gr.Dropdown(
            [(label, run_id) for run_id, label in known.items()], value=[run for run in chosen or [] if run in known]
        )

    def wire_events(self, desk: PageContext, blocks: gr.Blocks) -> None:
        """Start and continue runs; what is compared is remembered by the browser."""
        remembered = gr.BrowserState([], storage_key="psd-compared", secret="psd")

        def list_choices(chosen: list[str] | None) -> Any:
            return self.list_choices(desk, chosen)

        def submit_all(presets: Sequence[Preset], owner: str, until: int | None = None) -> list[Any]:
            """All of them, or those that found a place and why the next one did not."""
            owner, runs, message = desk.require_secret(owner), [], ""
            for preset in presets:
                try:
                    runs.append(desk.worker.submit(preset, owner=owner, until=until))
                except (PresetError, StoreError) as error:
                    if not runs:
                        return show_refusal(error)
                    message = note_html(f"Only {len(runs)} of {len(presets)} were started: {error}")
                    break
            return [list_choices(runs), runs, message]

        def show_refusal(error: Exception) -> list[Any]:
            return [gr.skip(), gr.skip(), note_html(str(error))]

        def start_comparison(methods: list[str], presets: list[str], owner: str, *given: Any) -> list[Any]:
            if not 2 <= len(methods) + len(presets) <= MOST:
                return show_refusal(PresetError(f"choose 2 to {MOST} methods and presets to compare"))
            try:
                return submit_all(preset_variants(desk.read_controls(*given), methods, presets), owner)
            except PresetError as error:
                return show_refusal(error)

        def start_sweep(count: float | None, until: float | None, owner: str, *given: Any) -> list[Any]:
            try:
                seeds = require_whole("seeds", count, 2, MOST)
                steps = require_whole("steps of each", until, 1, LONGEST_SWEEP)
                return submit_all(seed_variants(desk.read_controls(*given), seeds), owner, steps)
            except PresetError as error:
                return show_refusal(error)

        def go_on(chosen: list[str], owner: str) -> str:
            compared = desk.watcher.view_runs(chosen[:MOST])
            best = best_to_continue(compared)
            if best is None:
                return note_html("There is nothing to continue: each run is at its end, or some still go on.")
            try:
                desk.worker.extend(best.run_id, owner=owner)
            except (PresetError, StoreError) as error:
                return note_html(str(error))
            return note_html(f"{name_runs(compared)[best.run_id]} goes on to step {best.view.total_steps}.", "hint")

        shown = [self.runs, remembered, self.message]
        self.start.click(start_comparison, [self.methods, self.presets, desk.owner, *desk.given], shown, **QUIET).then(
            **desk.news
        )
        self.sweep.click(start_sweep, [self.count, self.until, desk.owner, *desk.given], shown, **QUIET).then(
            **desk.news
        )
        self.go_on.click(go_on, [self.runs, desk.owner], self.message, **QUIET).then(**desk.news)
        self.runs.input(lambda chosen: chosen, self.runs, remembered, **QUIET).then(**desk.news)
        self.runs.focus(list_choices, self.runs, self.runs, **QUIET)
        self.step.input(lambda step: step, self.step, self.at, trigger_mode="always_last", **QUIET).then(**desk.news)
        blocks.load(list_choices, remembered, self.runs, **QUIET)


def most_steps(page: Page) -> int:
    return max((watched.view.total_steps for watched in page.compared), default=0) or FIRST_STEPS
