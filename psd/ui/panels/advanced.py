"""The drawer of all settings: a shipped preset to start from, a field to find one, and every field by its use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from psd.config.preset import Preset, list_settings
from psd.runs.jobs.controls import LIVE_FIELDS
from psd.ui.inputs import controls
from psd.ui.inputs.controls import FieldControl
from psd.ui.markup.html import note_html
from psd.ui.panels.share import SharePanel
from psd.ui.state.page import QUIET, Page, Pane

FIRST_FIELDS = ("method", "steps")
TITLES = {"run": "Machine", "models": "Models", "negative": "Negative embedding"}
UNLOCKED_NOTE = "Every value of the next run. What can be moved during a run is under Steer."
LOCKED_NOTE = "Locked while this run goes on. Remix sets up a run of your own."
# Hides what holds none of the typed words, and groups of which nothing is left.
FIND = """(text) => {
    const words = text.toLowerCase().split(/\\s+/).filter(Boolean)
    for (const group of document.querySelectorAll('#advanced .group')) {
        let found = 0
        for (const block of group.querySelectorAll('[id^=control-]')) {
            const said = (block.id + ' ' + block.innerText).toLowerCase().replaceAll('_', ' ')
            const fits = words.every((word) => said.includes(word))
            block.classList.toggle('unfound', !fits)
            found += fits
        }
        group.classList.toggle('unfound', !found)
    }
}"""


@dataclass(frozen=True)
class Advanced:
    """The fields that no other place shows, and what is locked with them."""

    share: SharePanel
    parts: list[FieldControl]
    words: gr.HTML

    def lock_pane(self, others: Sequence[FieldControl]) -> Pane:
        """While a run is watched these values and those of ``others`` are its own; a line says so."""
        parts = [component for part in [*others, *self.parts] for component in part.components]
        locked = [*self.share.locked, *parts]

        def lock_updates(page: Page) -> list[Any]:
            is_free = page.run.is_over
            return [
                note_html(UNLOCKED_NOTE if is_free else LOCKED_NOTE, "hint"),
                *[gr.update(interactive=is_free)] * len(locked),
            ]

        return Pane([self.words, *locked], lambda p: p.run.is_over, lock_updates)


def build_advanced(name: str, preset: Preset) -> Advanced:
    """The drawer, in the current Blocks context."""
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        words = gr.HTML(note_html(UNLOCKED_NOTE, "hint"), elem_id="fixed")
        share = SharePanel(name)
        find = gr.Textbox("", label="Find a setting", placeholder="mesh, camera, reward …", elem_id="find")
        find.input(None, find, None, js=FIND, **QUIET)
        with gr.Column(elem_classes="group"):
            parts = [controls.make_control(field, preset) for field in FIRST_FIELDS]
        elsewhere = {"seed", *FIRST_FIELDS, *LIVE_FIELDS, *controls.ELSEWHERE}
        fields = controls.group_fields([name for name in list_settings() if name not in elsewhere])
        for group, names in fields.items():
            with gr.Column(elem_classes="group"):
                gr.HTML(f"<h3>{TITLES.get(group, group.capitalize())}</h3>")
                parts += [controls.make_control(field, preset) for field in names]
    return Advanced(share, parts, words)
