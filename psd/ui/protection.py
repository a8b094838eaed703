"""The layer between the network and the page: what reaches Gradio, and which headers go with its answers.

ASGI middleware in the order of `protect`.  Each class says what it keeps out; none knows a run's events or the page.
A client is the address that a request comes from, or the one that a believed proxy names.
"""

from __future__ import annotations

import hmac
import json
import re
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from psd.config.preset import PRESETS
from psd.runs.store.files import StoreError
from psd.ui.markup.html import PAGE_FILES, RUN_FILES, name_download
from psd.ui.state.watch import serve_folder

RUN_FILE = re.compile(rf"(?P<prefix>.*/gradio_api/file=){RUN_FILES}(?P<run>[^/]+)/(?P<file>.+)", re.DOTALL)
PAGE_FILE = re.compile(rf"(?P<prefix>.*/gradio_api/file=){PAGE_FILES}(?P<file>[^/]+)", re.DOTALL)
REMOTE_FILE = re.compile(r".*/gradio_api/(file|proxy)=\s*[a-z][a-z0-9+.-]*:", re.DOTALL | re.IGNORECASE)
LOGIN = re.compile(r".*/login/?")
DISPOSITION = b"content-disposition"
FOR_GOOD = (b"cache-control", b"private, max-age=31536000, immutable")
SHOWN = (".jpg", ".png", ".webp", ".mp4", ".glb")  # what a browser shows where it stands; others it saves
NO_FILE = "no-such-file"  # what Gradio is asked for in the place of a file that is not served: it refuses, after login
# Routes of Gradio that this page does not use and that write to the disk, compute, or tell of others' visits.
CLOSED = re.compile(
    r".*/(gradio_api/(deep_link|process_recording|run-history|vibe[\w-]*|undo-vibe-edit|custom_component)|monitoring)(/.*)?",
    re.DOTALL,
)
FORWARDED = {b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-for", b"x-forwarded-port", b"x-forwarded-prefix",
             b"x-gradio-server", b"forwarded"}  # fmt: skip
LARGEST_BODY = 70_000_000  # bytes; 16 pictures in base64 (`psd.ui.api`)
LARGEST_UPLOAD_REQUEST = 2_200_000  # bytes; one preset file of at most 1 MB is needed
UPLOADS_OF_CLIENT = 10_000_000  # bytes in `UPLOADS_KEPT_S`, which Gradio keeps so long on the disk
UPLOADS_OF_ALL = 500_000_000
UPLOADS_KEPT_S = 24 * 3600.0
FREE_ATTEMPTS = 3  # wrong passwords before a client has to wait
LONGEST_DELAY_S = 60.0
FORGET_ATTEMPTS_S = 900.0
MOST_CLIENTS = 4096  # that are remembered

Logins = Mapping[str, str]  # name -> password


def protect(
    find_folder: Callable[[str], Path],
    find_zip: Callable[[str], Path] | None = None,
    *,
    page_files: Collection[Path] = (),
    proxies: Collection[str] = (),
    frameable: bool = False,
) -> list[Middleware]:
    """The layers for ``app_kwargs={"middleware": ...}`` of ``launch``.

    ``find_folder`` gives a run's folder and ``find_zip`` its zip, or each raises StoreError.  ``page_files`` is what
    the page itself shows (`psd.ui.markup.html.page_file_url`).  The X-Forwarded headers of requests from ``proxies``
    (addresses, or ``*`` for all) are believed, those of others are dropped.  ``frameable``: other sites may show the
    page in a frame, as a Space needs it.
    """
    return [
        Middleware(ForwardedHeaders, proxies=frozenset(proxies)),
        Middleware(SecurityHeaders, frameable=frameable),
        Middleware(ClosedRoutes),
        Middleware(BodyLimit),
        Middleware(LoginDelay),
        Middleware(RunFiles, find_folder=find_folder, find_zip=find_zip),
        Middleware(PageFiles, files={file.name: file for file in page_files}),
        Middleware(CompressedPages),
    ]


def server_address(request: gr.Request | None) -> str:
    """The address that the client of a request knows this server by, with the root path below which it is served.

    Without a request, as of a script in this process, it is empty: addresses then are relative to the server's.
    """
    raw = request.request if request is not None else None
    if raw is None:
        return ""
    root: str = raw.app.root_path
    if root.startswith(("http://", "https://")):
        return root.rstrip("/")
    # The forwarded headers are here only where `ForwardedHeaders` believes them.
    host = raw.headers.get("x-forwarded-host", "").partition(",")[0].strip() or raw.headers.get("host", "")
    scheme = raw.headers.get("x-forwarded-proto", "").partition(",")[0].strip() or raw.url.scheme
    origin = raw.headers.get("origin", "")  # of a browser, which knows its own address
    return (origin if origin.startswith("http") else f"{scheme}://{host}") + root.rstrip("/")


def make_login_check(logins: Logins) -> Callable[[str, str], bool] | None:
    """The ``auth`` of ``launch``: in the same time for every wrong password, and for a name that is unknown."""
    if not logins:
        return None

    def check_login(name: str, password: str) -> bool:
        expected = logins.get(name.strip())
        matches = hmac.compare_digest(
            password.encode(errors="surrogatepass"), (expected or "").encode(errors="surrogatepass")
        )
        return matches and expected is not None

    return check_login


def hide_paths(text: str, *roots: Path) -> str:
    """A message without the server's own folders: runs, repository, home and temporary files."""
    names = {str(root.absolute()): "runs" for root in roots}
    names |= {str(PRESETS.parent): "psd-studio", str(Path.home()): "~", tempfile.gettempdir(): "tmp"}
    for folder in sorted(names, key=len, reverse=True):
        if len(folder) > 1:
            text = text.replace(folder, names[folder])
    return text


# ---- layers


class ForwardedHeaders:
    """Believes a proxy that is named, and nobody else, about host, scheme and client of a request."""

    def __init__(self, app: ASGIApp, proxies: frozenset[str]) -> None:
        self.app, self.proxies = app, proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if "*" in self.proxies or _client_address(scope) in self.proxies:
                scope = self._apply_headers(scope)
            else:
                headers = [(name, value) for name, value in scope["headers"] if name.lower() not in FORWARDED]
                scope = {**scope, "headers": headers}
        await self.app(scope, receive, send)

    @staticmethod
    def _apply_headers(scope: Scope) -> Scope:
        """The nearest proxy writes the last address of X-Forwarded-For; those before it are hearsay."""
        scope = dict(scope)
        if client := _read_header(scope, b"x-forwarded-for").rpartition(",")[2].strip():
            scope["client"] = (client, 0)
        if (scheme := _read_header(scope, b"x-forwarded-proto").partition(",")[0].strip()) in ("http", "https"):
            scope["scheme"] = scheme
        return scope


class SecurityHeaders:
    """No guessing of types, no frame on other sites, no address of a run to other sites."""

    def __init__(self, app: ASGIApp, frameable: bool) -> None:
        self.app = app
        self.headers = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin")]
        if not frameable:
            self.headers += [
                (b"x-frame-options", b"SAMEORIGIN"), (b"content-security-policy", b"frame-ancestors 'self'"),
            ]  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self.headers]}
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class ClosedRoutes:
    """Keeps Gradio's unused routes shut, and the one that fetches addresses of other servers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and (CLOSED.fullmatch(path) or REMOTE_FILE.match(path)):
            await _refuse(send, 404, "this server has no such page")
        else:
            await self.app(scope, receive, send)


class CompressedPages:
    """Page and config are compressed here, to a tenth; Gradio does so with files that have an extension only."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.compressed = app, GZipMiddleware(app, compresslevel=5)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_page = scope["type"] == "http" and scope["path"].rpartition("/")[2] in ("", "config", "info")
        await (self.compressed if is_page else self.app)(scope, receive, send)


class TooLargeError(Exception):
    """A request's body goes on beyond what is taken."""


class BodyLimit:
    """Bounds the body of every request, and what one client uploads a day."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.clock = app, clock
        self.uploads: OrderedDict[str, tuple[float, int]] = OrderedDict()  # client -> since when, bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        is_upload = scope["path"].rstrip("/").endswith("/gradio_api/upload")
        most = LARGEST_UPLOAD_REQUEST if is_upload else LARGEST_BODY
        if is_upload and self._upload_room(scope) <= 0:
            return await _refuse(send, 429, "too many uploads: try again tomorrow")
        length = _read_header(scope, b"content-length")
        if length.isdecimal() and int(length) > most:
            return await _refuse(send, 413, f"a request of {length} bytes exceeds the maximum allowed size, {most}")
        taken, started = 0, False

        async def receive_counted() -> Message:
            nonlocal taken
            message = await receive()
            size = len(message.get("body", b""))
            taken += size
            if is_upload:
                self._count_upload(scope, size)
            if taken > most or (is_upload and self._upload_room(scope) < 0):
                raise TooLargeError
            return message

        async def send_marked(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive_counted, send_marked)
        except TooLargeError:
            if not started:
                await _refuse(send, 413, f"the request exceeds the maximum allowed size, {most} bytes")

    def _upload_room(self, scope: Scope) -> int:
        now = self.clock()
        while self.uploads and now - next(iter(self.uploads.values()))[0] > UPLOADS_KEPT_S:
            self.uploads.popitem(last=False)
        mine = self.uploads.get(_client_address(scope), (0.0, 0))[1]
        return min(UPLOADS_OF_CLIENT - mine, UPLOADS_OF_ALL - sum(size for _, size in self.uploads.values()))

    def _count_upload(self, scope: Scope, size: int) -> None:
        client = _client_address(scope)
        since, before = self.uploads.get(client, (self.clock(), 0))
        self.uploads[client] = (since, before + size)
        while len(self.uploads) > MOST_CLIENTS:
            self.uploads.popitem(last=False)


class LoginDelay:
    """Makes a client that sent wrong passwords wait, twice as long each time; others log in meanwhile."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.clock = app, clock
        self.attempts: OrderedDict[str, tuple[int, float]] = OrderedDict()  # client -> wrong ones, the last one's time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or scope["method"] != "POST"
            or scope["path"].rstrip("/").rpartition("/")[2] != "login"
        ):
            return await self.app(scope, receive, send)
        client, now = _client_address(scope), self.clock()
        wrong, last = self.attempts.get(client, (0, -FORGET_ATTEMPTS_S))
        wrong = 0 if now - last >= FORGET_ATTEMPTS_S else wrong
        left = last + _delay_s(wrong) - now
        if left > 0:
            words = f"too many wrong passwords: try again in {left:.0f} s"
            return await _refuse(send, 429, words, [(b"retry-after", b"%d" % max(1, round(left)))])
        self.attempts[client] = (wrong + 1, now)  # before the answer, so that many at once count one by one
        self.attempts.move_to_end(client)
        while len(self.attempts) > MOST_CLIENTS:
            self.attempts.popitem(last=False)

        async def send_watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self.attempts.pop(client, None)
            await send(message)

        await self.app(scope, receive, send_watched)


class RunFiles:
    """Serves public files of runs by the run's id, so that no address shows a folder of the server.

    The request goes on to Gradio's own route, which asks for the login and answers ranges.  Files that a person saves
    are named after the run's prompt (`psd.ui.markup.html.name_download`).  An address with a version holds for good.
    """

    def __init__(
        self, app: ASGIApp, find_folder: Callable[[str], Path], find_zip: Callable[[str], Path] | None = None
    ) -> None:
        self.app, self.find_folder, self.find_zip = app, find_folder, find_zip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = RUN_FILE.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if match is None:
            return await self.app(scope, receive, send)
        file = await run_in_threadpool(self._find_file, match["run"], match["file"])
        path = match["prefix"] + (file.as_posix() if file else NO_FILE)
        name = name_download(match["run"], file.name) if file else ""

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (200, 206):
                headers = [(key, value) for key, value in message["headers"] if key.lower() != DISPOSITION]
                kind = "inline" if name.endswith(SHOWN) else "attachment"
                headers.append((DISPOSITION, f'{kind}; filename="{name}"'.encode()))
                if scope.get("query_string", b"").startswith(b"v="):
                    headers.append(FOR_GOOD)
                message = {**message, "headers": headers}
            await send(message)

        scope = {**scope, "path": path, "raw_path": quote(path).encode()}
        await self.app(scope, receive, send_named if file else send)

    def _find_file(self, run_id: str, name: str) -> Path | None:
        try:
            if self.find_zip is not None and name == f"{run_id}.zip":
                file = self.find_zip(run_id)
                serve_folder(file.parent)
                return file
            public = self.find_folder(run_id) / "public"
            file = (public / name).resolve()
            if not file.is_file() or not file.is_relative_to(public.resolve()):
                return None
        except (StoreError, OSError, ValueError):  # ValueError: a NUL in the name
            return None
        serve_folder(public)
        return public / name


class PageFiles:
    """Serves what the page itself shows by the file's name, so that no address shows a folder of the server."""

    def __init__(self, app: ASGIApp, files: Mapping[str, Path]) -> None:
        self.app, self.files = app, files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = PAGE_FILE.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if match is not None and match["file"] in self.files:
            file = self.files[match["file"]]
            serve_folder(file)
            path = match["prefix"] + file.as_posix()
            scope = {**scope, "path": path, "raw_path": quote(path).encode()}
        await self.app(scope, receive, send)


# ---- what layers share


def _client_address(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""


def _read_header(scope: Scope, name: bytes) -> str:
    """The values of all headers of this name, with commas."""
    return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name)


def _delay_s(wrong: int) -> float:
    """Seconds to wait after so many wrong passwords."""
    return 0.0 if wrong < FREE_ATTEMPTS else min(2.0 ** (wrong - FREE_ATTEMPTS), LONGEST_DELAY_S)


async def _refuse(send: Send, status: int, words: str, headers: list[Any] | None = None) -> None:
    body = json.dumps({"detail": words}).encode()
    kind = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": kind})
    await send({"type": "http.response.body", "body": body})
