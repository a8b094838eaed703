"""The prompt box with Run; for a closed vocabulary also suggestions while typing and a caption builder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from psd.config.preset import Preset
from psd.ui.inputs.vocabulary import EXAMPLES, Vocabulary, build_caption, caption_problem, suggest_captions
from psd.ui.markup import html
from psd.ui.state.page import QUIET

CHIPS = 6


@dataclass(frozen=True)
class PromptBox:
    """What the rest of the page wires: the prompt, the line for messages below it, and the buttons."""

    prompt: gr.Textbox
    message: gr.HTML
    run: gr.Button
    estimate: gr.Button


def build_prompt_box(preset: Preset, vocabulary: Vocabulary | None) -> PromptBox:
    """The components, in the current Blocks context; without a vocabulary any prompt goes."""
    info = "An object the small models know: the suggestions follow what you type." if vocabulary else "Any object."
    prompt = gr.Textbox(
        preset.prompt, label="Prompt", info=info, placeholder=EXAMPLES[0], max_lines=3, max_length=300,
        elem_id="prompt", submit_btn=False,
    )  # fmt: skip
    message = gr.HTML("", elem_id="message")
    # In the page, because a server's answer to the last key may come after its answer to Enter, and wipe that out.
    prompt.input(None, None, message, js="() => ''", **QUIET)
    with gr.Row(elem_id="start"):
        # Pressable once the page has loaded, that is, knows whose its runs are.
        run = gr.Button("Run", variant="primary", elem_id="run", min_width=120, scale=2, interactive=False)
        estimate = gr.Button("Estimate", elem_id="estimate", min_width=96, scale=1)
    if vocabulary:
        _build_help(prompt, message, vocabulary)
    return PromptBox(prompt, message, run, estimate)


def _build_help(prompt: gr.Textbox, message: gr.HTML, vocabulary: Vocabulary) -> None:
    known = gr.HTML("", elem_id="known")
    chips = gr.Dataset(
        label="Suggestions", components=[prompt], samples=_dataset_samples(list(EXAMPLES)), layout="gallery",
        samples_per_page=CHIPS, elem_id="suggestions",
    )  # fmt: skip

    def show_suggestions(text: str) -> list[Any]:
        foreign = text.strip() and caption_problem(vocabulary, text)
        hint = html.note_html("Not yet a caption that the model knows. Nearest are below.", "hint") if foreign else ""
        return [hint, gr.Dataset(samples=_dataset_samples(suggest_captions(vocabulary, text, CHIPS)))]

    # Whatever changes the text: keys, paste, cut, dictation, or another part of the page that fills it.
    prompt.change(show_suggestions, prompt, [known, chips], trigger_mode="always_last", **QUIET)
    chips.click(lambda sample: [sample[0], "", ""], chips, [prompt, message, known], **QUIET)

    none = ("–", "")
    with gr.Accordion("Build a prompt", open=False, elem_id="builder"):
        with gr.Row():
            modifier = gr.Dropdown([none, *vocabulary.MODIFIERS], value="", label="modifier", info="How it is.")
            colour = gr.Dropdown([none, *vocabulary.COLOURS], value="red", label="colour", info="Of its main part.")
            thing = gr.Dropdown(
                [*vocabulary.THINGS, *vocabulary.PRIMITIVES], value="mushroom", label="object", info="What it is.",
                elem_id="builder-object",
            )  # fmt: skip
        with gr.Row():
            relation = gr.Dropdown([none, *vocabulary.RELATIONS], value="", label="and", info="Two plain shapes only.")
            other_colour = gr.Dropdown([*vocabulary.COLOURS], value="blue", label="its colour", info="Not the first.")
            other = gr.Dropdown([*vocabulary.PRIMITIVES], value="cube", label="second object", info="Beside or below.")

    def apply_choices(*words: str) -> list[Any]:
        caption = build_caption(*words)
        problem = caption_problem(vocabulary, caption)
        nearest = gr.Dataset(samples=_dataset_samples(suggest_captions(vocabulary, caption, CHIPS)))
        return [gr.skip() if problem else caption, html.note_html(problem) if problem else "", "", nearest]

    parts = [modifier, colour, thing, relation, other_colour, other]
    for part in parts:
        part.input(apply_choices, parts, [prompt, message, known, chips], **QUIET)


def _dataset_samples(texts: list[str]) -> list[list[str]]:
    return [[text] for text in texts]
