"""Tiny seeded stand-ins with the real shapes: a prior with text, cameras and joint views, rewards, a voxel scene.

`make_step` and `make_models` put them together; everything runs in float64 where a law is checked to many digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.config.settings import RadianceSettings, SceneSettings
from psd.distillation.events import Event
from psd.distillation.formulas import GAP_DECAY
from psd.distillation.gap_scale import GapScale
from psd.distillation.run import run as distil
from psd.distillation.step import StepContext
from psd.geometry.cameras import Cameras, camera_rays, sample_orbits
from psd.geometry.mesh import Mesh
from psd.models.interfaces import Models
from psd.models.prior.view_prompts import PromptEmbedding
from psd.scenes.extract import extract_mesh
from psd.scenes.interfaces import Light, MakeScene, MeshSettings, Render

WORDS = ("red", "blue", "cube", "sphere", "low", "quality", "blurry", "shiny")
POSITIONS, WIDTH = 4, 6  # l, d
SIZE = 8  # px; latents are 3 x 4 x 4


def schedule(total: int = 1000) -> Tensor:
    """Stable Diffusion's scaled-linear schedule, float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, total, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


class ToyPrior:
    """A shallow network: pixels, the mean over views, text and camera.  Parameters do ask for gradients, so that a
    gradient that reaches one is seen."""

    views = 4
    image_size = SIZE
    latent_clamp: float | None = None

    def __init__(self, dtype: torch.dtype = torch.float32, views: int = 4) -> None:
        generator = torch.Generator().manual_seed(7)

        def weight(*shape: int, scale: float = 0.3) -> nn.Parameter:
            return nn.Parameter((torch.randn(*shape, generator=generator) * scale).to(dtype))

        self.views, self.dtype = views, dtype
        self.device = torch.device("cpu")
        self.alpha_bar = schedule()
        self.levels = len(self.alpha_bar)
        self.weights = {
            "own": weight(3, 3), "others": weight(3, 3), "text": weight(3, WIDTH), "gain": weight(3, WIDTH),
            "camera": weight(3, 2), "mix": weight(3, 3, scale=0.2),
        }  # fmt: skip
        self.weights["mix"].data += torch.eye(3)
        self.format_table = torch.randn(len(WORDS) + 1, WIDTH, generator=generator).to(dtype)
        self.calls: list[int] = []  # images per network call

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        signal = float(self.alpha_bar[t])
        return math.sqrt(signal), math.sqrt(1 - signal)

    def encode(self, images: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(images.flatten(0, 1).to(self.dtype), 2).unflatten(0, images.shape[:2])
        return torch.einsum("oc,bvchw->bvohw", self.weights["mix"].detach(), 2 * small - 1)

    def decode(self, z0: Tensor) -> Tensor:
        small = (torch.einsum("oc,bvchw->bvohw", torch.linalg.inv(self.weights["mix"]), z0) + 1) / 2
        return small.repeat_interleave(2, -1).repeat_interleave(2, -2)

    def embed_prompt(self, prompt: str) -> Tensor:
        if unknown := set(prompt.split()) - set(WORDS):
            raise PresetError(f"unknown words: {', '.join(sorted(unknown))}")
        return self.format_table[[*map(WORDS.index, prompt.split()), *[len(WORDS)] * POSITIONS][:POSITIONS]]

    def tokens(self, prompt: str) -> list[str]:
        return [*prompt.split(), *["<pad>"] * POSITIONS][:POSITIONS]

    def word_embeddings(self) -> tuple[list[str], Tensor]:
        return list(WORDS), self.format_table[:-1]

    def predict_noise(self, z_t: Tensor, t: int, embedding: Tensor, cameras: Cameras) -> Tensor:
        assert z_t.shape[:2] == cameras.fovy_deg.shape and len(embedding) == len(z_t)
        self.calls.append(z_t.shape[0] * z_t.shape[1])
        w, level = self.weights, 1 + t / 1000
        azimuth = torch.deg2rad(cameras.azimuth_deg).to(self.dtype)
        place = torch.stack([azimuth.cos(), azimuth.sin()], -1) @ w["camera"].T
        text = (embedding.mean(1) @ w["text"].T)[:, None]
        gain = 1 + torch.tanh(embedding.mean(1) @ w["gain"].T)[:, None, :, None, None]
        own = torch.einsum("oc,bvchw->bvohw", w["own"], z_t)
        others = torch.einsum("oc,bchw->bohw", w["others"], z_t.mean(1))[:, None]
        return level * torch.tanh(gain * (own + others) + (place + text)[..., None, None])


class QuadraticReward:
    """-strength x mean squared distance to a target colour per view: smooth, with its best image known."""

    differentiable = True

    def __init__(
        self, name: str = "quadratic", *, colour: tuple[float, float, float] = (0.9, 0.2, 0.1), scale: float = 0.5
    ):
        self.name, self.colour, self.scale = name, colour, scale

    def __call__(self, images: Tensor, prompt: str) -> Tensor:
        target = images.new_tensor(self.colour)[:, None, None]
        return -10 * (images - target).square().mean((-3, -2, -1))


class BlackBox:
    """Coarse counts of red pixels, in numpy on the way: nothing to differentiate."""

    name, scale, differentiable = "black box", 1.0, False

    def __call__(self, images: Tensor, prompt: str) -> Tensor:
        pixels = images.detach().numpy()
        return torch.from_numpy((pixels[:, :, 0] > pixels[:, :, 1:].mean(2)).mean((-2, -1))).to(images)


class ConstantReward:
    """Likes everything equally."""

    name, scale, differentiable = "constant", 1.0, True

    def __call__(self, images: Tensor, prompt: str) -> Tensor:
        return 0 * images.mean((-3, -2, -1)) + 3.0


class ToyScene:
    """A voxel grid of density and colour, marched with eight samples a ray."""

    notes: tuple[str, ...] = ()

    def __init__(self, preset: Preset, device: torch.device | None = None) -> None:
        axis = torch.linspace(-1, 1, 8)
        radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
        assert isinstance(preset.scene, RadianceSettings)
        self.grid = nn.Parameter(
            torch.cat([preset.scene.blob_density * (1 - radius / 0.8)[None], torch.zeros(3, 8, 8, 8)])
        )
        self.progress = -1.0
        self.steps_seen = 0  # by `after_step`

    def parameter_groups(self, preset: Preset) -> list[dict]:
        assert isinstance(preset.scene, RadianceSettings)
        return [{"name": "grid", "params": [("grid", self.grid)], "lr": preset.scene.colour_lr}]

    def look_up(self, points: Tensor) -> Tensor:
        found = nn.functional.grid_sample(
            self.grid[None], points.float().flip(-1)[None, None, None], align_corners=True
        )
        return found[0, :, 0, 0].T

    def density(self, points: Tensor) -> Tensor:
        return nn.functional.softplus(self.look_up(points)[:, 0]) * (points.norm(dim=-1) < 1)

    def colour(self, points: Tensor) -> Tensor:
        return self.look_up(points)[:, 1:].sigmoid()

    def render(
        self,
        cameras: Cameras,
        size: int,
        *,
        background: Tensor,
        generator: torch.Generator | None = None,
        normals=False,
        learned: Tensor | None = None,
        light: Light | None = None,
    ) -> Render:
        shape = (cameras.groups, cameras.views, size, size)
        jitter = None if generator is None else torch.rand(*shape, 2, generator=generator)
        origins, directions = camera_rays(cameras, size, jitter=jitter)
        depth = cameras.distance[..., None, None, None] + torch.linspace(-0.9, 0.9, 8)
        points = (origins[..., None, :] + depth[..., None] * directions[..., None, :]).reshape(-1, 3)
        alpha = 1 - torch.exp(-self.density(points).view(*shape, 8) * 0.25)
        weights = alpha * torch.cat([torch.ones(*shape, 1), (1 - alpha).cumprod(-1)[..., :-1]], -1)
        opacity = weights.sum(-1)[:, :, None]
        rgb = torch.einsum("bvhws,bvhwsc->bvchw", weights, self.colour(points).view(*shape, 8, 3))
        behind = background[:, None, :, None, None] * (1 - opacity)
        return Render(rgb + behind, opacity, depth=opacity, regularisers={"opacity": opacity.mean()})

    def regularisers(self) -> dict[str, Tensor]:
        return {"tv": self.grid.diff(dim=1).square().mean()}

    def advance(self, progress: float, settings: SceneSettings | None = None) -> None:
        self.progress = progress

    def after_step(self, optimiser: torch.optim.Optimizer) -> None:
        self.steps_seen += 1

    def extract_mesh(self, settings: MeshSettings) -> Mesh:
        return extract_mesh(
            self, resolution=settings.resolution, faces=settings.faces, threshold=settings.threshold,
            texture=settings.texture,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        return {"grid": self.grid}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            self.grid.copy_(state["grid"])


BASE = {
    "prompt": "red cube", "negative_prompt": "low quality", "steps": 6, "rewards": {"quadratic": 1.0}, "judges": [],
    "render_size": SIZE, "preview_size": 16, "preview_every": 3, "mesh_resolution": 24, "mesh_faces": 400,
    "negative_every": 2, "negative_t_max": 1.0,
}  # fmt: skip


def make_preset(**values: object) -> Preset:
    return Preset.make({**BASE, **values})


@dataclass(frozen=True)
class ToyModels(Models):
    """Models, with the scene that `run` of this module makes."""

    scene: MakeScene = ToyScene


def run(preset: Preset, models: Models, **keywords: Any) -> Iterator[Event]:
    """The algorithm with the toy scene, or with the one that ``models`` names."""
    return distil(preset, models, make_scene=getattr(models, "scene", ToyScene), **keywords)


def make_models(rewards: Mapping[str, object] | None = None, prior: ToyPrior | None = None) -> ToyModels:
    return ToyModels(
        priors={Preset.model_fields["prior"].default: prior or ToyPrior()},  # type: ignore[dict-item]
        rewards=rewards or {"quadratic": QuadraticReward()},  # type: ignore[arg-type]
        judges={"judge": QuadraticReward("judge", colour=(0.8, 0.1, 0.1))},
    )


def make_step(
    *,
    candidates: int,
    groups: int = 2,
    t: int = 400,
    seed: int = 0,
    rewards: Mapping[str, object] | None = None,
    prior: ToyPrior | None = None,
    warm: bool = True,
    **values: object,
) -> StepContext:
    """A float64 step of the toy prior at a random image; ``warm`` gives every reward a running mean of 0.05."""
    prior = prior or ToyPrior(torch.float64)
    rewards = rewards or {"quadratic": QuadraticReward()}
    preset = make_preset(groups=groups, **{"rewards": dict.fromkeys(rewards, 1.0), **values})
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(groups, prior.views, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    images.requires_grad_()
    z0 = prior.encode(images)
    noise = torch.randn(candidates, *z0.shape, generator=generator, dtype=torch.float64)
    cameras = sample_orbits(  # each group from elsewhere
        groups, prior.views, elevation_deg=(0, 30), fovy_deg=(40, 40), distance_factor=(1, 1), generator=generator
    )
    gap_scale = GapScale(GAP_DECAY, prior.levels)
    if warm:
        gap_scale.update(dict.fromkeys(rewards, 0.05), t)
    return StepContext(
        preset=preset, prior=prior, rewards=rewards, gap_scale=gap_scale, cameras=cameras,  # type: ignore[arg-type]
        images=images.detach(), z0=z0.detach(), noise=noise, t=t, progress=0.2,
        condition=PromptEmbedding(prior.embed_prompt("red cube")), negative=prior.embed_prompt("low quality") + 0.1,
        pull_back=lambda gradient: torch.autograd.grad(z0, images, gradient, retain_graph=True)[0],
        generator=generator,
    )  # fmt: skip
