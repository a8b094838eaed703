"""A reward that is any function of pictures and prompt, without a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class BlackBoxReward:
    """Any callable ``(images b v 3 h w in [0, 1], prompt) -> scores b v``; it ranks, no gradient is asked of it.

    Scores may be a tensor, an array or nested lists of numbers; ValueError for anything else, and for another shape.
    """

    differentiable = False

    def __init__(self, name: str, score: Callable[[Tensor, str], Any], *, scale: float = 1.0) -> None:
        self.name, self.score, self.scale = name, score, scale

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b v 3 h w"], prompt: str) -> Float[Tensor, "b v"]:
        found = self.score(images.detach(), prompt)
        try:
            scores = torch.as_tensor(found, dtype=torch.float32, device=images.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"reward {self.name!r} returned {type(found).__name__}, which is no array of numbers ({error});"
                f" expected scores of shape (b, v) = {tuple(images.shape[:2])}"
            ) from None
        if scores.shape != images.shape[:2]:
            raise ValueError(
                f"reward {self.name!r} returned {tuple(scores.shape)}; expected (b, v) = {tuple(images.shape[:2])}"
            )
        return scores
