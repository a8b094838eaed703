"""What the server is asked to do: arguments and variables, read and checked before anything is touched.

Knows no gradio, which reads some of the same variables as soon as it is imported and ends in a traceback where one is
no number.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from psd.config.errors import PresetError, format_value
from psd.config.preset import DEFAULT_PRESET, list_presets
from psd.runs.store.archive import default_root
from psd.runs.store.retention import UNLIMITED, parse_limit

FIRST_PORT, LAST_PORT = 7860, 65535
SUGGESTED_PORTS = 100  # after a port in use, so many are tried for one that is free
SWITCHES = {"": False, "0": False, "no": False, "false": False, "off": False,
            "1": True, "yes": True, "true": True, "on": True}  # fmt: skip
# Variables that gradio turns into whole numbers by itself, with the smallest value that works.
NUMBERS_OF_GRADIO = {
    "GRADIO_SERVER_PORT": 1, "GRADIO_NUM_PORTS": 1, "GRADIO_NODE_NUM_PORTS": 1, "GRADIO_NODE_PORT": 1,
    "GRADIO_NUM_WORKERS": 0, "GRADIO_DEBUG": 0, "GRADIO_ANALYTICS_MAX_EVENTS": 1,
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": 1,
}  # fmt: skip
MEMORY_SHARE = 0.75  # of the machine's memory: what a run on a public server may take where nothing else is said


@dataclass(frozen=True)
class Options:
    """A server's arguments, each of them possible."""

    host: str
    port: int | None  # None: the first free one from `FIRST_PORT`
    share: bool
    offline: bool
    logins: Mapping[str, str]  # name -> password; none: everybody may enter
    preset: str
    runs: Path
    keep_runs: float
    keep_bytes: float
    pause_s: float
    prompt_filter: str
    image_filter: str
    any_model: bool
    proxies: frozenset[str]  # addresses whose X-Forwarded headers are believed; "*": all
    is_public: bool  # strangers can reach it: the limits below are refusals, not warnings
    max_memory_bytes: float
    max_run_s: float


class OneLineParser(argparse.ArgumentParser):
    """Complains in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def read_options(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Options:
    """Arguments before variables before defaults.

    Raises PresetError, or SystemExit with code 2 after one line on stderr, for what cannot work.
    """
    check_gradio_numbers(environment)
    given = build_parser(environment).parse_args(arguments)
    on_space = bool(environment.get("SPACE_ID"))
    if given.preset not in list_presets():
        raise PresetError(f"no preset {format_value(given.preset)}; there are: {', '.join(list_presets())}")
    if given.runs.exists() and not given.runs.is_dir():
        raise PresetError(f"--runs (or PSD_RUNS): {format_value(str(given.runs))} is a file: name a folder")
    require_known_host(given.host)
    return Options(
        host=given.host, port=given.port, share=given.share, offline=given.offline,
        logins=read_logins(given.auth, given.auth_file), preset=given.preset, runs=given.runs,
        keep_runs=given.keep_runs, keep_bytes=given.keep_gb * 2**30, pause_s=given.pause_minutes * 60,
        prompt_filter=given.prompt_filter, image_filter=given.image_filter, any_model=given.any_model,
        proxies=read_proxies(given.proxy) | ({"*"} if on_space else {"127.0.0.1", "::1"} if given.share else set()),
        is_public=given.public or given.share or on_space or not is_loopback(given.host),
        max_memory_bytes=given.max_memory_gb * 2**30 if given.max_memory_gb else MEMORY_SHARE * machine_memory(),
        max_run_s=given.max_minutes * 60,
    )  # fmt: skip


def build_parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """The arguments of ``app.py``; a variable is the default of its argument."""

    def setting(name: str, default: str = "") -> str:
        return environment.get(name) or default

    parser = OneLineParser(prog="app.py", description="PSD Studio: text to 3D in the browser.")
    parser.add_argument(
        "--host", default=setting("GRADIO_SERVER_NAME", "127.0.0.1"), help="address to serve on; 0.0.0.0: all"
    )
    parser.add_argument(
        "--port", type=read_port, default=setting("GRADIO_SERVER_PORT") or None,
        help=f"default: the first free one from {FIRST_PORT}",
    )  # fmt: skip
    parser.add_argument("--share", action="store_true", help="ask Gradio for a public link (off by default)")
    parser.add_argument("--offline", action="store_true", help="never connect: use only models that are here")
    parser.add_argument(
        "--public", nargs="?", const="yes", type=read_switch, default=setting("PSD_PUBLIC"),
        help="refuse runs above --max-memory-gb and --max-minutes, as every server does that other machines can reach",
    )  # fmt: skip
    parser.add_argument(
        "--auth", default=environment.get("PSD_AUTH") or None, help="name:password, or several with commas"
    )
    parser.add_argument(
        "--auth-file", default=setting("PSD_AUTH_FILE"), metavar="FILE",
        help="one name:password a line, for passwords with commas and to keep them off the command line",
    )  # fmt: skip
    parser.add_argument(
        "--proxy", default=setting("PSD_PROXY"), metavar="ADDRESSES",
        help="addresses of reverse proxies, with commas, whose X-Forwarded headers are believed; *: all",
    )  # fmt: skip
    parser.add_argument("--preset", default=setting("PSD_PRESET", DEFAULT_PRESET), help="the preset to start from")
    parser.add_argument("--runs", type=Path, default=default_root(), help="where runs are kept (or PSD_RUNS)")
    parser.add_argument(
        "--keep-runs", type=limit_reader("PSD_KEEP_RUNS", whole=True), default=setting("PSD_KEEP_RUNS", "500"),
        help=f"then the oldest go, but no pinned one; {UNLIMITED}: keep all",
    )  # fmt: skip
    parser.add_argument(
        "--keep-gb", type=limit_reader("PSD_KEEP_GB"), default=setting("PSD_KEEP_GB", "20"),
        help=f"the same for their size on the disk; {UNLIMITED}: keep all",
    )  # fmt: skip
    parser.add_argument(
        "--pause-minutes", type=limit_reader("PSD_PAUSE_MINUTES"), default=setting("PSD_PAUSE_MINUTES", "15"),
        help=f"after that a paused run stops, keeping what it has, when others wait; {UNLIMITED}: never",
    )  # fmt: skip
    parser.add_argument(
        "--max-memory-gb", type=limit_reader("PSD_MAX_MEMORY_GB"), default=setting("PSD_MAX_MEMORY_GB") or None,
        help=f"most memory of a run, estimated before its start; default: {MEMORY_SHARE:.0%} of the machine's; "
        f"or {UNLIMITED}".replace("%", "%%"),
    )  # fmt: skip
    parser.add_argument(
        "--max-minutes", type=limit_reader("PSD_MAX_MINUTES"), default=setting("PSD_MAX_MINUTES", "60"),
        help=f"longest run, estimated before its start; or {UNLIMITED}",
    )  # fmt: skip
    parser.add_argument(
        "--prompt-filter", default=setting("PSD_PROMPT_FILTER"), metavar="FILE",
        help="another list of words that prompts may not hold, or: off",
    )  # fmt: skip
    parser.add_argument(
        "--image-filter", default=setting("PSD_IMAGE_FILTER"), metavar="MODULE:FUNCTION",
        help="says what is wrong with the pictures of a preview (uint8, views x height x width x 3), or ''",
    )  # fmt: skip
    parser.add_argument(
        "--any-model", nargs="?", const="yes", type=read_switch, default=setting("PSD_ANY_MODEL"),
        help="let users name any model, not only those of the shipped presets: for your own machine",
    )  # fmt: skip
    return parser


# ---- single values


def limit_reader(variable: str, *, whole: bool = False) -> Callable[[str], float]:
    """Reads a limit as `parse_limit` does, a ``whole`` one without a fraction."""

    def read_limit(text: str) -> float:
        try:
            value = parse_limit(text)
        except PresetError as error:
            raise argparse.ArgumentTypeError(f"{error} (also settable as {variable})") from None
        if whole and value != math.inf and not value.is_integer():
            raise argparse.ArgumentTypeError(f"{format_value(text)} is no whole number (also settable as {variable})")
        return value

    return read_limit


def read_switch(text: str) -> bool:
    try:
        return SWITCHES[text.strip().lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{format_value(text)} must be yes or no") from None


def read_port(text: str) -> int:
    port = int(text) if text.strip().isdecimal() and len(text) < 10 else 0
    if not 1 <= port <= LAST_PORT:
        raise argparse.ArgumentTypeError(
            f"{format_value(text)} (also settable as GRADIO_SERVER_PORT) must be a whole number from 1 to {LAST_PORT}"
        )
    return port


def read_proxies(text: str) -> frozenset[str]:
    return frozenset(address for part in text.split(",") if (address := part.strip()))


def check_gradio_numbers(environment: Mapping[str, str]) -> None:
    """Raises PresetError for a variable that gradio would fail to read as a whole number."""
    for name, least in NUMBERS_OF_GRADIO.items():
        text = environment.get(name)
        if text is None:
            continue
        if not text.strip().isdecimal() or len(text) > 9 or int(text) < least:
            raise PresetError(f"{name}={format_value(text)} must be a whole number from {least} on: set it or unset it")


def read_logins(text: str | None, file: str) -> dict[str, str]:
    """Name -> password of ``--auth`` and of the lines of ``--auth-file``.

    Spaces around a name and around the whole of an entry do not count.  Raises PresetError for entries without a name
    or a password, for a name given twice, and where an argument is given and holds no login.  No message holds a piece
    of a password: an entry without a colon may be the rest of a password with a comma.
    """
    entries: list[tuple[str, str]] = []
    if text is not None:
        entries += [(f"--auth (or PSD_AUTH), entry {number}", part) for number, part in enumerate(text.split(","), 1)]
    if file:
        try:
            lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise PresetError(f"--auth-file (or PSD_AUTH_FILE): cannot read {format_value(file)}: {error}") from None
        numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#"]
        if not numbered:
            raise PresetError(f"--auth-file: {format_value(file)} holds no login: write name:password, one a line")
        entries += [(f"--auth-file, line {number}", line) for number, line in numbered]
    logins: dict[str, str] = {}
    for place, entry in entries:
        name, _, password = entry.strip().partition(":")
        name = name.strip()
        if not name or not password:
            raise PresetError(
                f"{place} is not name:password: passwords with a comma, or a comma too many, need --auth-file"
            )
        if name in logins:
            raise PresetError(f"{place} gives the name {format_value(name)} a second time: keep one")
        logins[name] = password
    return logins


# ---- addresses


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on ``host``."""
    return host == "localhost" or host.strip("[]") == "::1" or host.startswith("127.")


def require_known_host(host: str) -> None:
    """Raises PresetError for a host that names no address of this machine."""
    try:
        socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise PresetError(
            f"--host (or GRADIO_SERVER_NAME): {format_value(host)} is not known here: "
            "take 127.0.0.1 for this machine alone, or 0.0.0.0 for all of its addresses"
        ) from None


def require_free_port(host: str, port: int) -> None:
    """Raises PresetError, with the next free port, where ``port`` cannot be served on."""
    error = try_port(host, port)
    if error is None:
        return
    if isinstance(error, PermissionError):
        raise PresetError(f"--port {port} needs rights that this user does not have: take one from 1024 on")
    free = (other for other in range(port + 1, min(port + SUGGESTED_PORTS, LAST_PORT) + 1) if not try_port(host, other))
    cure = f"take --port {found}, which is free" if (found := next(free, None)) else "stop what uses it"
    if try_port(host, 0) is not None:
        raise PresetError(f"--host {host} is no address of this machine ({error.strerror}): take 127.0.0.1 or 0.0.0.0")
    raise PresetError(f"--port {port} is in use: {cure}")


def try_port(host: str, port: int) -> OSError | None:
    """Why nothing can be served there, if so."""
    family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    try:
        with socket.socket(family, kind, protocol) as tried:
            if sys.platform != "win32":  # as the server does: a port that was just left is free
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        return error
    return None


def machine_memory() -> float:
    """Bytes that this machine, or the container that it is, has; infinite where the system does not say."""
    sizes = [math.inf]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        sizes.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    group = Path("/sys/fs/cgroup/memory.max")
    if group.is_file() and (text := group.read_text().strip()).isdecimal():
        sizes.append(float(text))
    return min(sizes)
