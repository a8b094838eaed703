"""Pieces of HTML that several panes share: pure functions, everything escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote


def shot_names(count: int) -> list[str]:
    """What the fixed preview cameras show: an orbit that starts at the front (+x) and turns counter-clockwise."""
    return {1: ["front"], 4: ["front", "left", "back", "right"]}.get(
        count, [f"{360 * i // count}°" for i in range(count)]
    )


HEADER = "<h1>PSD Studio</h1><p>From a sentence to a mesh, by Preference Score Distillation.</p>"
EXPORTS = "public/exports"
RUN_FILES = "runs/"  # before a run's id in the addresses of its files
PUBLIC = "public/"
PAGE_FILES = "page/"  # before the name of a file that the page itself shows
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
    "unreadable": "Unreadable",
}


def state_badge(state: str) -> str:
    return f'<span class="badge {html.escape(state)}">{html.escape(STATES.get(state, state))}</span>'


def note_html(text: str, kind: str = "problem") -> str:
    """A line of its own; empty for no text."""
    role = "alert" if kind == "problem" else "status"
    return f'<p class="note {kind}" role="{role}">{html.escape(text)}</p>' if text else ""


def table_html(heads: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> str:
    """A table whose cells are HTML already; the first of a row is its heading."""
    body = "".join(
        f"<tr><th scope=row>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>" for first, *rest in rows
    )
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in heads)
    body = body or f'<tr><td colspan={len(heads)} class="none">{html.escape(empty)}</td></tr>'
    return scroll_sideways(
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", "Table: " + ", ".join(heads)
    )


def scroll_sideways(table: str, label: str) -> str:
    """A table in a frame that the arrow keys scroll where it is wider than its place."""
    return f'<div class="wide" tabindex="0" role="group" aria-label="{html.escape(label)}">{table}</div>'


def format_number(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def format_size(count: int) -> str:
    """Bytes as a person reads them.

    >>> format_size(514_300), format_size(1_480_000)
    ('514 kB', '1.5 MB')
    """
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def format_minutes(seconds: float | None) -> str:
    """Minutes and seconds, with hours where there are any; a dash for what is not known."""
    if seconds is None:
        return "–"
    minutes, whole = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{whole:02}" if minutes >= 60 else f"{minutes}:{whole:02}"


def format_about(seconds: float) -> str:
    """A time that is expected, as roughly as it is known.

    >>> format_about(40), format_about(95), format_about(5400)
    ('40 s', '2 min', '1.5 h')
    """
    if seconds < 55:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{round(seconds / 60)} min" if seconds < 3570 else f"{seconds / 3600:.1f} h"


def file_url(run_id: str, file: str, version: int | None = None) -> str:
    """The address of a public file of a run, relative to the page so that it holds below any root path.

    ``file`` is relative to the run's folder, where ``public/`` alone is served, or ``<run id>.zip``.  ``version`` is a
    number that changes with the file's content (`file_version`): a browser keeps what it has fetched from an address.
    `psd.ui.protection.RunFiles` finds the file.
    """
    address = f"gradio_api/file={RUN_FILES}{quote(run_id)}/{quote(file.removeprefix(PUBLIC))}"
    return address if version is None else f"{address}?v={version}"


def page_file_url(path: Path) -> str:
    """The address of a file that the page itself shows; `psd.ui.protection.PageFiles` finds it by its name."""
    return f"gradio_api/file={PAGE_FILES}{quote(path.name)}?v={file_version(path)}"


def file_version(path: Path) -> int:
    """A number that changes whenever the file is written again; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def name_download(run_id: str, file: str) -> str:
    """What a browser calls the file of a run that it saves: meshes and films after the prompt, in the id's letters.

    >>> name_download("20261128-144018_a-duck_s0_0f3cbb01", "mesh.glb")
    'a-duck.glb'
    """
    parts, path = run_id.split("_"), Path(file)
    if len(parts) < 2 or path.stem.partition(".")[0] not in ("mesh", "turntable", "timelapse", "statistics"):
        return path.name
    if path.stem == "timelapse":
        return f"{parts[1]}-timelapse{path.suffix}"
    return f"{parts[1]}{path.suffix}"


def download_file(path: Path) -> Path:
    """What to hand out for a file of a mesh: a textured OBJ has no colour without its material, so its zip."""
    packed = path.with_name(f"{path.name}.zip")
    return packed if packed.is_file() else path


def metric_label(metric: str) -> str:
    """A metric's name as a person reads it: without its group and the folder of what ships."""
    return metric.partition("/")[2].removeprefix("assets/").replace("_", " ")
