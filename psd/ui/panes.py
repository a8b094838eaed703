"""The parts of the page that show a run.  A new tab is a function here that returns a `Pane`, and one line in `build`."""

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

    return Pane([train, judge, table], lambda w: (w.run_id, _drawn(w.view, ("reward/", "judge/"))), values)


def negative_pane() -> Pane:
    """How far the learned negative embedding has moved, in which direction, and what it says now."""
    with gr.Row():
        drift = _chart("Drift from the start", "RMS")
        cosine = _chart("Direction", "cosine")
    table = gr.HTML(markup.tokens(View()), elem_id="tokens", elem_classes="table")

    def values(watched: Watched) -> list[Any]:
        view = watched.view
        return [_lines(view, "negative/rms", "RMS"), _lines(view, "negative/cosine", "cosine"), markup.tokens(view)]

    return Pane([drift, cosine, table], lambda w: (w.run_id, _drawn(w.view, ("negative/",))), values)


def mesh_pane() -> Pane:
    """The result: a viewer, the turntable, every file."""
    with gr.Row(elem_id="result"):
        viewer = gr.Model3D(
            label="Mesh: drag to turn, scroll to zoom", height=460, interactive=False, elem_id="viewer", scale=3,
            clear_color=(0.0, 0.0, 0.0, 0.0), min_width=300,
        )  # fmt: skip
        with gr.Column(scale=2, min_width=260):
            film = gr.HTML(markup.film(Watched()), elem_id="film")
            files = gr.HTML(markup.downloads(Watched()), elem_id="downloads")
            facts = gr.HTML(markup.facts(View()), elem_id="facts", elem_classes="table")

    def values(watched: Watched) -> list[Any]:
        mesh = watched.view.mesh
        path = str(watched.folder / mesh.file) if mesh and mesh.file else None
        return [path, markup.film(watched), markup.downloads(watched), markup.facts(watched.view)]

    def key(watched: Watched) -> Hashable:
        mesh = watched.view.mesh
        return watched.run_id, mesh.step if mesh else None, watched.is_over

    return Pane([viewer, film, files, facts], key, values)


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
    frame, colours = markup.frame(view, prefix, unit)
    if frame is None:
        return None
    return gr.LinePlot(frame, color_map=colours, x_lim=[0, view.total_steps or None])


def _drawn(view: View, prefixes: tuple[str, ...]) -> Hashable:
    """Changes with every point of the named curves."""
    curves = {name: curve for name, curve in view.curves.items() if name.startswith(prefixes)}
    return view.total_steps, tuple((name, curve.count) for name, curve in curves.items())
