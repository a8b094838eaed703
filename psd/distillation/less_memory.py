"""The smaller preset with which a run that is out of memory goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psd.config.preset import Preset

# Halved when memory is short, down to this, in every stage; a scene keeps the ray_samples that it was made with.
SMALLER = {"render_size": 16, "groups": 1, "candidates": 2}


def reduced_preset(preset: Preset) -> Preset:
    """Returns the preset that needs less memory: half of what fills it during a step, the scene as it is.

    (And `Models.fewer`: where a step has one orbit anyway, networks fill the memory.)
    """

    def halve(values: Mapping[str, Any]) -> dict[str, Any]:
        known = {name: least for name, least in SMALLER.items() if name in values}
        return {**values, **{name: min(values[name], max(least, values[name] // 2)) for name, least in known.items()}}

    stages = [halve(stage.model_dump()) for stage in preset.stages]
    return preset.with_values({**halve({name: getattr(preset, name) for name in SMALLER}), "stages": stages})


def describe_sizes(preset: Preset) -> str:
    """``render_size 32, groups 1, ..., and networks one orbit at a time``; a key's values in all stages."""
    found = {name: dict.fromkeys(str(getattr(stage, name)) for stage in preset.list_stages()) for name in SMALLER}
    values = ", ".join(f"{name} {' and '.join(those)}" for name, those in found.items())
    return f"{values}, and networks one orbit at a time"


def is_short(message: str) -> bool:
    """Whether a run's warning says that it goes on smaller, or leaves something out, for want of memory.

    In these words, whatever was too large: a step, a preview, the mesh.
    """
    return "out of memory" in message.lower()
