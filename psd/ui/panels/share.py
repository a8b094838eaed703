"""Presets beyond the sliders: as YAML to edit, what differs, saved under a name, as one file, as commands.

Saved presets stay in the browser that saved them: a server of many users has no place for everybody's.
"""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr
from gradio.components import Component

from psd.config.assignments import parse_assignments
from psd.config.errors import PresetError, format_value
from psd.config.former import translate_preset
from psd.config.preset import Preset, list_presets, parse_preset
from psd.config.settings import merge
from psd.runs.store.folder import slugify_prompt
from psd.ui.inputs.components import FreeDropdown
from psd.ui.inputs.origin import find_origin, name_preset, preset_differences
from psd.ui.markup.html import note_html, table_html
from psd.ui.protection import server_address
from psd.ui.state.page import QUIET

if TYPE_CHECKING:
    from psd.ui.context import PageContext

MOST_SAVED = 50
LONGEST_NAME = 60
OWN = "own: "  # before the names that a browser gave


def diff_table(preset: Preset, base: str) -> str:
    """What makes ``preset`` different from the named one."""
    rows = [
        [html.escape(name), html.escape(str(theirs)), html.escape(str(ours))]
        for name, (ours, theirs) in preset_differences(preset, Preset.load(base)).items()
    ]
    return table_html(("key", base, "now"), rows, f"Nothing: these are the values of {base}.")


def command_line(preset: Preset, base: str) -> str:
    """The command line that runs ``preset`` exactly, from the named preset and what differs."""
    words = ["python", "-m", "psd", "run", preset.prompt, "--preset", base]
    for name, (value, _) in preset_differences(preset, Preset.load(base)).items():
        if name == "prompt":
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        parse_assignments([f"{name}={text}"])  # what the command line reads; raises where it could not
        words += ["--set", f"{name}={text}"]
    return shlex.join(words)


def client_snippet(preset: Preset, base: str, address: str) -> str:
    """The Python client that starts ``preset`` on this server, from the named preset and what differs."""
    values = {name: value for name, (value, _) in preset_differences(preset, Preset.load(base)).items()}
    values = {name: value for name, value in values.items() if name not in ("prompt", "seed")}
    return (
        "import json\n\nfrom gradio_client import Client\n\n"
        f"client = Client({address!r})\n"
        "run = client.predict(\n"
        f"    prompt={preset.prompt!r},\n    preset={base!r},\n    seed={preset.seed},\n"
        f"    overrides=json.dumps({values!r}),\n"
        '    api_name="/start_run",\n)\n'
    )


def read_text(text: str) -> Preset:
    """A whole preset as text, of this version or an earlier one; `PresetError` for what is wrong or gone."""
    return Preset.make(read_changes(text))


def read_changes(text: str) -> dict[str, Any]:
    """The values that a text names, of this version or an earlier one; `PresetError` for what is gone."""
    values, lost = translate_preset(parse_preset(text))
    if lost:
        raise PresetError(f"this version no longer has {', '.join(lost)}: take it out")
    return values


class SharePanel:
    """The components, in the current Blocks context."""

    def __init__(self, name: str) -> None:
        self.saved = gr.BrowserState({}, storage_key="psd-presets", secret="psd")
        self.choice = FreeDropdown(
            list_presets(), value=name, label="Preset", info="Sets every value below; the prompt stays.",
            allow_custom_value=True, elem_id="preset",
        )  # fmt: skip
        self.choice_message = gr.HTML("", elem_id="preset-message")
        with gr.Accordion("Preset as text, commands", open=False, elem_id="share"):
            self.read = gr.Button("Show the values as text", elem_id="share-read")
            self.text = gr.Code("", language="yaml", label="YAML", lines=8, max_lines=24, elem_id="share-yaml")
            self.apply = gr.Button("Use this text", elem_id="share-apply")
            self.message = gr.HTML("", elem_id="share-message")
            self.diff = gr.HTML("", elem_id="share-diff", elem_classes="table")
            with gr.Row():
                self.name = gr.Textbox(
                    "", label="Name", info="Kept in this browser.", max_length=LONGEST_NAME, elem_id="share-name",
                    min_width=120,
                )  # fmt: skip
                self.save = gr.Button("Save as", elem_id="share-save", min_width=96)
            self.link = gr.HTML("", elem_id="share-file")
            self.upload = gr.UploadButton(
                "Load a preset file", file_types=[".yaml", ".yml"], type="binary", elem_id="share-upload"
            )
            self.file_message = gr.HTML("", elem_id="share-file-message")
            self.command = gr.Code(
                "", language="shell", label="The same run, from a terminal", interactive=False, max_lines=6
            )
            self.client = gr.Code(
                "", language="python", label="The same run, from Python", interactive=False, max_lines=10
            )

    @property
    def locked(self) -> list[Component]:
        """What sets values, and so waits while a run goes on."""
        return [self.choice, self.apply, self.upload]

    def wire_events(self, desk: PageContext, blocks: gr.Blocks) -> None:
        """Wires the choice of presets, the file and the texts to share to the controls of the page."""
        derived = [self.diff, self.link, self.command, self.client]

        def list_choices(saved: Mapping[str, str]) -> Any:
            return gr.Dropdown([*list_presets(), *(OWN + name for name in saved)])

        def load_choice(name: str | None, saved: Mapping[str, str]) -> list[Any]:
            """The values of a shipped preset or of one that this browser saved; no file of the server's."""
            own = saved.get((name or "").removeprefix(OWN)) if (name or "").startswith(OWN) else None
            try:
                if own:
                    preset = read_text(own)
                elif name in list_presets():
                    preset = Preset.load(str(name))
                else:
                    raise PresetError(f"no preset {format_value(name)}; there are: {', '.join(list_presets())}")
            except PresetError as error:
                return [note_html(str(error)), *desk.skipped()]
            return ["", *desk.show(preset, prompt=False, name=str(name))]

        def name_values(name: str | None, *given: Any) -> Any:
            """The preset's name once a hand has moved a value; values that cannot be have none."""
            try:
                preset = Preset.make(desk.read_values(*given))
            except PresetError:
                return gr.skip()
            now = name_preset(preset)
            return gr.skip() if now == name else now

        def show_values(request: gr.Request, *given: Any) -> list[Any]:
            """The values of the controls as text, as commands and as a file."""
            try:
                preset = desk.read_controls(*given)
            except PresetError as error:
                return [gr.skip()] * 5 + [note_html(str(error))]
            base, _ = find_origin(preset)
            return [preset.to_yaml(), diff_table(preset, base), preset_link(preset), command_line(preset, base),
                    client_snippet(preset, base, server_address(request)), ""]  # fmt: skip

        def refresh_derived(request: gr.Request, *given: Any) -> list[Any]:
            """What is made from the values, but for the text that somebody may be editing."""
            return show_values(request, *given)[1:5]

        def use_text(text: str, *given: Any) -> list[Any]:
            """Change the values that the text names, and nothing else; say which those are."""
            try:
                changes = read_changes(text)
                before = desk.read_values(*given)
                after = Preset.make(merge(before, changes))
                try:
                    changed = list(preset_differences(after, Preset.make(before)))
                except PresetError:  # the text mended what could not be
                    changed = list(changes)
            except PresetError as error:
                return [note_html(str(error)), *desk.skipped()]
            said = f"Changed: {', '.join(changed)}." if changed else "These values stand already: nothing has changed."
            return [note_html(said, "hint"), *desk.show(after)]

        def upload_file(data: bytes) -> list[Any]:
            """A file is a whole preset, as on the command line: what it does not name has its default."""
            try:
                text = data.decode()
                preset, named = read_text(text), read_changes(text)
            except UnicodeDecodeError:
                return [note_html("This file is no text: a preset is YAML."), *desk.skipped()]
            except PresetError as error:
                return [note_html(str(error)), *desk.skipped()]
            rest = len(Preset.model_fields) - len(named)
            said = f"Loaded {len(named)} keys" + (f"; the other {rest} are at their defaults." if rest else ".")
            return [note_html(said, "hint"), *desk.show(preset)]

        def save_preset(name: str, saved: dict[str, str], *given: Any) -> list[Any]:
            name = " ".join(name.split())[:LONGEST_NAME]
            if not name:
                return [saved, gr.skip(), note_html("Give it a name first.")]
            if len(saved) >= MOST_SAVED and name not in saved:
                return [saved, gr.skip(), note_html(f"This browser holds {MOST_SAVED} presets: save over one of them.")]
            try:
                saved = {**saved, name: desk.read_controls(*given).to_yaml()}
            except PresetError as error:
                return [saved, gr.skip(), note_html(str(error))]
            return [saved, list_choices(saved), note_html(f"Saved as {OWN}{name}.", "hint")]

        refresh = {"fn": refresh_derived, "inputs": desk.given, "outputs": derived, **QUIET}
        self.choice.input(
            load_choice, [self.choice, self.saved], [self.choice_message, *desk.shown], **QUIET
        ).then(**refresh)  # fmt: skip
        gr.on(
            [component.input for part in desk.parts for component in part.components],  # pyright: ignore
            name_values, [self.choice, *desk.given], self.choice, trigger_mode="always_last", **QUIET,
        )  # fmt: skip
        self.read.click(show_values, desk.given, [self.text, *derived, self.message], **QUIET)
        self.apply.click(use_text, [self.text, *desk.given], [self.message, *desk.shown], **QUIET).then(**refresh)
        self.upload.upload(upload_file, self.upload, [self.file_message, *desk.shown], **QUIET).then(**refresh)
        self.save.click(
            save_preset, [self.name, self.saved, *desk.given], [self.saved, self.choice, self.file_message], **QUIET
        )
        blocks.load(list_choices, self.saved, self.choice, **QUIET)


def preset_link(preset: Preset) -> str:
    """A link that holds the preset itself, to keep or to send."""
    name = f"{slugify_prompt(preset.prompt)}.yaml"
    return (
        f'<a class="file" href="data:text/yaml;charset=utf-8,{quote(preset.to_yaml())}" download="{name}">'
        f"Download {name}</a>"
    )
