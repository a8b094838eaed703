"""The layer around the page: headers, forwarded addresses, bodies, logins and sessions, on a server and alone."""

import asyncio
import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio.routes import App

from psd.runs.jobs.worker import Worker
from psd.ui import api, build, protection
from psd.ui.sessions import MOST_SESSIONS, Sessions, UnreadMessages, keep_few_sessions
from tests.runs.test_worker import PATIENCE_S
from tests.support.fake_run import fake_run


def serve(folder: Path, **settings: Any) -> Iterator[tuple[str, gr.Blocks, App]]:
    worker = Worker(fake_run, folder)
    blocks = build.build_blocks(worker)
    api.register_endpoints(blocks, worker, score=lambda *_: {}, remake=lambda *_: None)
    layers = protection.protect(
        worker.library.find_folder, proxies=settings.pop("proxies", ()), frameable=settings.pop("frameable", False)
    )
    app, url, _ = blocks.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", max_file_size=2**20, run_history=False,
        enable_monitoring=False, app_kwargs={"middleware": layers}, **settings, **build.launch_options(),
    )  # fmt: skip
    keep_few_sessions(app, blocks)
    yield url, blocks, app
    blocks.close()
    assert worker.shutdown(PATIENCE_S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, gr.Blocks, App]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORWARDED_ALLOW_IPS", "")  # as app.py sets it
        yield from serve(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, gr.Blocks, App]]:
    """Behind a proxy on this machine, below a path, in a frame, with a login."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORWARDED_ALLOW_IPS", "")
        check = protection.make_login_check({"ada": "lace"})
        yield from serve(
            tmp_path_factory.mktemp("runs"), proxies=["127.0.0.1"], frameable=True, auth=check, root_path="/psd"
        )


@pytest.mark.parametrize("path", ["", "config"])
def test_the_page_travels_compressed(server: tuple[str, gr.Blocks, App], path: str) -> None:
    with httpx.stream("GET", server[0] + path, timeout=PATIENCE_S) as answer:
        sent = sum(map(len, answer.iter_raw()))
    plain = httpx.get(server[0] + path, headers={"accept-encoding": "identity"}, timeout=PATIENCE_S)
    assert answer.headers["content-encoding"] == "gzip" and sent < len(plain.content) / 5


FORGED = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "x-gradio-server": "http://evil.example",
          "forwarded": "host=evil.example"}  # fmt: skip


def test_headers_keep_the_page_out_of_frames(server: tuple[str, gr.Blocks, App], proxied: tuple) -> None:
    for path in ("", "config", "gradio_api/info", "gradio_api/file=nowhere", "no/such/page"):
        headers = httpx.get(server[0] + path, timeout=PATIENCE_S).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "SAMEORIGIN", path
        assert headers["content-security-policy"] == "frame-ancestors 'self'"
    framed = httpx.get(proxied[0], timeout=PATIENCE_S).headers
    assert framed["x-content-type-options"] == "nosniff" and "x-frame-options" not in framed


def test_forwarded_headers_of_a_stranger_are_not_believed(server: tuple[str, gr.Blocks, App]) -> None:
    for path in ("", "config"):
        assert "evil.example" not in httpx.get(server[0] + path, headers=FORGED, timeout=PATIENCE_S).text


def test_those_of_a_proxy_are(proxied: tuple[str, gr.Blocks, App]) -> None:
    forwarded = {"x-forwarded-host": "studio.example", "x-forwarded-proto": "https"}
    assert "https://studio.example/psd" in httpx.get(proxied[0], headers=forwarded, timeout=PATIENCE_S).text


def test_the_snippet_holds_the_root_path(proxied: tuple[str, gr.Blocks, App]) -> None:
    """The address in the same run, from Python, is the one that the page was reached by."""
    url, blocks, _ = proxied
    client = httpx.Client(timeout=PATIENCE_S)
    assert client.post(f"{url}login", data={"username": "ada", "password": "lace"}).status_code == 200
    (number,) = (fn_id for fn_id, fn in blocks.fns.items() if fn.name == "show_values")
    values = [getattr(blocks.blocks[block._id], "value", None) for block in blocks.fns[number].inputs]
    joined = {"data": values, "fn_index": number, "session_hash": "snippet"}
    headers = {"x-forwarded-host": "studio.example", "x-forwarded-proto": "https"}
    answer = client.post(f"{url}gradio_api/run/predict", json=joined, headers=headers)
    assert "Client('https://studio.example/psd')" in answer.json()["data"][4]


@pytest.mark.parametrize("path", [
    "gradio_api/deep_link?session_hash=x", "gradio_api/run-history/buckets", "monitoring", "monitoring/summary",
    "gradio_api/file=http://127.0.0.1:1/x", "gradio_api/file=HTTPS://example.org/x", "gradio_api/proxy=http://a.hf.space",
])  # fmt: skip
def test_unused_routes_are_shut(server: tuple[str, gr.Blocks, App], path: str) -> None:
    assert httpx.get(server[0] + path, timeout=PATIENCE_S).status_code == 404


def test_uploads_of_a_client_are_bounded(server: tuple[str, gr.Blocks, App], monkeypatch: pytest.MonkeyPatch) -> None:
    """In one request and in all, also where the request does not say how long it is."""
    url = f"{server[0]}gradio_api/upload"

    def upload(count: int, size: int = 900_000) -> int:
        files = [("files", (f"{number}.yaml", b"x" * size)) for number in range(count)]
        return httpx.post(url, files=files, timeout=PATIENCE_S).status_code

    assert upload(50) == 413

    def endless() -> Iterator[bytes]:
        for number in range(50):
            yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="%d.yaml"\r\n\r\n' % number
            yield b"x" * 100_000 + b"\r\n"
        yield b"--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert httpx.post(url, content=endless(), headers=headers, timeout=PATIENCE_S).status_code == 413
    assert upload(1) == 200
    monkeypatch.setattr(protection, "UPLOADS_OF_CLIENT", 2_000_000)
    assert 429 in [upload(1) for _ in range(4)], "of one client"


def test_a_body_is_bounded(server: tuple[str, gr.Blocks, App], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protection, "LARGEST_BODY", 1000)
    answer = httpx.post(f"{server[0]}gradio_api/queue/join", content=b"x" * 1001, timeout=PATIENCE_S)
    assert answer.status_code == 413


# ---- layers alone


async def answer(layer: Any, scope: dict[str, Any]) -> dict[str, Any]:
    """What a layer sends first for a request without a body."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await layer(scope, receive, send)
    return sent[0]


def login_layer(right: Callable[[dict[str, Any]], bool], now: list[float]) -> tuple[Any, list[str]]:
    checked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        checked.append(scope["client"][0])
        await send({"type": "http.response.start", "status": 200 if right(scope) else 400, "headers": []})

    return protection.LoginDelay(app, clock=lambda: now[0]), checked


def login(client: str, right: bool = False) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": "/login", "client": (client, 1), "headers": [], "right": right}


def test_wrong_passwords_make_their_sender_wait_and_nobody_else() -> None:
    now = [0.0]
    layer, checked = login_layer(lambda scope: scope["right"], now)
    statuses = [asyncio.run(answer(layer, login("10.0.0.1")))["status"] for _ in range(300)]
    assert statuses.count(400) == protection.FREE_ATTEMPTS == len(checked) and set(statuses) == {400, 429}
    assert asyncio.run(answer(layer, login("10.0.0.1", right=True)))["status"] == 429, "guessed while waiting"
    assert asyncio.run(answer(layer, login("10.0.0.2", right=True)))["status"] == 200
    now[0] = 1.1
    assert asyncio.run(answer(layer, login("10.0.0.1", right=True)))["status"] == 200
    for wait in (0, 0, 0, 1.01, 2.01, 4.01, 8.01):  # forgotten after a right one, then twice as long each time
        now[0] += wait
        assert asyncio.run(answer(layer, login("10.0.0.1")))["status"] == 400
    blocked = asyncio.run(answer(layer, login("10.0.0.1")))
    assert blocked["status"] == 429 and (b"retry-after", b"16") in blocked["headers"]
    now[0] += protection.FORGET_ATTEMPTS_S
    assert asyncio.run(answer(layer, login("10.0.0.1")))["status"] == 400


def test_attempts_of_many_addresses_fit_into_little_memory() -> None:
    layer, _ = login_layer(lambda scope: False, [0.0])
    for number in range(protection.MOST_CLIENTS + 50):
        asyncio.run(answer(layer, login(f"10.0.{number // 256}.{number % 256}")))
    assert len(layer.attempts) == protection.MOST_CLIENTS


@pytest.mark.parametrize(("name", "password", "enters"), [
    ("ada", "lace", True), (" ada ", "lace", True), ("ada", "Lace", False), ("ada", "", False), ("bob", "", False),
    ("bob", "lace", False), ("ada", "\ud800", False), ("", "", False),
])  # fmt: skip
def test_a_login_needs_its_own_password(name: str, password: str, enters: bool) -> None:
    check = protection.make_login_check({"ada": "lace"})
    assert check is not None and check(name, password) is enters
    assert protection.make_login_check({}) is None


def test_the_client_behind_a_proxy_is_the_one_that_it_names() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["client"][0], scope["scheme"], [name for name, _ in scope["headers"]]))

    layer = protection.ForwardedHeaders(app, frozenset({"10.0.0.9"}))
    headers = [(b"X-Forwarded-For", b"1.2.3.4, 5.6.7.8"), (b"x-forwarded-proto", b"https"), (b"accept", b"*/*")]
    for client in ("10.0.0.9", "10.0.0.8"):
        scope = {"type": "http", "client": (client, 1), "scheme": "http", "headers": headers}
        nothing: Any = None
        asyncio.run(layer(scope, nothing, nothing))
    assert seen[0][:2] == ("5.6.7.8", "https"), "of what a stranger wrote before it, nothing"
    assert seen[1] == ("10.0.0.8", "http", [b"accept"])


def test_messages_show_no_folder_of_the_server(tmp_path: Path) -> None:
    text = (
        f"{tmp_path}/20260101-000000_a_s0_00000000: cannot read {Path.home()}/x and {protection.PRESETS.parent}/app.py"
    )
    assert protection.hide_paths(text, tmp_path) == (
        "runs/20260101-000000_a_s0_00000000: cannot read ~/x and psd-studio/app.py"
    )


def test_a_session_costs_little_and_few_are_kept(server: tuple[str, gr.Blocks, App]) -> None:
    _, blocks, app = server
    assert isinstance(app.state_holder, Sessions) and app.state_holder.capacity == MOST_SESSIONS <= 500
    unread = blocks._queue.pending_messages_per_session
    assert isinstance(unread, UnreadMessages) and unread.max_size == MOST_SESSIONS
    sessions = Sessions()
    sessions.set_blocks(blocks)
    sessions["first"]
    tracemalloc.start()
    for number in range(50):
        sessions[f"session {number}"]._update_value_in_config(1, "x" * 1000)
    assert tracemalloc.get_traced_memory()[0] / 50 < 40_000
    tracemalloc.stop()
    for number in range(2 * MOST_SESSIONS):
        sessions[f"another {number}"]
    assert len(sessions.session_data) <= MOST_SESSIONS


def test_messages_that_nobody_asks_for_are_forgotten_first() -> None:
    unread = UnreadMessages(3)
    for name in ("first", "second", "third"):
        unread[name] = name
    assert unread["first"] == "first", "its client reads"
    unread["fourth"] = "fourth"
    assert list(unread) == ["third", "first", "fourth"]
    with pytest.raises(KeyError):
        unread["second"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_100_clients_for_a_minute_leave_the_memory_as_it_was(server: tuple[str, gr.Blocks, App]) -> None:
    """New visitors all the time, each asking a little: what the server keeps of them is bounded."""
    from psd.runtime.memory import resident_bytes

    url, _, app = server
    numbers = {it["api_name"]: it["id"] for it in httpx.get(f"{url}config", timeout=60).json()["dependencies"]}

    def visit(client: int, until: float) -> None:
        with httpx.Client(timeout=60) as http:
            visits = 0
            while time.monotonic() < until:
                session = f"visitor-{client}-{visits}"
                joined = {"data": ["", 3], "fn_index": numbers["list_runs"], "session_hash": session}
                assert http.post(f"{url}gradio_api/queue/join", json=joined).status_code == 200
                with http.stream("GET", f"{url}gradio_api/queue/data?session_hash={session}") as lines:
                    assert any('"success":true' in line for line in lines.iter_lines())
                visits += 1

    def visit_together(clients: int, seconds: float) -> int:
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=visit, args=[client, until]) for client in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        return resident_bytes()

    before = visit_together(100, 10.0)  # once, so that threads and caches are there
    after = visit_together(100, 60.0)
    assert after <= 1.10 * before, f"{before / 2**20:.0f} MiB before, {after / 2**20:.0f} MiB after"
    assert len(app.state_holder.session_data) <= MOST_SESSIONS
