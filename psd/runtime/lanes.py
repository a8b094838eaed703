"""Parts of a call on several threads, for operations too small to be shared out one by one.

A step of a small scene and small networks is thousands of operations of a tenth of a millisecond.  Waking OpenMP's
threads for each costs as much as the operation: with two threads the embedded U-Net takes no less time than with one
(65 against 36 ms for an orbit).  So every operation keeps to its own thread, and whole parts of a call, rows that know
nothing of each other, go side by side on *lanes*.

What the parts are is fixed by the caller and never by the number of lanes: the numbers are the same on any machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Part = TypeVar("Part")
Computed = TypeVar("Computed")

SMALL = 20_000_000  # parameters of a network whose operations are too small to be shared out one by one
ROWS = 2  # pictures of a call that make a part: half of an orbit

_cores = torch.get_num_threads()  # that this process may use: as the machine or OMP_NUM_THREADS says
_pool: ThreadPoolExecutor | None = None
_lanes = 1
_here = threading.local()  # .inside: this thread computes a part, whose own parts it computes one after the other


def limit_cores(count: int) -> None:
    """Let this process compute on ``count`` cores at most, whatever its presets say: others have the rest."""
    global _cores
    _cores = count
    share_cores(0, small=False)


def share_cores(threads: int, *, small: bool) -> str:
    """Give the cores to the parts of calls where networks are ``small``, to each operation elsewhere; says which.

    ``threads``: of each operation, without lanes; 0 leaves the choice.
    """
    in_lanes = small and not threads
    torch.set_num_threads(1 if in_lanes else threads or _cores)
    open_lanes(_cores if in_lanes else 1)
    return f"{_lanes} lanes of one CPU thread" if in_lanes else f"{torch.get_num_threads()} CPU threads"


def choose_rows(network: nn.Module, device: torch.device) -> int:
    """Pictures that ``network`` takes in one part of a call; 0: all of them at once."""
    small = device.type == "cpu" and sum(value.numel() for value in network.parameters()) < SMALL
    return ROWS if small else 0


def open_lanes(count: int) -> None:
    """Let `map_parts` use ``count`` threads in all from now on; 1: everything in the calling thread."""
    global _pool, _lanes
    if count == _lanes:
        return
    # Not shut down: another thread may be about to use it; its threads end when nobody holds it any more.
    _pool = ThreadPoolExecutor(count - 1, thread_name_prefix="lane") if count > 1 else None
    _lanes = count


def count_lanes() -> int:
    """Threads that `map_parts` uses."""
    return _lanes


def map_parts(function: Callable[[Part], Computed], parts: Iterable[Part]) -> list[Computed]:
    """``[function(part) for part in parts]``, side by side; whether gradients are on is as in the calling thread.

    The first part runs here, and so does every other that no lane has begun when this one is done.  An error of any
    part is raised once no part runs any more.
    """
    parts, pool = list(parts), _pool
    if pool is None or len(parts) < 2 or getattr(_here, "inside", False):
        return [function(part) for part in parts]
    compute = partial(_compute_part, function, torch.is_grad_enabled())
    others = [pool.submit(compute, part) for part in parts[1:]]
    try:
        results = [compute(parts[0])]
        for future, part in zip(others, parts[1:], strict=True):
            results.append(compute(part) if future.cancel() else future.result())
        return results
    finally:
        for future in others:
            if not future.cancel():
                future.exception()  # waits for its end


def _compute_part(function: Callable[[Part], Computed], gradients: bool, part: Part) -> Computed:
    _here.inside = True
    try:
        with torch.set_grad_enabled(gradients):
            return function(part)
    finally:
        _here.inside = False


def share_table(function: Callable[[Tensor, Part], Tensor], table: Tensor, parts: Iterable[Part]) -> list[Tensor]:
    """``[function(table, part) for part in parts]`` side by side, and so is the way back to ``table``.

    Gradients reach ``table`` alone, once differentiable; those of the parts are added in their order.
    """
    parts = list(parts)
    if not (torch.is_grad_enabled() and table.requires_grad):
        return map_parts(partial(function, table), parts)
    readers: list[Callable[[Tensor], Tensor]] = [lambda table, part=part: function(table, part) for part in parts]
    return list(_SideBySide.apply(readers, *(table for _ in parts)))


def map_rows(function: Callable[[Tensor], Tensor], value: Tensor, size: int) -> Tensor:
    """``function`` over ``size`` rows of ``value`` at a time (0: all at once), side by side there and back.

    Gradients reach ``value`` alone, once differentiable.
    """
    if not size or len(value) <= size:
        return function(value)
    parts = value.split(size)
    if not (torch.is_grad_enabled() and value.requires_grad):
        return torch.cat(map_parts(function, parts))
    return torch.cat(_SideBySide.apply([function] * len(parts), *parts))


class _SideBySide(torch.autograd.Function):
    """``function(value)`` of each pair, with a graph of its own: autograd walks one graph back on one thread."""

    @staticmethod
    def forward(ctx: Any, functions: list[Callable[[Tensor], Tensor]], *values: Tensor) -> tuple[Tensor, ...]:
        def compute_part(index: int) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaf = values[index].detach().requires_grad_()
                return leaf, functions[index](leaf)

        ctx.graphs = map_parts(compute_part, range(len(values)))
        return tuple(output.detach() for _, output in ctx.graphs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        def walk_back(index: int) -> Tensor:
            leaf, output = ctx.graphs[index]
            if not output.requires_grad:
                return torch.zeros_like(leaf)
            # The caller's graph may be walked back again; these go when it goes.
            return torch.autograd.grad(output, leaf, gradients[index], retain_graph=True)[0]

        return None, *map_parts(walk_back, range(len(ctx.graphs)))
