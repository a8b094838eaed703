"""What is said beside the prompt while one types: how it is read, the nearest kinds where it is not, completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from psd.ui.inputs.vocabulary import LONGEST_PROMPT, Vocabulary, complete_prompt
from psd.ui.markup.html import note_html
from psd.ui.panels.kind_picker import FILL, build_picker, tiles_html
from psd.ui.state.page import QUIET

CHIPS = 6
UNBOUND = "The models of the chosen preset read any prompt."


@dataclass(frozen=True)
class PromptHelp:
    """The line below the prompt, and the suggestions."""

    said: gr.HTML
    chips: gr.Dataset

    def wire_events(
        self, prompt: gr.Textbox, message: gr.HTML, base: gr.State, vocabularies: Mapping[str, Vocabulary]
    ) -> None:
        """Both follow the prompt and the models of the preset that is chosen."""

        def show_reading(text: str, base: Mapping[str, Any]) -> list[Any]:
            vocabulary = vocabularies.get(base["prior"])
            if vocabulary is None:
                return [reading_html(None, text), gr.skip()]
            return [reading_html(vocabulary, text), gr.Dataset(samples=_list_samples(vocabulary, text))]

        # Whatever changes the text: keys, paste, cut, dictation, or another part of the page that fills it.
        gr.on(
            [prompt.change, base.change],  # pyright: ignore
            show_reading, [prompt, base], [self.said, self.chips], trigger_mode="always_last", **QUIET,
        )  # fmt: skip
        self.chips.click(lambda sample: [sample[0], ""], self.chips, [prompt, message], **QUIET)


def build_reading(prompt: str, vocabulary: Vocabulary) -> gr.HTML:
    """The line below the prompt, in the current Blocks context."""
    return gr.HTML(reading_html(vocabulary, prompt), elem_id="known", js_on_load=FILL)


def build_suggestions(prompt: gr.Textbox, said: gr.HTML, vocabulary: Vocabulary) -> PromptHelp:
    """Suggestions and the list of all that can be made, in the current Blocks context."""
    chips = gr.Dataset(
        label="Suggestions", components=[prompt], samples=_list_samples(vocabulary, ""), layout="gallery",
        samples_per_page=CHIPS, elem_id="suggestions",
    )  # fmt: skip
    build_picker(vocabulary)
    return PromptHelp(said, chips)


def reading_html(vocabulary: Vocabulary | None, prompt: str) -> str:
    """How the prompt is read; for one that names nothing known the nearest kinds, and which models make other things.

    What may still become a caption as it is typed is no such prompt.
    """
    if vocabulary is None:
        return _line_html(UNBOUND)
    if not prompt.strip() or len(prompt) > LONGEST_PROMPT:
        return _line_html(f"At most {LONGEST_PROMPT} characters." if prompt.strip() else "Type what is to be made.")
    reading = vocabulary.read(prompt)
    if reading.text:
        return _line_html(". ".join([f"Read as: {reading.text}", *reading.notes]))
    if complete_prompt(vocabulary, prompt, 1):
        return _line_html("Go on typing, or choose a suggestion below.")
    tiles = tiles_html(vocabulary, vocabulary.find_nearest(prompt))
    return (
        note_html("The small models know nothing of that name. Nearest are:", "hint") + tiles
        + f'<p class="quiet advice">{escape(vocabulary.advise())}</p>'
    )  # fmt: skip


def _line_html(text: str) -> str:
    return f'<p class="quiet" role="status">{escape(text)}</p>'


def _list_samples(vocabulary: Vocabulary, prompt: str) -> list[list[str]]:
    """What goes on as the prompt begins, else the examples; each a row of the dataset."""
    return [[text] for text in complete_prompt(vocabulary, prompt, CHIPS) or vocabulary.examples[:CHIPS]]
