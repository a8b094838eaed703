"""Which shipped preset a set of values comes from, and how far it is from it."""

from __future__ import annotations

from functools import cache
from typing import Any

from psd.config.preset import Preset, flatten, list_presets

BESIDE = ("prompt", "seed")  # no part of what a preset is: the page shows both beside its name
FROM = "own (from "  # begins the name of values that are no shipped preset


@cache
def load_shipped(name: str) -> Preset:
    return Preset.load(name)


def preset_differences(preset: Preset, other: Preset) -> dict[str, tuple[Any, Any]]:
    """Setting -> its value in each, where they differ; of another kind of scene, from that kind's defaults."""
    kind, alike = preset.scene.kind, flatten(other)
    if kind != other.scene.kind:  # whose stages may change what only its own kind has
        of_kind = other.with_values({"scene.kind": kind, "stages": []})
        alike = flatten(of_kind) | {"scene.kind": other.scene.kind, "stages": other.stages}
    return {name: (ours, alike[name]) for name, ours in flatten(preset).items() if ours != alike[name]}


def find_origin(preset: Preset) -> tuple[str, int]:
    """The shipped preset with the fewest other values, the first of equals, and how many values differ from it."""

    def count_differences(name: str) -> int:
        return sum(field not in BESIDE for field in preset_differences(preset, load_shipped(name)))

    counts = {name: count_differences(name) for name in list_presets()}
    name = min(counts, key=lambda name: counts[name])
    return name, counts[name]


def name_preset(preset: Preset) -> str:
    """The shipped preset that these values are, or the one that they come from and how many of them differ."""
    name, count = find_origin(preset)
    if not count:
        return name
    return f"{FROM}{name}, {count} value{'s' if count > 1 else ''} differ{'' if count > 1 else 's'})"
