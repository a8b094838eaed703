"""What a step of a preset costs on paper: the networks' floating-point operations, counted in their exact shapes.

Nothing is computed: tensors have shapes and no values, so it runs anywhere in seconds and knows no GPU's habits.
Rendering, optimiser and everything that is bound by memory come on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from psd import methods
from psd.cameras import turntable
from psd.halves import halves
from psd.preset import Preset
from psd.protocols import Models
from psd.randomised import random_models

TERA = 1e12
RATES = (
    250,
    400,
    600,
)  # TFLOP/s that float16 networks of this size reach on GPUs of the H100's kind, from poor to good


@dataclass(frozen=True)
class Cost:
    """TFLOP of one step, part by part; ``negative`` is an update's by the updates that a step is expected to have."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def cost(preset: Preset, models: Models, updates: float) -> Cost:
    """Of a step of ``preset`` as it stands (see `Preset.at` for late ones); ``models`` from `on_meta`.

    ``updates`` of the negative embedding a step (see `psd.halves`).  What is made again on the way back, as the
    networks take the preset's ``network_batch`` of pictures at a time, counts again.
    """
    take(models, preset.network_batch)
    prior = models.prior
    rewards: list[Any] = [models.rewards[name] for name in preset.rewards]
    groups, views, noises = preset.groups, prior.views, methods.candidates(preset)
    seen = min(preset.reward_views or views, views)
    cameras = turntable(views)[torch.zeros(groups, dtype=torch.long)].to(prior.device)

    def empty(*shape: int, grad: bool = False) -> Tensor:
        return torch.empty(shape, device="meta").requires_grad_(grad)

    def tera(call: Callable[[], Tensor]) -> float:
        with FlopCounterMode(display=False) as counter:
            found = call()
            if found.requires_grad:
                found.sum().backward()
        return counter.get_total_flops() / TERA

    size, edge = prior.image_size, prior.encode(empty(1, views, 3, prior.image_size, prior.image_size)).shape[-1]
    text = prior.embed(preset.prompt).shape

    def unet(rows: int, grad: bool = False) -> float:
        with torch.set_grad_enabled(grad):
            many = cameras[torch.zeros(rows, dtype=torch.long, device="meta")]
            embedding = empty(rows, *text, grad=grad)
            return tera(lambda: prior.predict_noise(empty(rows, views, 4, edge, edge), 500, embedding, many))

    def decode(rows: int, shown: int, grad: bool = False) -> float:
        with torch.set_grad_enabled(grad):
            return tera(lambda: prior.decode(empty(rows, shown, 4, edge, edge, grad=grad)))

    def read(rows: int, grad: bool = False) -> float:
        """Every trained reward's image tower; texts are read once a run."""
        with torch.set_grad_enabled(grad):
            images = empty(rows, seen, 3, size, size, grad=grad)
            return sum(tera(lambda r=r: r.encode_image(images)) for r in rewards)

    def look(rows: int, grad: bool = False) -> float:
        """What the rewards make of latents."""
        return decode(rows, seen, grad) + read(rows, grad)

    def encode(rows: int, grad: bool = False) -> float:
        return tera(lambda: prior.encode(empty(rows, views, 3, size, size, grad=grad)))

    def steering() -> float:
        """As `psd.methods.steering` finds a direction."""
        if preset.steer_by != "gradient":
            return look(2 * preset.steer_perturbations * groups)
        copies = read(groups * preset.reward_copies, grad=True)
        if preset.steer_through == "decoder":
            return decode(groups, seen, grad=True) + copies
        return decode(groups, views) + copies + encode(2 * groups)

    # the shared prediction under the negative comes once a group, all others for every noise
    others = 1 + (2 if preset.janus == "perp_neg" else 0)
    unconditional = groups if preset.shared_unconditional else groups * noises
    parts = {"encoder": encode(groups, grad=True)}
    parts["base"] = unet(groups * noises * others + unconditional)
    if preset.method == "psd" and preset.reading == "S":
        twins = (2 if preset.steer_both else 1) * (1 if preset.steer_conditional else 2)
        parts["steered twin"] = unet(groups * twins)
        parts["reward's direction"] = steering()
        parts["ranking"] = look(2 * groups)
    elif preset.optimises_reward:
        parts["ranking"] = look(noises * groups)
    if preset.method == "psd" and preset.negative:
        update = unet(groups, grad=True) + look(groups, grad=True) + 2 * (unet(groups) + look(groups))
        parts["negative"] = update * updates
    return Cost(parts)


def on_meta(preset: Preset, *, tiny: bool = False) -> Models:
    """All networks of ``preset`` but the judges, none of which waits elsewhere: what has no values cannot move."""
    whole = preset.changed({"network_batch": 0, "compile": False, "judges": []})
    return random_models(whole, torch.device("meta"), torch.float16, tiny=tiny)


def take(models: Models, batch: int) -> None:
    """At most ``batch`` images pass each network at once from now on (0: all)."""
    networks: list[Any] = [models.prior, *models.rewards.values()]
    for network in networks:
        network.take(batch)


def table(preset: Preset) -> str:
    """Both halves of a run, and the pace that a GPU of several rates would keep by arithmetic alone.

    Where networks take few pictures at a time, also how much of it is for that.
    """
    models = on_meta(preset)
    found = halves(preset, len(models.prior.alpha_bar))

    def costs_of(**changes: Any) -> list[Cost]:
        late = {"groups": preset.late_groups}
        return [
            cost(preset.changed({**changes, **(late if half.name == "late" else {})}), models, half.updates)
            for half in found
        ]

    costs = costs_of()
    names = list(dict.fromkeys(name for of_half in costs for name in of_half.parts))
    lines = [f"{'TFLOP a step':20}" + "".join(f"{half.name:>9}" for half in found)]
    lines += [f"{name:20}" + "".join(f"{of_half.parts.get(name, 0):9.2f}" for of_half in costs) for name in names]
    lines += [f"{'total':20}" + "".join(f"{of_half.total:9.2f}" for of_half in costs)]
    if preset.network_batch:
        again = [of_half.total - whole.total for of_half, whole in zip(costs, costs_of(network_batch=0), strict=True)]
        lines += [f"{'of it made again':20}" + "".join(f"{tera:9.2f}" for tera in again)]
    lines += [""]
    mean = sum(half.share * of_half.total for half, of_half in zip(found, costs, strict=True))
    columns = [*(half.name for half in found), "run"]
    lines += [f"{'networks alone at':20}" + "".join(f"{name + ', it/s':>13}" for name in columns)]
    for rate in RATES:
        paces = [rate / of_half.total for of_half in costs] + [rate / mean]
        lines.append(f"{rate} TFLOP/s".ljust(20) + "".join(f"{pace:13.1f}" for pace in paces))
    return "\n".join(lines)
