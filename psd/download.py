"""A download in a thread of its own, so that it tells how far it is and can be left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

POLL_S = 0.5  # between looks at how far it is


class LeftError(Exception):
    """A download was left before its end, as asked."""


def bytes_here(download: Callable[[type], object], leave: Callable[[], bool]) -> Iterator[int]:
    """Bytes that ``download(progress bar)`` has reached, now and then; `LeftError` as soon as ``leave`` says so."""
    from huggingface_hub.utils import tqdm

    reached = 0

    class Bar(tqdm):
        """Counts where nothing is shown too: tqdm itself stands still then."""

        def __init__(self, *args: Any, initial: int = 0, **keywords: Any) -> None:
            nonlocal reached
            super().__init__(*args, initial=initial, **keywords)
            reached = initial

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal reached
            if leave():
                raise LeftError
            reached += int(n or 0)
            return super().update(n)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(download, Bar)
        while not future.done():
            wait([future], POLL_S)
            yield reached
        future.result()
    if leave():
        raise LeftError
