"""What scripts and assistants may call: named endpoints, for `gradio_client` and, with gradio[mcp], as MCP tools.

Everything that comes in is checked here or by the Preset and answered in words; nothing that goes out holds a path
outside of what is served, or a secret of another.
"""

from __future__ import annotations

import base64
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
import numpy as np
from jaxtyping import UInt8
from pydantic import ValidationError, validate_call

from psd.config.errors import PresetError, format_value
from psd.config.preset import Preset, parse_mapping
from psd.distillation.events import to_json, without_arrays
from psd.geometry.export import FRAMES
from psd.runs.jobs.worker import Worker
from psd.runs.store import ownership
from psd.runs.store.archive import Run, read_status, replay_events
from psd.runs.store.files import StoreError
from psd.ui.inputs.vocabulary import Vocabulary, reword_preset
from psd.ui.markup.html import EXPORTS, download_file
from psd.ui.state.watch import serve_folder

STREAM_S = 0.5  # at most so often a stream says something
STREAMS = 20  # at once
LISTED = 100
MOST_IMAGES, LARGEST_IMAGE, MOST_PIXELS = 16, 4_000_000, 2048**2  # bytes of base64; pixels of one image

Score = Callable[
    [Sequence[UInt8[np.ndarray, "h w 3"]], str, str], dict[str, Any]
]  # images, prompt, judge ("": default)
Remake = Callable[[Path, str | None, float | None], object]  # a run's folder, scene, threshold


def register_endpoints(
    blocks: gr.Blocks,
    worker: Worker,
    *,
    score: Score,
    remake: Remake,
    vocabularies: Mapping[str, Vocabulary] | None = None,
) -> None:
    """Add the endpoints to a page; ``score`` and ``remake`` (`psd.runs.remesh.rewrite_mesh`) bring in what needs torch."""
    api = Api(worker, score, remake, vocabularies or {})
    with blocks:
        for endpoint in (api.start_run, api.get_status, api.stop_run, api.list_runs, api.export_mesh, api.score_images):
            gr.api(explain_errors(endpoint), api_name=endpoint.__name__, concurrency_limit=4)
        gr.api(explain_stream_errors(api.watch_run), api_name="watch_run", concurrency_limit=STREAMS)


class Api:
    """The endpoints; each docstring is what `view_api()` and an assistant read."""

    def __init__(self, worker: Worker, score: Score, remake: Remake, vocabularies: Mapping[str, Vocabulary]) -> None:
        self._worker, self._score, self._remake, self._vocabularies = worker, score, remake, vocabularies

    def start_run(
        self, prompt: str, preset: str = "tiny", seed: int = 0, overrides: str = "", owner: str = ""
    ) -> dict[str, Any]:
        """Queue a run that makes a 3D object of a prompt, and return at once.

        Args:
            prompt: what to make; the embedded preset knows captions such as "a red mushroom"
            preset: name of a shipped preset
            seed: the same seed gives the same run
            overrides: further parameters as YAML or JSON, for instance "steps: 60"
            owner: the secret that an earlier call returned, so that its runs have one owner; empty: a new one

        Returns:
            the status of the run (see get_status) and "owner", which stop_run and export_mesh ask for
        """
        values = {**(parse_mapping(overrides) if overrides.strip() else {}), "prompt": prompt, "seed": seed}
        if preset.endswith((".yaml", ".yml")):
            raise PresetError(f"{format_value(preset)} is a file: name a shipped preset, and pass changes as overrides")
        owner = owner or ownership.new_owner()
        run_id = self._worker.submit(reword_preset(Preset.load(preset, values), self._vocabularies), owner=owner)
        return {**self.get_status(run_id), "owner": owner}

    def get_status(self, run_id: str) -> dict[str, Any]:
        """How a run stands.

        Args:
            run_id: as start_run and list_runs tell it

        Returns:
            "state" (queued, running, paused, finished, stopped, failed, interrupted), "step" of "total", the best score
            of the selector judge, what goes before it ("ahead", "wait_s") and how long it takes ("left_s"), and the
            addresses of its pictures and meshes, relative to the server's
        """
        folder = self._worker.folder(run_id)
        job = next((job for job in self._worker.list_jobs() if job.id == run_id), None)
        told = summarise_run(Run(folder, read_status(folder)))
        if job is not None:
            told |= {"ahead": job.ahead, "wait_s": job.wait_s, "left_s": job.left_s}
        exports = sorted((folder / EXPORTS).glob("*"))
        return told | {"files": {path.name: public_address(path) for path in exports if not path.name.startswith(".")}}

    def stop_run(self, run_id: str, owner: str) -> dict[str, Any]:
        """End a run after its current step; what it reached is kept and exported.

        Args:
            run_id: the run
            owner: the secret that start_run returned

        Returns:
            its status (see get_status)
        """
        self._worker.stop(run_id, owner)
        return self.get_status(run_id)

    def list_runs(self, owner: str = "", limit: int = 20) -> list[dict[str, Any]]:
        """The newest runs of this server.

        Args:
            owner: only the runs of this secret; empty: all
            limit: at most so many, 1 to 100

        Returns:
            for each run its id, state, prompt, seed, method, steps, best judge score and thumbnail
        """
        if not 1 <= limit <= LISTED:
            raise PresetError(f"limit={format_value(limit)} must lie in [1, {LISTED}]")
        return [summarise_run(run) for run in self._worker.runs(owner)[:limit]]

    def export_mesh(
        self, run_id: str, format: str = "glb", scene: str = "", threshold: float = 0.0, owner: str = ""
    ) -> dict[str, Any]:
        """The mesh of a run, as it is or made again.

        Args:
            run_id: a run that has ended
            format: glb, obj, ply or stl
            scene: best (by the selector judge) or last; empty: the mesh as it is
            threshold: density of the surface; 0: the one that fits the renders
            owner: the secret that start_run returned; needed to make the mesh again

        Returns:
            "file", the address of the mesh relative to the server's; a textured OBJ is a zip with its .mtl and .png
        """
        if format not in FRAMES:
            raise PresetError(f"no format {format_value(format)}; there are: {', '.join(FRAMES)}")
        folder = self._worker.folder(run_id)
        if scene or threshold:
            if scene not in ("", "best", "last"):
                raise PresetError(f"no scene {format_value(scene)}; there are: best, last")
            ownership.require_owner(folder, owner)
            self._remake(folder, scene or None, threshold or None)
        path = download_file(folder / EXPORTS / f"mesh.{format}")
        if not path.is_file():
            raise StoreError(f"the run {run_id} has no mesh yet", "wait for its end, or stop it")
        return {"run_id": run_id, "file": public_address(path)}

    def score_images(self, images: list[str], prompt: str, judge: str = "") -> dict[str, Any]:
        """What a judge says of pictures; higher is better, and only scores of one prompt and judge can be compared.

        Args:
            images: PNG or JPEG files in base64, at most 16
            prompt: what they should show
            judge: a judge or reward of the preset that this server starts from; empty: its selector judge

        Returns:
            "judge" and "scores", one for each image
        """
        if not 1 <= len(images) <= MOST_IMAGES:
            raise PresetError(f"{len(images)} images: send 1 to {MOST_IMAGES}")
        return self._score([decode_image(image) for image in images], Preset.make({"prompt": prompt}).prompt, judge)

    def watch_run(self, run_id: str, since: int = 0) -> Iterator[list[dict[str, Any]]]:
        """The events of a run as they come, until its end.

        Args:
            run_id: the run
            since: how many events are known already

        Returns:
            lists of events: Started, Stepped with its metrics, Previewed, Finished and so on, with their step and time
        """
        if since < 0:
            raise PresetError(f"since={format_value(since)} is below 0: say how many events are known")
        folder = self._worker.folder(run_id)
        try:
            over = False
            while not over:
                over = read_status(folder).state not in ("queued", "running", "paused")
                events = self._worker.wait(run_id, since, timeout_s=10.0)
                since += len(events)
                yield [json.loads(to_json(event)) for event in events]
                time.sleep(STREAM_S if events else 0.0)
        except StoreError:  # not a job of this worker, or no longer: its folder tells all
            yield [json.loads(to_json(without_arrays(event))) for event in replay_events(folder)][since:]


# ---- checks and words


def explain_errors(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """With arguments of the declared types, and complaints as messages instead of tracebacks."""
    checked = validate_call(endpoint)

    @wraps(endpoint)
    def call_endpoint(*args: Any, **keywords: Any) -> Any:
        try:
            return checked(*args, **keywords)
        except (PresetError, StoreError, ValidationError) as error:
            raise gr.Error(error_message(error), print_exception=False) from None

    return call_endpoint


def explain_stream_errors(endpoint: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same for a generator."""
    checked = validate_call(endpoint)

    @wraps(endpoint)
    def stream_endpoint(*args: Any, **keywords: Any) -> Iterator[Any]:
        try:
            yield from checked(*args, **keywords)
        except (PresetError, StoreError, ValidationError) as error:
            raise gr.Error(error_message(error), print_exception=False) from None

    return stream_endpoint


def error_message(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors())


def decode_image(image: str) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in base64, with or without the head of a data URL; PresetError for anything else."""
    from PIL import Image

    if len(image) > LARGEST_IMAGE:
        raise PresetError(f"an image of {len(image)} characters: {LARGEST_IMAGE} at most")
    try:
        with Image.open(
            BytesIO(base64.b64decode(image.rpartition(",")[2], validate=True)), formats=["PNG", "JPEG"]
        ) as it:
            if it.width * it.height > MOST_PIXELS:
                raise PresetError(f"an image of {it.width} x {it.height} pixels: {MOST_PIXELS} at most")
            return np.asarray(it.convert("RGB"))
    except PresetError:
        raise
    except (
        ValueError,
        OSError,
        SyntaxError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise PresetError(f"not a PNG or JPEG in base64: {error}") from None


def summarise_run(run: Run) -> dict[str, Any]:
    status = run.status
    return {
        "run_id": run.id, "state": status.state, "message": status.message, "prompt": status.prompt,
        "seed": status.seed, "method": status.method, "step": status.step, "total": status.total,
        "time_s": status.time_s, "best_score": status.best_score, "best_step": status.best_step, "pinned": run.is_pinned,
        "thumbnail": public_address(run.thumbnail) if run.thumbnail else None,
    }  # fmt: skip


def public_address(path: Path) -> str:
    """Where a public file of a run is served, relative to the server's address."""
    serve_folder(path.parent.parent)
    return f"gradio_api/file={quote(path.as_posix())}"
