"""The bar above the stage: what the run does now, how far it is, and the buttons that can be pressed now."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import gradio as gr

from psd.ui.inputs.components import FreeNumber
from psd.ui.markup.change_words import name_stage
from psd.ui.markup.html import format_minutes, state_badge
from psd.ui.state.page import MAKE, Page, Pane, WatchedRun

FOREIGN = "Another browser started this run: watch it, or press Remix to set up one of your own."

# The window's title and sign tell whoever works elsewhere how far the run is, and that it is done; so does the browser
# itself, where the bell was pressed.
TELL = """
const wanted = () => localStorage.getItem('psd-bell') === 'on' && window.Notification?.permission === 'granted'
let before = ''
const signs = {finished: '#16a34a', stopped: '#16a34a', failed: '#b45309', interrupted: '#b45309', idle: '#64748b'}
const tell = () => {
  const {state, share, prompt} = element.querySelector('.status-line').dataset
  const over = {finished: '✓', stopped: '✓', failed: '✗', interrupted: '✗'}[state]
  document.title = state === 'idle' ? 'PSD Studio' : `${over ?? share} ${prompt} · PSD Studio`
  const picture = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">` +
    `<circle cx="8" cy="8" r="7" fill="${signs[state] ?? '#0f766e'}"/></svg>`
  const link = document.querySelector('link[rel=icon]') ?? document.head.appendChild(document.createElement('link'))
  Object.assign(link, {rel: 'icon', href: 'data:image/svg+xml,' + encodeURIComponent(picture)})
  const bell = element.querySelector('.bell')
  if (bell) {
    bell.hidden = !window.Notification  // a browser has them on secure pages only
    bell.setAttribute('aria-pressed', wanted())
    if (window.Notification?.permission === 'denied') bell.title = 'This browser blocks notifications of this page'
  }
  if (before && !signs[before] && over && wanted()) new Notification(`${over} ${prompt}`, {body: 'PSD Studio'})
  before = state
}
element.addEventListener('click', async event => {
  if (!event.target.closest('.bell') || !window.Notification) return
  const rings = !wanted() && await Notification.requestPermission() === 'granted'
  localStorage.setItem('psd-bell', rings ? 'on' : 'off')
  tell()
})
tell()
watch('value', tell)
"""


@dataclass(frozen=True)
class StatusBar:
    """The buttons that `psd.ui.build` wires, and the panes."""

    pause: gr.Button
    stop: gr.Button
    go_on: gr.Button
    more: gr.Number  # steps past the planned end
    remix: gr.Button
    message: gr.HTML  # what the buttons answer
    panes: list[Pane]


def build_status() -> Pane:
    """The line of state and progress."""
    line = gr.HTML(status_line(WatchedRun()), elem_id="status", js_on_load=TELL)
    return Pane([line], lambda p: status_line(p.run), lambda p: [status_line(p.run)])


def build_hand() -> StatusBar:
    """The buttons that steer a run; each shows while it can be pressed."""
    with gr.Row(elem_id="hand"):
        pause = gr.Button("Pause", visible=False, elem_id="pause", min_width=88, scale=0)
        stop = gr.Button("Stop & keep", variant="stop", visible=False, elem_id="stop", min_width=112, scale=0)
        go_on = gr.Button("Go on", visible=False, elem_id="go-on", min_width=96, scale=0)
        more = FreeNumber(
            0, label="Steps more", visible=False, elem_id="more", min_width=72, scale=0, container=False,
            show_label=False,
        )  # fmt: skip
        remix = gr.Button("Remix", visible=False, elem_id="remix", min_width=80, scale=0)
    message = gr.HTML("", elem_id="bar-message")
    hand = [pause, stop, go_on, more, remix]
    key = Pane(hand, lambda p: (p.run.state, p.run.run_id, p.is_mine), _button_updates, MAKE)
    return StatusBar(pause, stop, go_on, more, remix, message, [key])


def _button_updates(page: Page) -> list[Any]:
    """A run of another browser can be watched and remixed only; one that is over can go on."""
    run, mine = page.run, page.is_mine
    is_going, can_go_on = mine and not run.is_over, mine and run.is_over and bool(run.run_id)
    left = run.view.total_steps - run.view.step
    paused = run.state == "paused"
    return [
        gr.Button("Continue" if paused else "Pause", visible=is_going, interactive=run.state in ("running", "paused")),
        gr.Button(visible=is_going, interactive=run.state != "stopping"),
        gr.Button(f"Go on to {run.view.total_steps}" if left else "Add steps", visible=can_go_on),
        FreeNumber(0 if left else max(10, run.view.total_steps // 4), visible=can_go_on and not left),
        gr.Button("Make my own" if run.is_shipped else "Remix", visible=bool(run.run_id)),
    ]


def status_line(watched: WatchedRun) -> str:
    """State, prompt, progress and time left."""
    view = watched.view
    share = view.step / view.total_steps if view.total_steps else 0.0
    over = watched.is_over
    left = view.remaining_s if watched.left_s is None else watched.left_s  # to the mesh, where that is known
    slots = [("step", f"{view.step} / {view.total_steps}")] if view.total_steps else []
    if stages := len(view.preset.get("stages", [])):
        slots.insert(0, (f"stage {view.stage + 1} of {stages}", html.escape(name_stage(view, view.stage))))
    if watched.ahead:
        slots.append(("in the queue", f"{watched.ahead} ahead · {format_minutes(watched.wait_s)}"))
    elif seconds := view.time_s if over else left:
        slots.append(("took" if over else "left", format_minutes(seconds)))
    cells = "".join(
        f'<span class="slot {name.partition(" ")[0]}-slot"><small>{name}</small><b>{value}</b></span>'
        for name, value in slots
    )
    bell = (
        "" if over else
        '<button type="button" class="bell" aria-label="Notify me when it is done" title="Notify me when it is done">'
        "🔔</button>"
    )  # fmt: skip
    return (
        f'<div class="status-line" data-state="{html.escape(watched.state)}" data-share="{share:.0%}" '
        f'data-prompt="{html.escape(watched.prompt)}"><span role="status">{state_badge(watched.state)}</span>'
        f'<span class="what" title="{html.escape(watched.prompt)}">{html.escape(watched.prompt)}</span>'
        f"{bell}{cells}</div>"
        f'<div class="progress" role="progressbar" aria-label="progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * share:.0f}"><i style="width:{share:.1%}"></i></div>'
    )


def trouble_html(watched: WatchedRun) -> str:
    """What went wrong, with its cure; of a failed run also the last warning: it says what was tried before."""
    view = watched.view
    text = " ".join(filter(None, (view.problem or watched.message, view.cure)))
    if not text and watched.is_over and view.mesh is None:
        text = view.warning  # why there is no mesh
    elif view.problem and view.warning:
        text += f" Before that: {view.warning}"
    return f'<div class="trouble" role="alert">{html.escape(text)}</div>' if text else ""
