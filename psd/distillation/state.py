"""The changing state of a run, and its way into a checkpoint and back: numpy arrays and JSON values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from psd.config.errors import PresetError, first_line
from psd.config.preset import Preset
from psd.config.settings import require_start
from psd.distillation.detectors import Monitor
from psd.distillation.events import Checkpointed
from psd.distillation.formulas import GAP_DECAY
from psd.distillation.gap_scale import GapScale
from psd.distillation.negative import Negative
from psd.models.interfaces import Models
from psd.scenes.choose import make_scene
from psd.scenes.interfaces import MakeScene, Scene, StartsFromMesh

if TYPE_CHECKING:
    from psd.geometry.mesh import Mesh

VERSION = 3
SAME = "resume with the preset that the run had"
BY_PLACE = 2  # the version before, whose optimiser states were named by the parameter's place
Array = TypeVar("Array", Tensor, np.ndarray)


@dataclass(frozen=True)
class BestScene:
    """The scene that the selector judge liked best, among the previews."""

    step: int
    score: float
    scene: Mapping[str, np.ndarray]
    stage: int = 0  # whose scene it is


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
    smaller: bool = False  # memory was short once (`psd.distillation.less_memory.reduced_preset`)
    stage: int = 0  # whose scene and negative these are: that of the last step, or of the next where that begins one

    @classmethod
    def create(
        cls, preset: Preset, models: Models, make_scene: MakeScene = make_scene, stage: int = 0,
        start: Mesh | None = None,
    ) -> State:  # fmt: skip
        """The state before the first step, with the scene of a stage, which ``start`` gives its shape and colours.

        Raises `PresetError` where the scene cannot start from a mesh.
        """
        prior = models.in_stage(preset.in_stage(stage)).prior
        scene = make_scene(preset.scene_preset(stage), prior.device)
        if start is not None:
            require_start(preset.scene_preset(0).scene.kind)
            assert isinstance(scene, StartsFromMesh)
            scene.start_from(start)
            scene.notes = (*scene.notes, *start.notes)
        negative, gap_scale = Negative.create(preset, prior), GapScale(GAP_DECAY, prior.levels)
        generator = torch.Generator().manual_seed(preset.seed)
        return cls(
            scene, make_optimiser(scene, preset.scene_preset(stage)), negative, gap_scale, generator, stage=stage
        )

    def change_scene(self, scene: Scene, preset: Preset, stage: int) -> None:
        """Go on with the scene of another stage and a fresh optimiser; all else goes on as it was."""
        self.scene, self.optimiser = scene, make_optimiser(scene, preset.scene_preset(stage))

    def decay(self, preset: Preset) -> None:
        """Sets the learning rates of this step, which fall exponentially to ``lr_final`` of their start."""
        for group, fresh in zip(self.optimiser.param_groups, self.scene.parameter_groups(preset), strict=True):
            group["lr"] = fresh["lr"] * preset.lr_final ** preset.progress(self.step)

    def keep_best(self, score: float) -> None:
        scene = {name: to_numpy(tensor) for name, tensor in self.scene.state().items()}
        self.best = BestScene(self.step, score, scene, self.stage)

    def make_checkpoint(self, generator_state: Tensor | None = None) -> Checkpointed:
        """A copy of everything; ``generator_state`` stands in for the generator's when a step was begun in vain."""
        tensors = {f"scene/{name}": tensor for name, tensor in self.scene.state().items()}
        tensors |= {f"optimiser/{name}": tensor for name, tensor in optimiser_state(self.optimiser).items()}
        tensors |= {f"negative/{name}": tensor for name, tensor in optimiser_state(self.negative.optimiser).items()}
        tensors["negative_value"] = self.negative.value
        tensors["generator"] = self.generator.get_state() if generator_state is None else generator_state
        arrays = {name: to_numpy(tensor) for name, tensor in tensors.items()}
        values = {"version": VERSION, "step": self.step, "live": dict(self.live), "gap_scale": self.gap_scale.state()}
        values |= {"monitor": self.monitor.to_json(), "smaller": self.smaller, "stage": self.stage}
        if self.best is not None:
            arrays |= {f"best/{name}": array for name, array in self.best.scene.items()}
            values["best"] = {"step": self.best.step, "score": self.best.score, "stage": self.best.stage}
        return Checkpointed(step=self.step, tensors=arrays, values=values)

    def restore_checkpoint(self, checkpoint: Checkpointed) -> None:
        """Go on where ``checkpoint`` was taken, whose stage this state was created with.

        Raises `PresetError` when it belongs to another kind of run.
        """
        values = checkpoint.values
        if values["version"] not in (VERSION, BY_PLACE):
            raise PresetError(f"checkpoint version {values['version']}: this program reads {VERSION}; start anew")
        tensors = {name: torch.tensor(array) for name, array in checkpoint.tensors.items()}
        load_scene(self.scene, strip_prefix("scene/", tensors))
        for prefix, optimiser in (("optimiser/", self.optimiser), ("negative/", self.negative.optimiser)):
            states = strip_prefix(prefix, tensors)
            if values["version"] == BY_PLACE:
                states = named_by_place(optimiser, states)
            load_optimiser(optimiser, states)
        with torch.no_grad():
            self.negative.value.copy_(tensors["negative_value"])
        self.gap_scale.load_state(values["gap_scale"])
        self.generator.set_state(tensors["generator"])
        self.step, self.live = values["step"], dict(values["live"])
        self.monitor, self.smaller = Monitor.from_json(values["monitor"]), values["smaller"]
        if "best" in values:
            self.best = BestScene(**values["best"], scene=strip_prefix("best/", checkpoint.tensors))


def restore_scene(
    preset: Preset, arrays: Mapping[str, np.ndarray], step: int, *, stage: int = 0, make_scene: MakeScene = make_scene,
    device: torch.device | None = None,
) -> Scene:  # fmt: skip
    """The scene of a stage as it was after ``step``; on the CPU without a ``device``."""
    scene = make_scene(preset.scene_preset(stage), device or torch.device("cpu"))
    scene.load_state({name: torch.tensor(array) for name, array in arrays.items()})
    scene.advance(max(step - 1, 0) / preset.steps)
    return scene


def make_optimiser(scene: Scene, preset: Preset) -> torch.optim.Adam:
    """Adam as MVDream has it: betas (.9, .99), eps 1e-15, decoupled decay; one kernel in place of a dozen passes."""
    optimiser = torch.optim.Adam(
        scene.parameter_groups(preset), betas=(0.9, 0.99), eps=1e-15, weight_decay=preset.weight_decay,
        decoupled_weight_decay=True, fused=True,
    )  # fmt: skip
    optimiser.register_step_post_hook(count_versions)
    return optimiser


def count_versions(optimiser: torch.optim.Optimizer, *_: Any) -> None:
    """The fused kernel moves parameters and does not count their versions, by which scenes know what they can keep."""
    for group in optimiser.param_groups:
        torch.autograd.graph.increment_version(group["params"])


def saved_stage(checkpoint: Checkpointed, preset: Preset) -> int:
    """The stage whose scene a checkpoint holds; `PresetError` where the preset has no such stage."""
    stage = int(checkpoint.values.get("stage", 0))  # those of before have scenes of one kind
    if not 0 <= stage < max(1, len(preset.stages)):
        raise PresetError(f"the checkpoint is in stage {stage}, this preset has {len(preset.stages)}: {SAME}")
    return stage


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Copies a tensor to an array that later steps leave alone."""
    return tensor.detach().cpu().numpy().copy()


def strip_prefix(prefix: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_scene(scene: Scene, tensors: Mapping[str, Tensor]) -> None:
    """The scene's own state; its rows may be more or fewer than a fresh one's.  `PresetError` where it does not fit."""
    fresh = scene.state()
    try:
        scene.load_state(tensors)
    except RuntimeError as error:
        wrong = [
            f"scene/{name} has shape {tuple(tensor.shape)}, this preset makes {tuple(fresh[name].shape)}"
            for name, tensor in tensors.items()
            if name in fresh and fresh[name].shape != tensor.shape
        ]
        raise PresetError(f"the checkpoint holds another scene ({(wrong or [first_line(error)])[0]}): {SAME}") from None


def parameters_by_name(optimiser: torch.optim.Adam) -> dict[str, Tensor]:
    """An optimiser's parameters by the names that its groups give them (torch's ``param_names``), in its order."""
    groups = optimiser.param_groups
    return {name: value for group in groups for name, value in zip(group["param_names"], group["params"], strict=True)}


def optimiser_state(optimiser: torch.optim.Adam) -> dict[str, Tensor]:
    """``<parameter name>/<key>`` -> tensor: step, exp_avg, exp_avg_sq; empty before the first step."""
    return {
        f"{name}/{key}": tensor
        for name, parameter in parameters_by_name(optimiser).items()
        for key, tensor in optimiser.state.get(parameter, {}).items()
    }


def load_optimiser(optimiser: torch.optim.Adam, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_state`; groups and learning rates stay as they are.

    Each state must be as large as its parameter is now, which need not be as large as a fresh one.
    """
    parameters = parameters_by_name(optimiser)
    places = {name: place for place, name in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        if name not in parameters:
            known = ", ".join(parameters)
            raise PresetError(f"the checkpoint knows a parameter {name}, this preset has {known}: {SAME}")
        if tensor.ndim and tensor.shape != parameters[name].shape:
            shapes = f"{tuple(tensor.shape)}, the parameter has {tuple(parameters[name].shape)}"
            raise PresetError(f"the checkpoint's optimiser state of {name} has shape {shapes}: {SAME}")
        state.setdefault(places[name], {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def named_by_place(optimiser: torch.optim.Adam, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``<place>/<key>``, as checkpoints before version 3 have it, by name: the order of the parameters is the same."""
    names = list(parameters_by_name(optimiser))
    found = {}
    for path, tensor in tensors.items():
        place, _, key = path.partition("/")
        found[f"{names[int(place)] if int(place) < len(names) else place}/{key}"] = tensor
    return found
