"""CUDA graphs: a network's forward pass recorded once for each shape, then launched as a whole.

A U-Net of four views is a thousand short kernels, which Python launches more slowly than the GPU runs them.  Only calls
without gradients are recorded; all others, and those on other devices, pass through.

All recordings share one pool for their inner values, so that it is as large as the largest needs and not as all of them
together.  A later recording may then lie where an earlier one has its inner values, which is safe because nothing in
the pool is read after its replay is over: inputs and weights lie outside, the output is copied out at once, and `TURN`
lets one replay and its copy be launched before the next, on one stream, where the GPU runs them in that order.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 2  # calls before a recording: libraries choose their kernels and allocate what they keep
MOST_RECORDINGS = 8  # recordings of one function; each keeps its output and its share of the pool
TURN = threading.RLock()  # one recording or replay at a time in this process

Replay = Callable[..., Tensor]


class Graphed:
    """``function`` of tensors, one tensor out; ``record`` makes a replay for the shapes of its arguments."""

    def __init__(self, function: Callable[..., Tensor], record: Callable[..., Replay] | None = None) -> None:
        self.function, self.record = function, record or Recording
        self.replays: dict[Hashable, Replay] = {}

    def discard_recordings(self) -> None:
        """Give up the recordings, and their memory when no other function has any; the next calls record anew."""
        self.replays.clear()

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        given = [value for value in inputs if value is not None]
        if torch.is_grad_enabled() or any(value.device.type != "cuda" for value in given):
            return self.function(*inputs)
        key = tuple(None if value is None else (tuple(value.shape), value.dtype) for value in inputs)
        if key not in self.replays:
            if len(self.replays) == MOST_RECORDINGS:
                return self.function(*inputs)
            try:
                self.replays[key] = self.record(self.function, *inputs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                warnings.warn(f"no CUDA graph of a network ({reason}): it runs without", stacklevel=2)
                self.replays[key] = self.function
        return self.replays[key](*inputs)


def launch_whole(function: Callable[..., Tensor], parts: Sequence[nn.Module], mode: str) -> Callable[..., Tensor]:
    """``function`` as ``mode`` says: "none" as it is, "graphs" recorded, "inductor" too, with its ``parts`` compiled.

    `torch.compile` fuses what lies between the matrix products, in calls with gradients as well; it takes minutes at
    the first call of each shape, and a C++ compiler on a CPU.
    """
    if mode == "inductor":
        for part in parts:
            part.compile(dynamic=False)
    return function if mode == "none" else Graphed(function)


class RecordingPlace:
    """Where recordings are made: a pool of memory and a stream beside the usual one, the same for all of them.

    Its life is that of the recordings that hold it.  torch counts a pool's users and takes no new one when the last
    has gone, so the next recording needs another pool; and a recording that broke off leaves the pool's count and
    perhaps the stream's state wrong, so nothing is recorded there any more.
    """

    current: weakref.ref[RecordingPlace] | None = None

    def __init__(self) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    @classmethod
    def found(cls) -> RecordingPlace:
        """The one in use, or a new one."""
        place = cls.current() if cls.current is not None else None
        if place is None:
            place = cls()
            cls.current = weakref.ref(place)
        return place

    @classmethod
    def abandon_current(cls) -> None:
        """The next recording is made elsewhere; those that are here stay."""
        cls.current = None


class Recording:
    """A CUDA graph over inputs and an output that stay in place; the output is copied, so the next call is free.

    Raises what ``function`` does while it is recorded, or what torch says of the recording; the current stream is then
    what it was before.
    """

    def __init__(self, function: Callable[..., Tensor], *inputs: Tensor | None) -> None:
        self.inputs = [None if value is None else value.clone() for value in inputs]
        with TURN:
            self.place = RecordingPlace.found()
            try:
                self.graph, self.output = record_graph(self.place, function, self.inputs)
            except BaseException:
                RecordingPlace.abandon_current()
                raise

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        with TURN:
            for place, value in zip(self.inputs, inputs, strict=True):
                if place is not None and value is not None:
                    place.copy_(value)
            self.graph.replay_changes()
            return self.output.clone()


def record_graph(
    place: RecordingPlace, function: Callable[..., Tensor], inputs: list[Tensor | None]
) -> tuple[Any, Tensor]:
    """The graph of ``function(*inputs)``, and the tensor that it writes the output to.

    The warm-up is on the stream of the recording, so that what libraries allocate for a stream and keep (cuBLAS's
    workspace) is there before it, outside the pool.
    """
    here = torch.cuda.current_stream()
    place.stream.wait_stream(here)
    with torch.cuda.stream(place.stream):
        for _ in range(WARM_UP):
            function(*inputs)
    here.wait_stream(place.stream)
    graph: Any = torch.cuda.CUDAGraph()
    broken: BaseException | None = None
    try:
        # The outer block is for the stream: torch's own leaves it only after a recording that could be ended.  And
        # other threads may allocate meanwhile (a page's do): only this one's calls must be fit to be recorded.
        with (
            torch.cuda.stream(here),
            torch.cuda.graph(graph, pool=place.pool, stream=place.stream, capture_error_mode="thread_local"),
        ):
            try:
                output = function(*inputs)
            except BaseException as error:
                broken = error
                raise
    except RuntimeError:  # a broken recording cannot be ended either, and says no more than that
        if broken is not None:
            raise broken from None
        raise
    return graph, output
