"""The page: inputs made from the Preset's declaration, panes that show a run, and the wires between them.

    view.py      fold(view, event) -> view: what a watcher knows of a run, pure
    markup.py    view -> HTML and data frames, pure
    panes.py     the components of each part of the page, with what they show
    controls.py  the Preset's fields as components      ask.py, prompt.py  the prompt box and its help
    watch.py     live and stored runs as views

A run belongs to the server: the page holds its id, asks for news on a timer and takes only what has changed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from psd.archive import read_preset
from psd.files import StoreError
from psd.preset import Preset, PresetError, available
from psd.ui import controls, markup, panes
from psd.ui.ask import QUIET, Ask, ask
from psd.ui.markup import Watched
from psd.ui.panes import Pane
from psd.ui.prompt import Vocabulary, complaint
from psd.ui.watch import Watcher
from psd.worker import Worker

__all__ = ["appearance", "build"]

CSS = Path(__file__).resolve().parents[2] / "assets" / "app.css"
TICK_S = 0.7
FIRST = ("method", "steps")  # beside preset and seed; the other fields are in their groups
TITLES = {"run": "Machine", "models": "Reward weights", "negative": "Negative embedding"}
# The run is asked for once the viewer is on the page (`panes.viewer_pane` says why).
MOUNTED = """async (last) => {
    while (!document.querySelector("#viewer")) await new Promise((resolve) => setTimeout(resolve, 50));
    await new Promise((resolve) => setTimeout(resolve, 250));
    return [last];
}"""
ADDRESS = "(run) => { if (run) history.replaceState(null, '', '?run=' + encodeURIComponent(run)) }"


def appearance() -> dict[str, Any]:
    """Arguments for ``launch``: theme, style, and nothing that is fetched from elsewhere."""
    theme = gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", radius_size="lg",
        font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"],
    )  # fmt: skip
    return {"theme": theme, "css_paths": CSS, "ssr_mode": False, "footer_links": ["settings"]}


def build(
    worker: Worker,
    *,
    root: Path | None = None,
    preset: str = "tiny",
    vocabularies: Mapping[str, Vocabulary] | None = None,
) -> gr.Blocks:
    """The page over ``worker``, whose run folders are under ``root``, starting from the named preset.

    ``vocabularies`` maps a prior, as presets name it, to the closed set of captions that it knows.
    """
    watcher, vocabularies, first = Watcher(worker, root), vocabularies or {}, Preset.load(preset)
    with gr.Blocks(title="PSD Studio", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as blocks:
        gr.HTML(markup.HEADER, elem_id="header")
        with gr.Column(elem_id="layout"):
            with gr.Column(elem_id="ask"):
                asked = ask(first, vocabularies.get(first.prior))
            with gr.Column(elem_id="stage"):
                shown = _stage()
            with gr.Column(elem_id="settings"):
                name, parts = _settings(preset, first)
        run_id, keys = gr.State(""), gr.State([])
        base = gr.State(first.model_dump())  # whose values the controls show: a preset, or the run attached to
        last = gr.BrowserState("", storage_key="psd-last-run", secret="psd")
        timer = gr.Timer(TICK_S, active=False)
        shown += [_buttons(asked), Pane([timer], lambda w: w.is_over, lambda w: [gr.Timer(active=not w.is_over)])]
        values = [component for part in parts for component in part.components]

        def refresh(run: str, old: list) -> list[Any]:
            """What has changed since this page last asked; everything else is skipped."""
            try:
                watched = watcher.watched(run) if run else Watched()
            except StoreError as error:  # its folder was deleted, say
                watched = Watched(run, state="interrupted", message=str(error))
            new = [pane.key(watched) for pane in shown]
            updates: list[Any] = []
            for pane, before, now in zip(shown, old or [None] * len(shown), new, strict=True):
                updates += [gr.skip()] * len(pane.components) if before == now else pane.values(watched)
            return [new, *updates]

        def attach(remembered: str, request: gr.Request) -> list[Any]:
            """Show the run that the address names, else the one that this browser started last, with its values."""
            named = request.query_params.get("run", "")
            if not (named or remembered):
                return [gr.skip()] * (4 + len(values))
            try:
                watched = watcher.watched(named or remembered)
                made = read_preset(watched.folder)
            except StoreError as error:
                return ["", markup.note(str(error)) if named else "", *[gr.skip()] * (2 + len(values))]
            return [
                watched.run_id,
                "",
                made.prompt,
                made.model_dump(),
                *[update for part in parts for update in part.write(made)],
            ]

        def start(shown_values: dict, prompt: str, *given: Any) -> list[Any]:
            """Check every value, queue the run and hand its id to the page; what is wrong is said in words."""
            try:
                before = Preset.make(shown_values)
                wanted = before.changed({"prompt": prompt.strip(), **controls.read_all(parts, given, before)})
                vocabulary = vocabularies.get(wanted.prior)
                problem = complaint(vocabulary, wanted.prompt) if vocabulary else ""
                started = "" if problem else worker.submit(wanted)
            except (PresetError, StoreError) as error:
                problem, started = str(error), ""
            return [started or gr.skip(), started or gr.skip(), markup.note(problem)]

        def load_preset(chosen: str) -> list[Any]:
            loaded = Preset.load(chosen)
            return [loaded.model_dump(), *[update for part in parts for update in part.write(loaded)]]

        news = {"fn": refresh, "inputs": [run_id, keys], "outputs": [keys, *(c for p in shown for c in p.components)]}
        timer.tick(**news, **QUIET)
        blocks.load(attach, last, [run_id, asked.message, asked.prompt, base, *values], js=MOUNTED, **QUIET).then(
            **news, **QUIET
        )
        for trigger in (asked.run.click, asked.prompt.submit):
            trigger(
                start, [base, asked.prompt, *values], [run_id, last, asked.message], trigger_mode="once", **QUIET
            ).then(**news, **QUIET).then(None, last, None, js=ADDRESS, **QUIET)
        asked.stop.click(watcher.stop, run_id, None, **QUIET).then(**news, **QUIET)
        name.input(load_preset, name, [base, *values], **QUIET)
        for part in parts:
            if part.live:
                _wire_live(worker, part, run_id)
    return blocks


def _wire_live(worker: Worker, part: controls.Control, run_id: gr.State) -> None:
    """A live control changes the run that is watched, if it is still going; otherwise it waits for the next run."""

    def change(run: str, *given: Any) -> None:
        job = next((job for job in worker.jobs() if job.id == run and job.status.state in ("running", "paused")), None)
        if job is None:
            return
        try:
            worker.change(run, {part.name: part.read(given, job.preset)})
        except PresetError as error:
            gr.Warning(str(error))

    for component in part.components:
        component.input(  # pyright: ignore[reportAttributeAccessIssue] - sliders and numbers have it
            change, [run_id, *part.components], None, trigger_mode="always_last", **QUIET
        )


def _stage() -> list[Pane]:
    """Status, picture beside mesh, downloads; the tabs below."""
    shown = [panes.status_pane()]
    with gr.Row(elem_id="hero"):
        shown += [panes.picture_pane(), panes.viewer_pane()]
    shown.append(panes.files_pane())
    with gr.Tabs(elem_id="tabs"):
        for title, make in TABS.items():
            with gr.Tab(title):
                shown.append(make())
    return shown


TABS = {
    "Curves": panes.curves_pane,
    "Negative": panes.negative_pane,
    "Mesh": panes.mesh_pane,
    "Log": panes.log_pane,
}


def _settings(name: str, preset: Preset) -> tuple[gr.Dropdown, list[controls.Control]]:
    """Preset and seed, then every field of the preset by its declared group."""
    parts = []
    choices = gr.Dropdown(
        available(), value=name, label="preset", info="Sets every value below; the prompt stays.", elem_id="preset"
    )
    with gr.Row(elem_id="seed"):
        parts.append(controls.control("seed", preset))
        dice = gr.Button("🎲", elem_id="dice", min_width=48, scale=0)
    dice.click(lambda: random.randrange(2**31), None, parts[0].components, **QUIET)
    parts += [controls.control(field, preset) for field in FIRST]
    elsewhere = {"seed", *FIRST, *controls.ELSEWHERE}
    for group, fields in controls.grouped([field for field in Preset.model_fields if field not in elsewhere]).items():
        with gr.Accordion(TITLES.get(group, group.capitalize()), open=False):
            parts += [controls.control(field, preset) for field in fields]
    return choices, parts


def _buttons(asked: Ask) -> Pane:
    """Run when nothing runs, Stop when something does."""

    def values(watched: Watched) -> list[Any]:
        stoppable = not watched.is_over and watched.state != "stopping"
        return [gr.Button(interactive=watched.is_over), gr.Button(interactive=stoppable)]

    return Pane([asked.run, asked.stop], lambda w: (w.is_over, w.state == "stopping"), values)
