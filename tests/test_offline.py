"""Nothing leaves the machine: a whole run, and the page, open no connection but to the machine itself."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

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


def test_the_page_is_served_without_leaving_the_machine(guarded: tuple[dict[str, str], Path]) -> None:
    environment, connections = guarded
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, "app.py", "--port", str(port)], cwd=ROOT, env=environment) as app:
        try:
            page = ""
            deadline = time.monotonic() + 90
            while not page:
                assert app.poll() is None, "app.py ended"
                assert time.monotonic() < deadline, "no page after 90 s"
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                        page = answer.read().decode()
                except OSError:
                    time.sleep(0.2)
        finally:
            app.terminate()
    assert "gradio" in page
    assert connections.read_text() == ""
