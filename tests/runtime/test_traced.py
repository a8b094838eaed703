"""Calls of a network as a graph without Python: the same numbers, and Python's road where gradients are asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from psd.runtime.traced import PATIENCE, Traced


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)
        self.norm = nn.GroupNorm(2, 8)
        self.calls = 0

    def forward(self, rows: Tensor, extra: Tensor | None) -> Tensor:
        self.calls += 1
        made = nn.functional.silu(self.norm(self.layer(rows)))
        return made if extra is None else made + extra


def test_a_shape_is_recorded_after_some_calls_and_its_numbers_stay() -> None:
    network = Network().eval().requires_grad_(False)
    traced = Traced(lambda rows, extra: network(rows, extra), network)
    rows = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        first = traced(rows, None)
        for _ in range(PATIENCE):
            traced(rows, None)
        before = network.calls
        assert torch.equal(traced(rows, None), first) and network.calls == before
        other = traced(rows * 2, None)
        assert torch.equal(other, network(rows * 2, None)) and not torch.equal(other, first)
        before = network.calls
        assert traced(torch.randn(1, 3, 9, 9), torch.ones(())).shape == (1, 8, 7, 7)  # no graph of these shapes
        assert network.calls == before + 1


def test_a_call_with_gradients_takes_pythons_road() -> None:
    network = Network().eval().requires_grad_(False)
    traced = Traced(lambda rows, extra: network(rows, extra), network)
    rows = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        for _ in range(PATIENCE + 2):
            traced(rows, None)
    leaf = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(traced(leaf, None).sum(), leaf)
    (wanted,) = torch.autograd.grad(network(leaf, None).sum(), leaf)
    assert torch.equal(gradient, wanted)
