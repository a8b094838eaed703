"""What a run says when it cannot go on: which step and which value, and a cure that can be followed from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psd.config.preset import Preset
from psd.distillation.events import Failed
from psd.runtime.deferred import NonFiniteError

LAST_GOOD = "the checkpoint holds the last good state"


LOWER_RATES = "start anew with a lower density_lr or colour_lr"
CAUSES = {  # how the name of the first tensor that is not finite begins -> what made it so, and the cure
    "render": ("the scene itself has left the range of numbers", LOWER_RATES),
    "latents": ("the render is finite, so the prior's encoder overflowed", "start anew with precision=float32"),
    "noise prediction": (
        "its inputs are finite, so the prior's network overflowed, or the learned negative embedding went astray",
        "resume with a lower negative_lr (`python -m psd resume <run> --set negative_lr=0.002`), or start anew with"
        " precision=float32",
    ),
    "decoded prediction": (
        "the predicted latents lie too far out for the decoder",
        "resume with a lower guidance_scale (`python -m psd resume <run> --set guidance_scale=2`), or start anew with"
        " precision=float32",
    ),
    "reward gradient": (
        "the reward's score is finite and its slope is not",
        "start anew with precision=float32, or without the reward that is at fault",
    ),
    "reward ": (
        "the picture is finite, so the reward's network overflowed",
        "start anew with precision=float32, or without that reward",
    ),
    "score": (
        "the predictions are finite, so a weight or a length of the method is too large or too small",
        "resume with a lower guidance_scale or preference_weight (`python -m psd resume <run> --set guidance_scale=2`),"
        " or start anew with a steer_radius or kappa nearer their defaults",
    ),
    "regulariser": ("the scene itself has left the range of numbers", LOWER_RATES),
    "gradient of the scene": ("the score is finite, so the way back through the render overflowed", LOWER_RATES),
    "gradient of the negative embedding": ("the reward's slope there is too steep", "resume with a lower negative_lr"),
}
ANY_CAUSE = (
    "its cause is not known",
    "resume with a lower guidance_scale, preference_weight or negative_lr, or start anew with lower learning rates",
)


def step_not_finite(error: NonFiniteError, step: int, t: int) -> Failed:
    """In the step after ``step``, before anything moved: the first tensor that was not finite, its cause and cure."""
    cause, cure = next((found for start, found in CAUSES.items() if error.tensor.startswith(start)), ANY_CAUSE)
    return Failed(step=step, message=f"step {step + 1}, t = {t}: {error}: {cause}", cure=f"{cure}; {LAST_GOOD}")


def preview_not_finite(error: NonFiniteError, step: int, which: str) -> Failed:
    """In the preview after ``step``: its pictures, from sides that no step had looked from."""
    return Failed(
        step=step,
        message=f"preview {which}: {error}",
        cure="start anew with a lower scene.density_lr or scene.colour_lr; the checkpoint holds the scene as it is",
    )


def step_out_of_memory(preset: Preset, step: int) -> Failed:
    """Out of memory again, after the run had gone on smaller."""
    return Failed(
        step=step,
        message=f"out of memory at step {step + 1}, even with {describe_sizes(preset)}",
        cure="free memory and resume, or start anew with a lower render_size, scene.ray_samples, groups, candidates or "
        f"scene.grid_size; {LAST_GOOD}",
    )


# Halved when memory is short, down to this, in every stage; a scene keeps the ray_samples that it was made with.
SMALLER = {"render_size": 16, "groups": 1, "candidates": 2}


def reduced_preset(preset: Preset) -> Preset:
    """What a run that is out of memory goes on with: half of what fills it during a step, the scene as it is.

    (And `Models.fewer`: where a step has one orbit anyway, networks fill the memory.)
    """

    def halved(values: Mapping[str, Any]) -> dict[str, Any]:
        known = {name: least for name, least in SMALLER.items() if name in values}
        return {**values, **{name: min(values[name], max(least, values[name] // 2)) for name, least in known.items()}}

    stages = [halved(stage.model_dump()) for stage in preset.stages]
    return preset.with_values({**halved({name: getattr(preset, name) for name in SMALLER}), "stages": stages})


def describe_sizes(preset: Preset) -> str:
    """``render_size 32, groups 1, ..., and networks one orbit at a time``; a key's values in all stages."""
    everywhere = [preset.in_stage(index) for index in range(max(1, len(preset.stages)))]
    found = {name: dict.fromkeys(str(getattr(stage, name)) for stage in everywhere) for name in SMALLER}
    values = ", ".join(f"{name} {' and '.join(those)}" for name, those in found.items())
    return f"{values}, and networks one orbit at a time"


def is_short(message: str) -> bool:
    """Whether a run's warning says that it goes on smaller, or leaves something out, for want of memory.

    In these words, whatever was too large: a step, a preview, the mesh.
    """
    return "out of memory" in message.lower()
