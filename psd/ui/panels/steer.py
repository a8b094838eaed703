"""Steer: the values that can be moved while a run goes on, in sight of the picture that they change."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from psd.config.preset import WITHOUT_REWARD, Preset
from psd.runs.jobs.controls import LIVE_FIELDS
from psd.ui.inputs import controls
from psd.ui.inputs.controls import FieldControl
from psd.ui.markup.change_words import list_moves
from psd.ui.markup.html import note_html
from psd.ui.state.page import MAKE, QUIET, Page, Pane

FIRST_MOVED = ("guidance_scale", "preference_weight", "rewards")  # what moves a picture most
FREE_NOTE = "For the next run. Each of these can be moved while it goes on."
MINE_NOTE = "Move one: the run follows from its next step."
THEIRS_NOTE = "Another browser steers this run."
LATEST = 3  # moves that are listed
# What counts in some runs only; elsewhere it would be a slider that does nothing.
COUNTS: dict[str, Callable[[str, str, bool], bool]] = {  # of a method, a kind of pair, and a negative that learns
    "preference_weight": lambda method, pair, learns: method not in WITHOUT_REWARD and method != "reward_gradient",
    "preference_scale": lambda method, pair, learns: method == "psd" and pair == "random",
    "reward_gradient_weight": lambda method, pair, learns: method == "reward_gradient",
    "negative_lr": lambda method, pair, learns: learns,
}


def build_steer(preset: Preset) -> tuple[list[FieldControl], gr.HTML, Pane]:
    """The live controls, the line above them that says what they do now, and the list of what was moved."""
    gr.HTML("<h2>Steer</h2>")
    line = gr.HTML(note_html(FREE_NOTE, "hint"), elem_id="locked")
    parts = [controls.make_control(name, preset) for name in sorted(LIVE_FIELDS, key=_order_field)]
    for part in parts:
        if part.name in COUNTS:
            part.components[0].visible = COUNTS[part.name](preset.method, preset.pair, preset.negative)
    moves = gr.HTML(moves_html(Page()), elem_id="moves")
    return parts, line, Pane([moves], moves_html, lambda p: [moves_html(p)], MAKE)


def wire_steer(parts: list[FieldControl]) -> None:
    """Show of the live controls those that count in the next run."""
    by_name = {part.name: part.components[0] for part in parts}
    asked = [by_name[name] for name in ("method", "pair", "negative")]

    def show_counting(method: str, pair: str, learns: bool) -> list[Any]:
        return [gr.update(visible=counts(method, pair, learns)) for counts in COUNTS.values()]

    gr.on(
        [component.change for component in asked],  # pyright: ignore[reportAttributeAccessIssue] - all have it
        show_counting, asked, [by_name[name] for name in COUNTS], **QUIET,
    )  # fmt: skip


def _order_field(name: str) -> int:
    return FIRST_MOVED.index(name) if name in FIRST_MOVED else len(FIRST_MOVED)


def steer_words(page: Page) -> str:
    return FREE_NOTE if page.run.is_over else MINE_NOTE if page.is_mine else THEIRS_NOTE


def moves_html(page: Page) -> str:
    """The last moves, and the values that stages brought along, newest first."""
    rules = list_moves(page.run.view)[: -LATEST - 1 : -1]
    return "".join(f"<p>▾ step {step}: {html.escape(text)}</p>" for step, text in rules)
