"""Models found on this machine or downloaded from the hub."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psd.config.errors import MissingError, PresetError, first_line, format_value
from psd.config.preset import PRESETS, Preset
from psd.models.checkpoints.refusals import read_json_object
from psd.models.download import SilentBar, watch_download
from psd.models.releases import GB, RELEASES, mirrors_of

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

ROOT = PRESETS.parent
SPARE_DISK = GB  # bytes that a download leaves free

Say = Callable[[str], object]


class GoneError(MissingError):
    """The hub has no such repository, or not for this user."""


# Kind of model -> for each thing it needs, the file patterns that serve, the best first.
Needs = Sequence[Sequence[str]]
TOKENIZER = ("tokenizer.json", "vocab.json", "vocab.txt")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


def weight_patterns(folder: str, stem: str, half: bool) -> tuple[str, ...]:
    """Patterns of the files of weights, safetensors only; ``half``: half precision first, a third of the size."""
    full = (f"{folder}{stem}.safetensors", f"{folder}{stem}-?????-of-?????.safetensors")
    small = (f"{folder}{stem}.fp16.safetensors",)
    return (*small, *full) if half else (*full, *small)


def required_files(kind: str, half: bool) -> Needs:
    """Lists what a model of ``kind`` needs, with the alternatives for each in the order of preference.

    ``half``: the half-precision weights come first.  KeyError for an unknown kind.
    """
    diffusion = "diffusion_pytorch_model"
    return {
        "prior": (
            ("model_index.json",), ("scheduler/scheduler_config.json",), [f"tokenizer/{name}" for name in TOKENIZER],
            *[(f"{name}/config.json",) for name in ("unet", "vae", "text_encoder")],
            weight_patterns("unet/", diffusion, half), weight_patterns("vae/", diffusion, half),
            weight_patterns("text_encoder/", "model", half),
        ),
        "autoencoder": (("config.json",), weight_patterns("", diffusion, half)),
        "reward": (("config.json",), TOKENIZER, weight_patterns("", "model", half)),
        "tokenizer": (TOKENIZER,),
        "diffusion tokenizer": ([f"tokenizer/{name}" for name in TOKENIZER],),
    }[kind]  # fmt: skip


BESIDE = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json", ".index.json")


def select_files(names: Sequence[str], wanted: Needs) -> list[str]:
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


def serving_files(folder: Path, kind: str, half: bool) -> tuple[str, ...]:
    """The files of a folder that serve; LookupError with what it lacks, be it one shard of several."""
    names = files_in(folder)
    files = select_files(names, required_files(kind, half))
    for index in {SHARD.sub(".safetensors.index.json", name) for name in files if SHARD.search(name)}:
        if index not in names:
            raise LookupError(index)
        shards = read_json_object(folder / index, str(folder)).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise LookupError(f"weight_map in {index}")
        shards = shards.values()
        if lacking := sorted({(Path(index).parent / shard).as_posix() for shard in shards}.difference(names)):
            raise LookupError(lacking[0])
    return tuple(files)


@dataclass(frozen=True)
class Located:
    """A model on this machine: its folder or file."""

    path: Path
    files: tuple[str, ...] = ()  # that serve, in a folder

    def weight_variant(self, folder: str = "") -> str | None:
        """The variant of the weights in ``folder``; a repository that is mixed or half downloaded has more than one."""
        here = (name for name in self.files if name.rpartition("/")[0] == folder)
        return "fp16" if any(".fp16." in name for name in here) else None


def is_file(source: str) -> bool:
    return source.endswith((".pt", ".pth", ".ckpt", ".safetensors"))


def is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def has_client() -> bool:
    """Whether huggingface_hub is installed; without it nothing of its cache is found."""
    return importlib.util.find_spec("huggingface_hub") is not None


def local_path(source: str) -> Path | None:
    """A folder or file of this repository or machine; None for a hub id.

    Raises `MissingError` for a path that is not there, `PresetError` for what is neither a path nor a hub id.
    """
    try:
        for path in (ROOT / source, Path(source).expanduser()):
            if path.exists():
                return path
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, an unknown user's home
        raise PresetError(f"{format_value(source)} is no path ({first_line(error)}) and no name of a model") from None
    if source.startswith(("assets/", "/", "./", "../", "~", ".")) or "\\" in source:
        raise MissingError(f"no model at {source!r}: `python -m psd doctor` lists what is here")
    split_source(source)
    return None


def part_source(source: str, role: str) -> str:
    """Where the ``role`` (tokenizer, clip) of a single-file checkpoint is: a folder beside it, or its release's."""
    source = plain_source(source)
    beside = Path(source).expanduser().parent / role
    if beside.is_dir():
        return str(beside)
    by_name = {name.rpartition("/")[2]: release for name, release in RELEASES.items()}
    release = RELEASES.get(source) or by_name.get(Path(source).name)
    if release is None or role not in release.parts:
        raise MissingError(f"{source} comes without its {role}: put a folder named {role!r} beside it")
    return release.parts[role]


def find_model(source: str, kind: str, *, half: bool = False) -> Located | None:
    """The model, or a mirror of it, if it is here and whole, without any connection; None if it must be downloaded.

    Raises `MissingError`, naming the file, for a local folder that is incomplete.
    """
    source = plain_source(source)
    for mirror in mirrors_of(source):
        if (found := find_model(mirror, kind, half=half)) is not None:
            return found
    path = local_path(source)
    if path is None:
        path = _cached_path(source)
        if path is None:
            return None
    elif path.is_dir():
        try:
            return Located(path, serving_files(path, kind, half))
        except LookupError as error:
            raise MissingError(f"{source} has no {error.args[0]}: copy or download it again") from None
    if path.is_file():
        return Located(path)
    try:
        return Located(path, serving_files(path, kind, half))
    except LookupError:
        return None  # half downloaded


def files_in(folder: Path) -> list[str]:
    """Files that are whole: the hub's cache links to what is complete only."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _cached_path(source: str) -> Path | None:
    """Finds a hub model in the hub's cache: the file, or the snapshot's folder, be it whole or not."""
    if not has_client():
        return None
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, name = split_source(source)
    if name:
        found = try_to_load_from_cache(repository, name)
        return Path(found) if isinstance(found, str) else None
    try:
        # No pattern: which of its files serve is judged by `serving_files`, not by what the hub lists.
        return Path(snapshot_download(repository, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        return None


def is_partial(source: str) -> bool:
    """Whether a download of a hub model stopped before its end: files are here, though `find_model` finds no model."""
    return local_path(source) is None and _cached_path(split_source(source)[0]) is not None


HUB_ADDRESS = re.compile(r"(https?://)?(www\.)?(huggingface\.co|hf\.co)/", re.IGNORECASE)
HUB_PART = re.compile(
    r"(?!.*(--|\.\.))[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
)  # owner or name, as the hub takes them
REVISION = re.compile(r"(tree|blob|resolve)/([^/]+)(/(.*))?")  # what follows them in the address of a page


def split_source(source: str) -> tuple[str, str]:
    """Repository and file, of ``owner/name``, ``owner/name/file`` or the whole address of a page of the hub.

    The file is empty for a whole repository.  Raises `PresetError` for anything else, and for another revision than
    main, which is the one that is read.
    """
    address = HUB_ADDRESS.match(source)
    path = source[address.end() :].partition("?")[0].partition("#")[0].strip("/") if address else source
    owner, _, rest = path.partition("/")
    name, _, file = rest.partition("/")
    if not (HUB_PART.fullmatch(owner) and HUB_PART.fullmatch(name)) or ".." in file.split("/"):
        raise PresetError(
            f"{format_value(source)} is neither a folder or file here nor owner/name of a model at huggingface.co"
        )
    if address and (page := REVISION.fullmatch(file)):
        if page[2] != "main":
            raise PresetError(
                f"{format_value(source)} names revision {page[2]!r}; only main is read: download it yourself"
            )
        file = (page[4] or "") if page[1] != "tree" else ""
    return f"{owner}/{name}", file


def plain_source(source: str) -> str:
    """``source`` as `RELEASES` names it: the address of a page of the hub becomes owner/name or owner/name/file."""
    return "/".join(filter(None, split_source(source))) if HUB_ADDRESS.match(source) else source


def fetch_model(source: str, kind: str, *, half: bool = False, say: Say | None = None) -> Located:
    """The model, downloaded if need be: ``say`` (else stderr) hears of it.  Raises as `download_model` does."""
    for text in download_model(source, kind, half=half):
        (say or _print_message)(text)
    found = find_model(source, kind, half=half)
    if found is None:
        raise MissingError(f"{source} is still incomplete after its download: delete it from the hub's cache and retry")
    return found


def download_model(
    source: str, kind: str, *, half: bool = False, leave: Callable[[], bool] = lambda: False
) -> Iterator[str]:
    """Downloads the model unless it is here: size, licence and terms come before anything is fetched, then each tenth.

    What is there already is not fetched again, and a download that was cut, or that ``leave`` ended, goes on another
    time.  Raises `MissingError` with the cure for whatever stands in the way, `LeftError` when ``leave`` said so.
    """
    source = plain_source(source)
    if find_model(source, kind, half=half) is not None:
        return
    if is_offline():
        raise MissingError(
            f"{source} is not here, or only in part, and the run is offline: start it once with a connection"
            f" ({describe_source(source)})"
        )
    places = (source, *mirrors_of(source))
    for place in places:
        try:
            yield from _download_files(place, kind, half, leave)
            return
        except GoneError as error:
            if place == places[-1]:
                raise
            yield f"{error}; trying the next mirror"


def _print_message(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def describe_source(source: str) -> str:
    """Size and licence of a model's files in a line, as far as they are recorded here."""
    release = RELEASES.get(source)
    return str(release) if release else f"{source}: size and licence stand on its page at huggingface.co"


def _download_files(source: str, kind: str, half: bool, leave: Callable[[], bool]) -> Iterator[str]:
    from httpx2 import HTTPError  # what huggingface_hub connects with; httpx is Gradio's
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    repository, file = split_source(source)
    page = f"https://huggingface.co/{repository}"
    wanted = [[escape(file)]] if file else required_files(kind, half)
    try:
        listed_there = {info.filename: info for info in _look_up(repository, wanted)}
        names = select_files(sorted(listed_there), wanted)
        size = sum(listed_there[name].file_size or 0 for name in names)
        missing = sum(listed_there[name].file_size or 0 for name in names if listed_there[name].will_download)
        yield f"downloading {missing / GB:.2f} GB from {page}; {describe_source(source)}"
        room = shutil.disk_usage(next(p for p in Path(HF_HUB_CACHE).absolute().parents if p.exists())).free
        if room < missing + SPARE_DISK:
            raise MissingError(
                f"{source} takes {missing / GB:.1f} GB and {room / GB:.1f} GB are free: make room, or set HF_HOME"
            )
        exactly = [escape(name) for name in names]
        reported_tenths = 10 * (size - missing) // size if size else 0

        def download(bar: type) -> object:
            return snapshot_download(repository, allow_patterns=exactly, tqdm_class=bar)

        for arrived in watch_download(download, leave):
            here = size - missing + arrived
            if size and (tenths := 10 * here // size) > reported_tenths:
                reported_tenths = tenths
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
    bar: Any = SilentBar  # the hub's hint names a subclass of tqdm that it does not need
    try:
        return snapshot_download(repository, allow_patterns=patterns, dry_run=True, tqdm_class=bar)
    except DryRunError as error:
        raise (error.__cause__ or error) from None


def required_sources(preset: Preset) -> list[tuple[str, str]]:
    """Everything that a preset loads, as (source, kind), parts of releases included."""
    wanted = [(name, "prior") for name in preset.priors]
    wanted += [(preset.reward_decoder, "autoencoder")] if preset.reward_decoder else []
    wanted += [(name, "reward") for name in dict.fromkeys([*preset.reward_names, *preset.judges])]
    wanted = [(plain_source(source), kind) for source, kind in wanted]
    for source, kind in list(wanted):
        if not is_file(source):
            continue
        release = RELEASES.get(source)
        for role, other in (release.parts if release else {}).items():
            tokenizer = "diffusion tokenizer" if kind == "prior" else "tokenizer"
            wanted.append((other, tokenizer if role == "tokenizer" else "reward"))
    return list(dict.fromkeys(wanted))


def licence_lines(preset: Preset) -> list[str]:
    """One line for each model of other makers that the preset names."""
    return [str(RELEASES[source]) for source, _ in required_sources(preset) if source in RELEASES]
