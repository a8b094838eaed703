"""Pictures from outside are scored by the networks of a run, which other threads compute with."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.models import load as load_models
from psd.models.scoring import score_images
from psd.runtime.offload import COMPUTING, hold_on_device

CUBE = "a red cube"
HOME, META, GPU = torch.device("cpu"), torch.device("meta"), torch.device("cuda")
GREY = np.full((20, 30, 3), 128, np.uint8)
PATIENCE_S, SOON_S = 20.0, 0.05


@dataclass
class Data:
    device: torch.device
    journeys: list[torch.device]

    def to(self, device: torch.device) -> "Data":
        self.journeys.append(device)
        return Data(device, self.journeys)


@dataclass
class Network:
    """One weight, as far as its place goes: torch lets no tensor of a CPU pass to a device without memory."""

    data: Data = field(default_factory=lambda: Data(HOME, []))

    @property
    def device(self) -> torch.device:
        return self.data.device

    def parameters(self) -> list["Network"]:
        return [self]

    def buffers(self) -> list["Network"]:
        return []


class Judge:
    """Likes all pictures, and tells where its network was when it was asked, and whether gradients were on."""

    name, device, parked = "judge", META, True

    def __init__(self) -> None:
        self.network: Any = Network()
        self.calls: list[tuple[torch.device, bool]] = []

    def __call__(self, images: Tensor, prompt: str) -> Tensor:
        self.calls.append((self.network.device, torch.is_grad_enabled()))
        return torch.ones(1, 1)


def scoring(judge: Judge, monkeypatch: pytest.MonkeyPatch, count: int = 1) -> Callable[[], object]:
    monkeypatch.setattr("psd.models.scoring.borrow_judge", lambda preset, name: judge)
    return lambda: score_images(Preset.load("tiny"), [GREY] * count, CUBE)


@pytest.mark.parametrize("batch", [0, 1])
def test_the_networks_of_a_run_score_pictures_too(batch: int) -> None:
    """However memory is saved: a second copy on the GPU would spend what is saved."""
    values = {
        "device": "cpu",
        "network_batch": batch,
        "compile": "graphs",
        "prompt": CUBE,
        "judges": ["assets/selector"],
    }
    preset = Preset.load("tiny", values)
    loaded = load_models.load_models(preset)
    before = load_models.load_judge.cache_info().misses
    whole = torch.ones(1, 1, 3, 30, 30)
    whole[..., 5:25, :] = 128 / 255
    for name in ("", "assets/selector", "assets/reward"):
        network = {**loaded.judges, **loaded.rewards}[name or "assets/selector"]
        with torch.no_grad():
            wanted = network(whole, CUBE).item()
        assert score_images(preset, [GREY], CUBE, name)["scores"] == pytest.approx([wanted], rel=1e-5)
    assert load_models.load_judge.cache_info().misses == before
    with pytest.raises(PresetError, match="no judge 'assets/evidence'"):
        score_images(preset, [GREY], CUBE, "assets/evidence")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((1, 14_000, 3), np.uint8), "14000 x 1 pixels: 2048 at most along an edge"),
        (np.zeros((0, 4, 3), np.uint8), "4 x 0 pixels"),
        (np.zeros((4, 4), np.uint8), "shape (4, 4)"),
        (np.zeros((4, 4, 4), np.uint8), "shape (4, 4, 4)"),
        (np.zeros((4, 4, 3), np.float32), "type float32"),
    ],
)
def test_a_picture_that_cannot_be_scored_is_refused_before_a_network_is_asked(image: np.ndarray, words: str) -> None:
    with pytest.raises(PresetError, match=re.escape(words)):
        score_images(Preset.load("tiny", {"device": "cpu"}), [image], CUBE)


def test_a_judge_stays_on_a_gpu_only_with_the_models_of_its_own_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict] = []
    monkeypatch.setattr(load_models, "_held", {})
    monkeypatch.setattr(load_models, "unload_all", lambda: None)
    monkeypatch.setattr(load_models, "load_judge", lambda *given, **how: asked.append(how))
    monkeypatch.setattr(load_models, "choose_device", lambda wish: (GPU, "there is one"))
    preset = Preset.load("tiny", {"compile": "graphs", "network_batch": 0})

    def found(name: str) -> tuple[bool, bool]:
        load_models.borrow_judge(preset, name)
        return asked[-1]["parked"], asked[-1]["compiled"] != "none"

    assert found("assets/selector") == found("assets/reward") == (True, False)  # the next run may be a small one
    load_models.evict_other_models(preset, GPU, torch.float16)
    assert (found("assets/selector"), found("assets/reward")) == ((False, False), (False, True))
    load_models.evict_other_models(preset.with_values({"network_batch": 1}), GPU, torch.float16)
    assert found("assets/selector") == found("assets/reward") == (True, False)


def test_two_threads_that_ask_at_once_load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    began, go, loads, found = threading.Event(), threading.Event(), [], []

    def load(source: str, *given: object, **how: object) -> object:
        loads.append(source)
        began.set()
        go.wait(PATIENCE_S)
        return object()

    def ask() -> None:
        found.append(load_models.borrow_judge(preset, "assets/selector"))

    monkeypatch.setattr(load_models, "load_judge", lru_cache(load))
    preset = Preset.load("tiny", {"device": "cpu"})
    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads[0].start()
    assert began.wait(PATIENCE_S)
    threads[1].start()
    threads[1].join(SOON_S)
    go.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(loads) == 1 and found[0] is found[1]


def test_a_parked_judge_comes_once_for_all_pictures_and_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`psd.runtime.cuda_graphs.Graphed` records calls without gradients, for each size, and only a few."""
    judge = Judge()
    scoring(judge, monkeypatch, 3)()
    assert judge.calls == [(META, True)] * 3
    assert judge.network.data.journeys == [META] and judge.network.device == HOME


def test_pictures_wait_until_a_run_has_done_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge()
    judge.parked = False
    thread = threading.Thread(target=scoring(judge, monkeypatch))
    with COMPUTING:
        thread.start()
        thread.join(SOON_S)
        assert thread.is_alive() and not judge.calls
    thread.join(PATIENCE_S)
    assert not thread.is_alive() and len(judge.calls) == 1


def test_a_network_is_not_sent_home_while_another_thread_needs_it() -> None:
    network: Any = Network()
    entered, left, found = threading.Event(), threading.Event(), []

    def visit() -> None:
        with hold_on_device([network], META):
            entered.set()
            left.wait(PATIENCE_S)
            found.append(network.device)

    second = threading.Thread(target=visit)
    with hold_on_device([network], META):
        with hold_on_device([network], META):  # a judge reads its prompt in the midst of a look
            assert network.device == META
        assert network.device == META
        second.start()
        assert not entered.wait(SOON_S)
    left.set()
    second.join(PATIENCE_S)
    assert found == [META] and network.device == HOME


def test_nothing_moves_to_where_it_is_by_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cuda` is `cuda:0`; the device without memory has such names too."""
    network = nn.Linear(2, 2, device="meta").requires_grad_(False)
    other = torch.device("meta:1")
    assert other != network.weight.device == torch.empty(0, device=other).device
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *given: moved.append(given) or self)
    with hold_on_device([network], other):
        pass
    assert moved == []
