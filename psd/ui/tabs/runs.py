"""The Runs tab: every run of this server, to open, go on with, copy, keep, take away or delete."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr

from psd.config.errors import PresetError
from psd.runs.store.archive import ACTIVE, Run, read_preset
from psd.runs.store.files import StoreError
from psd.ui.markup.html import file_url, file_version, format_number, note_html, state_badge, table_html
from psd.ui.state.page import FLOATING, LISTED, MAKE, QUIET, Pane

if TYPE_CHECKING:
    from psd.ui.context import PageContext

# A click on one of the list's buttons says which, and on which run; deleting asks first.
BUTTONS = """element.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-act]");
    if (!button) return;
    if (button.dataset.act === "delete" && !confirm(`Delete "${button.dataset.name}" for good?`)) return;
    trigger("click", {act: button.dataset.act, run: button.dataset.run});
});"""
FETCH = """(address) => {
    if (!address) return;
    const link = Object.assign(document.createElement("a"), {href: address, download: ""});
    document.body.append(link);
    link.click();
    link.remove();
}"""


class RunsTab:
    """The tab's components, in the current Blocks context."""

    def __init__(self) -> None:
        self.mine = gr.Checkbox(False, label="only mine", info="Runs that this browser started.", elem_id="only-mine")
        self.zip = gr.Textbox("", visible=False)  # address of the zip that was asked for last
        self.list = gr.HTML(runs_table(()), elem_id="runs", elem_classes="table", js_on_load=BUTTONS)
        self.panes = [Pane([self.list], lambda p: runs_table(p.runs), lambda p: [runs_table(p.runs)], "Runs")]

    def wire_events(self, desk: PageContext, places: gr.Tabs, place: gr.State) -> None:
        unchanged = ["", gr.skip(), gr.skip(), gr.skip(), gr.skip(), *desk.skipped()]

        def act(owner: str, watched: str, event: gr.EventData) -> list[Any]:
            """Do what a button says.  Whatever is to be said floats above the page: the list may be a long one."""
            what, run = str(event._data.get("act")), str(event._data.get("run"))
            try:
                match what:
                    case "zip":
                        path = desk.worker.library.zip_run(run)
                        return [file_url(run, path.name, file_version(path)), *unchanged[1:]]
                    case "remix":
                        preset = read_preset(desk.worker.library.find_folder(run))
                        return ["", "", "", gr.Tabs(selected=MAKE), MAKE, *desk.show(preset)]
                    case "delete":
                        desk.worker.library.delete_run(run, owner)
                    case "keep" | "release":
                        desk.worker.library.pin_run(run, what == "keep", owner)
                    case "go on":
                        desk.worker.extend(run, owner=owner)
            except (PresetError, StoreError) as error:
                gr.Warning(html.escape(str(error)), title=f"Not done: {html.escape(what)}")
                return unchanged
            desk.watcher.forget_list()
            gone = what == "delete" and run == watched  # then the page leaves it
            return ["", "", "", *unchanged[3:]] if gone else unchanged

        shown = [self.zip, desk.run_id, desk.last, places, place, *desk.shown]
        clicked = self.list.click(act, [desk.owner, desk.run_id], shown, **FLOATING)
        clicked.success(None, self.zip, None, js=FETCH, **QUIET)
        clicked.then(**desk.news)
        self.mine.input(**desk.news)


def runs_table(runs: tuple[Run, ...]) -> str:
    """One row a run, newest first, as far as a page should hold."""
    heads = ("views", "prompt", "method", "seed", "best judge", "step", "state", "")
    rest = f"The newest {LISTED} of {len(runs)} runs: older ones come up as these are deleted."
    note = note_html(rest, "hint") if len(runs) > LISTED else ""
    return note + table_html(heads, (run_row(run) for run in runs[:LISTED]), "No runs yet.")


def run_row(run: Run) -> list[str]:
    status = run.status
    link = f'<a href="?run={quote(run.id)}">{html.escape(status.prompt or run.id)}</a>'
    best = (
        "–"
        if status.best_score is None
        else f"{format_number(status.best_score)} <small>step {status.best_step}</small>"
    )
    acts = ["remix", "zip", "release" if run.is_pinned else "keep", "delete"]
    if status.state in ("interrupted", "stopped"):
        acts.insert(0, "go on")
    if status.state in ACTIVE:
        acts.remove("delete")
    buttons = "".join(act_button(act, run) for act in acts)
    created = f"<small>{html.escape(status.created[:16].replace('T', ' '))}</small>"
    why = f"<small>{html.escape(status.message)}</small>" if status.state == "unreadable" else ""
    state = state_badge(status.state) + (" 📌" if run.is_pinned else "")
    return [thumbnail_html(run), link + created + why, html.escape(status.method), str(status.seed), best,
            f"{status.step} / {status.total}", state, f'<span class="acts">{buttons}</span>']  # fmt: skip


def act_button(act: str, run: Run) -> str:
    name = html.escape(run.status.prompt or run.id)
    return (
        f'<button type="button" data-act="{act}" data-run="{html.escape(run.id)}" data-name="{name}" '
        f'aria-label="{act}: {name}">{act}</button>'
    )


def thumbnail_html(run: Run) -> str:
    """The front view of the preview that the selector judge liked best."""
    file = run.thumbnail
    if file is None:
        return '<div class="shot thumb"></div>'
    address = file_url(run.id, file.relative_to(run.folder).as_posix(), file_version(file))
    return f'<div class="shot thumb"><img src="{address}" alt="front view" loading="lazy"></div>'
