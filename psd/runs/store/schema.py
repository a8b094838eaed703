"""The form of a run folder: its version, its names, and JSON read with every complaint in words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psd.runs.store.files import StoreError, read_plain_file

SCHEMA = 3  # 1: presets with options that are gone (`psd.config.former`); 2: seals without digests
RUN_ID = re.compile(r"\d{8}-\d{6}_[a-z0-9-]{1,60}_s\d{1,20}_[0-9a-f]{8}(-\d{1,6})?")
RUN_FILES = ("status.json", "preset.resolved.yaml", "preset.yaml", "events.jsonl")  # any of them makes a run folder


class NewerSchemaError(StoreError):
    """The folder comes from a newer version of this program."""


def is_run_folder(folder: Path) -> bool:
    """Whether a run was written here, whole or damaged."""
    try:
        return any((folder / name).is_file() for name in RUN_FILES)
    except (OSError, ValueError):  # a name that no file can have
        return False


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON mapping, with finite numbers only; raises StoreError."""
    data = read_plain_file(path)
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path.name} is not JSON ({error})", "restore it, or start anew") from None
    if not isinstance(record, dict):
        raise StoreError(f"{path.name} holds no mapping", "restore it, or start anew")
    if not is_finite(record):
        raise StoreError(f"{path.name} holds a number that is not finite", "restore it, or start anew")
    check_schema(record, path)
    return record


def is_finite(value: Any) -> bool:
    """Whether all numbers in a value of JSON are finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(is_finite(part) for part in value.values())
    return not isinstance(value, list | tuple) or all(is_finite(part) for part in value)


def check_schema(record: Mapping[str, Any], path: Path) -> None:
    """Raises `NewerSchemaError` for what a newer version wrote."""
    schema = record.get("schema", 0)
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise StoreError(f"{path.name} has no schema that could be read", "restore it, or start anew")
    if schema > SCHEMA:
        message = f"{path.name} has schema {schema}; this program reads up to {SCHEMA}"
        raise NewerSchemaError(message, "update this program")
