"""A watched run as HTML and tables: pure functions, everything escaped, sizes fixed so that nothing moves."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from psd.store import slug
from psd.ui.view import View

# After Okabe and Ito (told apart with any colour vision), shifted to a contrast of 3 on white and on dark slate.
COLOURS = ("#2f8fcc", "#d55e00", "#009e73", "#cc79a7", "#808080", "#a6761d")
DOWNLOADS = {
    "mesh.glb": "GLB",
    "mesh.obj": "OBJ",
    "mesh.ply": "PLY",
    "mesh.stl": "STL",
    "turntable.mp4": "Turntable",
    "statistics.json": "Statistics",
}
EXPORTS = "public/exports"
HEADER = "<h1>PSD Studio</h1><p>From a sentence to a mesh, by Preference Score Distillation.</p>"
STATES = {  # the store's words -> what a person reads
    "idle": "Ready",
    "queued": "Waiting",
    "loading": "Loading the models",
    "running": "Running",
    "paused": "Paused",
    "stopping": "Stopping",
    "meshing": "Making the mesh",
    "finished": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
    "interrupted": "Interrupted",
}


@dataclass(frozen=True)
class Watched:
    """A run as the page sees it: its folder, the store's word for its state, and what its events told."""

    run_id: str = ""
    folder: Path = Path()
    state: str = "idle"  # a key of STATES
    message: str = ""  # about the state
    prompt: str = ""
    view: View = View()
    shots: int = 4  # views side by side in a preview's file
    memory_bytes: int = 0  # of this process

    @property
    def is_over(self) -> bool:
        return self.state in ("idle", "finished", "stopped", "failed", "interrupted")


def status(watched: Watched) -> str:
    """The status line: state, progress, speed, time left, memory, and what went wrong with its cure."""
    view = watched.view
    share = view.step / view.total_steps if view.total_steps else 0.0
    speed, left = view.steps_per_s, view.remaining_s
    slots = (
        ("step", f"{view.step} / {view.total_steps} · {share:.0%}" if view.total_steps else "–"),
        ("speed", f"{speed:.2f} it/s" if speed and not watched.is_over else "–"),
        ("left" if not watched.is_over else "took", duration(left if not watched.is_over else view.time_s or None)),
        ("memory", f"{watched.memory_bytes / 2**30:.1f} GB" if watched.memory_bytes else "–"),
    )
    cells = "".join(f'<span class="slot"><small>{name}</small><b>{value}</b></span>' for name, value in slots)
    word = STATES.get(watched.state, watched.state)
    trouble = " ".join(filter(None, (view.problem or watched.message, view.cure)))
    if not trouble and watched.is_over and view.mesh is None:
        trouble = view.warning  # why there is no mesh
    return (
        f'<div class="status-line"><span class="badge {watched.state}" role="status">{html.escape(word)}</span>'
        f'<span class="what" title="{html.escape(watched.prompt)}">{html.escape(watched.prompt)}</span>{cells}</div>'
        f'<div class="progress" role="progressbar" aria-label="progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * share:.0f}"><i style="width:{share:.1%}"></i></div>'
        + (f'<div class="trouble" role="alert">{html.escape(trouble)}</div>' if trouble else "")
    )


def picture(watched: Watched) -> str:
    """The newest preview, each view in a square of its own."""
    view = watched.view
    if view.preview is None or view.preview.file is None:
        text = {
            "idle": "Describe an object and press Run. Its views sharpen here.",
            "queued": "Waiting for the run before this one.",
            "loading": "Loading the models. The first picture follows within seconds.",
        }.get(watched.state, "The first picture is on its way." if not watched.is_over else "This run made no picture.")
        empty = '<div class="shot empty"></div>' * 4
        return f'<div class="shots">{empty}<p class="hint">{text}</p></div>'
    count, address = watched.shots, url(watched, view.preview.file, view.preview.step)
    shots = "".join(
        f'<div class="shot"><img src="{address}" alt="{name} view at step {view.preview.step}" '
        f'style="width:{count}00%;margin-left:-{i}00%"><span>{name}</span></div>'
        for i, name in enumerate(shot_names(count))
    )
    return f'<div class="shots">{shots}</div>'


def shot_names(count: int) -> list[str]:
    """What the fixed preview cameras show: an orbit that starts at the front (+x) and turns counter-clockwise."""
    return {1: ["front"], 4: ["front", "left", "back", "right"]}.get(
        count, [f"{360 * i // count}°" for i in range(count)]
    )


def verdict(view: View) -> str:
    """First, best and latest value of every reward and judge."""
    rows = []
    for name, curve in view.curves.items():
        if not name.startswith(("reward/", "judge/")):
            continue
        role = "optimised" if name.startswith("reward/") else "only watches"
        points = list(curve.points())
        best = max(points, key=lambda point: point[1])
        rows.append(
            f"<tr><th scope=row>{html.escape(plain(name))}</th><td>{role}</td><td>{points[0][1]:.3f}</td>"
            f"<td>{points[-1][1]:.3f}</td><td>{best[1]:.3f} <small>step {best[0]}</small></td></tr>"
        )
    body = "".join(rows) or '<tr><td colspan=5 class="none">No scores yet.</td></tr>'
    heads = "".join(f"<th scope=col>{head}</th>" for head in ("score", "role", "first", "now", "best"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def tokens(view: View) -> str:
    """Each token of the negative prompt: how far it has moved, and the word it is nearest to now."""
    if view.negative is None:
        return '<p class="none">The negative embedding has not moved yet.</p>'
    merged = []  # neighbours with the same token (padding) share a row: RMS drift, most common word
    positions = zip(view.negative.tokens, view.negative.drift, view.negative.nearest, strict=True)
    for token, group in groupby(positions, key=lambda position: position[0]):
        _, drifts, words = zip(*group, strict=True)
        name = f"{token} × {len(words)}" if len(words) > 1 else token
        drift = (sum(value * value for value in drifts) / len(drifts)) ** 0.5
        merged.append((name, drift, Counter(words).most_common(1)[0][0]))
    largest = max(drift for _, drift, _ in merged) or 1.0
    rows = "".join(
        f'<tr><th scope=row>{html.escape(name)}</th><td class="bar"><i style="width:{drift / largest:.0%}"></i>'
        f"<span>{drift:.4f}</span></td><td>{html.escape(word)}</td></tr>"
        for name, drift, word in merged
    )
    heads = "".join(f"<th scope=col>{head}</th>" for head in ("token", "drift (RMS)", "nearest word now"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def film(watched: Watched) -> str:
    """The turntable, looping silently."""
    mesh = watched.view.mesh
    if mesh is None or not (watched.folder / EXPORTS / "turntable.mp4").is_file():
        return '<div class="film empty"><p class="hint">The turntable appears with the mesh.</p></div>'
    address = url(watched, f"{EXPORTS}/turntable.mp4", mesh.step)
    return f'<div class="film"><video src="{address}" autoplay loop muted playsinline controls></video></div>'


def downloads(watched: Watched) -> str:
    """A link for each file that exists; the others are greyed out, so that nothing moves when they come."""
    name = slug(watched.prompt)
    links = []
    for file, label in DOWNLOADS.items():
        if watched.view.mesh is not None and (watched.folder / EXPORTS / file).is_file():
            address = url(watched, f"{EXPORTS}/{file}", watched.view.mesh.step)
            saved = f"{name}{Path(file).suffix}"
            said = f'download="{saved}" aria-label="Download {label} as {saved}"'
            links.append(f'<a class="file" href="{address}" {said}>{label}</a>')
        else:
            links.append(f'<span class="file off" aria-disabled="true">{label}</span>')
    return f'<div class="files">{"".join(links)}</div>'


def facts(view: View) -> str:
    """The mesh in numbers."""
    if view.mesh is None:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(number(value))}</td></tr>"
        for name, value in view.mesh.statistics.items()
        if isinstance(value, bool | int | float | str)
    )
    return f"<table><tbody>{rows}</tbody></table>"


def note(text: str, kind: str = "problem") -> str:
    """A line below the prompt; empty for no text."""
    return (
        f'<p class="note {kind}" role="{"alert" if kind == "problem" else "status"}">{html.escape(text)}</p>'
        if text
        else ""
    )


def number(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """Minutes and seconds, with hours where there are any; a dash for what is not known."""
    if seconds is None:
        return "–"
    minutes, whole = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{whole:02}" if minutes >= 60 else f"{minutes}:{whole:02}"


def url(watched: Watched, file: str, version: int) -> str:
    """The address of a file of the run, relative to the page so that it holds below any root path."""
    return f"gradio_api/file={quote((watched.folder / file).as_posix())}?v={version}"


def frame(view: View, names: Sequence[str], unit: str) -> tuple[pd.DataFrame | None, dict[str, str]]:
    """The points of the named curves and a colour for each series; None while there is none."""
    rows = [(step, value, plain(name)) for name in names for step, value in view.curves[name].points()]
    colours = {plain(name): COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    return (pd.DataFrame(rows, columns=["step", unit, "series"]) if rows else None), colours


def plain(metric: str) -> str:
    """A metric's name as a person reads it: without its group and the folder of what ships."""
    return metric.partition("/")[2].removeprefix("assets/").replace("_", " ")
