"""What a step shows and checks is read once where reading waits for a device."""

import pytest
import torch
from torch import Tensor

from psd.runtime.deferred import DeferredChecks, NonFiniteError, scalar


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
    readings = DeferredChecks()
    assert scalar(torch.tensor(2.0)) == 2.0
    value = torch.ones(3)
    assert readings.check_finite("latents", value) is value and not readings.open
    with pytest.raises(NonFiniteError, match="latents"):
        readings.check_finite("latents", torch.tensor([1.0, torch.nan]))
    with pytest.raises(NonFiniteError, match="score"):
        readings.check_finite("score", torch.tensor([torch.inf, -torch.inf]))
    readings.check_finite("large", torch.full((4,), 3e38))  # their sum is not finite, they are
    assert readings.settle_checks({"a": 1}, {}) == [{"a": 1.0}, {}]


def test_a_gpu_is_asked_once_a_step() -> None:
    readings, Elsewhere.reads = DeferredChecks(), 0
    for name in ("render", "latents", "score"):
        readings.check_finite(name, elsewhere(1.0, 2.0))
    metrics = {"here": 0.25, "there": scalar(elsewhere(3.0).sum())}
    found = readings.settle_checks(metrics, {"gap": scalar(elsewhere(0.5).sum())})
    assert found == [{"here": 0.25, "there": 3.0}, {"gap": 0.5}]
    assert Elsewhere.reads == 1 and not readings.open
    assert readings.settle_checks() == [] and Elsewhere.reads == 1  # nothing to ask


def test_the_first_failure_of_a_step_is_named() -> None:
    readings = DeferredChecks()
    for name, value in (("render", 1.0), ("noise prediction", torch.inf), ("score", torch.nan)):
        readings.check_finite(name, elsewhere(value))
    with pytest.raises(NonFiniteError, match="noise prediction"):
        readings.settle_checks({"loss": scalar(elsewhere(torch.nan).sum())})
    assert readings.settle_checks() == []  # a new step starts without them
