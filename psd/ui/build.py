"""The page: inputs made from the Preset's declaration, tabs that show a run, and the wires between them.

    state/view.py   fold_event(view, event) -> view: what a page knows of a run, pure
    panels/         the prompt box, the stage with its status and what steers it, the drawer of all settings
    state/page.py   what one page looks at, and panes: components with what they show of it
    state/watch.py  live and stored runs as views
    tabs/           a file for each tab
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

from psd.config.errors import PresetError
from psd.config.preset import DEFAULT_PRESET, Preset
from psd.runs.jobs.worker import Worker
from psd.runs.store.archive import ACTIVE, read_preset
from psd.runs.store.files import StoreError
from psd.runs.store.ownership import new_owner
from psd.ui.checked import CheckedBlocks
from psd.ui.context import (
    LookInputs,
    PageContext,
    Tab,
    collect_updates,
    find_live_preset,
    read_look,
    read_page,
    require_whole,
    reset_html,
)
from psd.ui.inputs.controls import FieldControl
from psd.ui.inputs.vocabulary import Vocabulary
from psd.ui.markup import html
from psd.ui.panels.advanced import build_advanced
from psd.ui.panels.prompt_box import PromptBox, build_prompt_box
from psd.ui.panels.stage import StagePanel, build_take
from psd.ui.panels.status import StatusBar, build_hand, build_status
from psd.ui.panels.steer import build_steer, steer_words, wire_steer
from psd.ui.state.page import FLOATING, MAKE, QUIET, Page, Pane
from psd.ui.state.watch import Watcher
from psd.ui.tabs.compare import CompareTab
from psd.ui.tabs.curves import CurvesTab
from psd.ui.tabs.log import log_tab
from psd.ui.tabs.mesh import MeshTab, Remesh
from psd.ui.tabs.negative import negative_tab
from psd.ui.tabs.runs import RunsTab

__all__ = ["build_blocks", "launch_options"]

CSS = Path(__file__).resolve().parents[2] / "assets" / "app.css"
TICK_S, REST_S = 3.7, 5.0  # a fast run's page asks for at most 40 things a minute then, half of them pictures
MOST_MORE = 100_000  # steps at once past a run's end
# Four habits of Gradio.  Three are stopped before it sees the event.  (In the head: what Gradio runs as ``js`` comes
# after the page can be used.)  A dropdown takes the key that leaves it for one that opens it, and its list stays over
# the page.  A slider that loses the keyboard pulls what was typed to its ends without a word: here it stays, and the
# preset answers in words.  A slider's reset button sets what it held when it was drawn, and no listener to a hand's
# moves hears of it: here it types the value of the preset, or of the run, into the field beside it.  And the 3D viewer
# asks for the keyboard before all else on the page: here in its turn.
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
new MutationObserver(changes => {
  for (const {target} of changes) if (target.tabIndex > 0) target.tabIndex = 0
}).observe(document, {subtree: true, attributeFilter: ['tabindex']})
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
    ).set(  # the theme's own greys and teals stay below a contrast of 4.5 on what they stand on
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_500", block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_600",
        button_primary_background_fill="*primary_700", button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800", button_primary_background_fill_hover_dark="*primary_800",
        color_accent="*primary_600",
    )  # fmt: skip
    return {"theme": theme, "css_paths": CSS, "head": HABITS, "ssr_mode": False, "footer_links": ["api", "settings"]}


def build_blocks(
    worker: Worker,
    *,
    preset: str = DEFAULT_PRESET,
    vocabularies: Mapping[str, Vocabulary] | None = None,
    remesher: Callable[[], Remesh] | None = None,
) -> gr.Blocks:
    """The page over ``worker``, starting from the named preset.

    ``vocabularies`` maps a prior, as presets name it, to the closed set of captions that it knows; ``remesher`` is
    asked for when a page first meshes the scene of a run that is over again.
    """
    watcher, vocabularies, first = Watcher(worker), vocabularies or {}, Preset.load(preset)
    beside_stage: list[Tab] = []
    with CheckedBlocks(
        title="PSD Studio", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
    ) as blocks:
        gr.HTML(html.HEADER, elem_id="header")
        with gr.Tabs(elem_id="places") as places:
            with gr.Tab(MAKE, id=MAKE), gr.Column(elem_id="layout"):
                with gr.Column(elem_id="ask"):
                    asked = build_prompt_box(first, vocabularies.get(first.prior))
                with gr.Column(elem_id="stage"):
                    line = build_status()
                    with gr.Row(elem_id="act"):
                        take, bar = build_take(), build_hand()
                    with gr.Row(elem_id="stage-row"):
                        with gr.Column(elem_id="see", min_width=300):
                            stage = StagePanel(worker.library.list_shipped())
                        with gr.Column(elem_id="steer", min_width=240):
                            live, words, moves = build_steer(first)
                with gr.Column(elem_id="rest"):
                    advanced = build_advanced(preset, first)
                    with gr.Tabs(elem_id="tabs") as tabs:
                        for name, make_tab in list_tabs(stage, first, vocabularies, remesher).items():
                            with gr.Tab(name, id=name):
                                beside_stage.append(make_tab())
            with gr.Tab("Runs", id="Runs"):
                runs = RunsTab()
            with gr.Tab("Compare", id="Compare"):
                compare = CompareTab()
        parts = [*asked.parts, *live, *advanced.parts]
        reset = gr.HTML(reset_html(first), elem_id="reset-values")
        run_id, keys = gr.State(""), gr.State([])
        place, tab = gr.State(MAKE), gr.State("Curves")
        last = gr.BrowserState("", storage_key="psd-last-run", secret="psd")
        owner = gr.BrowserState("", storage_key="psd-owner", secret="psd")
        timer = gr.Timer(TICK_S, active=False)
        looking = LookInputs(
            stage.viewer, place, tab, stage.show, stage.follow, stage.at, stage.orbit, compare.runs, compare.at,
            runs.mine, runs.find, runs.sort,
        )  # fmt: skip
        panes = [
            line, take, *stage.panes, *bar.panes, moves, *(pane for tab in beside_stage for pane in tab.panes),
            *compare.panes, *runs.panes,
            _run_button(asked), _lock_pane(live, words), advanced.lock_pane(asked.parts),
            Pane([timer], _tick_s, lambda p: [gr.Timer(_tick_s(p) or TICK_S, active=_tick_s(p) is not None)]),
        ]  # fmt: skip

        def refresh(run: str, owner: str, old: list, viewer: gr.Model3D, *seen: Any) -> list[Any]:
            """What has changed since this page last asked; everything else is skipped."""
            return collect_updates(panes, read_page(worker, watcher, run, owner, read_look(viewer, *seen)), old)

        desk = PageContext(
            worker, watcher, vocabularies, parts, asked.prompt, advanced.share.choice, reset, run_id,
            gr.State(first.model_dump()), last, owner,
            {"fn": refresh, "inputs": [run_id, owner, keys, *looking.inputs],
             "outputs": [keys, *(component for pane in panes for component in pane.components)], **QUIET},
        )  # fmt: skip
        timer.tick(**desk.news)
        _wire_address(blocks, desk, asked)
        _wire_start(desk, asked)
        _wire_hand(desk, bar)
        asked.wire_events(desk, blocks)
        advanced.share.wire_events(desk, blocks)
        places.select(_selected_tab, None, place, **QUIET).then(**desk.news)
        tabs.select(_selected_tab, None, tab, **QUIET).then(**desk.news)
        stage.wire_events(desk)
        for shown in beside_stage:
            shown.wire_events(desk)
        compare.wire_events(desk, blocks)
        runs.wire_events(desk, places, place, compare)
        wire_steer(parts)
        for part in live:
            _wire_live(desk, part)
    return blocks


def list_tabs(
    stage: StagePanel, first: Preset, vocabularies: Mapping[str, Vocabulary], remesher: Callable[[], Remesh] | None
) -> dict[str, Callable[[], Tab]]:
    """The tabs beside the stage, a row each: its name, and what makes it in the current Blocks context."""
    return {
        "Curves": lambda: CurvesTab(stage, [known.find_true_scores for known in vocabularies.values()]),
        "Mesh": lambda: MeshTab(first, remesher),
        "Negative": negative_tab,
        "Log": log_tab,
    }


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
    def submit_run(owner: str, is_new: bool, *given: Any) -> list[Any]:
        """Check every value, queue the run and hand its id to the page; what is wrong is said in words."""
        try:
            preset = desk.read_controls(*given)
            if is_new:
                preset = preset.with_values({"seed": random.randrange(2**31)})
            run = desk.worker.submit(preset, owner=desk.require_secret(owner))
        except (PresetError, StoreError) as error:
            return [gr.skip(), gr.skip(), html.note_html(str(error)), gr.skip()]
        return [run, run, "", preset.seed]

    for trigger in (asked.run.click, asked.prompt.submit):
        trigger(
            submit_run, [desk.owner, asked.is_new_seed, *desk.given],
            [desk.run_id, desk.last, asked.message, *asked.seed.components], trigger_mode="once", **QUIET,
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

    def remix(run: str) -> list[Any]:
        """Leave the run, which goes on, with its values in the controls."""
        try:
            return ["", "", "", *desk.show(read_preset(desk.worker.library.find_folder(run)))]
        except (PresetError, StoreError) as error:
            return [gr.skip(), gr.skip(), html.note_html(str(error)), *desk.skipped()]

    mine = [desk.run_id, desk.owner]
    bar.pause.click(pause, mine, bar.message, **QUIET).then(**desk.news)
    bar.stop.click(stop, mine, bar.message, **QUIET).then(**desk.news)
    bar.go_on.click(go_on, [desk.run_id, bar.more, desk.owner], bar.message, **QUIET).then(**desk.news)
    bar.remix.click(remix, desk.run_id, [desk.run_id, desk.last, bar.message, *desk.shown], **QUIET).then(
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


def _lock_pane(live: list[FieldControl], words: gr.HTML) -> Pane:
    """A run that goes on is steered by its owner only; the line above says so."""
    components = [component for part in live for component in part.components]

    def lock_updates(page: Page) -> list[Any]:
        is_free = page.run.is_over or page.is_mine
        return [html.note_html(steer_words(page), "hint"), *[gr.update(interactive=is_free)] * len(components)]

    return Pane([words, *components], lambda p: (p.run.is_over, p.is_mine), lock_updates)


def _run_button(asked: PromptBox) -> Pane:
    return Pane([asked.run], lambda p: p.run.is_over, lambda p: [gr.Button(interactive=p.run.is_over)])
