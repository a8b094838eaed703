"""Everything of a run that changes, and its way into a checkpoint and back: numpy arrays and JSON values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.detectors import Monitor
from psd.distillation.events import Checkpointed
from psd.distillation.formulas import GAP_DECAY
from psd.distillation.gap_scale import GapScale
from psd.distillation.negative import Negative
from psd.models.interfaces import Models
from psd.scenes.interfaces import Scene

VERSION = 2
Array = TypeVar("Array", Tensor, np.ndarray)


@dataclass(frozen=True)
class BestScene:
    """The scene that the selector judge liked best, among the previews."""

    step: int
    score: float
    scene: Mapping[str, np.ndarray]


@dataclass
class State:
    """The scene, the two optimisers, the running means, the random generator; ``step`` counts completed steps."""

    scene: Scene
    optimiser: torch.optim.Adam
    negative: Negative
    gap_scale: GapScale
    generator: torch.Generator  # draws each step's seeds; on the CPU, whatever the device: the same everywhere
    step: int = 0
    live: dict[str, Any] = field(default_factory=dict)  # overrides of live fields, as last set
    monitor: Monitor = Monitor()
    best: BestScene | None = None
    smaller: bool = False  # memory was short once (`psd.distillation.recovery.reduced_preset`)

    @classmethod
    def create(cls, preset: Preset, models: Models) -> State:
        """The state before the first step.  Adam as MVDream has it: betas (.9, .99), eps 1e-15, decoupled decay."""
        scene = models.scene(preset)
        optimiser = torch.optim.Adam(
            scene.parameter_groups(preset), betas=(0.9, 0.99), eps=1e-15, weight_decay=preset.weight_decay,
            decoupled_weight_decay=True,
        )  # fmt: skip
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
        negative = Negative.create(preset, models.prior)
        gap_scale = GapScale(GAP_DECAY, len(models.prior.alpha_bar))
        return cls(scene, optimiser, negative, gap_scale, torch.Generator().manual_seed(preset.seed))

    def decay(self, preset: Preset) -> None:
        """Learning rates fall exponentially to ``lr_final`` of their start at the end of the run."""
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * preset.lr_final ** preset.progress(self.step)

    def keep_best(self, score: float) -> None:
        scene = {name: to_numpy(tensor) for name, tensor in self.scene.state().items()}
        self.best = BestScene(self.step, score, scene)

    def make_checkpoint(self, generator_state: Tensor | None = None) -> Checkpointed:
        """A copy of everything; ``generator_state`` stands in for the generator's when a step was begun in vain."""
        tensors = {f"scene/{name}": tensor for name, tensor in self.scene.state().items()}
        tensors |= {f"optimiser/{name}": tensor for name, tensor in optimiser_state(self.optimiser).items()}
        tensors |= {f"negative/{name}": tensor for name, tensor in optimiser_state(self.negative.optimiser).items()}
        tensors["negative_value"] = self.negative.value
        tensors["generator"] = self.generator.get_state() if generator_state is None else generator_state
        arrays = {name: to_numpy(tensor) for name, tensor in tensors.items()}
        values = {"version": VERSION, "step": self.step, "live": dict(self.live), "gap_scale": self.gap_scale.state()}
        values |= {"monitor": self.monitor.to_json(), "smaller": self.smaller}
        if self.best is not None:
            arrays |= {f"best/{name}": array for name, array in self.best.scene.items()}
            values["best"] = {"step": self.best.step, "score": self.best.score}
        return Checkpointed(step=self.step, tensors=arrays, values=values)

    def restore_checkpoint(self, checkpoint: Checkpointed) -> None:
        """Go on where ``checkpoint`` was taken.  Raises `PresetError` when it belongs to another kind of run."""
        values = checkpoint.values
        if values["version"] != VERSION:
            raise PresetError(f"checkpoint version {values['version']}: this program reads {VERSION}; start anew")
        expected = self.make_checkpoint().tensors
        for name, array in checkpoint.tensors.items():
            if name in expected and expected[name].shape != array.shape:
                raise PresetError(
                    f"checkpoint tensor {name} has shape {array.shape}, this preset makes {expected[name].shape}:"
                    " resume with the preset that the run had"
                )
        tensors = {name: torch.tensor(array) for name, array in checkpoint.tensors.items()}
        self.scene.load_state(strip_prefix("scene/", tensors))
        load_optimiser(self.optimiser, strip_prefix("optimiser/", tensors))
        load_optimiser(self.negative.optimiser, strip_prefix("negative/", tensors))
        with torch.no_grad():
            self.negative.value.copy_(tensors["negative_value"])
        self.gap_scale.load_state(values["gap_scale"])
        self.generator.set_state(tensors["generator"])
        self.step, self.live = values["step"], dict(values["live"])
        self.monitor, self.smaller = Monitor.from_json(values["monitor"]), values["smaller"]
        if "best" in values:
            self.best = BestScene(**values["best"], scene=strip_prefix("best/", checkpoint.tensors))


def restore_scene(
    preset: Preset, make_scene: Callable[[Preset], Scene], arrays: Mapping[str, np.ndarray], step: int
) -> Scene:
    """A scene as it was after ``step``."""
    scene = make_scene(preset)
    scene.load_state({name: torch.tensor(array) for name, array in arrays.items()})
    scene.set_progress(max(step - 1, 0) / preset.steps)
    return scene


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy that later steps leave alone."""
    return tensor.detach().cpu().numpy().copy()


def strip_prefix(prefix: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimiser_state(optimiser: torch.optim.Adam) -> dict[str, Tensor]:
    """``<parameter index>/<name>`` -> tensor: step, exp_avg, exp_avg_sq; empty before the first step."""
    state = optimiser.state_dict()["state"]
    return {f"{index}/{name}": tensor for index, entries in state.items() for name, tensor in entries.items()}


def load_optimiser(optimiser: torch.optim.Adam, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_state`; groups and learning rates stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
