"""Checkpoints on the disk: tensors, and beside them a seal that proves whose and how whole they are.

The seal is JSON with the step, the values, the preset of the run, the SHA-256 of the file of tensors, and a digest of
itself.  It is written last: without it the checkpoint does not count.  Seals of schema 2 are believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psd.config.preset import Preset
from psd.distillation.events import Checkpointed
from psd.runs.store.files import StoreError, explain_os_errors, is_plain_file
from psd.runs.store.schema import SCHEMA, read_json

SEALED_SCHEMA = 3  # the first one whose seals hold digests
CURE = "restore it, or go on from an older one"


@dataclass(frozen=True)
class Seal:
    """What a seal says; ``preset`` is empty and ``tensors`` is "" where it was written before schema 3."""

    step: int
    time_s: float
    values: Mapping[str, Any]
    preset: Mapping[str, Any]
    tensors: str  # SHA-256 of the file of tensors


def checkpoint_file(step: int) -> str:
    """The file of tensors, relative to the run's folder; the seal has the suffix .json."""
    return f"checkpoints/{step:06d}.safetensors"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps with tensors, a seal or both, in order."""
    names = {path.stem for path in (folder / "checkpoints").glob("*") if path.suffix in (".safetensors", ".json")}
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and len(name) < 12)


def make_seal(event: Checkpointed, preset: Preset, tensors: Iterable[bytes]) -> bytes:
    """The seal of a checkpoint whose file consists of ``tensors``.  Non-finite numbers raise ValueError."""
    digest = hashlib.sha256()
    for piece in tensors:
        digest.update(piece)
    record = {
        "schema": SCHEMA, "step": event.step, "time_s": event.time_s, "values": dict(event.values),
        "preset": preset.model_dump(mode="json"), "tensors": digest.hexdigest(),
    }  # fmt: skip
    plain = json.loads(json.dumps(record, allow_nan=False))
    return json.dumps({**plain, "digest": _digest_record(plain)}, ensure_ascii=False).encode()


def read_seal(folder: Path, step: int) -> Seal:
    """The seal of one checkpoint; raises StoreError unless it is whole and of that step."""
    path = (folder / checkpoint_file(step)).with_suffix(".json")
    if not is_plain_file(path, folder):
        raise StoreError(f"{path.name} is missing, or no plain file", CURE)
    record = read_json(path)
    digest = record.pop("digest", None)
    if record.get("schema", 0) >= SEALED_SCHEMA and digest != _digest_record(record):
        raise StoreError(f"{path.name} does not match its own digest", CURE)
    time_s, values, preset = record.get("time_s"), record.get("values"), record.get("preset", {})
    if record.get("step") != step or isinstance(record["step"], bool):
        raise StoreError(f"{path.name} is the seal of another step", CURE)
    if isinstance(time_s, bool) or not isinstance(time_s, int | float) or not isinstance(values, dict):
        raise StoreError(f"{path.name} lacks its time or its values", CURE)
    if not isinstance(preset, dict):
        raise StoreError(f"{path.name} lacks its preset", CURE)
    return Seal(step, time_s, values, preset, str(record.get("tensors", "")))


def load_checkpoint(folder: Path, seal: Seal) -> Checkpointed:
    """The checkpoint of a seal; raises StoreError unless the tensors are those that were sealed."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / checkpoint_file(seal.step)
    if not is_plain_file(path, folder):
        raise StoreError(f"{path.name} is missing, or no plain file", CURE)
    with explain_os_errors(path):
        if seal.tensors:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != seal.tensors:
                    raise StoreError(f"{path.name} does not match the digest in its seal", CURE)
        try:
            tensors = load_file(path)
        except (ValueError, KeyError, SafetensorError) as error:
            raise StoreError(f"{path.name} holds no tensors ({error})", CURE) from None
    file = checkpoint_file(seal.step)
    return Checkpointed(step=seal.step, time_s=seal.time_s, tensors=tensors, values=seal.values, file=file)


def _digest_record(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()
