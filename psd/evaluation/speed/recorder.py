"""Record the calls of a run's models, so that they can be counted (`psd.evaluation.experiments.record`) or timed alone
(`psd.evaluation.speed.bench`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from psd.models.interfaces import Models


@dataclass(frozen=True)
class Call:
    """One call of a model, with all that repeating it needs."""

    kind: str  # unet, encode, decode, reward or render
    key: str  # of calls that cost the same: kind, model, shape of the first tensor, and whether there is a backward
    function: Callable[..., Any]
    args: tuple
    keywords: dict[str, Any]
    grad: bool  # gradients flow back through the result


@dataclass
class Recorder:
    """Stands in for a model and hands every call of ``method`` ("": of the model itself) to ``note``.

    Everything else reaches the model unchanged.
    """

    target: Any
    method: str
    kind: str
    note: Callable[[Call], None]
    name: str = ""

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, name)
        return self._recorded(value) if name == self.method else value

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self._recorded(self.target)(*args, **keywords)

    def _recorded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            result = function(*args, **keywords)
            shapes = [tuple(value.shape) for value in args if isinstance(value, torch.Tensor)]
            grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in output_tensors(result))
            key = f"{self.kind} {self.name}{' ' * bool(self.name)}{shapes[0] if shapes else args[1:]}"
            self.note(Call(self.kind, key + " and backward" * grad, function, args, keywords, grad))
            return result

        return call


def output_tensors(result: Any) -> list[torch.Tensor]:
    """The tensors of a model's answer that gradients come back through; depth and normals carry none."""
    return [result] if isinstance(result, torch.Tensor) else [result.rgb, *result.regularisers.values()]


def record_calls(models: Models, note: Callable[[Call], None]) -> Models:
    """The same models, with every call of a network handed to ``note``."""

    def record_prior(prior: Any) -> Any:
        for method, kind in (("predict_noise", "unet"), ("encode", "encode"), ("decode", "decode")):
            prior = Recorder(prior, method, kind, note)
        return prior

    priors = {name: record_prior(prior) for name, prior in models.priors.items()}
    rewards: Any = {name: Recorder(reward, "", "reward", note, name) for name, reward in models.rewards.items()}
    return replace(models, priors=priors, rewards=rewards)
