"""What scripts and assistants may call: named endpoints, for `gradio_client` and, with gradio[mcp], as MCP tools.

Everything that comes in is checked here or by the Preset and answered in words; nothing that goes out holds a folder of
the server, or a secret of another.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.data_classes import FileData
from jaxtyping import UInt8
from starlette.concurrency import run_in_threadpool

from psd.config.errors import PresetError, format_value
from psd.config.preset import DEFAULT_PRESET, Preset, is_preset_file, parse_mapping
from psd.distillation.events import Event, to_json, without_arrays
from psd.geometry.export import FORMATS, SPLAT_FORMATS
from psd.runs.jobs.worker import Worker
from psd.runs.store import ownership
from psd.runs.store.archive import ACTIVE, Run, replay_events
from psd.runs.store.files import StoreError
from psd.runtime.pictures import decode_image
from psd.ui.endpoints import document_parameters, explain_errors, explain_stream_errors, require_every_value
from psd.ui.inputs.vocabulary import Vocabulary, list_notes, reword_preset
from psd.ui.markup.html import EXPORTS, download_file, file_url
from psd.ui.protection import hide_paths, server_address

STREAM_S = 0.5  # between two looks of a stream at its run
SILENT_S = 10.0  # a stream that has nothing to tell sends an empty list so often, so that a client that left is noticed
EVENTS_AT_ONCE = 128
STREAMS, STREAMS_OF_CLIENT = 64, 8
UNREAD = 4  # messages that wait for a client before its stream does; it ends where none is fetched for SILENT_S
LEASE_S = 4 * SILENT_S  # a stream that was not heard of for so long is gone
MOST_LISTED = 100
MOST_IMAGES = 16  # of one call

ScoreImages = Callable[
    [Sequence[UInt8[np.ndarray, "h w 3"]], str, str], dict[str, Any]
]  # images, prompt, judge ("": default)
Remake = Callable[[Path, str | None, float | None], object]  # a run's folder, scene, threshold


def register_endpoints(
    blocks: gr.Blocks,
    worker: Worker,
    *,
    score: ScoreImages,
    remake: Remake,
    vocabularies: Mapping[str, Vocabulary] | None = None,
) -> None:
    """Add the endpoints to a page.

    ``score`` and ``remake`` (`psd.runs.remesh.rewrite_mesh`) bring in what needs torch.
    """
    api = Api(worker, score, remake, vocabularies or {})
    with blocks:
        for endpoint in (
            api.start_run, api.get_status, api.stop_run, api.resume_run, api.list_runs, api.export_mesh,
            api.score_images,
        ):  # fmt: skip
            gr.api(explain_errors(endpoint, worker.library.root), api_name=endpoint.__name__, concurrency_limit=4)
        gr.api(explain_stream_errors(api.watch_run, worker.library.root), api_name="watch_run", concurrency_limit=None)
    for function in blocks.fns.values():
        if hasattr(Api, str(function.api_name)):
            document_parameters(function)
    page: Any = blocks  # Gradio calls this method; ours asks for every value
    page.validate_inputs = require_every_value


class Api:
    """The endpoints; each docstring is what `view_api()` and an assistant read."""

    def __init__(
        self, worker: Worker, score: ScoreImages, remake: Remake, vocabularies: Mapping[str, Vocabulary]
    ) -> None:
        self._worker, self._score, self._remake, self._vocabularies = worker, score, remake, vocabularies
        self._streams: dict[object, tuple[str, float]] = {}  # a token each -> client, when it was last heard of

    def start_run(
        self, prompt: str, preset: str = DEFAULT_PRESET, seed: int | None = None, overrides: str = "", owner: str = ""
    ) -> dict[str, Any]:
        """Queue a run that makes a 3D object of a prompt, and return at once.

        Args:
            prompt: what to make; the small models know things such as "a taxi" or "a red mushroom" (the page shows all)
            preset: name of a shipped preset
            seed: the same seed gives the same run; left out: that of overrides, or of the preset
            overrides: further parameters as YAML or JSON, for instance "steps: 60"
            owner: the secret that an earlier call returned, so that its runs have one owner; empty: a new one

        Returns:
            the status of the run (see get_status), whose "prompt" is how yours was read; "notes", on what was read
            otherwise than you sent it; and "owner", which stop_run, resume_run and export_mesh ask for
        """
        given = {"prompt": prompt} if seed is None else {"prompt": prompt, "seed": seed}
        values = parse_mapping(overrides) if overrides.strip() else {}
        for name, value in given.items():
            if name in values and values[name] != value:
                raise PresetError(
                    f"{name}={format_value(value)}, but overrides say {format_value(values[name])}: give it once"
                )
        values |= given
        if is_preset_file(preset):
            raise PresetError(f"{format_value(preset)} is a file: name a shipped preset, and pass changes as overrides")
        owner = owner or ownership.new_owner()
        asked = Preset.load(preset, values)
        run_id = self._worker.submit(reword_preset(asked, self._vocabularies), owner=owner)
        return {**self.get_status(run_id), "notes": list_notes(asked, self._vocabularies), "owner": owner}

    def get_status(self, run_id: str) -> dict[str, Any]:
        """How a run stands.

        Args:
            run_id: as start_run and list_runs tell it

        Returns:
            "state" (queued, running, paused, finished, stopped, failed, interrupted), "step" of "total", the best score
            of the selector judge, what goes before it ("ahead", "wait_s") and how long it takes ("left_s"), and the
            addresses of its pictures and meshes, relative to the server's
        """
        folder = self._worker.library.find_folder(run_id)
        job = next((job for job in self._worker.list_jobs() if job.id == run_id), None)
        summary = summarise_run(Run(folder, self._worker.library.read_status(run_id)))
        if job is not None:
            summary |= {"ahead": job.ahead, "wait_s": job.wait_s, "left_s": job.left_s}
        exports = [path for path in sorted((folder / EXPORTS).glob("*")) if not path.name.startswith(".")]
        return summary | {"files": {path.name: public_address(folder, path) for path in exports}}

    def stop_run(self, run_id: str, owner: str) -> dict[str, Any]:
        """End a run after its current step; what it reached is kept and exported.  One that is over stays as it is.

        Args:
            run_id: the run
            owner: the secret that start_run returned

        Returns:
            its status (see get_status)
        """
        self._worker.library.require_owner(run_id, owner)
        if self._worker.library.read_status(run_id).state in ACTIVE:
            self._worker.stop(run_id, owner)
        return self.get_status(run_id)

    def resume_run(self, run_id: str, steps: int = 0, owner: str = "", from_start: bool = False) -> dict[str, Any]:
        """Go on with a run that was stopped or interrupted, or add steps to one that is finished.

        Args:
            run_id: a run that is over
            steps: so many more than it was planned with; 0: what is left of the plan
            owner: the secret that start_run returned
            from_start: begin anew where every checkpoint of the run is lost, instead of refusing

        Returns:
            its status (see get_status)
        """
        self._worker.extend(run_id, steps, owner, from_start)
        return self.get_status(run_id)

    def list_runs(self, owner: str = "", limit: int = 20) -> list[dict[str, Any]]:
        """The newest runs of this server.

        Args:
            owner: only the runs of this secret; empty: all
            limit: at most so many, 1 to 100

        Returns:
            for each run its id, state, prompt, seed, method, steps, best judge score and thumbnail
        """
        if not 1 <= limit <= MOST_LISTED:
            raise PresetError(f"limit={format_value(limit)} must lie in [1, {MOST_LISTED}]")
        return [summarise_run(run) for run in self._worker.library.list_runs(owner)[:limit]]

    def export_mesh(
        self,
        run_id: str,
        format: str = "glb",
        scene: str = "",
        threshold: float = 0.0,
        owner: str = "",
        request: gr.Request | None = None,
    ) -> FileData:
        """The mesh of a run, as it is or made again.

        Args:
            run_id: a run that has ended
            format: glb, obj, ply or stl; of a run of Gaussians also splat.ply or splat
            scene: best (by the selector judge) or last; empty: the mesh as it is
            threshold: density of the surface; 0: the one that fits the renders
            owner: the secret that start_run returned; needed to make the mesh again

        Returns:
            the mesh as a file, which `gradio_client` downloads; a textured OBJ is a zip with its .mtl and .png
        """
        if format not in FORMATS | SPLAT_FORMATS:
            raise PresetError(f"no format {format_value(format)}; there are: {', '.join(FORMATS | SPLAT_FORMATS)}")
        folder = self._worker.library.find_folder(run_id)
        if not 0 <= threshold < math.inf:
            raise PresetError(f"threshold={threshold} must be a number from 0 on; 0: what the run's mesh was made with")
        if scene or threshold:
            if scene not in ("", "best", "last"):
                raise PresetError(f"no scene {format_value(scene)}; there are: best, last")
            ownership.require_owner(folder, owner)
            self._remake(folder, scene or None, threshold or None)
        path = download_file(folder / EXPORTS / f"mesh.{format}")
        if format in SPLAT_FORMATS and not path.is_file() and path.with_name("mesh.glb").is_file():
            raise PresetError(f"no {format}: the scene of this run has no Gaussians; there are: {', '.join(FORMATS)}")
        if not path.is_file():
            raise StoreError(f"the run {run_id} has no mesh yet", "wait for its end, or stop it")
        address = f"{server_address(request)}/{public_address(folder, path)}"
        # `is_stream`: clients fetch the address as it stands; Gradio would copy the file and tell where to.
        return FileData(path=path.name, url=address, orig_name=path.name, size=path.stat().st_size, is_stream=True)

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

    async def watch_run(
        self, run_id: str, since: int = 0, request: gr.Request | None = None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """The events of a run as they come, until its end.

        A stream that nobody reads ends, and one client has at most 8 at once.

        Args:
            run_id: the run
            since: how many events are known already

        Returns:
            lists of events: Started, Stepped with its metrics, Previewed, Finished and so on, with their step and time;
            an empty list where nothing has happened for 10 seconds
        """
        if not 0 <= since <= 2**53:
            raise PresetError(f"since={format_value(since)} is below 0 or no number of events: say how many are known")
        folder = await run_in_threadpool(self._worker.library.find_folder, run_id)
        token = self._claim_stream(_client_host(request))
        try:
            told_s, over = time.monotonic(), False
            while not over:
                over = (await run_in_threadpool(self._worker.library.read_status, run_id)).state not in ACTIVE
                while events := await run_in_threadpool(self._worker.events_since, run_id, since, EVENTS_AT_ONCE):
                    since, told_s = since + len(events), time.monotonic()
                    yield self.public_events(events)
                    if not await self._wait_for_reader(token, request):
                        return
                if not over and time.monotonic() - told_s >= SILENT_S:
                    told_s = time.monotonic()
                    yield []
                if not await self._wait_for_reader(token, request):
                    return
                await asyncio.sleep(0.0 if over else STREAM_S)
        except StoreError:  # not a job of this worker, or no longer: its folder tells all
            stored = await run_in_threadpool(lambda: [without_arrays(event) for event in replay_events(folder)])
            for first in range(since, len(stored), EVENTS_AT_ONCE):
                yield self.public_events(stored[first : first + EVENTS_AT_ONCE])
                if not await self._wait_for_reader(token, request):
                    return
        finally:
            self._streams.pop(token, None)

    # ---- streams

    def _claim_stream(self, client: str) -> object:
        """A place for one more stream; raises PresetError where there is none."""
        now, token = time.monotonic(), object()
        self._streams = {key: stream for key, stream in self._streams.items() if now - stream[1] < LEASE_S}
        if sum(other == client for other, _ in self._streams.values()) >= STREAMS_OF_CLIENT:
            raise PresetError(f"{STREAMS_OF_CLIENT} streams of events go to this address already: end one of them")
        if len(self._streams) >= STREAMS:
            raise PresetError(f"{STREAMS} streams of events are read here already: try again later")
        self._streams[token] = (client, now)
        return token

    def _renew_stream(self, token: object) -> bool:
        """Whether the stream still has its place."""
        if token not in self._streams:
            return False
        self._streams[token] = (self._streams[token][0], time.monotonic())
        return True

    async def _wait_for_reader(self, token: object, request: gr.Request | None) -> bool:
        """Whether the stream may go on: it still has its place, and its client fetches what lies there."""
        since = time.monotonic()
        while self._renew_stream(token):
            if _count_unread(request) < UNREAD:
                return True
            if time.monotonic() - since > SILENT_S:
                return False
            await asyncio.sleep(STREAM_S / 5)
        return False

    # ---- words

    def public_events(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        return [json.loads(hide_paths(to_json(event), self._worker.library.root)) for event in events]


def _client_host(request: gr.Request | None) -> str:
    return request.client.host if request is not None and request.client is not None else ""


def _count_unread(request: gr.Request | None) -> int:
    """Messages that Gradio keeps for the session of a request until its client fetches them."""
    if request is None or request.request is None:
        return 0
    waiting = request.request.app.get_blocks()._queue.pending_messages_per_session
    return waiting[request.session_hash].qsize() if request.session_hash in waiting else 0


def summarise_run(run: Run) -> dict[str, Any]:
    """What the API says of a run, as JSON can hold it; no path of the server is in it."""
    status = run.status
    return {
        "run_id": run.id, "state": status.state, "message": hide_paths(status.message, run.folder.parent),
        "prompt": status.prompt, "seed": status.seed, "method": status.method, "step": status.step,
        "total": status.total, "time_s": status.time_s, "best_score": status.best_score, "best_step": status.best_step,
        "pinned": run.is_pinned, "thumbnail": public_address(run.folder, run.thumbnail) if run.thumbnail else None,
    }  # fmt: skip


def public_address(folder: Path, path: Path) -> str:
    """Where a public file of a run is served, relative to the server's address."""
    return file_url(folder.name, path.relative_to(folder).as_posix())
