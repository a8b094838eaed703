"""The preset and the environment of a run, from their files or from whatever else holds them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psd.config.errors import PresetError
from psd.config.former import LAST_COMMIT, translate_preset
from psd.config.preset import LARGEST_FILE, Preset, parse_mapping
from psd.distillation.events import Started
from psd.runs.store.checkpoints import checkpoint_steps, read_seal
from psd.runs.store.event_lines import read_event_lines
from psd.runs.store.files import StoreError, read_plain_file
from psd.runs.store.schema import NewerSchemaError, read_json

LOG = logging.getLogger(__name__)
NEEDED = {"prompt", "seed", "steps"}  # keys that every version wrote


def read_preset(folder: Path | str, *, to_resume: bool = False, notes: list[str] | None = None) -> Preset:
    """The resolved preset of a run, in today's keys whatever version wrote it.

    A file that is missing, cut or of no known version is replaced by what the newest checkpoint, or else the log, says;
    ``notes`` takes up that sentence, else it is logged.  ``to_resume`` raises StoreError where the run used an option
    that is gone: it could not go on as it was.
    """
    folder = Path(folder)
    try:
        values = _read_resolved(folder)
        preset, lost = _make_preset(values, folder / "preset.resolved.yaml")
    except NewerSchemaError:
        raise
    except StoreError as error:
        source, values = _find_preset(folder)
        if not values:
            raise
        preset, lost = _make_preset(values, folder)
        note = f"{error.message}: the preset is taken from {source}"
        notes.append(note) if notes is not None else LOG.warning("run %s: %s", folder.name, note)
    if lost and to_resume:
        raise StoreError(
            f"{folder.name} was made with {', '.join(lost)}, which this version no longer has",
            f"start anew, or go on with commit {LAST_COMMIT}",
        )
    return preset


def read_environment(folder: Path) -> dict[str, Any]:
    """Versions of what the run was made with, from environment.json or else the log; empty where nothing tells."""
    try:
        return read_json(folder / "environment.json")
    except StoreError:  # the log has it too
        starts = [event for _, event in read_event_lines(folder / "events.jsonl", (b'"Started"',))]
        return next(({**event.environment} for event in reversed(starts) if isinstance(event, Started)), {})


def find_difference(preset: Preset, sealed: Mapping[str, Any]) -> str:
    """Which key of ``sealed``, a preset of any version, says something else than ``preset``; empty for none.

    ``extra_steps`` may differ: a resume raises it.
    """
    try:
        other, _ = _make_preset(sealed, Path("its seal"))
    except StoreError as error:
        return error.message
    for name in Preset.model_fields:
        ours, theirs = getattr(preset, name), getattr(other, name)
        if name != "extra_steps" and ours != theirs:
            return f"it was made with {name}={theirs}, and the run's preset has {ours}"
    return ""


def _read_resolved(folder: Path) -> dict[str, Any]:
    """The mapping in preset.resolved.yaml; StoreError where it is not whole."""
    path = folder / "preset.resolved.yaml"
    cure = "restore it, or start anew"
    if not path.exists():
        raise StoreError(f"{path.name} is missing", cure)
    data = read_plain_file(path)
    try:
        if len(data) > LARGEST_FILE:
            raise PresetError(f"it has {len(data)} bytes, a preset has at most {LARGEST_FILE}")
        values = parse_mapping(data.decode())
    except (PresetError, UnicodeDecodeError) as error:
        raise StoreError(f"{path.name} cannot be read ({error})", cure) from None
    missing = NEEDED - values.keys()
    if not missing and not Preset.model_fields.keys() <= values.keys():  # of another version, or cut
        missing = _find_preset(folder)[1].keys() - values.keys()
    if missing:
        raise StoreError(f"{path.name} is not whole: it lacks {sorted(missing)[0]}", cure)
    if not data.endswith(b"\n"):
        raise StoreError(f"{path.name} ends in the middle of a line", cure)
    return values


def _find_preset(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """Where else the run's preset stands, and its values; empty where nowhere."""
    for step in reversed(checkpoint_steps(folder)):
        try:
            if values := read_seal(folder, step).preset:
                return f"the checkpoint of step {step}", values
        except NewerSchemaError:
            raise
        except StoreError:
            continue
    starts = [event for _, event in read_event_lines(folder / "events.jsonl", (b'"Started"',))]
    for event in reversed(starts):
        if isinstance(event, Started) and NEEDED <= event.preset.keys():
            return "the log", event.preset
    return "", {}


def _make_preset(values: Mapping[str, Any], path: Path) -> tuple[Preset, list[str]]:
    translated, lost = translate_preset(values)
    try:
        return Preset.make(translated), lost
    except PresetError as error:
        raise StoreError(f"{path.name} is no preset of this version ({error})", "restore it, or start anew") from None
