"""Calls that are recorded once, and networks that wait elsewhere: rules on a CPU, the things themselves on a GPU."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from psd.config.preset import Preset
from psd.models.random_weights import random_models, random_reward
from psd.runtime.cuda_graphs import MOST_RECORDINGS, WARM_UP, Graphed, Recording, RecordingPlace
from psd.runtime.offload import hold_on_device

ROOT = Path(__file__).resolve().parents[2]


class OnCuda(Tensor):
    """A tensor of a CPU that says it is on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def on_cuda(*shape: int) -> Tensor:
    return torch.ones(shape).as_subclass(OnCuda)


def test_calls_are_recorded_once_a_shape_and_only_without_gradients() -> None:
    recorded: list[tuple] = []

    def record(function: Callable, *inputs: Tensor | None) -> Callable:
        recorded.append(tuple(None if value is None else tuple(value.shape) for value in inputs))
        return lambda *given: function(*given) * 10

    def double(value: Tensor, other: Tensor | None) -> Tensor:
        return value * 2

    graphed = Graphed(double, record)
    with torch.no_grad():
        assert graphed(torch.ones(2), None).tolist() == [2, 2] and not recorded  # on a CPU nothing is recorded
        for shape in ((2,), (3,), (2,)):
            assert (graphed(on_cuda(*shape), None) == 20).all()
        assert (graphed(on_cuda(2), on_cuda(1)) == 20).all()
    assert recorded == [((2,), None), ((3,), None), ((2,), (1,))]
    assert (graphed(on_cuda(2), None) == 2).all()  # gradients are on
    with torch.no_grad():
        for size in range(4, 30):
            graphed(on_cuda(size), None)
    assert len(recorded) == MOST_RECORDINGS


def test_what_cannot_be_recorded_runs_without_and_says_so() -> None:
    def refuse(function: Callable, *inputs: Tensor | None) -> Callable:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    graphed = Graphed(lambda value: value + 1, refuse)
    with torch.no_grad():
        with pytest.warns(UserWarning, match="not permitted when stream is capturing.*runs without"):
            assert (graphed(on_cuda(2)) == 2).all()
        assert (graphed(on_cuda(2)) == 2).all()  # once is enough

    def too_large(function: Callable, *inputs: Tensor | None) -> Callable:
        raise torch.OutOfMemoryError("full")

    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError):  # that is for the run to cure
        Graphed(lambda value: value, too_large)(on_cuda(2))


class Card:
    """What `Recording` asks of a GPU: streams, pools and graphs of "kernels", around torch's own `torch.cuda.graph`.

    A function launches a kernel with `launch`, which runs it, or keeps it while something is recorded.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.usual = self.current = self.Stream(self)
        self.recording: Card.Graph | None = None
        self.pools: list[int] = []
        self.graphs: list[Card.Graph] = []
        self.streams: list[Any] = []  # of each launch that was not recorded
        self.breaks = False  # whether recordings can be ended
        for name, value in {
            "Stream": lambda: self.Stream(self), "stream": self.stream, "current_stream": lambda: self.current,
            "graph_pool_handle": self.handle, "CUDAGraph": lambda: self.Graph(self),
            "synchronize": lambda: None, "empty_cache": lambda: None,
        }.items():  # fmt: skip
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        patch.setattr(RecordingPlace, "current", None)

    class Stream:
        def __init__(self, card: "Card") -> None:
            self.card = card

        def wait_stream(self, other: "Card.Stream") -> None:
            assert other is not self

    class Graph:
        def __init__(self, card: "Card") -> None:
            self.card, self.kernels, self.used = card, [], {}
            card.graphs.append(self)

        def capture_begin(self, pool: int, capture_error_mode: str, **_: object) -> None:
            self.used = {"pool": pool, "mode": capture_error_mode, "stream": self.card.current}
            self.card.recording = self

        def capture_end(self) -> None:
            self.card.recording = None
            if self.card.breaks:
                raise RuntimeError("operation failed due to a previous error during capture")

        def replay_changes(self) -> None:
            for kernel in self.kernels:
                kernel()

    def handle(self) -> int:
        self.pools.append(len(self.pools))
        return self.pools[-1]

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def launch(self, kernel: Callable[[], object]) -> None:
        if self.recording is not None:
            self.recording.kernels.append(kernel)
        else:
            self.streams.append(self.current)
            kernel()

    def times(self, factor: int) -> Callable[[Tensor], Tensor]:
        """A network of one kernel."""

        def network(value: Tensor) -> Tensor:
            out = torch.zeros_like(value)
            self.launch(lambda: torch.mul(value, factor, out=out))
            return out

        return network


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(monkeypatch)


def test_a_recording_computes_anew_for_each_input_and_its_answers_stay(card: Card) -> None:
    triple = Recording(card.times(3), torch.tensor([1.0]))
    answers = [triple(torch.tensor([value])) for value in (2.0, 5.0)]
    assert [answer.item() for answer in answers] == [6.0, 15.0]
    assert len(card.streams) == WARM_UP and set(card.streams) == {triple.place.stream}  # the replays launch the graph
    assert card.current is card.usual


def test_recordings_share_one_pool_as_long_as_one_of_them_lives(card: Card) -> None:
    """torch takes no new graph into a pool whose last one has gone."""
    graphed = [Graphed(card.times(factor)) for factor in (2, 3)]
    with torch.no_grad():
        for _ in range(2):
            for size in (1, 2):
                assert [one(on_cuda(size)).tolist() for one in graphed] == [[2.0] * size, [3.0] * size]
        assert len(card.graphs) == 4 and card.pools == [0]
        used = [graph.used for graph in card.graphs]
        assert {name: len({id(one[name]) for one in used}) for name in ("pool", "stream")} == {"pool": 1, "stream": 1}
        assert {one["mode"] for one in used} == {"thread_local"} and used[0]["stream"] is not card.usual
        graphed[0].discard_recordings()
        graphed[0](on_cuda(1))
        assert card.pools == [0]  # the other function's recordings are there
        for one in graphed:
            one.discard_recordings()
        graphed[0](on_cuda(1))
        assert card.pools == [0, 1] and card.graphs[-1].used["pool"] == 1


def test_a_recording_that_breaks_says_why_and_leaves_stream_and_pool(card: Card) -> None:
    good, calls = Graphed(card.times(2)), []

    def waits(value: Tensor) -> Tensor:
        calls.append(1)
        if card.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return value + 1

    with torch.no_grad():
        good(on_cuda(1))
        card.breaks = True
        with pytest.warns(UserWarning, match=r"\(operation not permitted when stream is capturing\)"):
            assert (Graphed(waits)(on_cuda(1)) == 2).all()
        assert card.current is card.usual and len(calls) == WARM_UP + 2
        card.breaks = False
        assert good(on_cuda(2)).tolist() == [2.0, 2.0] and good(on_cuda(1)).tolist() == [2.0]
    assert [graph.used["pool"] for graph in card.graphs] == [0, 0, 1]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), KeyboardInterrupt()])
def test_what_a_broken_recording_cannot_be_ended_with_is_not_lost(card: Card, error: BaseException) -> None:
    """A run is to go on smaller, or to end; torch's word that the recording is broken would say neither."""
    card.breaks = True

    def fails(value: Tensor) -> Tensor:
        if card.recording is not None:
            raise error
        return value

    with torch.no_grad(), pytest.raises(type(error)):
        Graphed(fails)(on_cuda(1))


@torch.no_grad()
@pytest.mark.parametrize("name", ["yuvalkirstain/PickScore_v1", "xswu/HPSv2/HPS_v2.1_compressed.pt"])
def test_images_are_scored_without_what_only_reads_prompts(name: str) -> None:
    """Else a network that saves memory would look for weights that are away."""
    preset = Preset.load("mvdream-8gb")
    scorer = random_reward(name, torch.device("cpu"), torch.float32, preset, tiny=True)
    scorer(torch.rand(1, 1, 3, 56, 56), "a corgi")
    touched = []
    for network in scorer.text_modules():
        for module in network.modules():
            module.register_forward_pre_hook(lambda *_: touched.append(1))
    scorer(torch.rand(1, 2, 3, 56, 56), "a corgi")
    assert not touched
    scorer(torch.rand(1, 1, 3, 56, 56), "another corgi")
    assert touched


def test_large_presets_that_save_memory_park_their_judges() -> None:
    device = torch.device("cpu")
    for name, saves in (("mvdream", False), ("mvdream-8gb", True)):
        models = random_models(Preset.load(name), device, torch.float32, tiny=True)
        assert all(judge.parked == saves for judge in models.judges.values())  # type: ignore[attr-defined]
        assert not any(scorer.parked for scorer in models.rewards.values())  # type: ignore[attr-defined]
        images = torch.rand(1, 2, 3, 56, 56, requires_grad=True)
        for judge in models.judges.values():
            assert judge(images, "a corgi").requires_grad != saves


# --------------------------------------------------------------------------------------------------------------- a GPU


def test_networks_are_compiled_where_the_preset_says_so() -> None:
    """U-Net, encoder and the image towers of rewards; no decoder, no judge, nothing where graphs alone are asked."""
    for mode in ("none", "graphs", "inductor"):
        models = random_models(Preset.load("mvdream", {"compile": mode}), torch.device("cpu"), torch.float32, tiny=True)
        prior: Any = models.prior
        (reward,), judges = models.rewards.values(), models.judges.values()
        compiled = [prior.unet, prior.vae.encoder, *cast(Any, reward).image_modules()]
        plain = [
            prior.vae.decoder,
            prior.decoder,
            *(part for judge in judges for part in cast(Any, judge).image_modules()),
        ]
        assert len(compiled) == 3 and len(plain) == 4
        assert all((part._compiled_call_impl is not None) == (mode == "inductor") for part in compiled)
        assert all(part._compiled_call_impl is None for part in plain)


@pytest.mark.slow
def test_a_compiled_encoder_is_the_plain_one_with_its_gradient() -> None:
    results = []
    for mode in ("none", "inductor"):
        preset = Preset.load("mvdream", {"compile": mode, "judges": [], "rewards": {}, "method": "sds"})
        prior = random_models(preset, torch.device("cpu"), torch.float32, tiny=True).prior
        images = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        latents = prior.encode(images)
        results.append((latents, *torch.autograd.grad(latents.square().sum(), images)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@torch.no_grad()
def test_a_recorded_unet_predicts_what_a_plain_one_does(record_property) -> None:
    """MVDream's exact U-Net; and how long eight rows take plain, recorded, compiled, and not in channels-last order."""
    from psd.geometry.cameras import turntable_cameras

    device, results, times = torch.device("cuda"), [], {}
    for mode in ("none", "graphs", "inductor", "channels first"):
        preset = Preset.load("mvdream", {"compile": "graphs" if mode == "channels first" else mode, "judges": []})
        prior: Any = random_models(preset, device, torch.float16).prior
        if mode == "channels first":
            prior.unet.to(memory_format=torch.contiguous_format)
        cameras = turntable_cameras(4)[torch.tensor([0, 0])].to(device)
        text = prior.embed_prompt("a corgi").expand(2, -1, -1)
        for seed in (0, 1, 2):
            z_t = torch.randn(2, 4, 4, 32, 32, generator=torch.Generator().manual_seed(seed)).to(device)
            found = prior.predict_noise(z_t, 300 + seed, text, cameras)
        results.append(found)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):
            prior.predict_noise(z_t, 300, text, cameras)
        end.record()
        torch.cuda.synchronize()
        times[mode] = begin.elapsed_time(end) / 10
        del prior
    for mode, name in {"none": "plain", "graphs": "recorded", "inductor": "compiled, recorded"}.items():
        record_property(f"{name} ms", round(times[mode], 2))
    record_property("recorded, channels first ms", round(times["channels first"], 2))
    assert torch.isfinite(results[0]).all()
    torch.testing.assert_close(results[0], results[1], atol=2e-3, rtol=2e-3)
    for other in results[2:]:  # other kernels round otherwise in half precision
        assert torch.nn.functional.cosine_similarity(results[0].flatten(), other.flatten(), dim=0) > 0.999


@pytest.mark.gpu
@torch.no_grad()
def test_recordings_in_one_pool_do_not_disturb_each_other(record_property) -> None:
    """Two networks at three sizes, called in any order; each answer is looked at only when all have been given."""
    device, generator = torch.device("cuda"), torch.Generator().manual_seed(0)
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        networks = [
            nn.Sequential(nn.Conv2d(4, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1)).eval()
            for width in (64, 512)
        ]
    graphed = [Graphed(network) for network in networks]
    order = torch.randint(0, 6, (40,), generator=generator).tolist()
    given = [(number % 2, torch.randn(1 + number // 2, 4, 64, 64, generator=generator).to(device)) for number in order]
    found = [graphed[which](value) for which, value in given]
    for (which, value), answer in zip(given, found, strict=True):
        torch.testing.assert_close(answer, networks[which](value), atol=1e-2, rtol=1e-2)
    recordings: list[Any] = [replay for one in graphed for replay in one.replays.values()]
    assert len(recordings) == 6 and all(isinstance(one, Recording) for one in recordings)
    assert len({one.place for one in recordings}) == 1
    record_property("recordings", len(recordings))


BROKEN = """
import warnings, torch
from psd.runtime.cuda_graphs import Graphed, Recording

before = torch.cuda.current_stream()
value = torch.ones(2, device="cuda")
good, waits = Graphed(lambda x: x * 2), Graphed(lambda x: x * x.sum().item())
with torch.no_grad(), warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    assert good(value).tolist() == [2, 2]
    assert waits(value).tolist() == [2, 2] and waits(value).tolist() == [2, 2]
    assert torch.cuda.current_stream() == before
    assert good(value + 1).tolist() == [4, 4] and good(torch.ones(3, device="cuda")).tolist() == [2, 2, 2]
assert all(isinstance(replay, Recording) for replay in good.replays.values()) and len(good.replays) == 2
print(*(line.message for line in said), sep="; ")
"""


@pytest.mark.gpu
def test_after_a_recording_that_breaks_the_gpu_goes_on(record_property) -> None:
    """In a process of its own: a context that cannot be used any more would fail all tests after this one."""
    told = subprocess.run([sys.executable, "-c", BROKEN], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("no CUDA graph of a network") == 1
    record_property("said", told.stdout.strip()[:200])


@pytest.mark.gpu
def test_networks_visit_and_leave_nothing_behind() -> None:
    device = torch.device("cuda")
    network = nn.Sequential(nn.Linear(1000, 1000), nn.BatchNorm1d(1000)).eval().requires_grad_(False)
    images = torch.randn(2, 1000)
    deepcopy(network).to(device)(images.to(device))  # cuBLAS keeps the workspace that it makes for its first call
    wanted = network(images)
    before = torch.cuda.memory_allocated()
    with hold_on_device([network], device):
        assert network[0].weight.is_cuda and torch.cuda.memory_allocated() >= before + 4e6
        found = network(images.to(device)).cpu()
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    assert not network[0].weight.is_cuda and torch.cuda.memory_allocated() <= before + 1e6
    with pytest.raises(ZeroDivisionError), hold_on_device([network], device):
        raise ZeroDivisionError
    assert not network[0].weight.is_cuda
