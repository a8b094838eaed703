"""Every test checks the shapes that signatures name; here, that it does."""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from psd.distillation import tensors
from tests.support import signatures

KINDS = """
from __future__ import annotations
from dataclasses import dataclass
from functools import cached_property
import torch
from jaxtyping import Float
from torch import Tensor

@dataclass(frozen=True)
class Row:
    value: Float[Tensor, "n"]

    def take_rows(self, other: Float[Tensor, "n m"] | None) -> None: ...
    @property
    def as_property(self) -> Float[Tensor, ""]: return self.value
    @cached_property
    def as_kept_property(self) -> Float[Tensor, ""]: return self.value
    @staticmethod
    def as_static_method(other: Float[Tensor, "n m"]) -> None: ...
    @classmethod
    def as_class_method(cls, other: Float[Tensor, "n m"]) -> None: ...

@torch.no_grad()
def as_decorated_function(*several: Float[Tensor, "n m"]) -> None: ...
def without_shape(value: int) -> int: return value
"""


def check_anew(function: Callable) -> Callable:
    """Of whose calls none has been counted."""
    return signatures.check_shapes(inspect.unwrap(function))


def test_a_wrong_shape_is_refused_in_words() -> None:
    group_norm = check_anew(tensors.group_norm)
    with pytest.raises(TypeError, match=r"tensors\.group_norm: value should be .*b v c h w.*, is \(2, 3\)"):
        group_norm(torch.zeros(2, 3))
    assert group_norm(torch.ones(1, 1, 1, 2, 2)).item() == 2


def test_a_letter_is_one_length_in_all_of_a_call() -> None:
    pick, values, index = (
        check_anew(tensors.pick_candidate),
        torch.zeros(2, 1, 3, 5),
        torch.zeros(1, 3, dtype=torch.long),
    )
    assert pick(values, index).shape == (1, 3, 5)
    with pytest.raises(TypeError, match="pick_candidate: index should be"):
        pick(values, index[:, :2])


def test_functions_of_every_kind_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("kinds")
    monkeypatch.setitem(sys.modules, "kinds", module)
    exec(KINDS, vars(module))
    plain = module.without_shape
    signatures.check_members(module, "kinds")
    assert module.without_shape is plain
    line, row = torch.zeros(3), module.Row(torch.zeros(3))
    row.take_rows(None)
    for call in (
        lambda: module.Row(torch.zeros(3, 1)),
        lambda: row.take_rows(line),
        lambda: row.as_property,
        lambda: row.as_kept_property,
        lambda: row.as_static_method(line),
        lambda: module.Row.as_class_method(line),
        lambda: module.as_decorated_function(torch.zeros(1, 2), line),
    ):
        with pytest.raises(TypeError, match="should be Float"):
            call()


def test_later_calls_are_checked_now_and_then() -> None:
    per_view, refused = check_anew(tensors.per_view), 0
    for _ in range(2 * signatures.ALL_OF_THEM):
        try:
            per_view(torch.zeros(1, 2, 3))
        except TypeError:
            refused += 1
    assert refused == signatures.ALL_OF_THEM + signatures.ALL_OF_THEM // signatures.ONE_OF
