"""Follow a download in a thread of its own, which can be left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from tqdm.auto import tqdm

POLL_S = 0.5  # between looks at how far it is


class LeftError(Exception):
    """A download was left before its end, as asked."""


class SilentBar(tqdm):
    """A progress bar that shows nothing, for what takes a second."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **(keywords | {"disable": True}))


def watch_download(download: Callable[[type[tqdm]], object], leave: Callable[[], bool]) -> Iterator[int]:
    """Bytes that ``download(progress bar)`` has reached, now and then; `LeftError` as soon as ``leave`` says so.

    Of its bars those that count bytes are followed: what arrived and what was put together, of which one may lag.
    """
    from huggingface_hub.utils import tqdm as hub_bar  # shown on a terminal alone

    reached: dict[int, int] = {}

    class Bar(hub_bar):
        """Counts where nothing is shown too: tqdm itself stands still then."""

        def __init__(self, *args: Any, initial: int = 0, unit: str = "it", **keywords: Any) -> None:
            super().__init__(*args, initial=initial, unit=unit, **keywords)
            self.number = len(reached) if unit == "B" else -1
            if self.number >= 0:
                reached[self.number] = initial

        def update(self, n: float | None = 1) -> bool | None:
            if leave():
                raise LeftError
            if self.number >= 0:
                reached[self.number] += int(n or 0)
            return super().update(n)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(download, Bar)
        while not future.done():
            wait([future], POLL_S)
            yield max(reached.values(), default=0)
        future.result()
    if leave():
        raise LeftError
