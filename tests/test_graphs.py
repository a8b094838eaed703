"""Calls that are recorded once, and networks that wait elsewhere: rules on a CPU, the things themselves on a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from psd.graphs import MOST, Graphed
from psd.offload import visiting
from psd.preset import Preset
from psd.randomised import random_models, reward

LARGE = {"prompt": "a corgi", "negative_prompt": "blurry"}


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
    assert len(recorded) == MOST


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


@torch.no_grad()
@pytest.mark.parametrize("name", ["yuvalkirstain/PickScore_v1", "xswu/HPSv2/HPS_v2.1_compressed.pt"])
def test_images_are_scored_without_what_only_reads_prompts(name: str) -> None:
    """Else a network that saves memory would look for weights that are away."""
    preset = Preset.load("mvdream-8gb", LARGE)
    scorer = reward(name, torch.device("cpu"), torch.float32, preset, tiny=True)
    scorer(torch.rand(1, 1, 3, 56, 56), "a corgi")
    touched = []
    for network in scorer.readers():
        for module in network.modules():
            module.register_forward_pre_hook(lambda *_: touched.append(1))
    scorer(torch.rand(1, 2, 3, 56, 56), "a corgi")
    assert not touched
    scorer(torch.rand(1, 1, 3, 56, 56), "another corgi")
    assert touched


def test_large_presets_that_save_memory_park_their_judges() -> None:
    device = torch.device("cpu")
    for name, saves in (("mvdream", False), ("mvdream-8gb", True)):
        models = random_models(Preset.load(name, LARGE), device, torch.float32, tiny=True)
        assert all(judge.parked == saves for judge in models.judges.values())  # type: ignore[attr-defined]
        assert not any(scorer.parked for scorer in models.rewards.values())  # type: ignore[attr-defined]
        images = torch.rand(1, 2, 3, 56, 56, requires_grad=True)
        for judge in models.judges.values():
            assert judge(images, "a corgi").requires_grad != saves


# --------------------------------------------------------------------------------------------------------------- a GPU


@pytest.mark.gpu
@torch.no_grad()
def test_a_recorded_unet_predicts_what_a_plain_one_does(record_property) -> None:
    """MVDream's exact U-Net; and how long eight rows take with and without the recording."""
    from psd.cameras import turntable

    device, results, times = torch.device("cuda"), [], {}
    for graphs in (False, True):
        preset = Preset.load("mvdream", {**LARGE, "compile": graphs, "judges": []})
        prior = random_models(preset, device, torch.float16).prior
        cameras = turntable(4)[torch.tensor([0, 0])].to(device)
        text = prior.embed("a corgi").expand(2, -1, -1)
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
        times[graphs] = begin.elapsed_time(end) / 10
        del prior
    record_property("plain ms", round(times[False], 2))
    record_property("recorded ms", round(times[True], 2))
    assert torch.isfinite(results[0]).all()
    torch.testing.assert_close(results[0], results[1], atol=2e-3, rtol=2e-3)


@pytest.mark.gpu
def test_networks_visit_and_leave_nothing_behind() -> None:
    device = torch.device("cuda")
    network = nn.Sequential(nn.Linear(1000, 1000), nn.BatchNorm1d(1000)).eval().requires_grad_(False)
    images = torch.randn(2, 1000)
    wanted = network(images)
    before = torch.cuda.memory_allocated()
    with visiting([network], device):
        assert network[0].weight.is_cuda and torch.cuda.memory_allocated() >= before + 4e6
        found = network(images.to(device)).cpu()
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    assert not network[0].weight.is_cuda and torch.cuda.memory_allocated() <= before + 1e6
    with pytest.raises(ZeroDivisionError), visiting([network], device):
        raise ZeroDivisionError
    assert not network[0].weight.is_cuda
