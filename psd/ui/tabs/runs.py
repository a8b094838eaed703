"""The Runs place: every run of this server as a card, to open, name, find, compare, take away or delete."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.config.settings import StartSettings
from psd.runs.store.archive import ACTIVE, Run, read_preset
from psd.runs.store.files import StoreError
from psd.runs.store.labels import LONGEST
from psd.ui.inputs.components import FreeRadio
from psd.ui.markup.html import EXPORTS, file_url, file_version, format_number, note_html, state_badge
from psd.ui.state.page import FLOATING, LISTED, MAKE, MOST, QUIET, Page, Pane

if TYPE_CHECKING:
    from psd.ui.context import PageContext
    from psd.ui.tabs.compare import CompareTab

SORTS = {"Newest": lambda run: run.id, "Best": lambda run: run.status.best_score or -1e9}
# A click on one of the cards' buttons says which, and on which run; a name is sent when its field is left.  The
# timelapse is fetched when a pointer comes.  Ticked cards are compared together.
BUTTONS = f"""
const tell = (target, more) => trigger('click', {{act: target.dataset.act, run: target.dataset.run, ...more}})
const ticked = () => [...element.querySelectorAll('input[data-tick]:checked')].map(box => box.dataset.tick)
element.addEventListener('click', event => {{
  const button = event.target.closest('button[data-act]')
  if (!button) return
  if (button.dataset.act === 'link')
    navigator.clipboard?.writeText(new URL('?run=' + button.dataset.run, location.href).href)
      .then(() => {{ button.textContent = 'Copied' }})
  else tell(button, {{runs: ticked()}})
}})
element.addEventListener('change', event => {{
  if (event.target.dataset.act) tell(event.target, {{text: event.target.value}})
  const count = ticked().length, together = element.querySelector('.together')
  together.hidden = count < 2
  together.textContent = count > {MOST} ? 'At most {MOST} runs can be compared' : `Compare ${{count}} runs`
  together.disabled = count > {MOST}
}})
element.addEventListener('pointerover', event => {{
  const film = event.target.closest('.shot')?.querySelector('.film[data-src]')
  if (film) {{ film.src = film.dataset.src; film.removeAttribute('data-src') }}
}})
"""
FETCH = """(address) => {
    if (!address) return;
    const link = Object.assign(document.createElement("a"), {href: address, download: ""});
    document.body.append(link);
    link.click();
    link.remove();
}"""


class RunsTab:
    """The place's components, in the current Blocks context."""

    def __init__(self) -> None:
        with gr.Row(elem_id="finding"):
            self.find = gr.Textbox("", label="Find", placeholder="name, tag, prompt, method", elem_id="find-run")
            self.sort = FreeRadio(list(SORTS), value="Newest", label="Sort", elem_id="sort-runs")
            self.mine = gr.Checkbox(False, label="Only mine", elem_id="only-mine")
        self.undo = gr.Button("Undo", visible=False, elem_id="undo", size="sm")
        self.binned = gr.State("")  # the run that was deleted last
        self.zip = gr.Textbox("", visible=False)  # address of the zip that was asked for last
        self.list = gr.HTML(runs_html(Page()), elem_id="runs", js_on_load=BUTTONS)
        self.panes = [Pane([self.list], runs_html, lambda p: [runs_html(p)], "Runs")]

    def wire_events(self, desk: PageContext, places: gr.Tabs, place: gr.State, compare: CompareTab) -> None:
        """Wires the buttons of the cards, the search and the comparison of ticked runs."""
        left = [gr.skip()] * 7  # the run, place, comparison and the undo stay as they are
        unchanged = ["", *left, *desk.skipped()]
        library = desk.worker.library

        def act(owner: str, watched: str, event: gr.EventData) -> list[Any]:
            """Do what a button says.  Whatever is to be said floats above the page: the list may be a long one."""
            what, run = str(event._data.get("act")), str(event._data.get("run"))
            text = str(event._data.get("text", ""))
            changed = list(unchanged)
            try:
                match what:
                    case "zip":
                        path = library.zip_run(run)
                        changed[0] = file_url(run, path.name, file_version(path))
                        return changed
                    case "remix":
                        preset = read_preset(library.find_folder(run))
                        return ["", "", "", gr.Tabs(selected=MAKE), MAKE, *left[4:], *desk.show(preset)]
                    case "from":
                        preset = start_from(read_preset(library.find_folder(run)), run)
                        gr.Info("The next run starts from this object: change the prompt or the weights, then Run.")
                        return ["", "", "", gr.Tabs(selected=MAKE), MAKE, *left[4:], *desk.show(preset)]
                    case "compare":
                        runs = _read_ticks(event._data.get("runs"))
                        changed[3:6] = [gr.Tabs(selected="Compare"), "Compare", compare.list_choices(desk, runs)]
                        return changed
                    case "name":
                        library.label_run(run, owner, name=text)
                    case "tag":
                        library.label_run(run, owner, tag=text)
                    case "delete":
                        library.bin_run(run, owner)
                        changed[6:8] = [gr.Button(f"Deleted. Undo: {run[:60]}", visible=True), run]
                        if run == watched:  # then the page leaves it
                            changed[1:3] = ["", ""]
                    case "pin" | "unpin":
                        library.pin_run(run, what == "pin", owner)
                    case "go on":
                        desk.worker.extend(run, owner=owner)
            except (PresetError, StoreError) as error:
                gr.Warning(html.escape(str(error)), title=f"Not done: {html.escape(what)}")
                return unchanged
            desk.watcher.forget_list()
            return changed

        def undo(run: str, owner: str) -> list[Any]:
            try:
                library.restore_run(run, owner)
            except StoreError as error:
                gr.Warning(html.escape(str(error)), title="Not undone")
            desk.watcher.forget_list()
            return [gr.Button(visible=False), ""]

        shown = [
            self.zip, desk.run_id, desk.last, places, place, compare.runs, self.undo, self.binned, *desk.shown
        ]  # fmt: skip
        clicked = self.list.click(act, [desk.owner, desk.run_id], shown, **FLOATING)
        clicked.success(None, self.zip, None, js=FETCH, **QUIET)
        clicked.then(**desk.news)
        self.undo.click(undo, [self.binned, desk.owner], [self.undo, self.binned], **FLOATING).then(**desk.news)
        for component in (self.mine, self.find, self.sort):
            component.input(**desk.news)


def start_from(preset: Preset, run: str) -> Preset:
    """The preset of a run that starts from ``run``'s object; Gaussians where the run's own scene cannot.

    Raises `PresetError` where that preset cannot be without its own scene.
    """
    if isinstance(preset.scene_preset(0).scene, StartSettings):
        return preset.with_values({"scene.start": run})
    return preset.with_values({"stages": [], "scene.kind": "gaussians", "scene.start": run})


def _read_ticks(runs: object) -> list[str]:
    """The ids that a page names; raises PresetError for none or too many."""
    chosen = [run for run in runs if isinstance(run, str)] if isinstance(runs, list) else []
    if not 2 <= len(chosen) <= MOST:
        raise PresetError(f"{len(chosen)} runs are ticked: tick 2 to {MOST}")
    return chosen


def find_runs(runs: Sequence[Run], words: str, sort: str) -> list[Run]:
    """Those that hold every one of ``words``, in the order that was chosen."""
    wanted = words.casefold().split()

    def is_match(run: Run) -> bool:
        labels, status = run.labels, run.status
        said = f"{labels.name} {labels.tag} {status.prompt} {status.method} {status.state} {run.id}".casefold()
        return all(word in said for word in wanted)

    return sorted(filter(is_match, runs) if wanted else runs, key=SORTS.get(sort, SORTS["Newest"]), reverse=True)


def runs_html(page: Page) -> str:
    """A card a run, as far as a page should hold."""
    found = find_runs(page.runs, page.look.find, page.look.sort)
    if not found:
        said = "No run fits these words." if page.runs else "No runs yet: make one, and it is kept here."
        return f'<p class="none">{said}</p>'
    rest = f"The first {LISTED} of {len(found)} runs: search for the others."
    note = note_html(rest, "hint") if len(found) > LISTED else ""
    cards = "".join(card_html(run, page.may_steer(run)) for run in found[:LISTED])
    together = '<button type="button" class="together" data-act="compare" hidden></button>'
    return f'{note}<div class="cards">{cards}</div>{together}'


def card_html(run: Run, is_mine: bool) -> str:
    """The last picture, which plays the timelapse under a pointer, the run's name and tag, and what can be done."""
    status, labels, run_id = run.status, run.labels, html.escape(run.id)
    name = html.escape(labels.name or status.prompt or run.id)
    version = file_version(run.folder / EXPORTS / "mesh.glb")
    acts = [("remix", "Remix"), *([("from", "Start from")] if version else []), ("zip", "Zip"), ("link", "Link")]
    if is_mine:
        acts += [("unpin", "Unpin") if run.is_pinned else ("pin", "Pin")]
        acts += [("go on", "Go on")] if status.state in ("interrupted", "stopped") else []
        acts += [("delete", "Delete")] if status.state not in ACTIVE else []
    buttons = "".join(
        f'<button type="button" data-act="{act}" data-run="{run_id}" aria-label="{said}: {name}">{said}</button>'
        for act, said in acts
    )
    if version:
        address = file_url(run.id, f"{EXPORTS}/mesh.glb", version)
        buttons = f'<a href="{address}" download aria-label="GLB: {name}">GLB</a>{buttons}'
    tick = f'<label><input type="checkbox" data-tick="{run_id}" aria-label="Compare: {name}">Compare</label>'
    best = "" if status.best_score is None else f"<span>judge {format_number(status.best_score)}</span>"
    why = html.escape(status.message) if status.state in ("unreadable", "failed") else ""
    pin = "<span>📌 pinned</span>" if run.is_pinned else ""
    return (
        f'<article class="card"><a href="?run={quote(run.id)}" aria-label="Open {name}">{_picture_html(run)}</a>'
        f"{_label_html('name', name, run_id, is_mine)}{_label_html('tag', html.escape(labels.tag), run_id, is_mine)}"
        f"<small>{state_badge(status.state)}{pin}<span>{status.step} / {status.total}</span>{best}</small>"
        f"<small><span>{html.escape(status.method)} · seed {status.seed}</span>"
        f"<span>{html.escape(status.created[:16].replace('T', ' '))}</span>{why}</small>"
        f'<span class="acts">{tick}{buttons}</span></article>'
    )


def _label_html(key: str, text: str, run_id: str, is_mine: bool) -> str:
    """A text that its owner may change in place."""
    if not is_mine:
        return f"<b>{text}</b>" if key == "name" else f"<small>{text}</small>"
    return (
        f'<input type="text" class="{key}" data-act="{key}" data-run="{run_id}" value="{text}" maxlength="{LONGEST}" '
        f'placeholder="{"+ tag" if key == "tag" else "name"}" aria-label="{key.capitalize()} of {run_id}">'
    )


def _picture_html(run: Run) -> str:
    file = run.last_view
    if file is None:
        return '<span class="shot"></span>'
    address = file_url(run.id, file.relative_to(run.folder).as_posix(), file_version(file))
    film = run.folder / EXPORTS / "timelapse.webp"
    lapse = ""
    if version := file_version(film):
        lapse = f'<img class="film" data-src="{file_url(run.id, f"{EXPORTS}/timelapse.webp", version)}" alt="">'
    return f'<span class="shot"><img src="{address}" alt="front view" loading="lazy" style="width:auto">{lapse}</span>'
