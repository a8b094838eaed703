"""``python -m psd doctor``: what this machine can run, what is missing, and the cure.

Weights are compared with the SHA-256 sums in their folder's model card: lines of README.md as ``sha256sum`` writes
them (``<64 hex digits>  <file>``).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from psd.config.errors import MissingError, PresetError
from psd.config.preset import PRESETS, Preset, list_presets
from psd.models import hub, releases
from psd.models.checkpoints import digests
from psd.runs.store.archive import default_root
from psd.runtime import diagnosis

ROOT = PRESETS.parent
OK, NOTE, BAD = "ok", "note", "MISSING"
OPTIONAL = {
    "tinycudann": "a faster hash grid; needs an NVIDIA GPU and nvcc",
    "gsplat": "faster splatting of 3D Gaussians; needs an NVIDIA GPU and nvcc",
    "xatlas": "baked textures; vertex colours otherwise",
    "imageio-ffmpeg": "films of turntables; without it a run keeps its mesh and says so",
}
WIDTH = 22  # of the first column
LEAST_MEMORY = 3 * 2**30  # bytes; the default preset stays below 2.5 GB
LARGE_MEMORY = 20 * 2**30  # bytes on a GPU; planned for 24 GB cards, not yet measured
LEAST_DISK = 2**30
CONNECTION_S = 3.0


@dataclass(frozen=True)
class Finding:
    """One line of the report; BAD ones keep the default preset from running."""

    what: str
    state: str
    detail: str
    cure: str = ""


def print_report() -> int:
    """Print everything; 0 when the shipped presets can run, 4 when something that they need is missing."""
    bad = 0
    for finding in examine_machine():
        print(f"{finding.what:{WIDTH}}  {finding.state:7}  {finding.detail}")
        if finding.cure:
            print(f"{'':{WIDTH}}           -> {finding.cure}")
        bad += finding.state == BAD
    print(f"\nmissing: {bad}" if bad else "\nthe shipped presets can run here")
    return 4 if bad else 0


def examine_machine() -> Iterator[Finding]:
    """Yields the findings of every check, from Python to the optional packages."""
    yield check_python()
    yield from check_packages()
    yield from check_accelerators()
    yield from check_memory_and_disk()
    if hub.has_client():
        yield check_connection()
    yield from check_weights(ROOT / "assets")
    for name in list_presets():
        yield check_preset(name)
    yield from list_downloads(list_presets())
    for name, use in OPTIONAL.items():
        yield check_optional(name, use)


def check_python() -> Finding:
    """Whether this Python is one that the project is tested with."""
    version = ".".join(map(str, sys.version_info[:3]))
    if not diagnosis.python_problem(sys.version_info[:2]):
        return Finding("python", OK, version)
    return Finding("python", NOTE, f"{version} was never tried", "Python 3.11 or 3.12")


def check_packages() -> Iterator[Finding]:
    """What requirements.txt pins, against what is installed; `check_optional` speaks of what may be absent."""
    torch = ""
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        name, _, wanted = line.partition("#")[0].strip().partition("==")
        if not name:
            continue
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name not in OPTIONAL:
                yield Finding(name, BAD, "not installed", "pip install -r requirements.txt")
            continue
        torch = found if name == "torch" else torch
        if wanted and found.partition("+")[0] != wanted:
            yield Finding(name, NOTE, f"{found}; tested with {wanted}", f"pip install {name}=={wanted}")
        elif name == "torch":
            yield Finding(name, OK, found)
    if importlib.util.find_spec("torchvision") and "+cpu" in torch:
        cure = "pip uninstall torchvision"
        yield Finding(
            "torchvision", BAD, "beside a CPU torch it breaks the imports of diffusers and transformers", cure
        )


def check_accelerators() -> Iterator[Finding]:
    """Yields the cores and the GPUs, and whether the kernels work on the one that runs take; nothing without torch."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cpu", OK, f"{cores} cores, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            what = f"{about.name}, {format_gib(about.total_memory)}"
            if useless := diagnosis.unsupported_gpu(index):
                reason, cure = useless
                yield Finding(f"cuda:{index}", NOTE, f"{what}; {reason}", cure)
                continue
            yield Finding(f"cuda:{index}", OK, what)
            if index == 0:  # the one that runs take
                yield from check_hash_grid()
                yield from check_splatting()
            if about.total_memory < LARGE_MEMORY:
                yield Finding(
                    f"cuda:{index}", NOTE, f"less than {format_gib(LARGE_MEMORY)}, which `mvdream` is planned for",
                    "preset mvdream-12gb or mvdream-8gb, or a smaller network_batch",
                )  # fmt: skip
    elif torch.backends.mps.is_available():
        yield Finding("mps", OK, "Apple GPU")
    else:
        yield Finding("gpu", NOTE, *diagnosis.missing_gpu())


def check_hash_grid() -> Iterator[Finding]:
    """What computes the large models' scenes on the GPU; its kernels are tried, which compiles them the first time."""
    import torch

    try:
        from psd.scenes.fields.hash_backends import hash_backend
    except ModuleNotFoundError:
        return  # `check_packages` names what is missing
    name, why = hash_backend(torch.device("cuda"))
    yield Finding("hash grid", NOTE if name == "plain" else OK, why)


def check_splatting() -> Iterator[Finding]:
    """What splats 3D Gaussians on the GPU; gsplat's kernels are tried, which compiles them the first time."""
    import torch

    try:
        from psd.geometry.splat_backends import composite_with_gsplat, splat_backend
    except ModuleNotFoundError:
        return  # `check_packages` names what is missing
    way, why = splat_backend(torch.device("cuda"))
    yield Finding("splatting", OK if way is composite_with_gsplat else NOTE, why)


def check_connection() -> Finding:
    """Whether the hub could be asked, and as whom; nothing is fetched, and offline nothing is tried."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import ENDPOINT

    if hub.is_offline():
        return Finding("hub", NOTE, "offline, as asked (HF_HUB_OFFLINE): nothing will be downloaded")
    at = urlsplit(ENDPOINT)
    try:
        socket.create_connection((at.hostname or "", at.port or 443), timeout=CONNECTION_S).close()
    except OSError as error:
        cure = "only presets whose models are here can run; check the connection, or a proxy (HTTPS_PROXY)"
        return Finding("hub", NOTE, f"no connection to {at.hostname} ({error})", cure)
    if get_token():
        return Finding("hub", OK, "reachable, with a token")
    return Finding("hub", OK, "reachable, without a token: gated models need `hf auth login`, the shipped presets none")


def check_memory_and_disk() -> Iterator[Finding]:
    """Memory and disk."""
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if memory < LEAST_MEMORY:
            yield Finding(
                "memory", NOTE, format_gib(memory), f"{format_gib(LEAST_MEMORY)} are comfortable; close programs"
            )
        else:
            yield Finding("memory", OK, format_gib(memory))
    root = default_root().absolute()
    there = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        yield Finding("runs", BAD, f"{root} cannot be written", "set PSD_RUNS to a folder that can")
    elif free < LEAST_DISK:
        yield Finding("runs", BAD, f"{format_gib(free)} free at {root}", "free space, or set PSD_RUNS to another disk")
    else:
        yield Finding("runs", OK, f"{format_gib(free)} free at {root}")


def check_weights(assets: Path) -> Iterator[Finding]:
    """Every shipped model, file by file, against the sums in its card."""
    for folder in sorted(path for path in assets.iterdir() if any(path.rglob("*.safetensors"))):
        name = f"assets/{folder.name}"
        sums = digests.read_card_digests(folder)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.safetensors")}
        size = sum(path.stat().st_size for path in files.values()) / 1e6
        wrong = digests.find_wrong_files(folder)
        unknown = sorted(set(files) - set(sums))
        if wrong:
            cure = f"git checkout -- {name} (git lfs pull, if the files are pointers)"
            yield Finding(name, BAD, f"damaged or absent: {', '.join(wrong)}", cure)
        elif unknown:
            yield Finding(name, NOTE, f"{size:.1f} MB, no sum in the card for {', '.join(unknown)}")
        else:
            yield Finding(name, OK, f"{size:.1f} MB, sums match")


def check_preset(name: str) -> Finding:
    """Whether the models of a preset are here, or what its first run downloads, under which licences."""
    what = f"preset {name}"
    try:
        chosen = Preset.load(name)
    except PresetError as error:
        return Finding(what, BAD, str(error), f"git checkout -- presets/{name}.yaml")
    try:
        absent = [source for source, kind in hub.required_sources(chosen) if hub.find_model(source, kind) is None]
    except MissingError as error:
        return Finding(what, BAD, str(error), "clone the repository again")
    if not absent:
        return Finding(what, OK, "all models are here")
    known = [releases.RELEASES[source] for source in absent if source in releases.RELEASES]
    unknown = [f"{source} (of unknown size)" for source in absent if source not in releases.RELEASES]
    size = sum(release.gigabytes for release in known)
    parts = ", ".join([*(release.source for release in known), *unknown])
    if begun := [source for source in absent if hub.is_partial(source)]:
        parts += f"; begun, and gone on with: {', '.join(begun)}"
    cure = "start it once with a connection; what a download left incomplete is completed" if hub.is_offline() else ""
    return Finding(what, NOTE, f"its first run downloads about {size:.1f} GB: {parts}", cure)


def list_downloads(names: Iterable[str]) -> Iterator[Finding]:
    """Every model that some preset would download, once: its size and licence; the presets' lines only name it."""
    absent: dict[str, None] = {}
    for name in names:
        try:
            chosen = hub.required_sources(Preset.load(name))
            absent.update({source: None for source, kind in chosen if hub.find_model(source, kind) is None})
        except (PresetError, MissingError):
            continue  # the preset's own line says it
    for source in absent:
        if source in releases.RELEASES:
            yield Finding("download", NOTE, str(releases.RELEASES[source]))


def check_optional(name: str, use: str) -> Finding:
    """Whether a package that nothing has to have is here and can be imported; ``use`` says what it is good for."""
    module = name.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        return Finding(name, NOTE, f"absent: {use}")
    if reason := diagnosis.import_error(module):
        return Finding(name, NOTE, f"cannot be used here ({reason}): {use}")
    return Finding(name, OK, use)


def format_gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
