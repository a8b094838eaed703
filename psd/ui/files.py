"""Files of runs by the run's id: no address names a folder of this machine.

`psd.ui.markup.html.file_url` makes the addresses.  Gradio's own route serves the files, so login, ranges and limits
hold as for every other file; this layer only turns the run's id into its folder on the way in, and names the file after
the prompt on the way out.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from psd.runs.jobs.worker import Worker
from psd.runs.store.files import StoreError
from psd.ui.markup.html import RUN_FILES, name_download
from psd.ui.state.watch import serve_folder

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Message]], Send], Awaitable[None]]

ADDRESS = re.compile(rf"(?P<before>.*/gradio_api/file=){re.escape(RUN_FILES)}(?P<run>[^/]+)/(?P<file>.+)", re.DOTALL)
PUBLIC = "public"


class RunFiles:
    """An ASGI layer in front of the page that finds the public files of runs."""

    def __init__(self, app: AsgiApp, worker: Worker) -> None:
        self._app, self._worker = app, worker

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Message]], send: Send
    ) -> None:
        match = ADDRESS.fullmatch(scope["path"]) if scope["type"] == "http" else None
        path = find_public_file(self._worker, match["run"], match["file"]) if match else None
        if match is None or path is None:  # what is not there gets Gradio's own answer, which names what was asked for
            await self._app(scope, receive, send)
            return

        name = name_download(match["run"], path.name)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (200, 206):
                kept = [(key, value) for key, value in message["headers"] if key.lower() != b"content-disposition"]
                kind = b"inline" if path.suffix in (".jpg", ".png", ".mp4", ".webp", ".glb") else b"attachment"
                named = (b"content-disposition", kind + f'; filename="{name}"'.encode())
                message = {**message, "headers": [*kept, named]}
            await send(message)

        address = match["before"] + path.as_posix()
        await self._app({**scope, "path": address, "raw_path": quote(address).encode()}, receive, send_named)


def find_public_file(worker: Worker, run_id: str, file: str) -> Path | None:
    """A file that may be fetched: below the run's public folder, or the run's zip; None for anything else."""
    try:
        folder = worker.folder(run_id)
    except StoreError:
        return None
    if file == f"{run_id}.zip":
        path, root = worker.zip_path(run_id), worker.zip_path(run_id).parent
    else:
        path, root = folder / file, folder / PUBLIC
    if "\0" in file or not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
        return None
    serve_folder(root)
    return path
