"""The run in progress, which its steps, its recovery, its controls and its reports share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, stamp_event
from psd.distillation.interfaces import Control, NoControl
from psd.distillation.less_memory import reduced_preset
from psd.distillation.preview import Preview
from psd.distillation.state import State, saved_stage
from psd.models.interfaces import Models
from psd.models.prior.view_prompts import ViewPrompts
from psd.runtime.deferred import NonFiniteError
from psd.runtime.precision import GradientScaler
from psd.runtime.timing import Clock
from psd.scenes.interfaces import MakeScene

if TYPE_CHECKING:
    from psd.geometry.mesh import Mesh

SCALER = "gradient_scaler"  # its state among a checkpoint's values, where float16 is used


@dataclass(frozen=True)
class PreviewAttempt:
    """A preview, or why there is none; neither where none was due."""

    preview: Preview | None = None
    not_finite: NonFiniteError | None = None
    out_of_memory: str = ""  # what memory was too short for, in words


@dataclass
class Session:
    """One run, from its first step or from a checkpoint; ``preset`` is the reduced one after memory ran short."""

    preset: Preset
    loaded: Models  # of all stages
    state: State
    heard: list[ViewPrompts]  # the prompt as the prior of each stage hears it
    control: Control
    clock: Clock
    make_scene: MakeScene
    live: Preset  # the preset with the live values
    scaler: GradientScaler = field(default_factory=GradientScaler)
    earlier_s: float = 0.0  # seconds that the run had taken before it was resumed
    begun: float = field(default_factory=lambda: time.monotonic())
    saved: float = field(default_factory=lambda: time.monotonic())  # when the last checkpoint was made
    refused: dict[str, Any] = field(default_factory=dict)  # live values that were no good: warned of once
    warned: set[str] = field(default_factory=set)  # other warnings that would come again and again
    far_contrasts: int = 0  # judged steps in a row whose ``pair/contrast`` lies far from 1
    latest: PreviewAttempt = PreviewAttempt()  # the preview of the last step
    ends_early: bool = False  # an alarm that the preset stops at
    failed: bool = False
    models: Models = field(init=False)  # what the state's stage uses; as it began
    was_given_shape: bool = False  # the scene, before its first step

    @classmethod
    def open(
        cls, preset: Preset, models: Models, control: Control | None, resume: Checkpointed | None, clock: Clock | None,
        make_scene: MakeScene, start: Mesh | None = None,
    ) -> Session:  # fmt: skip
        """Raises `PresetError` where ``resume`` belongs to another kind of run, or no ``start`` is possible."""
        begun = saved_stage(resume, preset) if resume is not None else 0
        state = State.create(preset, models, make_scene, begun, None if resume is not None else start)
        if resume is not None:
            state.restore_checkpoint(resume)
        session = cls(
            preset, models, state, hear_prompts(preset, models), control or NoControl(), clock or Clock(),
            make_scene, live=preset, was_given_shape=start is not None and resume is None,
        )  # fmt: skip
        session.take_stage_models()
        if resume is not None:
            session.earlier_s = resume.time_s
            if SCALER in resume.values:
                session.scaler.load_state(resume.values[SCALER])
        if state.smaller:
            session.use_less_memory()
        session.live = hold_live_values(session.preset, state.live)
        return session

    @property
    def prompts(self) -> ViewPrompts:
        """The prompts as the prior of the present stage reads them."""
        return self.heard[self.state.stage]

    def take_stage_models(self) -> None:
        """Uses the models of the present stage from now on."""
        self.models = self.loaded.in_stage(self.preset.in_stage(self.state.stage))

    @property
    def has_steps_left(self) -> bool:
        """Whether there is a step to make; asks the control."""
        is_over = self.failed or self.ends_early or self.state.step >= self.preset.total_steps
        return not (is_over or self.control.stopping())

    @property
    def is_complete(self) -> bool:
        return self.state.step == self.preset.total_steps

    @property
    def is_checkpoint_due(self) -> bool:
        return time.monotonic() - self.saved >= self.preset.checkpoint_s

    def finish_step(self) -> None:
        """Count a step that moved the scene."""
        self.scaler.record_success()
        self.state.step += 1

    def stamp(self, event: Event) -> Event:
        """The event with the run's seconds so far and its stage."""
        return stamp_event(event, self.earlier_s + time.monotonic() - self.begun, self.state.stage)

    def checkpoint(self, generator_state: Tensor | None = None) -> Checkpointed:
        """Everything that a resumed run needs; see `State.make_checkpoint` for ``generator_state``."""
        made = self.state.make_checkpoint(generator_state)
        return replace(made, values={**made.values, SCALER: self.scaler.state()}) if self.scaler.in_use else made

    def use_less_memory(self) -> None:
        """Go on with `reduced_preset`, and with networks that take one orbit at a time."""
        self.state.smaller, self.preset = True, reduced_preset(self.preset)
        self.live = hold_live_values(self.preset, self.state.live)
        self.models.fewer()


def hold_live_values(preset: Preset, values: Mapping[str, Any]) -> Preset:
    """The preset with live values, which hold in every stage, also in one that names its own: whoever moves one moves
    what runs.  Rewards excepted: a stage that names its own was made for those.

    Raises `PresetError` for what is no value.
    """
    moved = set(values) - {"rewards"}
    stages = [{name: value for name, value in stage if name not in moved} for stage in preset.stages]
    return preset.with_values({**values, "stages": stages})


def hear_prompts(preset: Preset, models: Models) -> list[ViewPrompts]:
    """Embeds the prompt with the prior of each stage; raises `PresetError` where one cannot read it."""
    heard: dict[tuple[str, str], ViewPrompts] = {}
    stages = preset.list_stages()
    for stage in stages:
        if (stage.prior, stage.janus) not in heard:
            heard[stage.prior, stage.janus] = ViewPrompts(stage, models.priors[stage.prior])
    return [heard[stage.prior, stage.janus] for stage in stages]
