"""Lines of a long run in little memory: those that came first are kept compressed."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

BLOCK = 256  # lines that are compressed together; they differ in their digits only


class Lines:
    """Grows at its end and is read from an index on.  One thread adds; any number read meanwhile."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._kept: tuple[tuple[bytes, ...], tuple[str, ...]] = (), ()  # blocks, and the rest; replaced as a whole
        for line in lines:
            self.append(line)

    def __len__(self) -> int:
        blocks, rest = self._kept
        return BLOCK * len(blocks) + len(rest)

    def append(self, line: str) -> None:
        blocks, rest = self._kept
        rest = (*rest, line)
        if len(rest) == BLOCK:
            blocks, rest = (*blocks, zlib.compress("\n".join(rest).encode(), 1)), ()
        self._kept = blocks, rest

    def since(self, index: int, most: int | None = None) -> list[str]:
        """Lines from ``index`` on, which is at least 0; the first ``most`` of them."""
        blocks, rest = self._kept
        first = min(index // BLOCK, len(blocks))
        end = None if most is None else index + most
        if end is not None and end <= BLOCK * len(blocks):
            blocks, rest = blocks[: -(-end // BLOCK)], ()
        found = [line for block in blocks[first:] for line in zlib.decompress(block).decode().split("\n")]
        return [*found, *rest][index - BLOCK * first : None if end is None else end - BLOCK * first]
