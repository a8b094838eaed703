"""The operations and the memory of a step's networks on paper, counted in their exact shapes.

The real step (`psd.distillation.run.optimise_step`) runs on tensors that have shapes and no values, so the count cannot
drift from the algorithm.  It takes seconds on any machine and knows no GPU's habits.  Rendering, optimiser and
everything that is bound by memory come on top.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from psd.config.preset import Preset
from psd.distillation import sampling
from psd.distillation.preview import VIEWS
from psd.distillation.run import optimise_step
from psd.distillation.state import State
from psd.evaluation.speed import throughput
from psd.geometry.cameras import Cameras
from psd.models.interfaces import Models
from psd.models.prior.view_prompts import ViewPrompts
from psd.models.random_weights import random_models
from psd.runtime.timing import Clock
from psd.scenes.interfaces import Render

TERA, GIGA = 1e12, 1e9
written_out = functional.scaled_dot_product_attention
RATES = (250, 400, 600)  # TFLOP/s that float16 networks of this size reach on GPUs of the H100's kind, poor to good
VIEWED = 64  # px, of a picture that is not counted
NOISE_LEVEL = 0.3  # t/T of the step that is counted: the gate of the preference term is open


class LiveMemoryMode(TorchDispatchMode):
    """Counts bytes and operations of all that runs within it.

    ``now`` and ``most``: bytes of tensors made within it, alive at present and at most; views count once, and what was
    there before does not count.  ``operations``: floating-point ones of products and convolutions, by torch's formulas;
    torch's own `FlopCounterMode` would keep tensors alive.  A number that is read from a tensor without values is 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.operations = 0
        self.held: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_without_values(args) and function is torch.ops.aten._local_scalar_dense.default:
            return torch.ones((), dtype=args[0].dtype).item()
        if is_without_values(args) and kwargs.get("device") == torch.device("cpu"):
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        made = function(*args, **kwargs)
        if formula := flop_registry.get(function.overloadpacket):
            self.operations += formula(*args, **kwargs, out_val=made)
        given = {value.untyped_storage()._cdata for value in tensors_of((args, kwargs))}
        for value in tensors_of(made):
            storage = value.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self.held:
                self.held[key] = weakref.ref(storage, lambda _, key=key, size=size: self.release(key, size))
                self.now += size
                self.most = max(self.most, self.now)
        return made

    def release(self, key: int, size: int) -> None:
        del self.held[key]
        self.now -= size


def is_without_values(args: tuple) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].is_meta


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def flash_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **keywords: Any) -> Tensor:
    """Attention as a GPU's kernel does it; torch has none for tensors without values, and would write it out as
    products, which no GPU keeps.  What is masked, the texts', stays written out.

    It is patched in: torch leaves its own mode for such things (TorchFunctionMode) on the way back, where pieces are
    made again.
    """
    if args or keywords.get("attn_mask") is not None:
        return written_out(query, key, value, *args, **keywords)
    causal, scale = keywords.get("is_causal", False), keywords.get("scale")
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)[0]


@contextmanager
def on_paper(mode: LiveMemoryMode) -> Iterator[None]:
    """Count in ``mode`` what runs within the block, attention as a GPU's kernel does it."""
    with mode, patch.object(functional, written_out.__name__, flash_attention):
        yield


class BlankScene:
    """`psd.scenes.interfaces.Scene` as far as a step asks for it: pictures that have no values and cost nothing."""

    notes: tuple[str, ...] = ()

    def __init__(self, device: torch.device) -> None:
        self.parameter = torch.zeros((), device=device, requires_grad=True)

    def parameter_groups(self, preset: Preset) -> list[dict]:
        return [{"params": [self.parameter], "lr": 1.0}]

    def render(self, cameras: Cameras, size: int, **_: Any) -> Render:
        rgb = self.parameter.expand(cameras.groups, cameras.views, 3, size, size)
        return Render(rgb, rgb[:, :, :1], rgb[:, :, :1])

    def regularisers(self) -> dict[str, Tensor]:
        return {}

    def advance(self, progress: float, settings: object = None) -> None:
        pass

    def after_step(self, optimiser: torch.optim.Optimizer) -> None:
        pass


@dataclass(frozen=True)
class Cost:
    """The cost of one step, by the parts that a run's clock times."""

    parts: dict[str, float]  # TFLOP
    peaks: dict[str, float]  # GB alive at most, networks apart

    @property
    def total(self) -> float:
        return sum(self.parts.values())


class CountingClock(Clock):
    """A run's clock that charges each outermost part with operations and memory in place of seconds."""

    def __init__(self, mode: LiveMemoryMode) -> None:
        super().__init__()
        self.mode, self.cost = mode, Cost({}, {})

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if self.inside:
            yield
            return
        self.mode.most, before = self.mode.now, self.mode.operations
        with super().part(name):
            yield
        done = self.mode.operations - before
        if not done:  # rendering and optimiser
            return
        self.cost.parts[name] = self.cost.parts.get(name, 0.0) + done / TERA
        self.cost.peaks[name] = max(self.cost.peaks.get(name, 0.0), self.mode.most / GIGA)


def count_stage(preset: Preset, models: Models, stage: throughput.StageShare) -> Cost:
    """The mean cost of a step of ``stage``: of those with the gate open, and of those in which no reward is asked.

    Memory is that of an open step, which holds more.
    """
    cost = count_step(preset, models, stage.updates)
    if stage.judged == 1:
        return cost
    closed = count_step(preset, models, stage.updates, noise_level=1.0)
    parts = {name: stage.judged * value + (1 - stage.judged) * closed.parts.get(name, 0.0)
             for name, value in cost.parts.items()}  # fmt: skip
    return Cost(parts, cost.peaks)


def count_step(preset: Preset, models: Models, updates: float, noise_level: float = NOISE_LEVEL) -> Cost:
    """The cost of the first step of ``preset`` at t = ``noise_level`` of T; ``models`` from `load_on_meta`.

    ``updates``: updates of the negative embedding a step, on average (see
    `psd.evaluation.speed.throughput.weigh_stages`); the part ``negative`` is that share of a whole update.  What is
    made again on the way back, where networks take ``network_batch`` pictures at a time, counts again.
    """
    set_max_batch(models, preset.network_batch)
    device, t = models.prior.device, min(int(noise_level * models.prior.levels), models.prior.levels - 1)
    # The reward after an update is read for previews only, which are not counted here.
    preset = preset.with_values({"negative_every": 1, "negative_t_max": 1.0, "preview_every": 10_000})
    mode = LiveMemoryMode()
    clock = CountingClock(mode)
    blank: Any = BlankScene(device)
    with on_paper(mode):
        state, conditions = State.create(preset, models, lambda *_: blank), ViewPrompts(preset, models.prior)
        with torch.no_grad():
            for reward in models.rewards.values():  # they read the prompt once a run: now
                reward(torch.empty(1, 1, 3, VIEWED, VIEWED, device=device), preset.prompt)
        optimise_step(preset, models, state, conditions, t, *sampling.step_generators(state.generator), clock)
    parts = clock.cost.parts
    if "negative" in parts:
        parts["negative"] *= updates
    return clock.cost


def resident_memory(preset: Preset, models: Models) -> float:
    """GB of the networks that are on the device all the time; ``models`` from `load_on_meta`."""
    priors: list[Any] = list(models.priors.values())
    rewards: list[Any] = list({**models.rewards, **models.judges}.values())
    networks = [part for prior in priors for part in (prior.unet, prior.vae, prior.decoder, prior.text_encoder)]
    networks += [reward.network for reward in rewards]
    away = [prior.text_encoder for prior in priors] + [part for reward in rewards for part in reward.text_modules()]
    away += [judge.network for judge in visiting_judges(preset, models)]
    waiting = {id(value) for network in away for value in parameters_and_buffers(network)}
    found = {id(value): value for network in networks for value in parameters_and_buffers(network)}
    here = [value for key, value in found.items() if key not in waiting or not preset.network_batch]
    return sum(value.nbytes for value in here) / GIGA


def preview_memory(preset: Preset, models: Models) -> float:
    """GB that the scores of a preview hold at most beside `resident_memory`.

    A judge that waits in main memory comes whole.
    """
    set_max_batch(models, preset.network_batch)
    mode, most, visiting = LiveMemoryMode(), 0, visiting_judges(preset, models)
    images = torch.empty(1, VIEWS, 3, preset.preview_size, preset.preview_size, device="meta")
    networks: list[Any] = [*models.rewards.values(), *models.judges.values()]
    for judge in networks:
        mode.most = mode.now
        with torch.no_grad(), on_paper(mode):
            judge.encode_image(images)
        whole = parameters_and_buffers(judge.network) if judge in visiting else []
        most = max(most, mode.most + sum(value.nbytes for value in whole))
    return most / GIGA


def visiting_judges(preset: Preset, models: Models) -> list[Any]:
    """The judges that wait in main memory between previews."""
    return [judge for name, judge in models.judges.items() if preset.network_batch and name not in models.rewards]


def parameters_and_buffers(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def load_on_meta(preset: Preset, *, tiny: bool = False) -> Models:
    """All networks of ``preset``, none of which waits elsewhere: what has no values cannot move."""
    whole = preset.with_values({"network_batch": 0, "compile": "none"})
    return random_models(whole, torch.device("meta"), torch.float16, tiny=tiny)


def set_max_batch(models: Models, batch: int) -> None:
    """At most ``batch`` images pass each network at once from now on (0: all)."""
    networks: list[Any] = [*models.priors.values(), *models.rewards.values(), *models.judges.values()]
    for network in networks:
        network.take(batch)


def cost_table(preset: Preset) -> str:
    """Every stage of a run: operations, the pace that GPUs of several rates would keep by them alone, and memory.


    Where networks take few pictures at a time, also how many of the operations are for that.
    """
    models = load_on_meta(preset)
    found = throughput.weigh_stages(preset, throughput.list_levels(preset, models))

    def count_stages(**changes: Any) -> list[Cost]:
        staged = [(preset.in_stage(index), stage) for index, stage in enumerate(found)]
        return [count_stage(own.with_values(changes), models.in_stage(own), stage) for own, stage in staged]

    costs = count_stages()
    names = list(dict.fromkeys(name for cost in costs for name in cost.parts))

    def row(name: str, values: Iterable[float]) -> str:
        return f"{name:20}" + "".join(f"{value:9.2f}" for value in values)

    columns = "".join(f"{stage.name:>9}" for stage in found)
    lines = [f"{'TFLOP a step':20}{columns}"]
    lines += [row(name, (cost.parts.get(name, 0) for cost in costs)) for name in names]
    lines += [row("total", (cost.total for cost in costs))]
    if preset.network_batch:
        whole = count_stages(network_batch=0)
        lines += [row("of it made again", (own.total - its.total for own, its in zip(costs, whole, strict=True)))]
    mean = sum(stage.share * cost.total for stage, cost in zip(found, costs, strict=True))
    paced = "".join(f"{name + ', it/s':>13}" for name in [*(stage.name for stage in found), "run"])
    lines += ["", f"{'networks alone at':20}{paced}"]
    for rate in RATES:
        paces = [rate / cost.total for cost in costs] + [rate / mean]
        lines.append(f"{rate} TFLOP/s".ljust(20) + "".join(f"{pace:13.1f}" for pace in paces))
    there, shown = resident_memory(preset, models), preview_memory(preset, models)
    lines += ["", f"{'GB at most':20}{columns}", row("networks", [there] * len(costs))]
    lines += [row(name, (cost.peaks.get(name, 0) for cost in costs)) for name in names]
    lines += [row("scores of a preview", [shown] * len(costs))]
    lines += [row("networks and most", (there + max(shown, *cost.peaks.values()) for cost in costs))]
    lines += ["parts as in the breakdown of a run's time; each with what earlier parts keep for the way back;"]
    lines += ["scene, rendering and graphs come on top"]
    return "\n".join(lines)
