"""Presets of earlier versions in today's keys: run folders and saved presets hold every key that there was.

An option leaves when an experiment found it worthless (docs/evidence.md); commit 7e1bf54 is the last that has
them all.  What a preset said with one that is gone is reported, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LAST_COMMIT = "7e1bf54"  # the last one that has every deleted option

# Deleted keys with the value under which a run comes out as it does without them.
DELETED: dict[str, Any] = {
    "antithetic": False, "base_form": "recon", "gap_ema": 0.99, "label_noise": 0.0, "loras": {},
    "negative_objective": "auto",
    "negative_pull": 0.01, "negative_start": "", "preference_inside": False, "preference_rescale": 0.0,
    "preference_tilt": 0.0, "ranking_steps": 1, "reward_copies": 1, "reward_guidance_scale": 7.5,
    "shared_unconditional": False, "steer_at": "prediction", "steer_both": False, "steer_conditional": True,
    "steer_perturbations": 8, "steer_through": "decoder", "weight_distortion": 0.0, "weighting": "extremes",
    "winner_by": "group",
}  # fmt: skip
# Likewise of a scene of Gaussians, also where a stage has one: until commit f3de113.
DELETED_IN_SCENE: dict[str, Any] = {"start_radius": 0.5, "turn_lr": 0.05, "weight_size": 1.0}
# Keys with another name or other choices: what each former value is called today, or None for one that is gone.
CHANGED: dict[str, tuple[str, dict[str | bool, str | None]]] = {
    "compile": ("compile", {True: "graphs", False: "none"}),
    "reading": ("pair", {"S": "steered", "A": "random", "B": None, "C": None}),
    "scaling": ("scaling", {"hard": "none", "linear": None, "dpo": None}),
    "steer_by": ("steer_by", {"ranks": None}),
}


# Keys of a flat preset that are settings of the scene today; the hash grid has no grid_size.
NESTED = (
    "ray_samples", "density_lr", "colour_lr", "blob_density", "background", "weight_tv", "weight_opacity",
    "weight_entropy", "grid_size",
)  # fmt: skip
LATE = ("late_start", "late_render_size", "late_groups", "orientation_start")  # of the two halves of a run


def translate_preset(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values of any version in today's keys, and ``key=value`` of each that nothing of today stands for.

    Those are left at their defaults: enough to look at a run, not to go on with it.  Values of today stay as they are.
    """
    today, lost = dict(values), []
    if today.get("method", "psd") != "psd" and "reading" in today:
        today["negative"] = False  # learned by psd alone then
    for name, neutral in DELETED.items():
        if name in today and (value := today.pop(name)) not in (neutral, "reward"):
            lost.append(f"{name}={value}")
    for name, (key, choices) in CHANGED.items():
        if name not in today:
            continue
        value = today.pop(name)
        if not isinstance(value, str | bool) or value not in choices:
            today[name] = value  # of today, or wrong: the preset's own check says so
        elif (choice := choices[value]) is None:
            lost.append(f"{name}={value}")
        else:
            today[key] = choice
    return forget_in_scenes(nest_scene(today), lost), lost


def forget_in_scenes(values: dict[str, Any], lost: list[str]) -> dict[str, Any]:
    """The values without the deleted keys of scenes; adds to ``lost`` what nothing of today stands for."""

    def forget_keys(part: Any) -> Any:
        if not isinstance(part, Mapping) or not isinstance(part.get("scene"), Mapping):
            return part
        scene = dict(part["scene"])
        for name, neutral in DELETED_IN_SCENE.items():
            if name in scene and (value := scene.pop(name)) != neutral:
                lost.append(f"scene.{name}={value}")
        rest = {key: value for key, value in part.items() if key != "scene"}
        return {**rest, "scene": scene} if scene else rest

    stages = values.get("stages")
    return {**forget_keys(values), **({"stages": list(map(forget_keys, stages))} if isinstance(stages, list) else {})}


def nest_scene(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat values with the scene's settings in ``scene``, and a late half as the second of two stages."""
    today, scene = dict(values), {}
    if "field" in today:
        scene["kind"] = today.pop("field")
    for name in NESTED:
        if name in today and not (name == "grid_size" and scene.get("kind") == "hash"):
            scene[name] = today.pop(name)
        today.pop(name, None)
    start, size, groups, share = (today.pop(name, None) for name in LATE)
    orientation = today.pop("weight_orientation", None)
    full, first = orientation or 0.0, (orientation or 0.0) * (1.0 if share is None else share)
    if orientation is not None:
        scene["weight_orientation"] = [first, full]
    if start is not None and start < 1:
        early, late = {"share": start}, {"share": 1 - start}
        if full != first:
            late["scene"] = {"weight_orientation": [full, full]}
        late |= {"render_size": 64 if size is None else size, "groups": 1 if groups is None else groups}
        if today.pop("shading", False):
            late["shading"] = True
        today["stages"] = [early, late]
    elif start is not None:
        today.pop("shading", None)  # it had no half to light
    return {**today, **({"scene": {**today.get("scene", {}), **scene}} if scene else {})}
