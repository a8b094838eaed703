"""The bar that every tab has above it: what the run does now, how far it is, and the hand on it."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import gradio as gr

from psd.ui.markup import EXPORTS, badge, duration, url
from psd.ui.page import Pane, Watched


@dataclass(frozen=True)
class Bar:
    """The buttons that `psd.ui` wires, and the panes."""

    pause: gr.Button
    stop: gr.Button
    duplicate: gr.Button
    panes: list[Pane]


def status_bar() -> Bar:
    with gr.Column(elem_id="bar"):
        line = gr.HTML(status(Watched()), elem_id="status")
        with gr.Row(elem_id="hand"):
            pause = gr.Button("Pause", interactive=False, elem_id="pause", min_width=96, size="md")
            stop = gr.Button("Stop & keep", variant="stop", interactive=False, elem_id="stop", min_width=96, size="md")
            duplicate = gr.Button("Duplicate", interactive=False, elem_id="duplicate", min_width=96, size="md")
    buttons = [pause, stop, duplicate]
    return Bar(
        pause, stop, duplicate,
        [
            Pane([line], lambda p: status(p.run), lambda p: [status(p.run)]),
            Pane(buttons, lambda p: (p.run.state, bool(p.run.run_id)), lambda p: _buttons(p.run)),
        ],
    )  # fmt: skip


def _buttons(watched: Watched) -> list[Any]:
    going = not watched.is_over
    return [
        gr.Button(
            "Continue" if watched.state == "paused" else "Pause", interactive=watched.state in ("running", "paused")
        ),
        gr.Button(interactive=going and watched.state != "stopping"),
        gr.Button(interactive=bool(watched.run_id)),
    ]


def status(watched: Watched) -> str:
    """State, progress, speed, time left, memory, and what went wrong with its cure."""
    view = watched.view
    share = view.step / view.total_steps if view.total_steps else 0.0
    speed, left = view.steps_per_s, view.remaining_s
    over = watched.is_over
    slots = (
        ("step", f"{view.step} / {view.total_steps} · {share:.0%}" if view.total_steps else "–"),
        ("speed", f"{speed:.2f} it/s" if speed and not over else "–"),
        ("took" if over else "left", duration((view.time_s or None) if over else left)),
        ("memory", f"{watched.memory_bytes / 2**30:.1f} GB" if watched.memory_bytes else "–"),
        ("queue", f"{watched.ahead} ahead" if watched.ahead else "–"),
    )
    cells = "".join(f'<span class="slot"><small>{name}</small><b>{value}</b></span>' for name, value in slots)
    trouble = " ".join(filter(None, (view.problem or watched.message, view.cure)))
    if not trouble and over and view.mesh is None:
        trouble = view.warning  # why there is no mesh
    return (
        f'<div class="status-line"><span role="status">{badge(watched.state)}</span>'
        f'<span class="what" title="{html.escape(watched.prompt)}">{html.escape(watched.prompt)}</span>{cells}'
        f"{_result(watched)}</div>"
        f'<div class="progress" role="progressbar" aria-label="progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * share:.0f}"><i style="width:{share:.1%}"></i></div>'
        + (f'<div class="trouble" role="alert">{html.escape(trouble)}</div>' if trouble else "")
    )


def _result(watched: Watched) -> str:
    """The mesh in one click, from every tab; its place is kept until there is one."""
    mesh = watched.view.mesh
    if mesh is None or not (watched.folder / EXPORTS / "mesh.glb").is_file():
        return '<span class="result"></span>'
    return f'<a class="result" href="{url(watched, f"{EXPORTS}/mesh.glb", mesh.step)}" download>Mesh ready ↓</a>'
