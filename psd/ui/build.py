"""The page: inputs made from the Preset's declaration, tabs that show a run, and the wires between them.

    state/view.py   fold_event(view, event) -> view: what a page knows of a run, pure
    state/page.py   what one page looks at, and panes: components with what they show of it
    state/watch.py  live and stored runs as views
    panels/, tabs/  a file for the prompt box, the status bar, the shared presets, and for each tab
    markup/         SVG and HTML that they share, pure
    inputs/         the Preset's fields as components, names of presets, help with prompts
    context.py      what the listeners of all parts share
    checked.py      what a request must be before a listener sees it

A run belongs to the server: the page holds its id, asks for news on a timer and takes only what has changed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from psd.config.errors import PresetError
from psd.config.preset import Preset, list_settings
from psd.runs.jobs.worker import Worker
from psd.runs.store.archive import ACTIVE, read_preset
from psd.runs.store.files import StoreError
from psd.runs.store.ownership import new_owner
from psd.ui.checked import CheckedBlocks
from psd.ui.context import (
    LookInputs,
    PageContext,
    collect_updates,
    find_live_preset,
    read_look,
    read_page,
    require_whole,
    reset_html,
)
from psd.ui.inputs import controls
from psd.ui.inputs.controls import FieldControl
from psd.ui.inputs.vocabulary import Vocabulary
from psd.ui.markup import html
from psd.ui.panels.prompt_box import PromptBox, build_prompt_box
from psd.ui.panels.share import SharePanel
from psd.ui.panels.status import StatusBar, status_bar
from psd.ui.state.page import FLOATING, QUIET, Page, Pane
from psd.ui.state.watch import Watcher
from psd.ui.tabs.compare import CompareTab
from psd.ui.tabs.curves import curves_tab
from psd.ui.tabs.live import LiveTab
from psd.ui.tabs.log import log_tab
from psd.ui.tabs.mesh import MeshTab, Remesh
from psd.ui.tabs.negative import negative_tab
from psd.ui.tabs.runs import RunsTab

__all__ = ["build_blocks", "launch_options"]

CSS = Path(__file__).resolve().parents[2] / "assets" / "app.css"
TICK_S, REST_S = 0.7, 5.0
MOST_MORE = 100_000  # steps at once past a run's end
FIRST = ("method", "steps")  # beside preset and seed; the other fields are in their groups
TITLES = {"run": "Machine", "models": "Reward weights", "negative": "Negative embedding"}
# The tab's panes are filled once its components are on the page: Gradio draws no mesh that comes before its viewer.
MOUNTED = """async () => {
    const mesh = document.querySelector("#tabs [role=tab][aria-selected=true]")?.innerText === "Mesh";
    for (let i = 0; mesh && i < 100 && !document.querySelector("#viewer"); i++)
        await new Promise((resolve) => setTimeout(resolve, 50));
    await new Promise((resolve) => setTimeout(resolve, 250));
}"""
FREE = "The values of the next run; those marked Live can also be moved while it goes on."
THEIRS = "Locked while this run goes on: another browser steers it. Duplicate sets up a run of your own."
FIXED = "Locked while this run goes on, except what is marked Live. Duplicate sets up another run."
# Three habits of Gradio that are stopped before it sees the event.  (In the head: what Gradio runs as ``js`` comes
# after the page can be used.)  A dropdown takes the key that leaves it for one that opens it, and its list stays over
# the page.  A slider that loses the keyboard pulls what was typed to its ends without a word: here it stays, and the
# preset answers in words.  A slider's reset button sets what it held when it was drawn, and no listener to a hand's
# moves hears of it: here it types the value of the preset, or of the run, into the field beside it.
HABITS = """<script>
document.addEventListener('keydown', event => {
  if (event.key === 'Tab' && event.target.matches('[role=combobox]')) event.stopPropagation()
}, true)
document.addEventListener('blur', event => {
  const field = event.target
  if (field.type === 'number' && field.closest('.block')?.querySelector('input[type=range]')) event.stopPropagation()
}, true)
document.addEventListener('click', event => {
  const button = event.target.closest?.('.reset-button'), block = button?.closest('[id^=control-]')
  if (!block || button.disabled) return
  event.stopPropagation()
  const values = JSON.parse(document.querySelector('#reset-values i').dataset.values)
  const field = block.querySelector('input[type=number]')
  field.value = values[block.id.slice('control-'.length)]
  field.dispatchEvent(new Event('input', {bubbles: true}))
}, true)
</script>"""
# The address follows what was started or left, unless that was refused: then the page still shows what it did.
ADDRESS = """(run, refused) => {
  if (!refused) history.replaceState(null, '', run ? '?run=' + encodeURIComponent(run) : '?')
}"""


def launch_options() -> dict[str, Any]:
    """Arguments for ``launch``: theme, style, and nothing that is fetched from elsewhere.

    The files of runs are served by `psd.ui.protection.protect`.
    """
    theme = gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", radius_size="lg",
        font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"],
    ).set(  # the theme's own greys and teals stay below a contrast of 4.5 on white
        body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500",
        block_label_text_color="*neutral_600", block_title_text_color="*neutral_600",
        button_primary_background_fill="*primary_700", button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800", button_primary_background_fill_hover_dark="*primary_800",
        color_accent="*primary_600",
    )  # fmt: skip
    return {"theme": theme, "css_paths": CSS, "head": HABITS, "ssr_mode": False, "footer_links": ["api", "settings"]}


def build_blocks(
    worker: Worker,
    *,
    preset: str = "tiny",
    vocabularies: Mapping[str, Vocabulary] | None = None,
    remesher: Callable[[], Remesh] | None = None,
) -> gr.Blocks:
    """The page over ``worker``, starting from the named preset.

    ``vocabularies`` maps a prior, as presets name it, to the closed set of captions that it knows; ``remesher`` is
    asked for when a page first meshes the scene of a run that is over again.
    """
    watcher, vocabularies, first = Watcher(worker), vocabularies or {}, Preset.load(preset)
    with CheckedBlocks(
        title="PSD Studio", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
    ) as blocks:
        gr.HTML(html.HEADER, elem_id="header")
        with gr.Column(elem_id="layout"):
            with gr.Column(elem_id="ask"):
                asked = build_prompt_box(first, vocabularies.get(first.prior))
            with gr.Column(elem_id="stage"):
                bar = status_bar()
                with gr.Tabs(elem_id="tabs") as tabs:
                    with gr.Tab("Live", id="Live"):
                        live = LiveTab()
                    with gr.Tab("Curves", id="Curves"):
                        curves = curves_tab()
                    with gr.Tab("Negative", id="Negative"):
                        negative = negative_tab()
                    with gr.Tab("Mesh", id="Mesh"):
                        mesh = MeshTab(first, remesher)
                    with gr.Tab("Compare", id="Compare"):
                        compare = CompareTab()
                    with gr.Tab("Runs", id="Runs"):
                        runs = RunsTab()
                    with gr.Tab("Log", id="Log"):
                        log = log_tab()
            with gr.Column(elem_id="settings"):
                share, parts, locks = _build_settings(preset, first)
        reset = gr.HTML(reset_html(first), elem_id="reset-values")
        run_id, keys, tab = gr.State(""), gr.State([]), gr.State("Live")
        last = gr.BrowserState("", storage_key="psd-last-run", secret="psd")
        owner = gr.BrowserState("", storage_key="psd-owner", secret="psd")
        timer = gr.Timer(TICK_S, active=False)
        looking = LookInputs(
            mesh.viewer, tab, live.kinds, live.follow, live.at, compare.runs, compare.at, runs.mine
        )  # fmt: skip
        panes = [
            *bar.panes, *live.panes, *curves, *negative, *mesh.panes, *compare.panes, *runs.panes, *log,
            _run_button(asked), *locks,
            Pane([timer], _tick_s, lambda p: [gr.Timer(_tick_s(p) or TICK_S, active=_tick_s(p) is not None)]),
        ]  # fmt: skip

        def refresh(run: str, owner: str, old: list, viewer: gr.Model3D, *seen: Any) -> list[Any]:
            """What has changed since this page last asked; everything else is skipped."""
            return collect_updates(panes, read_page(worker, watcher, run, owner, read_look(viewer, *seen)), old)

        desk = PageContext(
            worker, watcher, vocabularies, parts, asked.prompt, share.choice, reset, run_id,
            gr.State(first.model_dump()), last, owner,
            {"fn": refresh, "inputs": [run_id, owner, keys, *looking.inputs],
             "outputs": [keys, *(component for pane in panes for component in pane.components)], **QUIET},
        )  # fmt: skip
        timer.tick(**desk.news)
        _wire_address(blocks, desk, asked)
        _wire_start(desk, asked)
        _wire_hand(desk, bar)
        share.wire_events(desk, blocks)
        tabs.select(_selected_tab, None, tab, **QUIET).then(None, None, None, js=MOUNTED).then(**desk.news)
        live.wire_events(desk)
        mesh.wire_events(desk)
        compare.wire_events(desk, blocks)
        runs.wire_events(desk)
        for part in parts:
            if part.live:
                _wire_live(desk, part)
    return blocks


def _selected_tab(event: gr.SelectData) -> str:
    return str(event.value)


def _tick_s(page: Page) -> float | None:
    """Seconds between two looks: few while something goes on; a run that is over may go on elsewhere; None: none."""
    going = any(run.status.state in ACTIVE for run in page.runs)
    if going or not page.run.is_over or not all(watched.is_over for watched in page.compared):
        return TICK_S
    return REST_S if page.run.run_id else None


def _wire_address(blocks: gr.Blocks, desk: PageContext, asked: PromptBox) -> None:
    def attach(remembered: str, secret: str, request: gr.Request) -> list[Any]:
        """Show the run that the address names, else the one that this browser started last, with its values."""
        named = request.query_params.get("run", "")
        owner = secret or new_owner()
        if not (named or remembered):
            return [owner, gr.skip(), gr.skip(), *desk.skipped()]
        try:
            watched = desk.watcher.view_run(named or remembered)
        except StoreError as error:
            return [owner, "", html.note_html(str(error)) if named else "", *desk.skipped()]
        try:
            preset = read_preset(watched.folder)
        except (PresetError, StoreError) as error:  # of another version, say: it can still be looked at
            return [owner, watched.run_id, html.note_html(f"Its values cannot be shown: {error}"), *desk.skipped()]
        moved = {} if watched.is_over else dict(watched.view.live)
        return [owner, watched.run_id, "", *desk.show(preset.with_values(moved), start=preset)]

    shown = [desk.owner, desk.run_id, asked.message, *desk.shown]
    blocks.load(attach, [desk.last, desk.owner], shown, **QUIET).then(**desk.news)


def _wire_start(desk: PageContext, asked: PromptBox) -> None:
    def submit_run(owner: str, *given: Any) -> list[Any]:
        """Check every value, queue the run and hand its id to the page; what is wrong is said in words."""
        try:
            run = desk.worker.submit(desk.read_controls(*given), owner=desk.require_secret(owner))
        except (PresetError, StoreError) as error:
            return [gr.skip(), gr.skip(), html.note_html(str(error))]
        return [run, run, ""]

    def estimate_cost(*given: Any) -> str:
        """Time and memory by an earlier run of the kind, or a warm-up of a few steps."""
        try:
            preset = desk.read_controls(*given)
            pace = desk.worker.estimate(preset)
        except (PresetError, StoreError) as error:
            return html.note_html(str(error))
        if pace is None:
            return html.note_html("The device is busy with a run: the estimate needs it for a few seconds.", "hint")
        memory = f" and {pace.memory_bytes / 2**30:.1f} GB" if pace.memory_bytes else ""
        return html.note_html(f"About {html.format_minutes(pace.left_s(preset))}{memory} on this machine.", "hint")

    asked.estimate.click(
        estimate_cost, desk.given, asked.message, show_progress="minimal", api_visibility="private", concurrency_limit=1
    )
    for trigger in (asked.run.click, asked.prompt.submit):
        trigger(
            submit_run, [desk.owner, *desk.given], [desk.run_id, desk.last, asked.message],
            trigger_mode="once", **QUIET,
        ).then(**desk.news).then(None, [desk.last, asked.message], None, js=ADDRESS, **QUIET)  # fmt: skip


def _wire_hand(desk: PageContext, bar: StatusBar) -> None:
    def pause(run: str, owner: str) -> str:
        try:
            paused = desk.worker.snapshot_job(run).status.state == "paused"
            (desk.worker.resume if paused else desk.worker.pause)(run, owner)
        except StoreError as error:  # its folder was deleted, or the server was started anew
            return html.note_html(str(error))
        return ""

    def stop(run: str, owner: str) -> str:
        try:
            desk.worker.stop(run, owner)
        except StoreError as error:
            return html.note_html(str(error))
        return ""

    def go_on(run: str, more: float | None, owner: str) -> str:
        try:
            desk.worker.extend(run, require_whole("steps more", more or 0, 0, MOST_MORE), owner)
        except (PresetError, StoreError) as error:
            return html.note_html(str(error))
        return ""

    def duplicate(run: str) -> list[Any]:
        """Leave the run, which goes on, with its values in the controls."""
        try:
            return ["", "", "", *desk.show(read_preset(desk.worker.library.find_folder(run)))]
        except (PresetError, StoreError) as error:
            return [gr.skip(), gr.skip(), html.note_html(str(error)), *desk.skipped()]

    mine = [desk.run_id, desk.owner]
    bar.pause.click(pause, mine, bar.message, **QUIET).then(**desk.news)
    bar.stop.click(stop, mine, bar.message, **QUIET).then(**desk.news)
    bar.go_on.click(go_on, [desk.run_id, bar.more, desk.owner], bar.message, **QUIET).then(**desk.news)
    bar.duplicate.click(duplicate, desk.run_id, [desk.run_id, desk.last, bar.message, *desk.shown], **QUIET).then(
        **desk.news
    ).then(None, [desk.last, bar.message], None, js=ADDRESS, **QUIET)


def _wire_live(desk: PageContext, part: FieldControl) -> None:
    """A live control changes the run that is watched, if it is still going; otherwise it waits for the next run."""

    def change(run: str, owner: str, *given: Any) -> None:
        preset = find_live_preset(desk, run)
        if preset is None:
            return
        try:
            desk.worker.change(run, {part.name: part.read(given, preset)}, owner)
        except (PresetError, StoreError) as error:  # floating above the page: the slider may be anywhere on it
            gr.Warning(escape(str(error)), title="Not changed")

    for component in part.components:
        component.input(  # pyright: ignore[reportAttributeAccessIssue] - sliders and numbers have it
            change, [desk.run_id, desk.owner, *part.components], None, trigger_mode="always_last", **FLOATING
        )


def _build_settings(name: str, preset: Preset) -> tuple[SharePanel, list[FieldControl], list[Pane]]:
    """Preset and seed, then every field of the preset by its declared group."""
    parts = []
    locked = gr.HTML(html.note_html(FREE, "hint"), elem_id="locked")
    share = SharePanel(name)
    with gr.Row(elem_id="seed"):
        parts.append(controls.make_control("seed", preset))
        dice = gr.Button("🎲", elem_id="dice", min_width=48, scale=0)
    dice.click(lambda: random.randrange(2**31), None, parts[0].components, **QUIET)
    parts += [controls.make_control(field, preset) for field in FIRST]
    elsewhere = {"seed", *FIRST, *controls.ELSEWHERE}
    for group, fields in controls.group_fields([name for name in list_settings() if name not in elsewhere]).items():
        with gr.Accordion(TITLES.get(group, group.capitalize()), open=False):
            parts += [controls.make_control(field, preset) for field in fields]
    return share, parts, _lock_panes([*share.locked, dice], parts, locked)


def _lock_panes(others: list[Component], parts: list[FieldControl], locked: gr.HTML) -> list[Pane]:
    """While a run is watched only what it listens to can be moved, by its owner; a line above says why."""
    fixed = [*others, *(component for part in parts if not part.live for component in part.components)]
    live = [component for part in parts if part.live for component in part.components]

    def lock_updates(page: Page) -> list[Any]:
        free = page.run.is_over
        why = FREE if free else FIXED if page.is_mine else THEIRS
        return [
            html.note_html(why, "hint"), *[gr.update(interactive=free)] * len(fixed),
            *[gr.update(interactive=free or page.is_mine)] * len(live),
        ]  # fmt: skip

    return [Pane([locked, *fixed, *live], lambda p: (p.run.is_over, p.is_mine), lock_updates)]


def _run_button(asked: PromptBox) -> Pane:
    return Pane([asked.run], lambda p: p.run.is_over, lambda p: [gr.Button(interactive=p.run.is_over)])
