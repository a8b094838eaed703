"""The Mesh tab: its files, and the same scene meshed at another threshold; the stage shows it."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import gradio as gr

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.geometry.export import FORMATS, SPLAT_FORMATS
from psd.runs.store.files import StoreError
from psd.runs.store.folder import slugify_prompt
from psd.ui.context import PageContext, Tab, require_whole
from psd.ui.inputs.components import FreeSlider
from psd.ui.inputs.controls import read_bounds
from psd.ui.markup.html import (
    EXPORTS,
    download_file,
    file_url,
    file_version,
    format_number,
    note_html,
    scroll_sideways,
)
from psd.ui.state.page import QUIET, Page, Pane, WatchedRun
from psd.ui.state.view import View

DOWNLOADS = {f"mesh.{suffix}": known.label for suffix, known in FORMATS.items()} | {
    "turntable.mp4": "Turntable",
    "timelapse.mp4": "Timelapse",
    "timelapse.webp": "Timelapse WebP",
    "statistics.json": "Statistics",
}
SPLAT_LABELS = {f"mesh.{suffix}": known.label for suffix, known in SPLAT_FORMATS.items()}
NO_REMESHER = "This server makes no meshes again."
FEWEST_FACES, MOST_FACES = (int(bound or 0) for bound in read_bounds(Preset.model_fields["mesh_faces"]))
FACES_STEP = 100
UNTOUCHED = note_html("Move the threshold to see how many faces the surface has there.", "hint")
REACH = 4.0  # the slider goes from a fraction of the automatic threshold to this multiple of it


class Remesh(Protocol):
    """Meshes a run's scene again; `psd.runs.remesh.Remesher` is one.  Both raise PresetError or StoreError with the
    cure.
    """

    def count(self, folder: Path, threshold: float, kept: str) -> int:
        """Faces of the surface at ``mesh_threshold`` (a density), before decimation; ``kept`` is "last" or "best"."""
        ...

    def export(self, folder: Path, *, threshold: float, faces: int, texture: bool, kept: str) -> None:
        """Writes every format into the run's folder, as an event of the run; a scene without a threshold ignores it."""
        ...


class MeshTab(Tab):
    """The tab's components, in the current Blocks context."""

    def __init__(self, preset: Preset, remesher: Callable[[], Remesh] | None) -> None:
        self._remesher = remesher
        files = gr.HTML(download_links(WatchedRun()), elem_id="downloads")
        with gr.Group(elem_id="remesh"):
            self.kept = gr.Radio(
                [("last step", "last"), ("best by the selector judge", "best")], value="last", label="Scene",
                info="Which state of the run is meshed.",
            )  # fmt: skip
            self.threshold = FreeSlider(
                0.1, 40.0, value=10.0, step=0.01, label="Threshold (τ) [density]", elem_id="threshold", buttons=[],
                info="Where the surface lies: lower is fuller.",
            )  # fmt: skip
            self.count = gr.HTML(UNTOUCHED, elem_id="face-count")
            self.faces = FreeSlider(
                FEWEST_FACES, MOST_FACES, value=preset.mesh_faces, step=FACES_STEP, label="Most faces",
                elem_id="most-faces", buttons=[], info="The surface is simplified to this many.",
            )  # fmt: skip
            self.texture = gr.Checkbox(preset.texture, label="Bake a texture", info="Slower; for Blender.")
            self.make = gr.Button("Make the mesh again", interactive=False, elem_id="remesh-button")
            self.message = gr.HTML(note_html("There is no mesh yet: it comes with the end of a run.", "hint"),
                                   elem_id="remesh-message")  # fmt: skip
        facts = gr.HTML(statistics_table(View()), elem_id="facts", elem_classes="table")
        self.panes = [
            Pane([files], lambda p: download_links(p.run), lambda p: [download_links(p.run)], "Mesh"),
            Pane([facts], lambda p: statistics_table(p.run.view), lambda p: [statistics_table(p.run.view)], "Mesh"),
            Pane([self.threshold, self.faces, self.texture, self.kept, self.count], _mesh_key, _update_choices, "Mesh"),
            Pane([self.make, self.message], self._find_obstacle, self._update_button, "Mesh"),
        ]  # fmt: skip

    def wire_events(self, desk: PageContext) -> None:
        """Wires the mesh's settings to the count of faces, and the button to the making of another mesh."""

        def show_face_count(run: str, threshold: float | None, kept: str) -> str:
            if self._remesher is None or not run:
                return ""
            if threshold is None:
                return note_html("threshold is empty: type a density")
            try:
                faces = self._remesher().count(desk.worker.library.find_folder(run), threshold, kept)
            except (PresetError, StoreError) as error:
                return note_html(str(error))
            return note_html(f"{faces:,} faces before simplifying", "hint")

        def make(
            run: str, owner: str, threshold: float | None, faces: float | None, texture: bool, kept: str
        ) -> str:  # fmt: skip
            try:
                if self._remesher is None:
                    raise PresetError(NO_REMESHER)
                if threshold is None:
                    raise PresetError("threshold is empty: type a density")
                count = require_whole("most faces", faces, FEWEST_FACES, MOST_FACES)
                folder = desk.worker.library.require_owner(run, owner)
                self._remesher().export(folder, threshold=threshold, faces=count, texture=texture, kept=kept)
            except (PresetError, StoreError) as error:
                return note_html(str(error))
            return note_html("Made. The files above are the new ones.", "hint")

        asked = {"fn": show_face_count, "inputs": [desk.run_id, self.threshold, self.kept], "outputs": self.count}
        self.threshold.input(**asked, trigger_mode="always_last", **QUIET)
        self.kept.input(**asked, **QUIET)
        self.make.click(
            make, [desk.run_id, desk.owner, self.threshold, self.faces, self.texture, self.kept], self.message,
            show_progress="minimal", api_visibility="private",
        ).then(**desk.news)  # fmt: skip

    def _find_obstacle(self, page: Page) -> str:
        """Why the mesh can't be made again now, in words; empty when it can."""
        if self._remesher is None:
            return NO_REMESHER
        if not page.run.is_over:
            return "The run goes on: its mesh can be made anew once it has ended."
        if page.run.view.mesh is None:
            return "There is no mesh yet: it comes with the end of a run."
        if page.run.is_shipped:
            return "This run came with the program, without the scene that its mesh was made of."
        return "" if page.is_mine else "Only the browser that started this run can make its mesh again."

    def _update_button(self, page: Page) -> list[Any]:
        why = self._find_obstacle(page)
        return [gr.Button(interactive=not why), note_html(why, "hint")]


def _mesh_key(page: Page) -> object:
    """Changes with the mesh's file and with what the run's events say of it: the one is there before the other."""
    mesh = page.run.view.mesh
    if mesh is None or not mesh.file:
        return page.run.run_id, mesh
    return page.run.run_id, file_version(page.run.folder / mesh.file), statistics_table(page.run.view)


def _update_choices(page: Page) -> list[Any]:
    """The mesh that is shown, as the choices that would make it again: a move then changes that and nothing else."""
    view = page.run.view
    facts = view.mesh.statistics if view.mesh else {}
    threshold, own, faces = facts.get("threshold"), view.own_threshold, facts.get("faces")
    hint = UNTOUCHED
    if isinstance(threshold, int | float) and own is not None:
        low, high = round(own / REACH, 3), round(own * REACH, 3)
        slider = FreeSlider(minimum=low, maximum=high, value=round(threshold, 3), visible=True)
    else:  # no mesh yet, or of a scene whose surface has none
        slider, hint = FreeSlider(visible=view.mesh is None), UNTOUCHED if view.mesh is None else ""
    if view.mesh is None or not isinstance(faces, int):
        return [slider, gr.skip(), gr.skip(), gr.skip(), hint]
    most = min(MOST_FACES, max(FEWEST_FACES, math.ceil(faces / FACES_STEP) * FACES_STEP))
    scene_step = view.mesh.scene_step
    is_best = view.best is not None and scene_step is not None and view.best.step == scene_step < view.step
    return [slider, most, bool(facts.get("textured")), "best" if is_best else "last", hint]


def download_links(watched: WatchedRun) -> str:
    """A link for each file that exists, the others greyed out, so that nothing moves when they come, but for splats,
    which few scenes have; then how each format's mesh stands and how large it is.
    """
    name = slugify_prompt(watched.prompt)
    links = []
    splats = {file: label for file, label in SPLAT_LABELS.items() if (watched.folder / EXPORTS / file).is_file()}
    for file, label in (DOWNLOADS | splats).items():
        path = download_file(watched.folder / EXPORTS / file)
        if watched.view.mesh is not None and path.is_file():
            address = file_url(watched.run_id, f"{EXPORTS}/{path.name}", file_version(path))
            saved = f"{name}{''.join(path.suffixes) if file in SPLAT_LABELS else path.suffix}"
            attributes = f'download="{saved}" aria-label="Download {label} as {saved}"'
            links.append(f'<a class="file" href="{address}" {attributes}>{label}</a>')
        else:
            links.append(f'<span class="file off" aria-disabled="true">{label}</span>')
    shown = FORMATS | (SPLAT_FORMATS if splats else {})
    frames = "".join(f"<li><b>{suffix.upper()}</b> {known.frame}</li>" for suffix, known in shown.items())
    return f'<div class="files">{"".join(links)}</div><ul class="frames">{frames}</ul>'


def statistics_table(view: View) -> str:
    """The mesh in numbers."""
    if view.mesh is None:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(format_number(value))}</td></tr>"
        for name, value in view.mesh.statistics.items()
        if isinstance(value, bool | int | float | str)
    )
    return scroll_sideways(f"<table><tbody>{rows}</tbody></table>", "The mesh in numbers")
