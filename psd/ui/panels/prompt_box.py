"""Prompt, quality, seed and Run; with a vocabulary also how the prompt is read, suggestions and what can be made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.runs.jobs.estimate import RunEstimate
from psd.runs.store.files import StoreError
from psd.ui.inputs import controls
from psd.ui.inputs.components import FreeRadio
from psd.ui.inputs.controls import FieldControl
from psd.ui.inputs.origin import find_origin, load_shipped
from psd.ui.inputs.vocabulary import LONGEST_PROMPT, Vocabulary
from psd.ui.markup import html
from psd.ui.panels.prompt_help import PromptHelp, build_reading, build_suggestions
from psd.ui.state.page import QUIET

if TYPE_CHECKING:
    from psd.ui.context import PageContext

EXPECT_S = 30.0  # between two looks whether the time is known by now
# Where the stage is not beside the prompt, Run goes there.
SHOW_STAGE = """() => {
    const stage = document.querySelector('#stage')
    if (stage.getBoundingClientRect().top > innerHeight / 2) stage.scrollIntoView()
}"""
QUALITIES = {"Draft": 0.5, "Normal": 1.0, "Fine": 2.0}  # multiples of the shipped preset's steps


@dataclass(frozen=True)
class PromptBox:
    """What a newcomer needs: the prompt, how well it is to be made, the seed and Run."""

    prompt: gr.Textbox
    message: gr.HTML
    run: gr.Button
    expected: gr.HTML  # how long it will take
    estimate: gr.Button  # while that is not known
    quality: gr.Radio
    seed: FieldControl
    is_new_seed: gr.Checkbox
    help: PromptHelp | None  # where the page's first preset has a vocabulary

    @property
    def parts(self) -> list[FieldControl]:
        return [self.seed]

    def wire_events(self, desk: PageContext, blocks: gr.Blocks) -> None:
        """Quality sets the steps; steps, wherever they come from, say the quality and the time."""
        if self.help:
            self.help.wire_events(self.prompt, self.message, desk.base, desk.vocabularies)
        steps = next(part for part in desk.parts if part.name == "steps").components[0]

        def set_steps(quality: str, base: Mapping[str, Any]) -> Any:
            share = QUALITIES.get(quality)
            return gr.skip() if share is None else round(share * _shipped_steps(base))

        def show_expected(*given: Any) -> list[Any]:
            try:
                preset = desk.read_controls(*given)
            except PresetError:  # said where it is pressed
                return [gr.skip()] * 3
            return _describe_time(preset, given[0], desk.worker.known_pace(preset))

        def estimate_time(*given: Any) -> list[Any]:
            """Time by a warm-up of a few steps."""
            try:
                preset = desk.read_controls(*given)
                pace = desk.worker.estimate(preset)
            except (PresetError, StoreError) as error:
                return [html.note_html(str(error)), gr.skip(), gr.skip()]
            if pace is None:
                said = "The device is busy with a run: the time needs it for a few seconds."
                return [html.note_html(said, "hint"), gr.skip(), gr.skip()]
            return _describe_time(preset, given[0], pace)

        answers = [self.expected, self.quality, self.estimate]
        expected = {"fn": show_expected, "inputs": desk.given, "outputs": answers, **QUIET}
        self.quality.input(set_steps, [self.quality, desk.base], steps, **QUIET)
        gr.on(
            [steps.change, desk.base.change],  # pyright: ignore
            trigger_mode="always_last", **expected,
        )  # fmt: skip
        blocks.load(**expected)
        waiting = gr.Timer(EXPECT_S)  # a server that has just begun is still measuring
        waiting.tick(**expected).then(
            lambda said: gr.Timer(active=not said), self.expected, waiting, **QUIET
        )  # fmt: skip
        self.estimate.click(
            estimate_time, desk.given, answers, show_progress="minimal", api_visibility="private", concurrency_limit=1
        )
        for component in self.seed.components:  # a seed that is typed is meant
            component.input(lambda: False, None, self.is_new_seed, **QUIET)  # pyright: ignore


def _shipped_steps(base: Mapping[str, Any]) -> int:
    return load_shipped(find_origin(Preset.make(base))[0]).steps


def _describe_time(preset: Preset, base: Mapping[str, Any], pace: RunEstimate | None) -> list[Any]:
    """The line under Run, the qualities with their minutes, and whether there is something left to estimate."""
    usual = _shipped_steps(base)
    choices = []
    for name, share in QUALITIES.items():
        steps = round(share * usual)
        time = f" · {html.format_about(pace.left_s(preset.with_values({'steps': steps})))}" if pace else ""
        choices.append((name + time, name))
    chosen = next((name for name, share in QUALITIES.items() if round(share * usual) == preset.steps), None)
    memory = f", {pace.memory_bytes / 2**30:.1f} GB" if pace and pace.memory_bytes else ""
    said = f"About {html.format_about(pace.left_s(preset))} on this machine{memory}." if pace else ""
    return [
        f'<p class="quiet">{said}</p>' if said else "",
        FreeRadio(choices, value=chosen),
        gr.Button(visible=pace is None),
    ]


def build_prompt_box(preset: Preset, vocabulary: Vocabulary | None) -> PromptBox:
    """The components, in the current Blocks context; without a vocabulary any prompt goes."""
    prompt = gr.Textbox(
        preset.prompt, label="Prompt", info=None if vocabulary else "Any object.",
        placeholder=vocabulary.examples[0] if vocabulary else None, max_lines=3, max_length=LONGEST_PROMPT,
        elem_id="prompt", submit_btn=False,
    )  # fmt: skip
    reading = build_reading(preset.prompt, vocabulary) if vocabulary else None
    message = gr.HTML("", elem_id="message")
    # In the page, because a server's answer to the last key may come after its answer to Enter, and wipe that out.
    prompt.change(None, None, message, js="() => ''", **QUIET)
    with gr.Column(elem_id="quality-place", min_width=0):  # holds its height until the choices have come
        quality = FreeRadio(list(QUALITIES), value="Normal", label="Quality", elem_id="quality")
    with gr.Row(elem_id="start"):
        # Pressable once the page has loaded, that is, knows whose its runs are.
        run = gr.Button("Run", variant="primary", elem_id="run", min_width=120, scale=2, interactive=False)
        with gr.Column(elem_id="seed", scale=1, min_width=150):
            seed = controls.make_control("seed", preset)
            is_new_seed = gr.Checkbox(True, label="🎲 new each run", container=False, elem_id="new-seed")
    with gr.Row(elem_id="time"):
        expected = gr.HTML("", elem_id="expected")
        estimate = gr.Button("How long?", visible=False, elem_id="estimate", min_width=96, scale=0, size="sm")
    run.click(None, None, None, js=SHOW_STAGE, **QUIET)
    helped = build_suggestions(prompt, reading, vocabulary) if vocabulary and reading else None
    return PromptBox(prompt, message, run, expected, estimate, quality, seed, is_new_seed, helped)
