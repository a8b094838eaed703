"""The stage: one place for the object, from the first picture of a run to its mesh, with the time line below it."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr

from psd.distillation.events import Previewed
from psd.runs.jobs.orbit import snap_camera
from psd.runs.store.archive import Run, preview_file
from psd.ui.inputs.components import FreeRadio, FreeSlider, RunViewer
from psd.ui.markup.change_words import list_rules
from psd.ui.markup.html import (
    EXPORTS,
    file_url,
    file_version,
    format_size,
    name_download,
    note_html,
    shot_names,
)
from psd.ui.panels.shelf import ShelfPanel
from psd.ui.panels.status import FOREIGN, trouble_html
from psd.ui.state.page import FRONT_CAMERA, MAKE, QUIET, Look, Page, Pane, WatchedRun

if TYPE_CHECKING:
    from psd.ui.context import PageContext

PREVIEW_KINDS = {"Colour": "rgb", "Normals": "normal", "Depth": "depth", "Opacity": "opacity"}
FILMS = {"Turntable": f"{EXPORTS}/turntable.mp4", "Timelapse": f"{EXPORTS}/timelapse.mp4"}
SURFACES = ("Mesh", "Wireframe")  # as the viewer draws the mesh
SPLAT_VIEW = "Splats"  # what a mesh of Gaussians was made of, in the same viewer
MESH_FILE, SPLAT_FILE = f"{EXPORTS}/mesh.glb", f"{EXPORTS}/mesh.splat"
MOST_STEPS = 200_000  # of any run
SLOTS = 8  # pictures on the time line
START_VIEW = (60.0, 72.0, None)  # of the mesh: three quarters
# A drag, or an arrow key, says where the camera stands once the hand rests: each side that is asked for is rendered,
# and a run has time for few.  Until the picture comes, the nearest of the views of the newest preview, which lies below
# it, stands in.
REST_MS = 120
TURN_OBJECT = (
    f"const rest = {REST_MS}"
    + """
let from = null, wanted = null, timer = 0, number = 0
const box = () => element.querySelector('.large')
function place(azimuth, elevation) {
  wanted = [(azimuth % 360 + 360) % 360, Math.min(75, Math.max(-30, elevation))]
  const views = +box().dataset.views, sprite = box().querySelector('.sprite')
  if (sprite) sprite.style.transform = `translateX(${-100 / views * (Math.round(wanted[0] / 360 * views) % views)}%)`
  const off = Math.abs((wanted[0] - box().dataset.azimuth + 540) % 360 - 180)
  box().classList.toggle('turning', off > 20)
  clearTimeout(timer)
  timer = setTimeout(() => trigger('input', {azimuth: wanted[0], elevation: wanted[1], number: ++number}), rest)
}
const start = () => [+box().dataset.azimuth, +box().dataset.elevation]
element.addEventListener('pointerdown', event => {
  if (!event.target.closest('.turns')) return
  from = [event.clientX, event.clientY, ...start()]
  event.target.closest('.turns').setPointerCapture(event.pointerId)
})
element.addEventListener('pointermove', event => {
  if (from) place(from[2] - (event.clientX - from[0]) / 2, from[3] + (event.clientY - from[1]) / 3)
})
for (const name of ['pointerup', 'pointercancel']) element.addEventListener(name, () => { from = null })
element.addEventListener('keydown', event => {
  const step = {ArrowLeft: [15, 0], ArrowRight: [-15, 0], ArrowUp: [0, 9], ArrowDown: [0, -9]}[event.key]
  if (!step || !event.target.closest('.turns')) return
  event.preventDefault()
  const [azimuth, elevation] = wanted ?? start()
  place(azimuth + step[0], elevation + step[1])
})
"""
)
PICK = """element.addEventListener('click', event => {
  const button = event.target.closest('button[data-step]')
  if (button) trigger('click', {step: +button.dataset.step})
})"""
COPY = """element.addEventListener('click', async event => {
  const button = event.target.closest('button[data-copy]')
  if (!button) return
  const link = new URL(button.dataset.copy, location.href).href
  try { await navigator.clipboard.writeText(link); button.textContent = 'Copied' }
  catch { window.prompt('Copy this link:', link) }  // a browser hands its clipboard to secure pages only
  setTimeout(() => { button.textContent = 'Copy link' }, 2000)
})"""


def read_turn(before: list[int], said: Mapping[str, Any]) -> list[int]:
    """The camera that a hand has come to and the count of its moves; one that arrives late is passed over."""
    try:
        azimuth, elevation, number = (float(said.get(key)) for key in ("azimuth", "elevation", "number"))  # pyright: ignore
        camera, count = snap_camera(azimuth, elevation), int(number)
    except (TypeError, ValueError, OverflowError):  # no numbers: nobody's hand
        return before
    return [*camera, count] if count > before[2] else before


class StagePanel:
    """The components, in the current Blocks context; ``shipped`` are the runs of its shelf."""

    def __init__(self, shipped: Sequence[Run] = ()) -> None:
        with gr.Column(elem_id="view"):
            self.show = FreeRadio(
                list(PREVIEW_KINDS), value=Look.show, label="Show", container=False, show_label=False, elem_id="show"
            )
            self.viewer = RunViewer(
                label="Mesh", show_label=False, interactive=False, elem_id="viewer",
                clear_color=(0.0, 0.0, 0.0, 0.0), camera_position=START_VIEW,
            )  # fmt: skip
            film = gr.HTML(film_html(Page()), elem_id="film")
            self.picture = gr.HTML(picture_html(Page()), elem_id="picture", js_on_load=TURN_OBJECT)
            said = gr.HTML(said_html(Page()), elem_id="said")
            self.shelf = ShelfPanel(shipped)
        self.at, self.orbit = gr.State(0), gr.State([*FRONT_CAMERA, 0])
        self.line = gr.HTML(timeline_html(Page()), elem_id="timeline", js_on_load=PICK)
        with gr.Row(elem_id="scrubbing"):
            self.step = FreeSlider(
                0, 60, value=0, step=1, label="Step", show_label=False, elem_id="scrub", min_width=180, buttons=[],
                container=False,
            )  # fmt: skip
            self.follow = gr.Checkbox(True, label="Live", elem_id="follow", min_width=80, scale=0, container=False)
        self.panes = [
            *self.shelf.panes,
            _html_pane(self.picture, picture_html),
            _html_pane(film, film_html),
            _html_pane(said, said_html),
            _html_pane(self.line, timeline_html),
            Pane([self.step], _slider_state, _update_slider, MAKE),
            Pane([self.viewer], _mesh_version, _update_viewer, MAKE),
            Pane([self.show], lambda p: (p.run.run_id, list_surfaces(p.run)), _update_show, MAKE),
        ]

    def wire_events(self, desk: PageContext) -> None:
        """Looking back stops following."""

        refresh, place = desk.news["fn"], desk.news["inputs"].index(self.orbit) - 4  # among `seen`

        def turn(event: gr.EventData, run: str, owner: str, old: list, viewer: gr.Model3D, *seen: Any) -> list[Any]:
            """Where the hand has come to, and the page from there in the same answer."""
            orbit = read_turn(seen[place], event._data)
            return [orbit, *refresh(run, owner, old, viewer, *seen[:place], orbit, *seen[place + 1 :])]

        self.step.input(
            _look_back, [self.step, self.show], [self.at, self.follow, self.show], trigger_mode="always_last", **QUIET
        ).then(**desk.news)
        self.wire_pick(self.line, desk)
        self.shelf.wire_events(desk)
        # Not "always_last", which sends the first of the events that waited.
        news = {**desk.news, "fn": turn, "outputs": [self.orbit, *desk.news["outputs"]]}
        self.picture.input(trigger_mode="multiple", **news)
        for component in (self.show, self.follow):
            component.input(**desk.news)

    def wire_pick(self, component: gr.HTML, desk: PageContext) -> None:
        """A click on ``component`` that names a step looks back to it."""

        def pick(show: str, event: gr.EventData) -> list[Any]:
            step = event._data.get("step")
            return _look_back(step if isinstance(step, int) and 0 <= step <= MOST_STEPS else 0, show)

        component.click(pick, self.show, [self.at, self.follow, self.show], **QUIET).then(**desk.news)


def build_take() -> Pane:
    """What can be taken away of a run."""
    take = gr.HTML(take_html(WatchedRun()), elem_id="take", js_on_load=COPY)
    return _html_pane(take, lambda page: take_html(page.run))


def _look_back(step: float | None, show: str) -> list[Any]:
    return [int(step or 0), False, show if show in PREVIEW_KINDS else "Colour"]


def _html_pane(component: gr.HTML, make: Any) -> Pane:
    return Pane([component], make, lambda page: [make(page)], MAKE)


# ---- what the newest picture is


def find_preview(watched: WatchedRun, look: Look) -> Previewed | None:
    """The preview that the stage shows: the newest, or the one of the step that was chosen; None before the first."""
    previews = watched.view.previews
    return previews.last if look.follow else previews.at(look.step)


def _slider_state(page: Page) -> tuple[int, int | None]:
    """What the slider shows: it moves by itself while the newest is followed."""
    newest = page.run.view.previews.last
    return page.run.view.total_steps or 1, (newest.step if newest else 0) if page.look.follow else page.look.step


def _update_slider(page: Page) -> list[Any]:
    total, step = _slider_state(page)
    return [gr.Slider(maximum=total, value=min(step or 0, total))]


def has_mesh(watched: WatchedRun) -> bool:
    return watched.is_over and watched.view.mesh is not None and bool(watched.view.mesh.file)


def list_surfaces(watched: WatchedRun) -> tuple[str, ...]:
    """What the viewer can show of a run: nothing before it has a mesh."""
    if not has_mesh(watched):
        return ()
    return (*SURFACES, SPLAT_VIEW) if (watched.folder / SPLAT_FILE).is_file() else SURFACES


def _update_show(page: Page) -> list[Any]:
    """A run that has a mesh shows it; one that has none yet, its colours."""
    if surfaces := list_surfaces(page.run):
        return [FreeRadio([*surfaces, *list_pictures(page.run)], value="Mesh")]
    return [FreeRadio(list(PREVIEW_KINDS), value="Colour")]


def list_pictures(watched: WatchedRun) -> list[str]:
    """The films and pictures that can be chosen beside the mesh: of a run that ships only those that came with it."""
    if not watched.is_shipped:
        return [*FILMS, *PREVIEW_KINDS]
    last = watched.view.previews.last
    files = FILMS | {name: preview_file(last.step, kind) for name, kind in PREVIEW_KINDS.items() if last is not None}
    return [name for name, file in files.items() if (watched.folder / file).is_file()]


def _mesh_version(page: Page) -> object:
    """Changes with the mesh's file and how it is drawn; what a run had before it goes on is not shown meanwhile."""
    mesh = page.run.view.mesh if has_mesh(page.run) else None
    version = mesh and mesh.file and file_version(page.run.folder / mesh.file)
    return page.run.run_id, version, page.look.show if page.look.show in ("Wireframe", SPLAT_VIEW) else "Mesh"


def _update_viewer(page: Page) -> list[Any]:
    """The mesh as its file is now; a new value would turn the camera back, so its place goes along.

    No two addresses are equal: Gradio's viewer asks how to draw only as it loads an address, and given the same one
    again while its code is on the way it stays empty.
    """
    run, camera = page.run, page.look.viewer_camera
    file = run.view.mesh.file if has_mesh(run) and run.view.mesh else None
    if file is None:
        return [RunViewer(None)]
    shown, end = file, "#{}"
    if page.look.show == SPLAT_VIEW and SPLAT_VIEW in list_surfaces(run):
        shown, end = SPLAT_FILE, "#{}.splat"  # the viewer knows a file of splats by the end of its address
    address = file_url(run.run_id, shown, file_version(run.folder / shown)) + end.format(time.monotonic_ns())
    return [
        RunViewer(
            address,
            display_mode="wireframe" if page.look.show == "Wireframe" else "solid",
            camera_position=START_VIEW if camera == (None, None, None) else camera,
        )
    ]


# ---- HTML


def picture_html(page: Page) -> str:
    """The object, large: from the side that the hand has turned it to, or the nearest of the views that were kept."""
    run, look = page.run, page.look
    seen, names = find_preview(run, look), shot_names(run.shots)
    if seen is None or seen.file is None:
        return f'<div class="shot large empty"><p class="hint"><span class="over">{_waiting_text(run)}</span></p></div>'
    kind = PREVIEW_KINDS.get(look.show, "rgb")
    azimuth, elevation = look.orbit
    place = round(azimuth / 360 * len(names)) % len(names)
    file = preview_file(seen.step, kind)
    version = file_version(run.folder / file)
    if kind != "rgb" and not version:
        return f'<div class="shot large empty"><p class="hint">This run keeps no {look.show.lower()}.</p></div>'
    sprite = (
        f'<img class="sprite" src="{file_url(run.run_id, file, version)}" draggable="false" '
        f'alt="{html.escape(f"{run.prompt}, {names[place]}, {look.show.lower()}, step {seen.step}")}" '
        f'style="width:{len(names)}00%;transform:translateX({-100 * place / len(names):g}%)">'
    )
    shown, orbit, step = "", page.orbit_picture if look.follow and kind == "rgb" else None, seen.step
    if orbit is not None:
        azimuth, elevation = orbit.camera
        data, step = base64.b64encode(orbit.jpeg).decode(), orbit.step
        shown = (
            f'<img class="turned" src="data:image/jpeg;base64,{data}" draggable="false" '
            f'alt="{html.escape(f"{run.prompt}, from {azimuth}°, step {step}")}">'
        )
    hint = f"step {step}" + (" · drag to turn" if not run.is_over or len(names) > 1 else "")
    return (
        f'<div class="shot large turns" tabindex="0" role="group" data-views="{len(names)}" data-azimuth="{azimuth}" '
        f'data-elevation="{elevation}" aria-label="The object: drag or use the arrow keys to turn it">'
        f"{sprite}{shown}<span>{hint}</span></div>"
    )


def _waiting_text(watched: WatchedRun) -> str:
    text = {
        "idle": "Describe an object and press Run. It grows here, in a few minutes.",
        "queued": "Waiting for the run before this one.",
        "loading": "Loading the models. The first picture follows within seconds.",
    }
    late = "This run made no picture." if watched.is_over else "The first picture is on its way."
    return text.get(watched.state, late)


def film_html(page: Page) -> str:
    """The film that was chosen, looping silently: the mesh as it turns, or the object as it grew."""
    run, name = page.run, page.look.show
    if name not in FILMS or not has_mesh(run):
        return ""
    version = file_version(run.folder / FILMS[name])
    if not version:
        return f'<p class="hint">There is no {name.lower()} yet. If it cannot be made, the log says why.</p>'
    address = file_url(run.run_id, FILMS[name], version)
    return f'<video src="{address}" autoplay loop muted playsinline controls aria-label="{name}"></video>'


def said_html(page: Page) -> str:
    """What went wrong or must be known, over the picture: nothing on the page moves for it."""
    run = page.run
    warning = run.view.warning if not run.is_over else ""
    foreign = FOREIGN if run.run_id and not page.is_mine and not run.is_shipped else ""
    return (trouble_html(run) or note_html(warning, "hint")) + note_html(foreign, "hint")


def timeline_html(page: Page) -> str:
    """Pictures from the start to the planned end, those to come empty; a mark at each step where a value was moved."""
    run, look = page.run, page.look
    view, total = run.view, max(run.view.total_steps, 1)
    newest, slots = view.previews.last, []
    now = newest.step if newest and look.follow else look.step
    for slot in range(SLOTS):
        step = round(slot * total / (SLOTS - 1))
        seen = view.previews.at(step) if newest and newest.step >= step else None
        if seen is None or seen.file is None:
            slots.append('<span class="shot thumb empty"></span>')
            continue
        later = round((slot + 1) * total / (SLOTS - 1))
        is_now = ' aria-current="step"' if seen.step <= now < later else ""
        address = file_url(run.run_id, seen.file, file_version(run.folder / seen.file))
        slots.append(
            f'<button type="button" class="shot thumb" data-step="{seen.step}" aria-label="Look at step {seen.step}"'
            f'{is_now}><img src="{address}" alt="" draggable="false" style="width:{run.shots}00%">'
            f"<span>{seen.step}</span></button>"
        )
    marks = "".join(
        f'<button type="button" data-step="{step}" style="left:{100 * step / total:.1f}%" '
        f'title="step {step}: {html.escape(text)}" aria-label="Step {step}: {html.escape(text)}"></button>'
        for step, text in list_rules(view)
    )
    return f'<div class="thumbs">{"".join(slots)}</div><div class="marks">{marks}</div>'


def take_html(watched: WatchedRun) -> str:
    """The mesh to take away under the prompt's name, with its size, and a link to the run."""
    path = watched.folder / MESH_FILE
    version = file_version(path) if has_mesh(watched) else 0
    copy = (
        f'<button type="button" class="file" data-copy="?run={html.escape(quote(watched.run_id))}">Copy link</button>'
        if watched.run_id else ""
    )  # fmt: skip
    if not version:
        return copy
    name = name_download(watched.run_id, "mesh.glb")
    return (
        f'<a class="file primary" href="{file_url(watched.run_id, MESH_FILE, version)}" download="{name}">'
        f"<span>Download {html.escape(name)}</span> <small>{format_size(path.stat().st_size)}</small></a>{copy}"
    )
