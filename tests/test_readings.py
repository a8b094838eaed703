"""What a step shows and checks is read once where reading waits for a device."""

import pytest
import torch
from torch import Tensor

from psd.readings import Readings, number
from psd.score import NonFiniteError


class Elsewhere(Tensor):
    """A tensor of a CPU that says it is on a GPU, and counts how often it is read."""

    reads = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__float__):
            Elsewhere.reads += 1
        return super().__torch_function__(function, types, args, kwargs or {})


def elsewhere(*values: float) -> Tensor:
    return torch.tensor(values).as_subclass(Elsewhere)


def test_a_cpu_reads_and_checks_at_once() -> None:
    readings = Readings()
    assert number(torch.tensor(2.0)) == 2.0
    value = torch.ones(3)
    assert readings.finite("latents", value) is value and not readings.open
    with pytest.raises(NonFiniteError, match="latents"):
        readings.finite("latents", torch.tensor([1.0, torch.nan]))
    assert readings.settle({"a": 1}, {}) == [{"a": 1.0}, {}]


def test_a_gpu_is_asked_once_a_step() -> None:
    readings, Elsewhere.reads = Readings(), 0
    for name in ("render", "latents", "score"):
        readings.finite(name, elsewhere(1.0, 2.0))
    metrics = {"here": 0.25, "there": number(elsewhere(3.0).sum())}
    found = readings.settle(metrics, {"gap": number(elsewhere(0.5).sum())})
    assert found == [{"here": 0.25, "there": 3.0}, {"gap": 0.5}]
    assert Elsewhere.reads == 1 and not readings.open
    assert readings.settle() == [] and Elsewhere.reads == 1  # nothing to ask


def test_the_first_failure_of_a_step_is_named() -> None:
    readings = Readings()
    for name, value in (("render", 1.0), ("noise prediction", torch.inf), ("score", torch.nan)):
        readings.finite(name, elsewhere(value))
    with pytest.raises(NonFiniteError, match="noise prediction"):
        readings.settle({"loss": number(elsewhere(torch.nan).sum())})
    assert readings.settle() == []  # a new step starts without them
