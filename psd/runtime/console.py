"""Output that nobody reads must not end a run: a pager that was left, a full disk, an encoding without a letter.

A run's record is its folder; what is printed is for whoever is still there.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class ForgivingStream:
    """A text stream whose writes never fail.

    Letters that its encoding lacks are escaped.  The first error of the operating system sends its descriptor to the
    null device, so that what is buffered below cannot fail later, at the end of the process.  None, as Python has it
    where a descriptor was closed, swallows everything.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Writes ``text`` as far as the stream can take it; returns the text's length whatever was written."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except OSError:
                self._give_up(self._stream)
            except UnicodeEncodeError as error:  # of a stream that cannot be set to escape
                return self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
            except ValueError:  # closed
                self._stream = None
            except RuntimeError:  # a signal's handler writes in the middle of a write
                return 0
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except OSError:
                self._give_up(self._stream)
            except ValueError:  # closed
                self._stream = None

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def _give_up(self, stream: TextIO) -> None:
        self._stream = None
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):
            return  # a stream in memory
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        if self._stream is None:
            raise AttributeError(f"the output is gone: no {name}")
        return getattr(self._stream, name)


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Make stdout and stderr `ForgivingStream`s, and write out what they hold at the end."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # the number of a closed stderr must not go to a run's file
        pass
    os.close(spare)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = streams = tuple(ForgivingStream(stream) for stream in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before
