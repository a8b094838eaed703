"""What a step of a preset costs on paper: its networks' operations and memory, counted in their exact shapes.

Nothing is computed: tensors have shapes and no values, so it runs anywhere in seconds and knows no GPU's habits.
Rendering, optimiser and everything that is bound by memory come on top.
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
from psd.distillation.gradient_estimate import PERTURBATIONS
from psd.distillation.methods import choose
from psd.distillation.preview import VIEWS
from psd.evaluation.speed.phases import split_into_halves
from psd.geometry.cameras import turntable_cameras
from psd.models.interfaces import Models
from psd.models.random_weights import random_models

TERA, GIGA = 1e12, 1e9
written_out = functional.scaled_dot_product_attention
RATES = (
    250,
    400,
    600,
)  # TFLOP/s that float16 networks of this size reach on GPUs of the H100's kind, from poor to good


class LiveMemoryMode(TorchDispatchMode):
    """Bytes of what the operations within it make, for as long as anybody holds it: ``now``, and at ``most``.

    What is there before is not counted, nor are views of it.  ``operations``: floating-point ones, of products and
    convolutions, by torch's formulas; its own `FlopCounterMode` would keep tensors alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.operations = 0
        self.held: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if formula := flop_registry.get(function.overloadpacket):
            self.operations += formula(*args, **(kwargs or {}), out_val=made)
        given = {value.untyped_storage()._cdata for value in tensors_in((args, kwargs))}
        for value in tensors_in(made):
            storage = value.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self.held:
                self.held[key] = weakref.ref(storage, lambda _, key=key, size=size: self.drop_storage(key, size))
                self.now += size
                self.most = max(self.most, self.now)
        return made

    def drop_storage(self, key: int, size: int) -> None:
        del self.held[key]
        self.now -= size


def flash_attention_meta(query: Tensor, key: Tensor, value: Tensor, *args: Any, **keywords: Any) -> Tensor:
    """Attention as a GPU's kernel does it; torch has none for tensors without values, and would write it out as
    products, which no GPU keeps.  What is masked, the texts', stays written out.

    It is patched in: torch leaves its own mode for such things (TorchFunctionMode) on the way back, where pieces are
    made again.
    """
    if args or keywords.get("attn_mask") is not None:
        return written_out(query, key, value, *args, **keywords)
    causal, scale = keywords.get("is_causal", False), keywords.get("scale")
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)[0]


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Cost:
    """Of one step, part by part.  ``negative`` is an update's; its TFLOP by the updates that a step is expected to
    have."""

    parts: dict[str, float]  # TFLOP
    peaks: dict[str, float]  # GB alive at most, networks apart; before ``negative`` with what the encoder keeps

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def step_cost(preset: Preset, models: Models, updates: float) -> Cost:
    """Of a step of ``preset`` as it stands (see `Preset.at` for late ones); ``models`` from `make_meta_models`.

    ``updates`` of the negative embedding a step (see `psd.evaluation.speed.phases`).  What is made again on the way
    back, as the networks take the preset's ``network_batch`` of pictures at a time, counts again.
    """
    set_max_batches(models, preset.network_batch)
    prior = models.prior
    rewards: list[Any] = [models.rewards[name] for name in preset.rewards]
    groups, views, noises = preset.groups, prior.views, choose.count_candidates(preset)
    seen = min(preset.reward_views or views, views)
    cameras = turntable_cameras(views)[torch.zeros(groups, dtype=torch.long)].to(prior.device)
    living, parts, peaks = LiveMemoryMode(), {}, {}

    def empty_tensor(*shape: int, grad: bool = False) -> Tensor:
        return torch.empty(shape, device="meta").requires_grad_(grad)

    @contextmanager
    def count_part(part: str) -> Iterator[None]:
        living.most, before = living.now, living.operations
        yield
        parts[part] = parts.get(part, 0.0) + (living.operations - before) / TERA
        peaks[part] = max(peaks.get(part, 0.0), living.most / GIGA)

    def run_backward(found: Tensor) -> None:
        if found.requires_grad:
            found.sum().backward()

    size, edge = prior.image_size, prior.encode(empty_tensor(1, views, 3, prior.image_size, prior.image_size)).shape[-1]
    text = prior.embed_prompt(preset.prompt).shape

    def run_unet(rows: int, grad: bool = False) -> Tensor:
        with torch.set_grad_enabled(grad):
            many = cameras[torch.zeros(rows, dtype=torch.long, device="meta")]
            embedding = empty_tensor(rows, *text, grad=grad)
            return prior.predict_noise(empty_tensor(rows, views, 4, edge, edge), 500, embedding, many)

    def empty_latents(rows: int, shown: int = seen, grad: bool = False) -> Tensor:
        return empty_tensor(rows, shown, 4, edge, edge, grad=grad)

    def score_images(images: Tensor) -> Tensor:
        """Every trained reward's image tower; texts are read once a run."""
        return torch.stack([reward.encode_image(images).sum() for reward in rewards]).sum()

    def score_latents(z0: Tensor) -> Tensor:
        """What the rewards make of latents."""
        with torch.set_grad_enabled(z0.requires_grad):
            return score_images(prior.decode(z0))

    def encode_images(rows: int, grad: bool = False) -> Tensor:
        with torch.set_grad_enabled(grad):
            return prior.encode(empty_tensor(rows, views, 3, size, size, grad=grad))

    def find_direction() -> None:
        """As `psd.distillation.methods.preference.steering_direction` finds a direction."""
        if preset.steer_by == "gradient":
            run_backward(score_images(prior.decode(empty_latents(groups, grad=True))))
        else:
            score_latents(empty_latents(2 * PERTURBATIONS * groups))

    def update_negative() -> None:
        """As `psd.distillation.negative.Negative.update` climbs the reward, and looks what came of it."""
        run_backward(score_latents(run_unet(groups, grad=True)[:, :seen]))
        for _ in range(2):
            run_unet(groups)
            score_latents(empty_latents(groups))

    conditions = 2 + (2 if preset.janus == "perp_neg" else 0)
    with living, patch.object(functional, written_out.__name__, flash_attention_meta):
        with count_part("encoder"):
            z0 = encode_images(groups, grad=True)
        with count_part("base"):
            run_unet(groups * noises * conditions)
        if preset.method == "psd" and preset.pair == "steered":
            with count_part("steered twin"):
                run_unet(groups)
            with count_part("reward's direction"):
                find_direction()
            with count_part("ranking"):
                score_latents(empty_latents(2 * groups))
        elif preset.optimises_reward:
            with count_part("ranking"):
                score_latents(empty_latents(noises * groups))
        with count_part("encoder"):
            run_backward(z0)
        del z0
        if preset.optimises_reward and preset.negative:
            with count_part("negative"):
                update_negative()
            parts["negative"] *= updates
    return Cost(parts, peaks)


def resident_memory(preset: Preset, models: Models) -> float:
    """GB of the networks that are on the device all the time; ``models`` from `make_meta_models`."""
    prior: Any = models.prior
    rewards: list[Any] = list({**models.rewards, **models.judges}.values())
    networks = [prior.unet, prior.vae, prior.decoder, prior.text_encoder, *(reward.network for reward in rewards)]
    away = [prior.text_encoder, *(part for reward in rewards for part in reward.text_modules())]
    away += [judge.network for judge in visiting_judges(preset, models)]
    waiting = (
        {id(value) for network in away for value in parameters_and_buffers(network)} if preset.network_batch else set()
    )
    found = {id(value): value for network in networks for value in parameters_and_buffers(network)}
    return sum(map(tensor_bytes, (value for key, value in found.items() if key not in waiting))) / GIGA


def preview_memory(preset: Preset, models: Models) -> float:
    """GB that the scores of a preview hold at most beside `resident_memory`: a judge that waits elsewhere comes whole."""
    set_max_batches(models, preset.network_batch)
    living, most, visiting = LiveMemoryMode(), 0, visiting_judges(preset, models)
    images = torch.empty(1, VIEWS, 3, preset.preview_size, preset.preview_size, device="meta")
    networks: list[Any] = [*models.rewards.values(), *models.judges.values()]
    for judge in networks:
        living.most = living.now
        with torch.no_grad(), living, patch.object(functional, written_out.__name__, flash_attention_meta):
            judge.encode_image(images)
        most = max(
            most,
            living.most + (sum(map(tensor_bytes, parameters_and_buffers(judge.network))) if judge in visiting else 0),
        )
    return most / GIGA


def visiting_judges(preset: Preset, models: Models) -> list[Any]:
    """The judges that wait in main memory between previews."""
    return [judge for name, judge in models.judges.items() if preset.network_batch and name not in models.rewards]


def parameters_and_buffers(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def tensor_bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def make_meta_models(preset: Preset, *, tiny: bool = False) -> Models:
    """All networks of ``preset``, none of which waits elsewhere: what has no values cannot move."""
    whole = preset.with_values({"network_batch": 0, "compile": False})
    return random_models(whole, torch.device("meta"), torch.float16, tiny=tiny)


def set_max_batches(models: Models, batch: int) -> None:
    """At most ``batch`` images pass each network at once from now on (0: all)."""
    networks: list[Any] = [models.prior, *models.rewards.values(), *models.judges.values()]
    for network in networks:
        network.take(batch)


def cost_table(preset: Preset) -> str:
    """Both halves of a run: operations, the pace that a GPU of several rates would keep by them alone, and memory.

    Where networks take few pictures at a time, also how much of it is for that.
    """
    models = make_meta_models(preset)
    found = split_into_halves(preset, len(models.prior.alpha_bar))

    def costs_of(**changes: Any) -> list[Cost]:
        late = {"groups": preset.late_groups}
        return [
            step_cost(preset.with_values({**changes, **(late if half.name == "late" else {})}), models, half.updates)
            for half in found
        ]

    costs = costs_of()
    names = list(dict.fromkeys(name for of_half in costs for name in of_half.parts))

    def format_row(name: str, values: Iterable[float]) -> str:
        return f"{name:20}" + "".join(f"{value:9.2f}" for value in values)

    columns = "".join(f"{half.name:>9}" for half in found)
    lines = [f"{'TFLOP a step':20}{columns}"]
    lines += [format_row(name, (of_half.parts.get(name, 0) for of_half in costs)) for name in names]
    lines += [format_row("total", (of_half.total for of_half in costs))]
    if preset.network_batch:
        whole = costs_of(network_batch=0)
        lines += [
            format_row("of it made again", (own.total - its.total for own, its in zip(costs, whole, strict=True)))
        ]
    mean = sum(half.share * of_half.total for half, of_half in zip(found, costs, strict=True))
    paced = "".join(f"{name + ', it/s':>13}" for name in [*(half.name for half in found), "run"])
    lines += ["", f"{'networks alone at':20}{paced}"]
    for rate in RATES:
        paces = [rate / of_half.total for of_half in costs] + [rate / mean]
        lines.append(f"{rate} TFLOP/s".ljust(20) + "".join(f"{pace:13.1f}" for pace in paces))
    there, shown = resident_memory(preset, models), preview_memory(preset, models)
    lines += ["", f"{'GB at most':20}{columns}", format_row("networks", [there] * len(costs))]
    lines += [format_row(name, (of_half.peaks.get(name, 0) for of_half in costs)) for name in names]
    lines += [format_row("scores of a preview", [shown] * len(costs))]
    lines += [format_row("networks and most", (there + max(shown, *of_half.peaks.values()) for of_half in costs))]
    lines += ["of a step all but the negative's with what the encoder keeps for its way back, which comes before it;"]
    lines += ["scene, rendering and graphs come on top"]
    return "\n".join(lines)
