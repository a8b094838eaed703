"""Parts of a call side by side: the same numbers, gradients and errors as one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from psd.runtime import lanes


@pytest.fixture(autouse=True)
def closed_afterwards() -> Iterator[None]:
    before = lanes.count_lanes()
    yield
    lanes.open_lanes(before)


def test_parts_run_side_by_side_and_come_back_in_order() -> None:
    lanes.open_lanes(2)
    both = threading.Barrier(2, timeout=20)  # broken where one part waits for the other's end

    def meet(part: int) -> int:
        both.wait()
        return part

    assert lanes.map_parts(meet, [3, 4]) == [3, 4]


def test_gradients_are_on_in_a_lane_where_they_are_on_here() -> None:
    lanes.open_lanes(2)
    both = threading.Barrier(2, timeout=20)

    def meet(_: int) -> bool:
        both.wait()
        return torch.is_grad_enabled()

    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            assert lanes.map_parts(meet, range(2)) == [mode] * 2


def test_parts_of_a_part_wait_for_no_lane() -> None:
    lanes.open_lanes(2)
    assert lanes.map_parts(lambda i: lanes.map_parts(lambda j: (i, j), range(3)), range(4))[3] == [
        (3, 0),
        (3, 1),
        (3, 2),
    ]


@pytest.mark.parametrize("broken", [0, 1, 3])
def test_an_error_of_any_part_comes_when_no_part_runs_any_more(broken: int) -> None:
    lanes.open_lanes(2)
    running: set[int] = set()

    def fail(part: int) -> None:
        running.add(part)
        try:
            if part == broken:
                raise ValueError(f"part {part}")
            time.sleep(0.05)
        finally:
            running.discard(part)

    with pytest.raises(ValueError, match=f"part {broken}"):
        lanes.map_parts(fail, range(4))
    assert not running


def convolve(rows: torch.Tensor) -> torch.Tensor:
    weight = torch.linspace(-1, 1, 27, dtype=rows.dtype).view(1, 3, 3, 3)
    return torch.nn.functional.conv2d(rows, weight).tanh()


def test_rows_and_their_gradients_are_those_of_one_call() -> None:
    lanes.open_lanes(2)
    value = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.rand(5, 1, 6, 6, dtype=torch.float64)
    found, whole = lanes.map_rows(convolve, value, 2), convolve(value)
    assert torch.allclose(found, whole, rtol=0, atol=1e-14)
    wanted = torch.autograd.grad(whole, value, weight)[0]
    for again in (True, False):  # a graph that is kept may be walked back again
        gradient = torch.autograd.grad(found, value, weight, retain_graph=again)[0]
        assert torch.allclose(gradient, wanted, rtol=0, atol=1e-14)
    with torch.no_grad():
        assert not lanes.map_rows(convolve, value, 2).requires_grad


def test_the_gradient_of_a_shared_table_is_the_sum_over_its_readers() -> None:
    lanes.open_lanes(2)
    table = torch.randn(6, 4, dtype=torch.float64).requires_grad_()
    parts = [torch.tensor([0, 1, 1]), torch.tensor([5, 1]), torch.tensor([2])]

    def read(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return table[rows].sin().prod(0)

    found = torch.stack(lanes.share_table(read, table, parts))
    whole = torch.stack([read(table, part) for part in parts])
    assert torch.equal(found, whole)
    gradients = [torch.autograd.grad(value.square().sum(), table)[0] for value in (found, whole)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-14)
    (alone,) = torch.autograd.grad(torch.stack(lanes.share_table(read, table, parts))[1].sum(), table)
    assert alone[[2, 3, 4]].abs().sum() == 0 < alone[5].abs().sum()


def test_the_numbers_do_not_depend_on_the_lanes() -> None:
    value = torch.randn(8, 3, 16, 16).requires_grad_()
    found = []
    for count in (1, 2, 4):
        lanes.open_lanes(count)
        made = lanes.map_rows(convolve, value, 2)
        found.append(torch.cat([made.detach().flatten(), torch.autograd.grad(made.sum(), value)[0].flatten()]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
