"""A suite: which methods are compared, on which captions and seeds, and which recorded lines still hold.

A suite is a YAML file in ``presets/suites`` that explains its keys.  It expands into jobs, one run each, paired by
caption and seed: the same seed gives all methods the same cameras, noise levels and first noise in every step
(`psd.distillation.sampling.step_generators`).  A job's hash holds preset and weights, so that a line which those would
no longer give is recognised and left out; where code changes what comes out, raise `RECORD` or `MEASURES`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from psd.config.errors import MissingError, PresetError, explain_validation, format_value
from psd.config.preset import PRESETS, Preset, parse_mapping
from psd.config.settings import merge
from psd.config.strict_yaml import LARGEST_FILE
from psd.embedded.captions.lists import LISTS, load_list

ROOT = PRESETS.parent
SUITES = PRESETS / "suites"
RESULTS = ROOT / "assets" / "results"
MEASURES = 6  # raise when a measure changes its meaning: older lines then no longer count
# Raise when a run comes out otherwise, more of it is kept, or a default changes (a hash holds only what differs from
# them): what was made before then is no longer good.
RECORD = 3
ELSEWHERE = {"device", "threads", "judges", "checkpoint_s", "preview_size", "texture"}  # keys no number depends on
PROMPTS = ROOT / "work" / "prompts"  # public lists of prompts, which are not ours to ship
CURVE_POINTS = 12  # looks at a run on its way
PROBE_STEPS = 20  # of the run that tells what a step of a method costs
SELECTOR = "assets/selector"  # the judge that keeps one run of several

# What an image costs in each network, without and with a backward pass, in images of the U-Net without one: the
# embedded models by `python -m psd bench --set threads=1` (least times, one core of an EPYC with AVX2).
NetworkCall = Literal["unet", "encode", "decode", "reward"]
COSTS: dict[NetworkCall, tuple[float, float]] = {
    "unet": (1.0, 1.8), "encode": (0.2, 0.6), "decode": (0.4, 0.85), "reward": (0.12, 0.3),
}  # fmt: skip

Budget = Literal["steps", "cost"]
Further = Literal["reward", "texture", "floaters", "fog"]
T = TypeVar("T")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SuiteSize(_Strict):
    """How many captions (spread evenly over the list) and seeds (0, 1, ...)."""

    prompts: int = Field(ge=1)
    seeds: int = Field(ge=1, le=100)


class SuiteMethod(_Strict):
    """One row of the table: what of the suite's preset it changes."""

    about: str = Field(min_length=1)
    preset: str | None = None  # what it starts from, where that is not the suite's preset
    set: dict[str, Any] = {}
    of: int = Field(1, ge=1, le=16)  # runs for each of its own, of which `SELECTOR` keeps the one it scores best
    main: bool = False  # on all of the suite's captions and seeds, not only on those of `others`
    equal_cost: bool = False  # a second time on `others`, with as many steps as cost what the reference costs
    against: str | None = None  # the method that it is compared with, where that is not the baseline; itself: with none


class PromptFile(_Strict):
    """Prompts of a public list by their line numbers; whoever runs the suite puts the file under `PROMPTS`."""

    file: str = Field(min_length=1)
    origin: str = Field(min_length=1)  # where it is published
    lines: list[int] = Field(min_length=1)  # the first is 1

    def read(self) -> list[str]:
        """Raises `MissingError` where the file is not here, `PresetError` for a line that it has not."""
        path = PROMPTS / self.file
        if not path.is_file():
            raise MissingError(f"no list of prompts at {path}: fetch it from {self.origin}")
        there = path.read_text(encoding="utf-8").splitlines()
        if wrong := [line for line in self.lines if not 1 <= line <= len(there) or not there[line - 1].strip()]:
            raise PresetError(f"{path} has no prompt on line {wrong[0]}; it has {len(there)} lines")
        return [there[line - 1].strip() for line in self.lines]


class Suite(_Strict):
    """A comparison as ``presets/suites/<name>.yaml`` says it: its methods, captions, seeds and judges.

    ValidationError for names that are not there, and for methods that cannot be compared.
    """

    name: str
    about: str = Field(min_length=1)
    preset: str
    set: dict[str, Any] = {}
    captions: str | list[str] | PromptFile  # a committed list, the captions themselves, or lines of a public list
    truth: bool = True  # captions of the embedded world: they have a ground truth to be measured against
    main: SuiteSize
    others: SuiteSize
    judges: list[str] = Field(min_length=1)  # folders; no run sees them, the first is the primary measure
    reference: str  # the method whose worth is asked; its cost is the budget of equal_cost
    baseline: str  # what every method is compared with that names no other
    beaten: list[str] = []  # what the reference has to beat in the primary and the secondary measure
    sweep: list[str] = []  # one control at several weights: compared at the reference's own train reward
    compared_by: list[Further] = []  # measures whose differences are shown too
    costs: dict[NetworkCall, tuple[float, float]] = COSTS  # where others hold
    bars: bool = False  # whether the bars of the project are asked of the reference
    methods: dict[str, SuiteMethod] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Suite:
        asked = {"reference": [self.reference], "baseline": [self.baseline], "beaten": self.beaten}
        others = {f"{name}'s against": [method.against] for name, method in self.methods.items() if method.against}
        for key, names in {**asked, "sweep": self.sweep, **others}.items():
            for name in names:
                if name not in self.methods:
                    raise ValueError(
                        f"{key} names {format_value(name)}, but methods has only {', '.join(self.methods)}"
                    )
        if self.bars:
            if not self.truth:
                raise ValueError("bars are asked of what has a truth: leave bars out, or set truth: true")
            for name in [name for names in asked.values() for name in names]:
                if not self.methods[name].main:
                    raise ValueError(
                        f"bars ask all captions of {format_value(name)}: set main: true there, or leave bars out"
                    )
        rewards = self.values(self.reference).at(1.0).rewards
        for name, method in self.methods.items():
            if self.values(name).at(1.0).rewards != rewards:  # two models' rewards have no common scale
                raise ValueError(
                    f"{format_value(name)} climbs other rewards than {format_value(self.reference)}: "
                    "a suite's methods climb the same"
                )
            if method.of > 1 and (method.equal_cost or name == self.reference):
                raise ValueError(f"{format_value(name)} is several runs: leave out of, or equal_cost and reference")
        for size in (self.main, self.others):
            if isinstance(self.captions, PromptFile):
                self.spread_evenly(self.captions.lines, size)  # the file itself may be missing
            else:
                self.prompts(size)
        return self

    @classmethod
    def load(cls, path: Path) -> Suite:
        """From its file; raises `PresetError` for what cannot work, methods' presets included."""
        try:
            text = path.read_text(encoding="utf-8")[: LARGEST_FILE + 1]
        except (OSError, UnicodeDecodeError) as error:
            raise PresetError(f"cannot read the suite {format_value(str(path))}: {error}") from None
        try:
            return cls.model_validate({"name": path.stem, **parse_mapping(text)})
        except ValidationError as error:
            raise PresetError(f"{path.name}: {explain_validation(error, cls.model_fields)}") from None

    def values(self, method: str) -> Preset:
        """The method's preset, before caption and seed; its run is looked at a dozen times."""
        own = self.methods[method].set
        start = preset_values(self.methods[method].preset or self.preset)
        shared = merge(start, {"threads": 1, "judges": [], **self.set})
        preset = Preset.make(merge(shared, own))
        return preset if "preview_every" in {**self.set, **own} else with_preview_interval(preset)

    def against(self, method: str) -> str:
        """What the method is compared with."""
        return self.methods[method].against or self.baseline

    def size(self, method: str, budget: Budget) -> SuiteSize:
        return self.main if self.methods[method].main and budget == "steps" else self.others

    def rows(self) -> list[tuple[str, Budget]]:
        """Every method at the suite's steps, some at the reference's cost too."""
        both: tuple[Budget, ...] = ("steps", "cost")
        return [(name, b) for name, method in self.methods.items() for b in both if b == "steps" or method.equal_cost]

    @property
    def planned_runs(self) -> int:
        """How many runs the whole suite is."""
        sizes = [self.size(*row) for row in self.rows()]
        return sum(size.prompts * size.seeds for size in sizes)

    def prompts(self, size: SuiteSize) -> list[str]:
        """``size.prompts`` of the captions, evenly spread: lists are ordered by group."""
        match self.captions:
            case PromptFile():
                return self.spread_evenly(self.captions.read(), size)
            case str():
                return self.spread_evenly(list(read_caption_list(self.captions)), size)
            case _:
                return self.spread_evenly(self.captions, size)

    def spread_evenly(self, named: list[T], size: SuiteSize) -> list[T]:
        if size.prompts > len(named):
            raise PresetError(f"{self.name}: {size.prompts} prompts asked, {len(named)} there are: lower prompts")
        return [named[i * len(named) // size.prompts] for i in range(size.prompts)]


def read_suites() -> list[Suite]:
    """The suites that ship, the main one first."""
    return sorted(map(Suite.load, sorted(SUITES.glob("*.yaml"))), key=lambda suite: not suite.bars)


def folder_name(source: str) -> str:
    """A judge's short name: that of its folder."""
    return source.rpartition("/")[2]


@lru_cache(maxsize=8)
def preset_values(name: str) -> dict[str, Any]:
    """A preset's values, its file read once for all methods."""
    return Preset.load(name).model_dump()


def with_preview_interval(preset: Preset) -> Preset:
    return preset.with_values({"preview_every": max(1, preset.steps // CURVE_POINTS)})


@lru_cache(maxsize=8)
def read_caption_list(name: str) -> dict[str, list[str]]:
    """A committed list of captions with their distractors; raises `PresetError` for a name that has none."""
    there = list_caption_lists()
    if name not in there:
        raise PresetError(f"no list of captions {format_value(name)}; there are: {', '.join(there)}")
    return load_list(name)


def list_caption_lists() -> list[str]:
    """The names of the committed lists."""
    return sorted(path.stem for path in LISTS.glob("*.json"))


# ----------------------------------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class PlannedRun:
    """One run: a method on a caption with a seed, or the best ``of`` several.

    ``kind`` probe: the short run that tells a method's cost.
    """

    suite: str
    method: str
    budget: Budget
    preset: Preset
    judges: tuple[str, ...]
    kind: Literal["run", "probe"] = "run"
    truth: bool = True
    of: int = 1

    @property
    def parts(self) -> list[PlannedRun]:
        """The runs, of seeds that no other seed of the method has, of which one is kept; itself where it is alone."""
        if self.of == 1:
            return [self]
        seeds = range(self.of * self.preset.seed, self.of * (self.preset.seed + 1))
        return [replace(self, of=1, preset=self.preset.model_copy(update={"seed": seed})) for seed in seeds]

    @property
    def outcome_hash(self) -> str:
        """Hash of what decides the outcome: preset and weights, and which runs one is chosen of.

        It is the name of what the run made.

        Only values that differ from the defaults count, so that a new key changes no hash.
        """
        values = self.preset.model_dump(mode="json", exclude=ELSEWHERE, exclude_defaults=True)
        sources = [*self.preset.priors, *self.preset.reward_names]
        chosen = [f"best of {self.of}", model_hash(SELECTOR)] if self.of > 1 else []
        return hash_parts(json.dumps(values, sort_keys=True), *map(model_hash, sources), *chosen, str(RECORD))

    @property
    def line_hash(self) -> str:
        """Hash of what decides the line: the outcome, the judges' weights and the measures."""
        return hash_parts(self.outcome_hash, *map(model_hash, self.judges), str(MEASURES))

    @property
    def key(self) -> dict[str, Any]:
        """What a line begins with."""
        return {
            "kind": self.kind, "method": self.method, "budget": self.budget, "prompt": self.preset.prompt,
            "seed": self.preset.seed, "hash": self.line_hash,
        }  # fmt: skip


def hash_parts(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def model_hash(source: str) -> str:
    """Hash of a model's files; of its name where it is no folder or file of this repository."""
    path = ROOT / source
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".safetensors", ".json"))
    if not source or not files:
        return source
    whole = hashlib.sha256()
    for file in files:
        if file.name not in ("training.json", "tokenizer_config.json"):  # about the model, not of it
            whole.update(file.name.encode() + file.read_bytes())
    return whole.hexdigest()[:16]


def make_probe(suite: Suite, method: str) -> PlannedRun:
    """A short run of the method, its schedule squeezed into a few steps, that tells what a step costs."""
    preset = suite.values(method)
    steps = min(PROBE_STEPS, preset.steps)
    changed = {"prompt": suite.prompts(suite.main)[0], "seed": 0, "steps": steps, "preview_every": steps}
    return PlannedRun(suite.name, method, "steps", preset.with_values(changed), tuple(suite.judges), "probe")


def list_probes(suite: Suite) -> list[PlannedRun]:
    """Those that the suite needs before its other jobs are known."""
    needed = {name for name, method in suite.methods.items() if method.equal_cost}
    if needed:
        needed.add(suite.reference)
    return [make_probe(suite, name) for name in suite.methods if name in needed]


def expand_jobs(suite: Suite, lines: Iterable[Mapping[str, Any]]) -> list[PlannedRun]:
    """All runs of the suite; those whose probe is missing are left out.

    In an order in which a suite that is cut short says most: main methods first, a caption's beside each other, the
    captions of `others`, which are spread over the list, before those between them.
    """
    probes = {line["hash"]: line for line in lines if line["kind"] == "probe"}
    found = []
    for name, budget in suite.rows():
        preset = calibrate_preset(suite, name, budget, probes)
        if preset is None:
            continue
        size = suite.size(name, budget)
        for prompt in suite.prompts(size):
            for seed in range(size.seeds):
                paired = preset.model_copy(update={"prompt": prompt, "seed": seed})  # thousands: not checked again
                job = PlannedRun(suite.name, name, budget, paired, tuple(suite.judges), truth=suite.truth)
                found.append(replace(job, of=suite.methods[name].of))
    stride = max(1, suite.main.prompts // suite.others.prompts)
    order = {prompt: (index % stride, index) for index, prompt in enumerate(suite.prompts(suite.main))}

    def urgency_key(job: PlannedRun) -> tuple:
        beside = job.budget == "cost" or not suite.methods[job.method].main
        return job.preset.seed, beside, order.get(job.preset.prompt, (-1, 0))

    return sorted(found, key=urgency_key)


def calibrate_preset(suite: Suite, name: str, budget: Budget, probes: Mapping[str, Mapping[str, Any]]) -> Preset | None:
    """The method's preset, at equal cost with as many steps as the probes say; None while they are missing."""
    preset = suite.values(name)
    if budget == "steps":
        return preset
    reference, own = (probes.get(make_probe(suite, method).line_hash) for method in (suite.reference, name))
    if own is None or reference is None:
        return None
    a_step = [run_cost(line, suite.costs) / line["steps"] for line in (reference, own)]
    steps = max(1, round(suite.values(suite.reference).steps * a_step[0] / a_step[1]))
    return with_preview_interval(preset.with_values({"steps": steps}))


# ---------------------------------------------------------------------------------------------------------------- lines


def run_cost(line: Mapping[str, Any], costs: Mapping[Any, tuple[float, float]]) -> float:
    """What a run's calls of the networks cost, in images through the U-Net."""
    return sum(
        plain * costs[kind][0] + differentiated * costs[kind][1]
        for kind, (plain, differentiated) in line["calls"].items()
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; a last line that was cut short is no line."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]


def match_lines(suite: Suite, lines: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[PlannedRun]]:
    """The lines that still say what their job would give, under its present name, and the jobs that lack one."""
    lines = list(lines)
    by_hash = {line["hash"]: line for line in lines if line["kind"] == "run"}
    found, missing = [], []
    for job in expand_jobs(suite, lines):
        line = by_hash.get(job.line_hash)
        if line is None:
            missing.append(job)
        else:
            found.append({**line, **job.key, "cost": run_cost(line, suite.costs)})
    return found, missing
