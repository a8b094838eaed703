"""The parts of the page that show a run.  A new tab is a function here that returns a `Pane`, and a line in `TABS`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from psd.ui import markup
from psd.ui.markup import Watched
from psd.ui.view import View


@dataclass(frozen=True)
class Pane:
    """Components, a key that changes whenever their content does, and that content."""

    components: Sequence[Component]
    key: Callable[[Watched], Hashable]
    values: Callable[[Watched], Sequence[Any]]


def status_pane() -> Pane:
    bar = gr.HTML(markup.status(Watched()), elem_id="status")
    return Pane([bar], lambda w: (w.run_id, markup.status(w)), lambda w: [markup.status(w)])


def picture_pane() -> Pane:
    picture = gr.HTML(markup.picture(Watched()), elem_id="picture")
    return Pane([picture], lambda w: markup.picture(w), lambda w: [markup.picture(w)])


def curves_pane() -> Pane:
    """What the run optimises beside what only watches: a chart each, since their units differ."""
    with gr.Row():
        train = _chart("Reward, optimised", "reward")
        judge = _chart("Judge, only watches", "score")
    table = gr.HTML(markup.verdict(View()), elem_id="verdict", elem_classes="table")

    def values(watched: Watched) -> list[Any]:
        view = watched.view
        return [_lines(view, "reward/", "reward"), _lines(view, "judge/", "score"), markup.verdict(view)]

    return Pane([train, judge, table], lambda w: (w.run_id, _drawn(w.view, "reward/", "judge/")), values)


def negative_pane() -> Pane:
    """How far the learned negative embedding has moved, in which direction, and what it says now."""
    with gr.Row():
        drift = _chart("Drift from the start", "RMS")
        cosine = _chart("Direction", "cosine")
    table = gr.HTML(markup.tokens(View()), elem_id="tokens", elem_classes="table")

    def values(watched: Watched) -> list[Any]:
        view = watched.view
        return [_lines(view, "negative/drift", "RMS"), _lines(view, "negative/cosine", "cosine"), markup.tokens(view)]

    return Pane([drift, cosine, table], lambda w: (w.run_id, _drawn(w.view, "negative/")), values)


def viewer_pane() -> Pane:
    """The mesh, to turn and zoom.

    It stands outside the tabs and gets its value once a mesh: Gradio 6.31 draws no mesh where the value comes before
    the component is on the page, or twice while the renderer loads.
    """
    viewer = gr.Model3D(
        label="Mesh: drag to turn, scroll to zoom",
        interactive=False,
        elem_id="viewer",
        clear_color=(0.0, 0.0, 0.0, 0.0),
    )

    def values(watched: Watched) -> list[Any]:
        mesh = watched.view.mesh
        return [str(watched.folder / mesh.file) if mesh and mesh.file else None]

    return Pane([viewer], lambda w: w.view.mesh and (w.run_id, w.view.mesh.step), values)


def files_pane() -> Pane:
    """Every file of the result, to take away."""
    files = gr.HTML(markup.downloads(Watched()), elem_id="downloads")
    return Pane([files], markup.downloads, lambda w: [markup.downloads(w)])


def mesh_pane() -> Pane:
    """The turntable and the mesh in numbers."""
    with gr.Row():
        film = gr.HTML(markup.film(Watched()), elem_id="film", min_width=260)
        facts = gr.HTML(markup.facts(View()), elem_id="facts", elem_classes="table", min_width=260)

    def values(watched: Watched) -> list[Any]:
        return [markup.film(watched), markup.facts(watched.view)]

    return Pane([film, facts], lambda w: w.view.mesh and (w.run_id, w.view.mesh.step), values)


def log_pane() -> Pane:
    box = gr.Textbox(
        "", label="Log", info="Times count from the start of the run.", lines=16, max_lines=16, interactive=False,
        autoscroll=True, buttons=["copy"], elem_id="log",
    )  # fmt: skip
    return Pane([box], lambda w: (w.run_id, w.view.log), lambda w: ["\n".join(w.view.log)])


def _chart(title: str, unit: str) -> gr.LinePlot:
    return gr.LinePlot(
        x="step", y=unit, color="series", title=title, x_title="step", y_title=unit, color_title=" ", height=260,
        min_width=300, tooltip="axis",
    )  # fmt: skip


def _lines(view: View, prefix: str, unit: str) -> Any:
    """The chart's data; limits and colours depend on the run alone, so that Gradio redraws within the same chart."""
    frame, colours = markup.frame(view, [name for name in view.curves if name.startswith(prefix)], unit)
    if frame is None:
        return None
    return gr.LinePlot(frame, color_map=colours, x_lim=[0, view.total_steps or None])


def _drawn(view: View, *prefixes: str) -> Hashable:
    """Changes with every point of the named curves."""
    last = tuple((name, curve.last) for name, curve in view.curves.items() if name.startswith(prefixes))
    return view.total_steps, last
