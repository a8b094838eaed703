"""`Preset`: every parameter of a run, declared once.

One declaration gives the check, the slider's range, the tooltip, the command-line flag and docs/parameters.md.
A preset is frozen; unknown keys, wrong values and impossible combinations are refused before any model loads, with the
value, the bound and the cure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from psd.config import settings, strict_yaml
from psd.config.errors import PresetError, explain_validation, format_value
from psd.config.model_names import LONGEST_NAME, ROOT, check_names
from psd.config.settings import SCENES, GridScene, SceneKind, SceneSettings, Settings, Stage, merge, setting
from psd.config.strict_yaml import LARGEST_FILE, is_printable

PRESETS = ROOT / "presets"
DEFAULT_PRESET = "tiny-surface"  # the best of those that ship with models, in no more time (docs/presets.md)
TOLERANCE = 1e-6  # of the sum of the shares of a run's stages
WITHOUT_REWARD = ("sds", "csd")  # methods that ask none
MethodName = Literal["psd", "sds", "best_of_n", "csd", "dreamdpo", "rewardsds", "reward_gradient"]
PairKind = Literal["steered", "random"]
CompileMode = Literal["none", "graphs", "inductor"]  # how large networks are launched


class Preset(Settings):
    """All parameters of one run.  Groups: run, prior, guidance, preference, negative, scene, cameras, output."""

    # fmt: off
    # run
    prompt: str = setting("a red mushroom", "What to make.", group="run", min_length=1, max_length=300)
    seed: int = setting(0, "Same seed, same run (bit for bit on a CPU).", group="run", ge=0, le=2**31 - 1)
    steps: int = setting(120, "Optimisation steps.", group="run", ge=1, le=100_000)
    extra_steps: int = setting(
        0, "Steps after those, with the last noise levels and learning rates: an extended run.", group="run", ge=0,
        le=100_000,
    )
    early_stop: Literal["off", "hacking", "plateau", "both"] = setting(
        "off", "End when the selector judge falls while the reward climbs, or when it climbs no more.", group="run"
    )
    method: MethodName = setting("psd", "What turns predictions and rewards into a direction.", group="run")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "Where to run.", group="run")
    threads: int = setting(0, "CPU threads; 0 takes all cores as suits the networks.", group="run", ge=0, le=256)

    # models
    prior: str = setting("assets/prior", "Diffusion prior: a folder or a hub id.", group="models", staged=True)
    rewards: dict[str, float] = setting(
        {"assets/reward": 1.0}, "Rewards to align with, each with its weight.", group="models", live=True, staged=True
    )
    judges: list[str] = setting(
        ["assets/selector"], "Rewards that are only watched; the first is the selector judge.", group="models"
    )
    reward_decoder: str = setting(
        "", "Small decoder for the images that rewards see (TAESD); empty: the prior's own.", group="models",
        max_length=LONGEST_NAME,
    )
    reward_views: int = setting(0, "Views of an orbit that the rewards see; 0: all.", group="models", ge=0, le=64)
    precision: Literal["auto", "float32", "float16", "bfloat16"] = setting(
        "auto", "Of the networks; auto: float16 on a GPU, float32 elsewhere.", group="models"
    )
    network_batch: int = setting(
        0, "Most images a network takes at once, idle networks off the GPU; 0: all.", group="models", ge=0, le=1024
    )
    compile: CompileMode = setting(
        "none", "Launch U-Net and rewards as CUDA graphs; inductor: after torch.compile.", group="models"
    )

    # guidance
    guidance_scale: float = setting(
        4.0, "Classifier-free guidance of the base term.", group="guidance", symbol="s", live=True, staged=True,
        step=0.5, ge=0, le=200,
    )
    rescale: float = setting(
        0.5, "Pull the guided contrast back to the conditional's.", group="guidance", staged=True, symbol="φ",
        step=0.05, ge=0, le=1,
    )
    score_space: Literal["latent", "image"] = setting(
        "latent", "Pull the render to the target as latents, through the encoder, or as pixels.", group="guidance"
    )
    t_max_start: float = setting(
        0.95, "Upper end of t/T at the start.", group="guidance", staged=True, ge=0.02, le=0.999
    )
    t_max_end: float = setting(
        0.25, "Upper end of t/T after annealing.", group="guidance", staged=True, ge=0.02, le=0.999
    )
    t_min_start: float = setting(0.6, "Lower end of t/T at the start.", group="guidance", staged=True, ge=0.0, le=0.999)
    t_min_end: float = setting(
        0.05, "Lower end of t/T after annealing.", group="guidance", staged=True, ge=0.0, le=0.999
    )
    anneal_fraction: float = setting(0.8, "Share of the run over which t anneals.", group="guidance", gt=0, le=1)

    janus: Literal["none", "views", "perp_neg"] = setting(
        "none", "Single-view priors: name the side that a camera sees, or turn the prompt with it (Perp-Neg).",
        group="guidance", staged=True,
    )

    # preference
    pair: PairKind = setting(
        "steered", "Two noises that differ on purpose, along the reward, or two drawn at random and ranked.",
        group="preference",
    )
    preference_weight: float = setting(
        1.0, "Strength of the preference term (rho of a steered pair).", group="preference", symbol="λ",
        live=True, staged=True, step=0.05, ge=0, le=50,
    )
    preference_scale: float = setting(
        7.5, "Guidance inside the random pair.", group="preference", symbol="s_p", live=True, step=0.5, ge=0,
        le=200,
    )
    preference_beta: float = setting(
        0.0, "By the reward's gradient: no longer than tilting the prior by exp(beta reward) asks; 0: no limit.",
        group="preference", symbol="β", ge=0, le=1000,
    )
    candidates: int = setting(2, "Noises drawn per step for ranking.", group="preference", symbol="N", ge=2, le=16)
    scaling: Literal["confidence", "none"] = setting(
        "confidence", "Whether the reward gap scales the term.", group="preference"
    )
    kappa: float = setting(1.0, "Gap (mean gaps) of confidence tanh(1).", group="preference", symbol="κ", gt=0, le=20)
    preference_t_max: float = setting(
        1.0, "No pair or pixel gradient above this t/T; 0.1 below, all.", group="preference", staged=True,
        symbol="t_on", ge=0, le=1,
    )
    steer_radius: float = setting(
        0.02, "Length of the steering nudge per sqrt(dimension), in noise units.", group="preference", staged=True,
        symbol="r", log=True, ge=1e-9, le=1,
    )
    steer_by: Literal["gradient", "scores"] = setting(
        "gradient", "Nudge by the reward's gradient, or its estimate from scores (for black boxes).", group="preference"
    )
    reward_gradient_weight: float = setting(
        0.7, "Weight of the pixel gradient in method reward_gradient.", group="preference", live=True, step=0.1, ge=0,
        le=20,
    )

    # negative embedding
    negative_prompt: str = setting("low quality blurry", "Where the negative starts.", group="negative", max_length=600)
    negative: bool = setting(
        True, "Learn the negative embedding along with the scene, by a reward that has a gradient.", group="negative",
        staged=True,
    )
    negative_lr: float = setting(
        2e-2, "Adam step of the negative embedding.", group="negative", symbol="η_n", live=True, log=True, ge=0, le=1
    )
    negative_every: int = setting(
        5, "Steps between updates.", group="negative", symbol="K_n", unit="steps", ge=1, le=1000
    )
    negative_t_max: float = setting(0.8, "Update only up to this t/T.", group="negative", symbol="t_n", ge=0, le=1)
    negative_radius: float = setting(0.3, "Largest RMS drift.", group="negative", symbol="r_n", gt=0, le=10)

    # scene
    scene: SceneSettings = Field(default=GridScene(kind="grid"), description="What is optimised, by kind.")
    render_size: int = setting(
        64, "Pixels along an edge while optimising.", group="scene", unit="px", staged=True, ge=8, le=1024
    )
    lr_final: float = setting(0.2, "Learning rates at the end, as a share of the start.", group="scene", gt=0, le=1)
    weight_decay: float = setting(0.0, "Decoupled weight decay of the scene (AdamW).", group="scene", ge=0, le=1)
    random_background: float = setting(
        0.5, "Chance of a random plain background per step.", group="scene", staged=True, ge=0, le=1
    )
    shading: bool = setting(False, "Light the surface, so that shape shows.", group="scene", staged=True)
    stages: list[Stage] = setting(
        [], "Parts of the run, each with its `share` and what differs there; empty: all steps alike.", group="scene"
    )

    # cameras
    groups: int = setting(1, "Orbits per step.", group="cameras", staged=True, ge=1, le=16)
    elevation_deg: tuple[float, float] = setting(
        (0.0, 30.0), "Range of elevations.", group="cameras", staged=True, unit="deg"
    )
    fovy_deg: tuple[float, float] = setting(
        (40.0, 40.0), "Range of vertical views.", group="cameras", staged=True, unit="deg"
    )
    distance_factor: tuple[float, float] = setting(
        (1.1, 1.1), "Range of half the covered width at the origin.", group="cameras", staged=True, unit="world units"
    )

    # output
    preview_every: int = setting(5, "Steps between previews.", group="output", unit="steps", ge=1, le=10_000)
    preview_size: int = setting(96, "Pixels of a preview.", group="output", unit="px", ge=16, le=1024)
    checkpoint_s: float = setting(20.0, "Seconds between checkpoints.", group="output", unit="s", gt=0, le=30)
    export: Literal["best", "last"] = setting(
        "last", "Mesh the scene that the selector judge liked best, or the last one.", group="output"
    )
    mesh_resolution: int = setting(96, "Cells of the iso-surface grid.", group="output", ge=16, le=512)
    mesh_faces: int = setting(20_000, "Most faces of the mesh.", group="output", ge=100, le=500_000)
    texture: bool = setting(False, "Bake a UV texture (slower) instead of vertex colours.", group="output")
    # fmt: on

    @model_validator(mode="after")
    def _check(self) -> Preset:
        scenes = [self.scene, *(stage.scene for stage in self.list_stages())]  # raises PresetError
        for index, (before, after) in enumerate(pairwise(scenes)):
            settings.check_succession(index, before, after)
        if self.stages and abs(sum(stage.share for stage in self.stages) - 1) > TOLERANCE:
            shares = ", ".join(f"{stage.share:g}" for stage in self.stages)
            raise ValueError(f"the shares of stages ({shares}) must sum to 1")
        for low, high in (("t_min_start", "t_max_start"), ("t_min_end", "t_max_end")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}={getattr(self, low)} is above {high}={getattr(self, high)}: lower it")
        for name, (smallest, largest) in {
            "elevation_deg": (-90, 90), "fovy_deg": (1, 150), "distance_factor": (0.1, 10)
        }.items():  # fmt: skip
            low, high = getattr(self, name)
            if not smallest <= low <= high <= largest:
                raise ValueError(f"{name}=({low}, {high}) must satisfy {smallest} <= low <= high <= {largest}")
        if not self.rewards and self.optimises_reward:
            raise ValueError(f"method={self.method} needs a reward: name one in rewards, or choose sds or csd")
        for name, weight in self.rewards.items():
            if not 0 <= weight <= 100:
                raise ValueError(f"rewards[{format_value(name)}]={weight} must lie in [0, 100]")
        if self.optimises_reward and not any(self.rewards.values()):
            raise ValueError(f"method={self.method}: all rewards have weight 0: raise one, or set method=sds")
        if self.export == "best" or self.early_stop != "off":
            if not self.judges:
                raise ValueError("export=best and early_stop need a selector judge: name one in judges")
        check_names({"prior": self.priors, "rewards": self.reward_names, "judges": self.judges})
        for key in ("prompt", "negative_prompt"):
            if not is_printable(getattr(self, key)):
                raise ValueError(f"{key} holds control characters: remove them")
        if not self.prompt.strip():
            raise ValueError("prompt is blank: say what to make")
        return self

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Preset:
        """Check values; every complaint names key, value and bound (`PresetError`)."""
        values = merge({}, values)
        if isinstance(scene := values.get("scene"), Mapping):
            values["scene"] = {"kind": "grid", **scene}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise PresetError(explain_validation(error, list_settings(), tags={"scene": SCENES})) from None

    @classmethod
    def load(cls, name: str, overrides: Mapping[str, Any] | None = None) -> Preset:
        """A preset by name (``presets/<name>.yaml``) or by path, with overrides."""
        return cls.make(merge(read_values(name), overrides or {}))

    def with_values(self, values: Mapping[str, Any]) -> Preset:
        """A checked copy with other values."""
        return Preset.make(merge(self.model_dump(), values))

    @property
    def total_steps(self) -> int:
        return self.steps + self.extra_steps

    @property
    def optimises_reward(self) -> bool:
        return self.method not in WITHOUT_REWARD

    def is_ended_by(self, alarm: str) -> bool:
        """Whether the run ends early at an alarm of this kind (`psd.distillation.events.Alarmed`)."""
        return self.early_stop in (alarm, "both")

    def progress(self, step: int) -> float:
        """Share of the schedule that is done after ``step`` steps; it stays at 1 during ``extra_steps``."""
        return min(step / self.steps, 1.0)

    def stage_at(self, progress: float) -> tuple[int, float]:
        """The stage after a share ``progress`` of the run, from 0 on, and the share of it that is done."""
        begun = 0.0
        for index, stage in enumerate(self.stages):
            if progress < begun + stage.share - TOLERANCE or index == len(self.stages) - 1:
                return index, min((progress - begun) / stage.share, 1.0)
            begun += stage.share
        return 0, progress

    def in_stage(self, index: int) -> Preset:
        """The preset as it holds in one of its stages; itself where it has none."""
        if not self.stages:
            return self
        where, changes, known = f"stages[{index}]", self.stages[index].changes, list_settings()
        scene = given if isinstance(given := merge({}, changes).get("scene", {}), dict) else {}
        is_other = scene.get("kind", self.scene.kind) != self.scene.kind  # made anew: all of it may be chosen
        plain, held = {name: changes[name] for name in changes if name.split(".")[0] != "scene"}, flatten(self)
        for name, value in {**plain, **{f"scene.{key}": value for key, value in scene.items()}}.items():
            is_free = (is_other and name.startswith("scene.")) or (name in held and held[name] == value)
            if name not in known or not (is_free or settings.read_facts(known[name])["staged"]):
                staged = ", ".join(name for name, info in known.items() if settings.read_facts(info)["staged"])
                raise PresetError(f"{where}: {format_value(name)} cannot differ in a stage; these can: {staged}")
        try:
            return Preset.make(merge({**self.model_dump(), "stages": []}, changes))
        except PresetError as error:
            raise PresetError(f"{where}: {error}") from None

    def list_stages(self) -> list[Preset]:
        """The preset as it holds in each of its stages; itself alone where it has none."""
        return [self.in_stage(index) for index in range(max(1, len(self.stages)))]

    @property
    def priors(self) -> list[str]:
        """The priors of all stages, in the order of their first use."""
        return list(dict.fromkeys(stage.prior for stage in self.list_stages()))

    @property
    def reward_names(self) -> list[str]:
        """The rewards of all stages, in the order of their first use."""
        return list(dict.fromkeys(name for stage in self.list_stages() for name in stage.rewards))

    def name_stage(self, uses: Callable[[Preset], bool]) -> str:
        """``stages[1]: `` for what a later stage uses first, in front of what is wrong with it; else empty."""
        index = next((index for index, stage in enumerate(self.list_stages()) if uses(stage)), 0)
        return f"stages[{index}]: " if index else ""

    def scene_preset(self, index: int) -> Preset:
        """The preset by which a stage's scene is made: itself where the stage has the preset's own kind of scene."""
        return self if self.in_stage(index).scene.kind == self.scene.kind else self.in_stage(index)

    def at(self, progress: float) -> Preset:
        """The preset as it holds after a share ``progress`` of the run."""
        return self.in_stage(self.stage_at(progress)[0])

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def is_preset_file(name: str) -> bool:
    """Whether a preset is named by the path of its file, whose suffix may be written in any case."""
    return name.lower().endswith((".yaml", ".yml"))


def list_settings() -> dict[str, FieldInfo]:
    """Every setting by its name, nested ones with a dot (``scene.grid_size``), whatever kind of scene has it."""
    found: dict[str, FieldInfo] = {}
    for name, info in Preset.model_fields.items():
        if name != "scene":
            found[name] = info
            continue
        for model in (SceneKind, *SCENES.values()):
            found |= {f"scene.{key}": field for key, field in model.model_fields.items() if settings.read_facts(field)}
    return found


def flatten(preset: Preset) -> dict[str, Any]:
    """Every value by the name of its setting, of the preset's own kind of scene."""
    values = {name: getattr(preset, name) for name in Preset.model_fields}
    scene = values.pop("scene")
    return {**values, **{f"scene.{key}": getattr(scene, key) for key in type(scene).model_fields}}


def read_values(name: str, *, inside: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values that a preset's file gives, by name (``presets/<name>.yaml``) or by path, before any check."""
    is_path = is_preset_file(name)
    if not is_path and name not in list_presets():
        raise PresetError(f"no preset {format_value(name)}; there are: {', '.join(list_presets())}")
    path = Path(os.path.expanduser(name)) if is_path else PRESETS / f"{name}.yaml"
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LARGEST_FILE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise PresetError(f"cannot read the preset {format_value(name)}: {error}") from None
    return parse_preset(text, inside=(*inside, name))


def parse_preset(text: str, *, inside: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a preset's text over those of the shipped preset that it ``extends``, if any, before any check.

    ``inside``: the presets that extend this one.
    """
    values = parse_mapping(text)
    base = values.pop("extends", None)
    if base is None:
        return values
    if base not in list_presets():
        raise PresetError(f"extends={format_value(base)}: there are {', '.join(list_presets())}")
    if base in inside:
        raise PresetError(f"extends={base} goes round in a circle: {' -> '.join([*inside, base])}")
    return merge(read_values(base, inside=inside), values)


def parse_value(text: str) -> Any:
    """One YAML value; whatever YAML cannot make of it is a `PresetError`."""
    try:
        return strict_yaml.read_yaml(text)
    except ValueError as error:
        raise PresetError(str(error)) from None


def parse_mapping(text: str) -> dict[str, Any]:
    """YAML to a plain dictionary; anything else is refused (`PresetError`)."""
    values = parse_value(text)
    if not isinstance(values, dict):
        raise PresetError(f"a preset is a mapping of keys to values, not {format_value(values)}")
    return values


def list_presets() -> list[str]:
    """Names of the shipped presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))
