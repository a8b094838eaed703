"""Turn whatever goes wrong while a model's files are read into one sentence that names the source and the cure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psd.config.errors import MissingError, PresetError, first_line
from psd.runtime.memory import is_out_of_memory

FETCH_AGAIN = "copy or download it again, or name another source"


@contextmanager
def explain_load_errors(source: str) -> Iterator[None]:
    """Errors of the block come out as `PresetError` or `MissingError` that names ``source``.

    The libraries raise almost anything for a damaged file: KeyError for a configuration without a key,
    NotImplementedError for a tensor that never came, and safetensors a panic, which is no `Exception`.  Missing
    packages and a shortage of memory pass through as they are, for their cures are others.
    """
    try:
        yield
    except PresetError as error:
        if source in str(error):
            raise
        raise type(error)(f"{source}: {error}") from error.__cause__
    except ModuleNotFoundError:
        raise
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # of a library in Rust
        if panic and is_out_of_memory(error):
            raise MemoryError(first_line(error)) from None
        if is_out_of_memory(error) or not (panic or isinstance(error, Exception)):
            raise
        raise MissingError(
            f"{source} cannot be read as a model ({type(error).__name__}: {first_line(error)[:300]}): {FETCH_AGAIN}"
        ) from error


def read_json_object(path: Path, source: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises `MissingError`, naming ``source`` and the file, for one that is absent, empty, cut, begins with a byte order
    mark, which the libraries stumble over, or holds anything else.
    """
    name = "/".join(path.parts[-2:])
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith("\ufeff"):
            raise MissingError(f"{source}: {name} begins with a byte order mark: save it as UTF-8 without one")
        found = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, MissingError):
            raise
        raise MissingError(f"{source}: {name} is no JSON file ({first_line(error)}): {FETCH_AGAIN}") from None
    if not isinstance(found, dict):
        raise MissingError(f"{source}: {name} holds a {type(found).__name__} instead of keys and values: {FETCH_AGAIN}")
    return found
