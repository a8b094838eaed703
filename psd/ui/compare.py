"""The Compare tab: several runs side by side at the same step, their curves in one chart, and which one won."""

from __future__ import annotations

import html
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from psd.archive import Run
from psd.files import StoreError
from psd.preset import Method, Preset, PresetError, available
from psd.ui.chart import line_chart
from psd.ui.curves import drawn
from psd.ui.live import shot_names
from psd.ui.markup import badge, duration, note, number, plain, table, url
from psd.ui.page import QUIET, Page, Pane, Watched
from psd.ui.view import Curve

if TYPE_CHECKING:
    from psd.ui.desk import Desk

MOST = 8  # runs side by side
FIRST_STEPS = 120  # of the slider, until there is a run
CONSISTENCY = "image/view_consistency"


def named(run: Run) -> str:
    """A run in a list."""
    status = run.status
    return f"{status.prompt} · {status.method} · seed {status.seed} · {status.created[5:16].replace('T', ' ')}"


def label(watched: Watched) -> str:
    """What tells compared runs apart."""
    return f"{watched.method} · seed {watched.seed}" + ("" if watched.method else f" · {watched.run_id}")


def pictures(page: Page) -> str:
    """A row of views for each run, all at the same step."""
    rows = []
    for watched in page.compared:
        seen = watched.view.previews.at(page.look.compared_step)
        names = shot_names(watched.shots)
        head = f'<p class="who"><b>{html.escape(label(watched))}</b> {badge(watched.state)} '
        if seen is None or seen.file is None:
            rows.append(head + "</p>" + f'<div class="shots" style="--views:4">{"<div class=shot></div>" * 4}</div>')
            continue
        address = url(watched, seen.file, seen.step)
        shots = "".join(
            f'<div class="shot"><img src="{address}" alt="{html.escape(f"{label(watched)}, {name}, step {seen.step}")}"'
            f' style="width:{len(names)}00%;margin-left:-{i}00%"><span>{html.escape(name)}</span></div>'
            for i, name in enumerate(names)
        )
        rows.append(f'{head}<small>step {seen.step}</small></p><div class="shots" style="--views:{len(names)}">'
                    f"{shots}</div>")  # fmt: skip
    return "".join(rows) or '<p class="none">Choose runs above, or start some.</p>'


def charts(compared: Sequence[Watched]) -> str:
    """The same curve of every run in one chart, a chart for each judge and for the reward."""
    steps = max((watched.view.total_steps for watched in compared), default=1)
    names = dict.fromkeys(
        name for watched in compared for name in watched.view.curves if name.startswith(("judge/", "weighted/"))
    )
    drawn = []
    for name in [*names, CONSISTENCY]:
        series: dict[str, Curve] = {}
        for watched in compared:
            if name in watched.view.curves:
                said = label(watched)
                series[said if said not in series else f"{said} ({watched.run_id[:15]})"] = watched.view.curves[name]
        title = f"Judge {plain(name)}" if name.startswith("judge/") else plain(name).capitalize()
        drawn.append(line_chart(title, "raw score" if name != CONSISTENCY else "share", series, steps=steps))
    return f'<div class="charts">{"".join(drawn)}</div>'


def last(watched: Watched, name: str) -> float | None:
    curve = watched.view.curves.get(name)
    return curve.last[1] if curve and curve.last else None


def selector(watched: Watched) -> float | None:
    """The newest score of the first judge, which selects."""
    name = next((name for name in watched.view.curves if name.startswith("judge/")), "")
    return last(watched, name)


def ranking(compared: Sequence[Watched]) -> list[tuple[Watched, float]]:
    """Best first: each run with the mean of its places by selector judge and by consistency of its views.

    Places instead of values, since the two have no unit in common; runs without a score come last.
    """
    places = {watched.run_id: 0.0 for watched in compared}
    for measure in (selector, lambda watched: last(watched, CONSISTENCY)):
        values = {watched.run_id: measure(watched) for watched in compared}
        known = [value for value in values.values() if value is not None]
        for run_id, value in values.items():
            above = sum(other > value for other in known) if value is not None else len(compared)
            places[run_id] += (above + 1) / 2
    scored = [(watched, places[watched.run_id]) for watched in compared]
    return sorted(scored, key=lambda entry: (entry[1], -(selector(entry[0]) or 0.0)))


def comparable(compared: Sequence[Watched]) -> bool:
    """Whether places mean anything: scores of another judge, or for another prompt, are on another scale."""
    judges = {next((name for name in run.view.curves if name.startswith("judge/")), "") for run in compared}
    return len(judges - {""}) <= 1 and len({run.prompt for run in compared}) <= 1


def scores(compared: Sequence[Watched]) -> str:
    """Final scores, ranked where they can be."""
    placed = comparable(compared)
    names = dict.fromkeys(
        name for watched in compared for name in watched.view.curves if name.startswith(("reward/", "judge/"))
    )
    heads = ["run", "place", *(plain(name) + (" (judge)" if name.startswith("judge/") else "") for name in names),
             "consistency", "step", "time", "state"]  # fmt: skip

    def cell(value: float | None) -> str:
        return "–" if value is None else number(value)

    rows = [
        [f'<a href="?run={html.escape(watched.run_id)}">{html.escape(label(watched))}</a>',
         cell(place if placed else None),
         *(cell(last(watched, name)) for name in names), cell(last(watched, CONSISTENCY)),
         f"{watched.view.step} / {watched.view.total_steps}", duration(watched.view.time_s or None),
         badge(watched.state)]
        for watched, place in ranking(compared)
    ]  # fmt: skip
    return table(heads, rows, "No runs to compare.")


def pair(page: Page) -> str:
    """The front views of the first two runs at the chosen step, one over the other, with a curtain between them."""
    layers = []
    for watched, side in zip(page.compared, ("left", "right")):
        seen = watched.view.previews.at(page.look.compared_step)
        if seen is None or seen.file is None:
            break
        said = html.escape(f"{label(watched)}, front, step {seen.step}")
        layers.append(
            f'<div class="shot {side}"><img src="{url(watched, seen.file, seen.step)}" alt="{said}">'
            f"<span>{html.escape(label(watched))}</span></div>"
        )
    if len(layers) < 2:
        return '<p class="none">Two runs with a picture each meet here behind a curtain.</p>'
    curtain = (
        '<label>left run | right run<input type="range" min="0" max="100" value="50" '
        "oninput=\"document.documentElement.style.setProperty('--curtain', this.value + '%')\"></label>"
    )
    return f'<div class="pair"><div class="layers">{"".join(layers)}</div>{curtain}</div>'


def variants(wanted: Preset, methods: Sequence[str], presets: Sequence[str]) -> list[Preset]:
    """The same prompt and seed under each method, and under each named preset as it stands.

    The siblings keep the plain negative prompt, so that they are what their authors describe.
    """
    same = {"prompt": wanted.prompt, "seed": wanted.seed}
    made = [wanted.changed({"method": name, "negative": wanted.negative and name == "psd"}) for name in methods]
    return [*made, *(Preset.load(name, same) for name in presets)]


def seeds(wanted: Preset, count: int) -> list[Preset]:
    """The same preset under ``count`` seeds, its own first."""
    return [wanted.changed({"seed": (wanted.seed + i) % 2**31}) for i in range(count)]


def best_to_continue(compared: Sequence[Watched]) -> Watched | None:
    """The best of runs that compare, if it has steps left: nothing while any of them still goes on."""
    if not compared or not comparable(compared) or not all(watched.is_over for watched in compared):
        return None
    best = ranking(compared)[0][0]
    return best if best.view.step < best.view.total_steps else None


def waiting(compared: Sequence[Watched]) -> str:
    """Which run would continue, or why none can."""
    if best := best_to_continue(compared):
        left = best.view.total_steps - best.view.step
        return f"Best by judge and consistency: {label(best)}. It has {left} steps left."
    if not compared:
        return "Start a sweep, or choose runs below: the best of them can go on to its end."
    if not comparable(compared):
        return "Runs of several prompts or judges: none of them is the best."
    going = sum(not watched.is_over for watched in compared)
    return f"{going} of {len(compared)} still go on." if going else "The best of them is at its end already."


class CompareTab:
    """The tab's components, in the current Blocks context."""

    def __init__(self) -> None:
        with gr.Row(elem_id="compare-start"):
            with gr.Group():
                self.methods = gr.CheckboxGroup(
                    list(typing.get_args(Method)), value=["psd", "sds"], label="methods side by side",
                    info="Prompt, seed and every other value as they stand in the sidebar.", elem_id="compare-methods",
                )  # fmt: skip
                self.presets = gr.Dropdown(
                    available(), value=[], multiselect=True, label="presets beside them",
                    info="The same prompt and seed under each preset as it stands.",
                )  # fmt: skip
                self.start = gr.Button("Start comparison", variant="primary", elem_id="compare-button")
            with gr.Group():
                self.count = gr.Slider(
                    2,
                    MOST,
                    value=4,
                    step=1,
                    label="seeds (n)",
                    info="That of the sidebar and the next.",
                )
                self.until = gr.Slider(
                    5, 500, value=30, step=5, label="steps of each",
                    info="Then each is kept, and the best can go on to the end.", elem_id="sweep-steps",
                )  # fmt: skip
                self.sweep = gr.Button("Start seed sweep", variant="primary", elem_id="sweep-button")
                self.go_on = gr.Button("Continue the best", interactive=False, elem_id="continue-best")
                why = gr.HTML(note(waiting(()), "hint"), elem_id="continue-why")
        self.message = gr.HTML("", elem_id="compare-message")
        self.runs = gr.Dropdown(
            [], value=[], multiselect=True, max_choices=MOST, label="runs", elem_id="compared",
            info="Any runs of this server; the first two are in the slider below.",
        )  # fmt: skip
        self.at = gr.State(FIRST_STEPS)
        self.step = gr.Slider(0, FIRST_STEPS, value=FIRST_STEPS, step=1, label="step", elem_id="compare-scrub",
                          info="All runs at this step, or the last before it.")  # fmt: skip
        nobody = Page()
        views = gr.HTML(pictures(nobody), elem_id="compare-views")
        table_ = gr.HTML(scores(()), elem_id="compare-scores", elem_classes="table")
        curtain = gr.HTML(pair(nobody), elem_id="pair")
        lines = gr.HTML(charts(()), elem_id="compare-charts")
        self.panes = [
            Pane([views], lambda p: pictures(p), lambda p: [pictures(p)], "Compare"),
            Pane([table_], lambda p: scores(p.compared), lambda p: [scores(p.compared)], "Compare"),
            Pane([curtain], pair, lambda p: [pair(p)], "Compare"),
            Pane([lines], lambda p: [drawn(w.view, "judge/", "weighted/", CONSISTENCY) for w in p.compared],
                 lambda p: [charts(p.compared)], "Compare"),
            Pane([self.step, self.at], most_steps,
                 lambda p: [gr.Slider(maximum=most_steps(p), value=most_steps(p)), most_steps(p)], "Compare"),
            Pane([self.go_on, why], lambda p: waiting(p.compared),
                 lambda p: [gr.Button(interactive=best_to_continue(p.compared) is not None),
                            note(waiting(p.compared), "hint")], "Compare"),
        ]  # fmt: skip

    def wire(self, desk: Desk, blocks: gr.Blocks) -> None:
        """Start and continue runs; what is compared is remembered by the browser."""
        remembered = gr.BrowserState([], storage_key="psd-compared", secret="psd")

        def choices(chosen: list[str]) -> Any:
            known = {run.id: named(run) for run in desk.worker.runs()}
            return gr.Dropdown(
                [(told, run_id) for run_id, told in known.items()], value=[run for run in chosen if run in known]
            )

        def started(presets: Sequence[Preset], owner: str, until: int | None = None) -> list[Any]:
            """All of them, or those that found a place and why the next one did not."""
            owner, runs, said = desk.ready(owner), [], ""
            for preset in presets:
                try:
                    runs.append(desk.worker.submit(preset, owner=owner, until=until))
                except (PresetError, StoreError) as error:
                    if not runs:
                        return refused(error)
                    said = note(f"Only {len(runs)} of {len(presets)} were started: {error}")
                    break
            return [choices(runs), runs, said]

        def refused(error: Exception) -> list[Any]:
            return [gr.skip(), gr.skip(), note(str(error))]

        def start(methods: list[str], presets: list[str], owner: str, *given: Any) -> list[Any]:
            if not 2 <= len(methods) + len(presets) <= MOST:
                return refused(PresetError(f"choose 2 to {MOST} methods and presets to compare"))
            try:
                return started(variants(desk.wanted(*given), methods, presets), owner)
            except PresetError as error:
                return refused(error)

        def sweep(count: float, until: float, owner: str, *given: Any) -> list[Any]:
            try:
                return started(seeds(desk.wanted(*given), int(count)), owner, int(until))
            except PresetError as error:
                return refused(error)

        def go_on(chosen: list[str], owner: str) -> str:
            best = best_to_continue(desk.watcher.several(chosen))
            if best is None:
                return note("There is nothing to continue: each run is at its end, or some still go on.")
            try:
                desk.worker.extend(best.run_id, owner=owner)
            except (PresetError, StoreError) as error:
                return note(str(error))
            return note(f"{label(best)} goes on to step {best.view.total_steps}.", "hint")

        shown = [self.runs, remembered, self.message]
        self.start.click(start, [self.methods, self.presets, desk.owner, *desk.shown], shown, **QUIET).then(**desk.news)
        self.sweep.click(sweep, [self.count, self.until, desk.owner, *desk.shown], shown, **QUIET).then(**desk.news)
        self.go_on.click(go_on, [self.runs, desk.owner], self.message, **QUIET).then(**desk.news)
        self.runs.input(lambda chosen: chosen, self.runs, remembered, **QUIET).then(**desk.news)
        self.runs.focus(choices, self.runs, self.runs, **QUIET)
        self.step.input(lambda step: step, self.step, self.at, trigger_mode="always_last", **QUIET).then(**desk.news)
        blocks.load(choices, remembered, self.runs, **QUIET)


def most_steps(page: Page) -> int:
    return max((watched.view.total_steps for watched in page.compared), default=0) or FIRST_STEPS
