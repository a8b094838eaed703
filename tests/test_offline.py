"""Nothing leaves the machine: a whole run, and the page, open no connection but to the machine itself."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from gradio_client import Client

from psd.runs.store.archive import latest_checkpoint, read_status

ROOT = Path(__file__).resolve().parent.parent
# Every Python process with this on its path writes down and refuses what would leave the machine.  It is written
# down because a refusal alone could be swallowed.  Audit hooks see all of Python's sockets, whoever opens them.
GUARD = """
import os, sys

def leaves(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        host = address[0] if isinstance(address, tuple) else "localhost"  # a path: a Unix socket
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if host in ("localhost", "::1", "None", "", "0.0.0.0") or host.startswith("127."):
        return
    with open(os.environ["PSD_TEST_CONNECTIONS"], "a") as file:
        file.write(f"{event} {host}\\n")
    raise ConnectionRefusedError(f"the test refuses {event} to {host}")

sys.addaudithook(leaves)
"""
# No switch of the environment may be what keeps the program quiet.
SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED")


@pytest.fixture
def guarded(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment whose Python processes are guarded, and the file in which forbidden connections appear."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    connections = tmp_path / "connections"
    connections.touch()
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    environment |= {
        "PYTHONPATH": str(tmp_path / "guard"),
        "PSD_TEST_CONNECTIONS": str(connections),
        "PSD_RUNS": str(tmp_path / "runs"),
        "HF_HOME": str(tmp_path / "hub"),  # nothing that an earlier download left behind
    }
    return environment, connections


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 53))",
        "import urllib.request; urllib.request.urlopen('http://example.org')",
        "import huggingface_hub; huggingface_hub.model_info('example/example')",
    ],
)
def test_the_guard_sees_what_leaves(guarded: tuple[dict[str, str], Path], code: str) -> None:
    environment, connections = guarded
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert re.search(r"192\.0\.2\.1|example\.org|huggingface\.co", connections.read_text())


@pytest.mark.timeout(400)  # half a minute where nothing else runs
def test_a_run_with_the_embedded_models_stays_on_the_machine(guarded: tuple[dict[str, str], Path]) -> None:
    environment, connections = guarded
    command = [sys.executable, "-m", "psd", "run", "a red mushroom", "--preset", "tiny", "--steps", "2"]
    command += ["--set", "preview_every=1", "--set", "negative_every=1", "--set", "negative_t_max=1"]
    command += ["--set", "mesh_resolution=32"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=380)
    assert connections.read_text() == ""
    assert result.returncode == 0, result.stderr[-2000:]
    assert list(Path(environment["PSD_RUNS"]).glob("*/events.jsonl"))


@pytest.mark.timeout(400)
def test_the_server_stays_on_the_machine_and_ends_in_order(guarded: tuple[dict[str, str], Path]) -> None:
    """The page, a run, a stranger's wish that the server fetch something, and the end as a machine brings it."""
    environment, connections = guarded
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    with subprocess.Popen([sys.executable, "app.py", "--port", str(port)], cwd=ROOT, env=environment) as app:
        try:
            page = answer(app, address)
            assert "gradio" in page
            client = Client(address, verbose=False)
            values = "{steps: 1000, preview_every: 5, negative_every: 2, mesh_resolution: 24, preview_size: 32}"
            told = client.predict("a red mushroom", overrides=values, api_name="/start_run")
            for events in client.submit(told["run_id"], api_name="/watch_run"):
                if any(event["event"] == "Stepped" for event in events):
                    break
            wish_for("http://192.0.2.1/mesh.glb", address)
        finally:
            app.terminate()
    assert connections.read_text() == ""
    (folder,) = Path(environment["PSD_RUNS"]).glob("*_s0_*")
    assert read_status(folder).state == "stopped", "a run is stopped, not cut off"
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None and checkpoint.step == read_status(folder).step >= 1


def answer(app: subprocess.Popen, address: str) -> str:
    """The page, once it is there."""
    deadline = time.monotonic() + 120
    while True:
        assert app.poll() is None, "app.py ended"
        assert time.monotonic() < deadline, "no page"
        try:
            return httpx.get(address, timeout=30).text
        except httpx.HTTPError:
            time.sleep(0.2)


def wish_for(url: str, address: str) -> None:
    """Say that the viewer of meshes holds a file of another machine, which Gradio is ready to fetch."""
    config = httpx.get(f"{address}config", timeout=30).json()
    components = {component["id"]: component["props"] for component in config["components"]}
    (viewer,) = (number for number, props in components.items() if props.get("elem_id") == "viewer")
    listener = next(it for it in config["dependencies"] if viewer in it["inputs"])
    data = [components[number].get("value") for number in listener["inputs"]]
    data[listener["inputs"].index(viewer)] = {"path": url, "meta": {"_type": "gradio.FileData"}}
    joined = {"data": data, "fn_index": listener["id"], "session_hash": "stranger"}
    assert httpx.post(f"{address}gradio_api/queue/join", json=joined, timeout=30).status_code == 200
    with httpx.stream("GET", f"{address}gradio_api/queue/data?session_hash=stranger", timeout=60) as lines:
        assert any("process_completed" in line for line in lines.iter_lines())
