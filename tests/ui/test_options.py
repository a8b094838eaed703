"""The server's arguments and variables: what cannot work is refused in one line, before anything is touched."""

import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.runs.store.folder import RunFolder
from psd.ui import options
from psd.ui.options import read_options

ROOT = Path(__file__).resolve().parents[2]


def refusal(arguments: list[str], environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a server with these arguments ends in."""
    try:
        read_options(arguments, environment)
    except PresetError as error:
        said = str(error)
    except SystemExit as end:
        assert end.code == 2
        said = capsys.readouterr().err.removesuffix("\n")
    else:
        raise AssertionError(f"{arguments} {environment} was taken")
    assert "\n" not in said and said
    return said


@contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind((host, 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "-inf", "many", "", "1e999", "5 runs"])
@pytest.mark.parametrize(("argument", "variable"), [
    ("--keep-runs", "PSD_KEEP_RUNS"), ("--keep-gb", "PSD_KEEP_GB"), ("--pause-minutes", "PSD_PAUSE_MINUTES"),
    ("--max-memory-gb", "PSD_MAX_MEMORY_GB"), ("--max-minutes", "PSD_MAX_MINUTES"),
])  # fmt: skip
def test_a_limit_is_a_number_above_0(
    argument: str, variable: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal([f"{argument}={value}"], {}, capsys)
    assert argument in said and repr(value) in said and "unlimited" in said and variable in said
    if value:  # an empty variable is an unset one
        assert repr(value) in refusal([], {variable: value}, capsys)


def test_unlimited_is_no_limit() -> None:
    given = read_options(["--keep-runs", "unlimited", "--keep-gb=Unlimited"], {"PSD_PAUSE_MINUTES": "unlimited"})
    assert given.keep_runs == given.keep_bytes == given.pause_s == math.inf
    given = read_options(["--keep-runs", "7", "--keep-gb", "0.5", "--pause-minutes", "2"], {"PSD_KEEP_RUNS": "9"})
    assert (given.keep_runs, given.keep_bytes, given.pause_s) == (7, 2**29, 120)
    with pytest.raises(SystemExit):
        read_options(["--keep-runs", "2.5"], {})


@pytest.mark.parametrize(("arguments", "environment", "words"), [
    (["--port", "70000"], {}, "from 1 to 65535"),
    (["--port", "0"], {}, "from 1 to 65535"),
    (["--port", "http"], {}, "'http'"),
    ([], {"GRADIO_SERVER_PORT": "abc"}, "GRADIO_SERVER_PORT='abc' must be a whole number"),
    (["--port", "7861"], {"GRADIO_SERVER_PORT": "abc"}, "GRADIO_SERVER_PORT='abc'"),
    ([], {"GRADIO_NUM_PORTS": "ten"}, "GRADIO_NUM_PORTS='ten'"),
    ([], {"GRADIO_NUM_WORKERS": "-1"}, "GRADIO_NUM_WORKERS='-1'"),
    ([], {"GRADIO_ANALYTICS_MAX_EVENTS": "1.5"}, "GRADIO_ANALYTICS_MAX_EVENTS='1.5'"),
    (["--preset", "nowhere"], {}, "no preset 'nowhere'; there are:"),
    ([], {"PSD_PRESET": "nowhere"}, "no preset 'nowhere'; there are:"),
    ([], {"PSD_ANY_MODEL": "maybe"}, "'maybe' must be yes or no"),
    (["--prt", "7861"], {}, "unrecognized arguments"),
    (["--runs", __file__], {}, "is a file: name a folder"),
    (["--auth-file", "nowhere.txt"], {}, "cannot read 'nowhere.txt'"),
])  # fmt: skip
def test_what_cannot_work_is_refused(
    arguments: list[str], environment: dict[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal(arguments, environment, capsys)


def test_an_unknown_host_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert "'no-such-host' is not known here: take 127.0.0.1" in refusal(["--host", "no-such-host"], {}, capsys)


def test_a_port_in_use_is_refused_with_the_next_free_one() -> None:
    with listening() as port:
        with pytest.raises(PresetError, match=f"--port {port} is in use: take --port") as error:
            options.require_free_port("127.0.0.1", port)
        suggested = int(re.findall(r"\d+", str(error.value))[-1])
        assert port < suggested <= port + options.SUGGESTED_PORTS
        options.require_free_port("127.0.0.1", suggested)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(PresetError, match="is no address of this machine"):
        options.require_free_port("192.0.2.1", 7860)


@pytest.mark.parametrize(("text", "taken"), [
    ("ann:x", {"ann": "x"}),
    ("ann:x, bob:y ", {"ann": "x", "bob": "y"}),
    ("bob:pa:ss wörd,eve:x", {"bob": "pa:ss wörd", "eve": "x"}),
])  # fmt: skip
def test_logins_are_read_as_they_are_typed(text: str, taken: dict[str, str]) -> None:
    assert read_options(["--auth", text], {}).logins == taken == read_options([], {"PSD_AUTH": text}).logins


@pytest.mark.parametrize(
    "text", ["", ",", " ", "ann", "ann:", ":secret", "ann:sec,ret", "ann:x,", "ann:secret,ann:ret"]
)
def test_no_login_is_lost_in_silence_and_no_password_is_printed(
    text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = refusal(["--auth", text], {}, capsys)
    assert "--auth" in said and "sec" not in said.replace("second", "") and "'ret'" not in said
    file = tmp_path / "logins"
    file.write_text(text.replace(",", "\n") if text != "ann:sec,ret" else "# nobody\n")
    if text not in ("ann:x,",):
        assert "sec" not in refusal(["--auth-file", str(file)], {}, capsys).replace("second", "")


def test_a_file_holds_passwords_with_commas(tmp_path: Path) -> None:
    file = tmp_path / "logins"
    file.write_text("# who may enter\nann: x,y, z\n\nbob:q\n", encoding="utf-8")
    given = read_options(["--auth-file", str(file), "--auth", "eve:w"], {})
    assert given.logins == {"eve": "w", "ann": " x,y, z", "bob": "q"}


@pytest.mark.parametrize(("text", "value"), [("0", False), ("no", False), ("", False), ("1", True), ("Yes", True)])
def test_a_switch_that_is_off_is_off(text: str, value: bool) -> None:
    assert read_options([], {"PSD_ANY_MODEL": text}).any_model is value
    assert read_options(["--any-model"], {}).any_model is True


@pytest.mark.parametrize(("arguments", "environment", "public"), [
    ([], {}, False), (["--host", "::1"], {}, False), (["--host", "localhost"], {}, False),
    (["--host", "0.0.0.0"], {}, True), (["--share"], {}, True), ([], {"SPACE_ID": "a/b"}, True),
    (["--public"], {}, True), ([], {"PSD_PUBLIC": "1"}, True), ([], {"GRADIO_SERVER_NAME": "0.0.0.0"}, True),
])  # fmt: skip
def test_a_server_that_others_can_reach_is_public(
    arguments: list[str], environment: dict[str, str], public: bool
) -> None:
    assert read_options(arguments, environment).is_public is public


def test_only_named_proxies_are_believed() -> None:
    assert read_options([], {}).proxies == set()
    assert read_options(["--proxy", "10.0.0.1, ::1"], {}).proxies == {"10.0.0.1", "::1"}
    assert read_options([], {"SPACE_ID": "a/b"}).proxies == {"*"}


@pytest.mark.parametrize(("arguments", "environment", "words"), [
    ([], {"PSD_KEEP_RUNS": "-1"}, "--keep-runs"), (["--keep-gb=nan"], {}, "--keep-gb"),
    (["--auth", "ann:pass,word"], {}, "--auth-file"), ([], {"GRADIO_SERVER_PORT": "abc"}, "GRADIO_SERVER_PORT"),
    (["--prompt-filter", "nowhere"], {}, "word list"), (["--image-filter", "nowhere:f"], {}, "image filter"),
    (["--port", "PORT"], {}, "is in use: take --port"),
])  # fmt: skip
def test_the_server_ends_in_one_line_and_touches_no_run(
    arguments: list[str], environment: dict[str, str], words: str, tmp_path: Path
) -> None:
    with RunFolder.create(Preset(), tmp_path) as folder:
        kept = folder.path
    with listening() as port:
        arguments = [argument.replace("PORT", str(port)) for argument in arguments]
        ended = subprocess.run(
            [sys.executable, "app.py", "--runs", str(tmp_path), *arguments],
            cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("app.py: ") and words in line and kept.is_dir()
