"""A step that fails: it is tried again where that helps, else the run ends with a cure that can be followed from there.

A step that fails has moved nothing, so the state is that of the step before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from psd.config.preset import Preset
from psd.config.settings import SceneSettings, list_rates, list_sizes
from psd.distillation import sampling
from psd.distillation.events import Event, Failed, NegativeUpdated, Warned
from psd.distillation.less_memory import describe_sizes
from psd.distillation.session import Session
from psd.distillation.state import State
from psd.models.interfaces import Models
from psd.models.prior.view_prompts import ViewPrompts
from psd.runtime import memory, precision
from psd.runtime.deferred import NonFiniteError
from psd.runtime.offload import COMPUTING
from psd.runtime.timing import Clock

StepResult = tuple[dict[str, float], NegativeUpdated | None]  # metrics, and the update of the negative if it was due

LAST_GOOD = "the checkpoint holds the last good state"


LOWER_RATES = "start anew with a lower {rates}"
# How the name of the first tensor that is not finite begins -> what made it so, and the cure; {rates} are the scene's.
CAUSES = {
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
    "resume with a lower guidance_scale, preference_weight or negative_lr, or start anew with a lower {rates}",
)


def step_not_finite(error: NonFiniteError, step: int, t: int, scene: SceneSettings) -> Failed:
    """In the step after ``step``, before anything moved: the first tensor that was not finite, its cause and cure."""
    cause, cure = next((found for start, found in CAUSES.items() if error.tensor.startswith(start)), ANY_CAUSE)
    cure = cure.format(rates=list_rates(scene))
    return Failed(step=step, message=f"step {step + 1}, t = {t}: {error}: {cause}", cure=f"{cure}; {LAST_GOOD}")


def preview_not_finite(error: NonFiniteError, step: int, which: str, scene: SceneSettings) -> Failed:
    """In the preview after ``step``: its pictures, from sides that no step had looked from."""
    return Failed(
        step=step,
        message=f"preview {which}: {error}",
        cure=f"{LOWER_RATES.format(rates=list_rates(scene))}; the checkpoint holds the scene as it is",
    )


def step_out_of_memory(preset: Preset, step: int) -> Failed:
    """Out of memory again, after the run had gone on smaller."""
    return Failed(
        step=step,
        message=f"out of memory at step {step + 1}, even with {describe_sizes(preset)}",
        cure="free memory and resume, or start anew with a lower render_size, groups, candidates or "
        f"{list_sizes(preset.scene)}; {LAST_GOOD}",
    )


class OptimiseStep(Protocol):
    """`psd.distillation.run.optimise_step`."""

    def __call__(
        self, preset: Preset, models: Models, state: State, prompts: ViewPrompts, t: int,
        shared: torch.Generator, noises: torch.Generator, clock: Clock, /,
    ) -> StepResult: ...  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """A step that was tried; without a result and a failure, memory was too short for it."""

    t: int
    generator_state: Tensor  # of the run's generator, before the step
    result: StepResult | None = None
    not_finite: Failed | None = None


def attempt_step(session: Session, optimise_step: OptimiseStep) -> Attempt:
    """Try the next step; what it raises for memory or for a value that is not finite becomes part of the attempt."""
    state, clock = session.state, session.clock
    clock.restart()
    generator_state = state.generator.get_state()
    shared, noises = sampling.step_generators(state.generator)
    t = sampling.draw_timestep(session.live, state.step, session.models.prior.levels, shared)
    result = not_finite = None
    try:
        with COMPUTING, precision.use_scaler(session.scaler):
            result = optimise_step(session.live, session.models, state, session.prompts, t, shared, noises, clock)
    except NonFiniteError as error:
        not_finite = step_not_finite(error, state.step, t, session.preset.in_stage(state.stage).scene)
    except (MemoryError, RuntimeError) as error:
        if not memory.is_out_of_memory(error):
            raise
    return Attempt(t, generator_state, result, not_finite)  # the exception is gone, whose frames hold the tensors


def recover(session: Session, attempt: Attempt) -> Iterator[Event]:
    """Make ready to try the step again, or end the run."""
    if attempt.not_finite is not None:
        yield from _recover_overflow(session, attempt.generator_state, attempt.not_finite)
    else:
        yield from _recover_memory(session, attempt.generator_state)


def _recover_overflow(session: Session, generator_state: Tensor, failed: Failed) -> Iterator[Event]:
    scaler = session.scaler
    remedy = scaler.back_off()
    if remedy == "none":
        if scaler.in_use:
            failed = replace(failed, cure=f"{precision.CURE}; or {failed.cure}")
        yield from end_failed(session, failed, generator_state)
        return
    if remedy == "same draws":
        session.state.generator.set_state(generator_state)
    if remedy not in session.warned:
        session.warned.add(remedy)
        yield Warned(step=session.state.step, message=f"{failed.message}; {precision.REMEDIES[remedy]}")


def _recover_memory(session: Session, generator_state: Tensor) -> Iterator[Event]:
    state, was_smaller = session.state, session.state.smaller
    state.generator.set_state(generator_state)
    if was_smaller:
        session.models.fewer()
    else:
        session.use_less_memory()
    memory.release_memory()
    if was_smaller:
        yield from end_failed(session, step_out_of_memory(session.preset.in_stage(state.stage), state.step))
    else:
        yield Warned(step=state.step, message=f"Out of memory: going on with {describe_sizes(session.preset)}.")


def end_failed(session: Session, failed: Failed, generator_state: Tensor | None = None) -> Iterator[Event]:
    """The last good state, then what went wrong."""
    session.failed = True
    yield session.checkpoint(generator_state)
    yield failed
