"""The Mesh tab: the surface to turn and zoom, its files, and the same scene meshed at another threshold."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import gradio as gr

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.geometry.export import FRAMES
from psd.runs.store.files import StoreError
from psd.runs.store.folder import slugify_prompt
from psd.ui.markup.html import EXPORTS, download_file, file_url, format_number, note_html
from psd.ui.state.page import QUIET, Page, Pane, WatchedRun
from psd.ui.state.view import View

if TYPE_CHECKING:
    from psd.ui.context import PageContext

DOWNLOADS = {
    "mesh.glb": "GLB",
    "mesh.obj": "OBJ",
    "mesh.ply": "PLY",
    "mesh.stl": "STL",
    "turntable.mp4": "Turntable",
    "statistics.json": "Statistics",
}
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


class MeshTab:
    """The tab's components, in the current Blocks context."""

    def __init__(self, preset: Preset, remesher: Callable[[], Remesh] | None) -> None:
        self._remesher = remesher
        with gr.Row(elem_id="mesh-row"):
            self.viewer = gr.Model3D(
                label="Drag to turn, scroll to zoom", interactive=False, elem_id="viewer",
                clear_color=(0.0, 0.0, 0.0, 0.0), min_width=300, scale=3,
            )  # fmt: skip
            with gr.Column(min_width=280, scale=2):
                files = gr.HTML(download_links(WatchedRun()), elem_id="downloads")
                with gr.Group(elem_id="remesh"):
                    self.kept = gr.Radio(
                        [("last step", "last"), ("best by the selector judge", "best")], value="last", label="scene",
                        info="Which state of the run is meshed.",
                    )  # fmt: skip
                    self.threshold = gr.Slider(
                        0.1, 40.0, value=10.0, step=0.01, label="threshold (τ) [density]", elem_id="threshold",
                        info="Where the surface lies: lower is fuller.",
                    )  # fmt: skip
                    self.count = gr.HTML(UNTOUCHED, elem_id="face-count")
                    self.faces = gr.Slider(
                        100, 100_000, value=preset.mesh_faces, step=100, label="most faces", elem_id="most-faces",
                        info="The surface is simplified to this many.",
                    )  # fmt: skip
                    self.texture = gr.Checkbox(preset.texture, label="bake a texture", info="Slower; for Blender.")
                    self.make = gr.Button("Make the mesh again", interactive=False, elem_id="remesh-button")
                    self.message = gr.HTML(note_html("There is no mesh yet: it comes with the end of a run.", "hint"),
                                           elem_id="remesh-message")  # fmt: skip
        with gr.Row():
            film = gr.HTML(turntable_html(WatchedRun()), elem_id="film", min_width=260)
            facts = gr.HTML(statistics_table(View()), elem_id="facts", elem_classes="table", min_width=260)
        self.panes = [
            Pane([self.viewer], _mesh_key, self._update_viewer, "Mesh"),
            Pane([files], lambda p: download_links(p.run), lambda p: [download_links(p.run)], "Mesh"),
            Pane([film, facts], _mesh_key, lambda p: [turntable_html(p.run), statistics_table(p.run.view)], "Mesh"),
            Pane([self.threshold, self.count], _range_key, _update_range, "Mesh"),
            Pane([self.make, self.message], self._find_obstacle, self._update_button, "Mesh"),
        ]  # fmt: skip

    def wire_events(self, desk: PageContext) -> None:
        def show_face_count(run: str, threshold: float, kept: str) -> str:
            if self._remesher is None or not run:
                return ""
            try:
                faces = self._remesher().count(desk.worker.library.find_folder(run), threshold, kept)
            except (PresetError, StoreError) as error:
                return note_html(str(error))
            return note_html(f"{faces:,} faces before simplifying", "hint")

        def make(run: str, owner: str, threshold: float, faces: float, texture: bool, kept: str) -> str:
            assert self._remesher is not None
            try:
                folder = desk.worker.library.require_owner(run, owner)
                self._remesher().export(
                    folder,
                    threshold=threshold,
                    faces=int(faces),
                    texture=texture,
                    kept=kept,
                )
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
            return "This server makes no meshes again."
        if not page.run.is_over:
            return "The run goes on: its mesh can be made anew once it has ended."
        if page.run.view.mesh is None:
            return "There is no mesh yet: it comes with the end of a run."
        return "" if page.is_mine else "Only the browser that started this run can make its mesh again."

    def _update_button(self, page: Page) -> list[Any]:
        why = self._find_obstacle(page)
        return [gr.Button(interactive=not why), note_html(why, "hint")]

    @staticmethod
    def _update_viewer(page: Page) -> list[Any]:
        """A new value would turn the camera back, so its place goes along."""
        mesh = page.run.view.mesh
        file = str(page.run.folder / mesh.file) if mesh and mesh.file else None
        return [gr.Model3D(file, camera_position=page.look.camera)]


def mesh_threshold(view: View) -> float | None:
    """Of the run's own mesh: where the slider starts."""
    value = view.mesh.statistics.get("threshold") if view.mesh else None
    return float(value) if isinstance(value, int | float) else None


def _range_key(page: Page) -> tuple[str, float | None]:
    return page.run.run_id, mesh_threshold(page.run.view)


def _update_range(page: Page) -> list[Any]:
    middle = mesh_threshold(page.run.view)
    if middle is None:  # no mesh yet, or of a scene whose surface needs none
        made = page.run.view.mesh is not None
        return [gr.Slider(visible=not made), "" if made else UNTOUCHED]
    low, high = round(middle / REACH, 3), round(middle * REACH, 3)
    return [gr.Slider(minimum=low, maximum=high, value=round(middle, 3), visible=True), UNTOUCHED]


def _mesh_key(page: Page) -> object:
    mesh = page.run.view.mesh
    return mesh and (page.run.run_id, mesh.step, mesh.time_s)


def download_links(watched: WatchedRun) -> str:
    """A link for each file that exists; the others are greyed out, so that nothing moves when they come."""
    name = slugify_prompt(watched.prompt)
    links = []
    for file, label in DOWNLOADS.items():
        path = download_file(watched.folder / EXPORTS / file)
        if watched.view.mesh is not None and path.is_file():
            address = file_url(watched, f"{EXPORTS}/{path.name}", path.stat().st_mtime_ns)
            saved = f"{name}{path.suffix}"
            said = f'download="{saved}" aria-label="Download {label} as {saved}"'
            if frame := FRAMES.get(file.rpartition(".")[2]):
                said += f' title="{frame}"'
            links.append(f'<a class="file" href="{address}" {said}>{label}</a>')
        else:
            links.append(f'<span class="file off" aria-disabled="true">{label}</span>')
    return f'<div class="files">{"".join(links)}</div>'


def turntable_html(watched: WatchedRun) -> str:
    """The film, looping silently."""
    mesh = watched.view.mesh
    if mesh is None or not (watched.folder / EXPORTS / "turntable.mp4").is_file():
        return '<div class="film empty"><p class="hint">The turntable appears with the mesh.</p></div>'
    address = file_url(watched, f"{EXPORTS}/turntable.mp4", mesh.step)
    return f'<div class="film"><video src="{address}" autoplay loop muted playsinline controls></video></div>'


def statistics_table(view: View) -> str:
    """The mesh in numbers."""
    if view.mesh is None:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(format_number(value))}</td></tr>"
        for name, value in view.mesh.statistics.items()
        if isinstance(value, bool | int | float | str)
    )
    return f"<table><tbody>{rows}</tbody></table>"
