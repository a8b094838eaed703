"""The bar that every tab has above it: what the run does now, how far it is, and the buttons that steer it."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import gradio as gr

from psd.ui.inputs.components import FreeNumber
from psd.ui.markup.html import EXPORTS, file_url, file_version, format_minutes, note_html, state_badge
from psd.ui.state.page import Page, Pane, WatchedRun

FOREIGN = "Another browser started this run: here it can be watched and duplicated, but not steered."
OVER = "This run is over: Pause and Stop are for one that is going."
NONE = "No run yet: these buttons wait for one."


@dataclass(frozen=True)
class StatusBar:
    """The buttons that `psd.ui.build` wires, and the panes."""

    pause: gr.Button
    stop: gr.Button
    go_on: gr.Button
    more: gr.Number  # steps past the planned end
    duplicate: gr.Button
    message: gr.HTML  # what the buttons answer
    panes: list[Pane]


def status_bar() -> StatusBar:
    with gr.Column(elem_id="bar"):
        line = gr.HTML(status_line(WatchedRun()), elem_id="status")
        with gr.Row(elem_id="hand"):
            pause = gr.Button("Pause", interactive=False, elem_id="pause", min_width=96)
            stop = gr.Button("Stop & keep", variant="stop", interactive=False, elem_id="stop", min_width=96)
            go_on = gr.Button("Go on", interactive=False, elem_id="go-on", min_width=96)
            more = FreeNumber(
                0, label="steps more", interactive=False, elem_id="more",
                min_width=96, container=False,
            )  # fmt: skip
            duplicate = gr.Button("Duplicate", interactive=False, elem_id="duplicate", min_width=96)
        message = gr.HTML("", elem_id="bar-message")
    hand = [pause, stop, go_on, more, duplicate]
    panes = [
        Pane([line], status_html, lambda p: [status_html(p)]),
        Pane(hand, lambda p: (p.run.state, p.run.run_id, p.is_mine), _button_updates),
    ]
    return StatusBar(pause, stop, go_on, more, duplicate, message, panes)


def _button_updates(page: Page) -> list[Any]:
    """A run of another browser can be watched and duplicated only; one that is over can go on."""
    run, mine = page.run, page.is_mine
    can_go_on = mine and run.is_over and bool(run.run_id)
    left = run.view.total_steps - run.view.step
    return [
        gr.Button(
            "Continue" if run.state == "paused" else "Pause", interactive=mine and run.state in ("running", "paused")
        ),
        gr.Button(interactive=mine and not run.is_over and run.state != "stopping"),
        gr.Button(f"Go on to {run.view.total_steps}" if left else "Add steps:", interactive=can_go_on),
        FreeNumber(0 if left else max(10, run.view.total_steps // 4), interactive=can_go_on and not left),
        gr.Button(interactive=bool(run.run_id)),
    ]


def status_html(page: Page) -> str:
    """The status, and below it in a place that never changes its height: what went wrong, or why buttons are off."""
    run = page.run
    why = FOREIGN if run.run_id and not page.is_mine else OVER if run.run_id and run.is_over else ""
    why = why or (NONE if run.is_over else "")
    warning = run.view.warning if not run.is_over else ""
    notes = (trouble_html(run) or note_html(warning, "hint")) + note_html(why, "hint")
    return f'{status_line(run)}<div class="said">{notes}</div>'


def status_line(watched: WatchedRun) -> str:
    """State, progress, speed, time left and memory."""
    view = watched.view
    share = view.step / view.total_steps if view.total_steps else 0.0
    speed = view.steps_per_s
    left = view.remaining_s if watched.left_s is None else watched.left_s  # to the mesh, where that is known
    over = watched.is_over
    slots = (
        ("step", f"{view.step} / {view.total_steps} · {share:.0%}" if view.total_steps else "–"),
        ("speed", f"{speed:.2f} it/s" if speed and not over else "–"),
        ("took" if over else "left", format_minutes((view.time_s or None) if over else left)),
        ("memory", f"{watched.memory_bytes / 2**30:.1f} GB" if watched.memory_bytes else "–"),
        ("queue", f"{watched.ahead} ahead · {format_minutes(watched.wait_s)}" if watched.ahead else "–"),
    )
    cells = "".join(f'<span class="slot"><small>{name}</small><b>{value}</b></span>' for name, value in slots)
    return (
        f'<div class="status-line"><span role="status">{state_badge(watched.state)}</span>'
        f'<span class="what" title="{html.escape(watched.prompt)}">{html.escape(watched.prompt)}</span>{cells}'
        f"{_mesh_link(watched)}</div>"
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


def _mesh_link(watched: WatchedRun) -> str:
    """The mesh in one click, from every tab; its place is kept until there is one."""
    version = file_version(watched.folder / EXPORTS / "mesh.glb")
    if watched.view.mesh is None or not version:
        return '<span class="result"></span>'
    address = file_url(watched.run_id, f"{EXPORTS}/mesh.glb", version)
    return f'<a class="result" href="{address}" download>Mesh ready ↓</a>'
