"""Where a step's time goes: named parts, measured around the calls to the models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Adds up seconds per part; of nested parts only the outermost counts.  Two clock readings a part.

    ``synchronise`` is called before each reading: pass `torch.cuda.synchronize` to time a GPU honestly (`bench` does).
    Without it nothing waits, and a part on a GPU is charged with its launch only.  ``between`` is called after each
    part, nested ones too, and is charged to none: a step takes long, and whoever looks on wants an answer soon.
    """

    def __init__(self, synchronise: Callable[[], object] | None = None) -> None:
        self.synchronise = synchronise
        self.between: Callable[[], object] | None = None
        self.parts: dict[str, float] = {}
        self.begun = 0  # steps, those that were tried again included
        self.inside = False
        self.away = 0.0  # seconds in `between` while a part waited
        self.start = self.now()

    def now(self) -> float:
        if self.synchronise is not None:
            self.synchronise()
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charges the time of the block to the part ``name``; a part inside another counts for the outer one.

        `between` is called after the block, nested or not.
        """
        if self.inside:
            yield
            self._look_up()
            return
        self.inside, self.away, start = True, 0.0, self.now()
        try:
            yield
        finally:
            self.inside = False
            self.parts[name] = self.parts.get(name, 0.0) + self.now() - start - self.away
        self._look_up()

    def _look_up(self) -> None:
        if self.between is not None:
            start = self.now()
            self.between()
            self.away += self.now() - start

    def restart(self) -> None:
        """Begin a new step, or the same one again."""
        self.begun += 1
        self.parts, self.start = {}, self.now()

    def lap_metrics(self) -> dict[str, float]:
        """Seconds per part since `restart`, as metrics; ``time/other`` is the rest of ``time/step``."""
        total = self.now() - self.start
        parts = {f"time/{name}": seconds for name, seconds in self.parts.items()}
        return {**parts, "time/other": total - sum(self.parts.values()), "time/step": total}
