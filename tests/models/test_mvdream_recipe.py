"""What the recipes of large models add to a run: late values, background, light, view words, fewer reward views."""

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.config.settings import RadianceSettings
from psd.distillation import sampling
from psd.distillation.events import Stepped
from psd.distillation.formulas import perpendicular_part
from psd.distillation.methods import choose, denoising
from psd.geometry.cameras import sample_orbits, turntable_cameras
from psd.models.prior import view_prompts
from psd.models.prior.view_prompts import ViewPrompts
from psd.scenes.background import spherical_harmonics
from psd.scenes.fields.hash import HashField
from psd.scenes.interfaces import Light
from psd.scenes.radiance import RadianceScene
from psd.scenes.volume_rendering import orientation_loss
from tests.support.toy import QuadraticReward, ToyPrior, ToyScene, make_models, make_preset, make_step, run


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------------------- late values


def test_late_values_hold_from_their_share_of_the_run_on() -> None:
    preset = make_preset(
        groups=3, render_size=8, stages=[{"share": 0.5, "groups": 2}, {"share": 0.5, "render_size": 16}]
    )
    assert (preset.at(0.49).groups, preset.at(0.49).render_size) == (2, 8)
    assert (preset.at(0.5).groups, preset.at(0.5).render_size) == (3, 16) and preset.at(1.0) == preset.at(0.5)
    plain = make_preset()
    assert plain.at(0.999) is plain and plain.stage_at(0.25) == (0, 0.25)


def test_stages_come_in_order_each_with_its_own_progress() -> None:
    thirds = make_preset(stages=[{"share": 1 / 3}] * 3)
    found = [thirds.stage_at(step / 9) for step in range(10)]
    assert [index for index, _ in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert [done for _, done in found] == pytest.approx([0, 1 / 3, 2 / 3] * 3 + [1], abs=1e-9)


def test_a_run_changes_its_groups_on_the_way() -> None:
    prior = ToyPrior()
    preset = make_preset(
        steps=4, groups=2, stages=[{"share": 0.5}, {"share": 0.5, "groups": 1}], negative=False, method="sds"
    )
    events = list(run(preset, make_models(prior=prior)))
    assert len([event for event in events if isinstance(event, Stepped)]) == 4
    assert prior.calls == [16, 16, 8, 8]  # images of two conditions: 2 groups of 4, then 1


def test_the_orientation_term_grows_over_its_stage() -> None:
    grows, stays = {"scene.weight_orientation": [10, 1000]}, {"scene": {"weight_orientation": [1000, 1000]}}
    preset = make_preset(stages=[{"share": 0.5, **grows}, {"share": 0.5, **stays}])

    def weights(progress: float) -> dict[str, float]:
        return preset.at(progress).scene.regulariser_weights(preset.stage_at(progress)[1])

    assert [weights(x)["orientation"] for x in (0, 0.25, 0.5, 1)] == pytest.approx([10, 505, 1000, 1000])
    assert make_preset(scene={"weight_orientation": [3, 3]}).scene.regulariser_weights()["orientation"] == 3
    assert isinstance(preset.scene, RadianceSettings) and weights(0.0)["tv"] == preset.scene.weight_tv


# ----------------------------------------------------------------------------------------------------------- background


def test_harmonics_are_orthonormal_over_the_sphere() -> None:
    directions = torch.nn.functional.normalize(torch.randn(200_000, 3, generator=seeded(), dtype=torch.float64), dim=-1)
    values = spherical_harmonics(directions)
    gram = 4 * torch.pi * values.T @ values / len(values)
    torch.testing.assert_close(gram, torch.eye(9, dtype=torch.float64), atol=0.02, rtol=0)


def test_learned_background_stands_behind_its_groups_only_and_learns() -> None:
    preset = make_preset(scene={"background": "network", "blob_density": 0.0, "ray_samples": 16})
    scene = RadianceScene(preset)
    cameras = turntable_cameras(2)[torch.tensor([0, 0])]
    red = torch.tensor([[1.0, 0, 0]]).expand(2, 3)
    render = scene.render(cameras, 8, background=red, learned=torch.tensor([False, True]))
    corner = render.rgb[:, :, :, 0, 0]
    torch.testing.assert_close(corner[0], red)
    assert scene.backdrop is not None and (corner[1] - 0.5).abs().max() < 0.3
    render.rgb[0].sum().backward(retain_graph=True)
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in scene.backdrop.parameters())
    render.rgb[1].sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in scene.backdrop.parameters())
    assert len(scene.parameter_groups(preset)) == 3

    other = RadianceScene(preset.with_values({"seed": 5}))
    other.load_state(scene.state())
    again = other.render(cameras, 8, background=red, learned=torch.tensor([False, True]))
    assert torch.equal(again.rgb, render.rgb)


def test_a_learned_background_takes_the_place_of_the_greys() -> None:
    preset = make_preset(scene={"background": "network"}, random_background=0.5, groups=16)
    drawn = [sampling.draw_background(preset, seeded(i))[1] for i in range(40)]
    share = torch.stack([learned for learned in drawn if learned is not None]).float().mean()
    assert abs(share - 0.5) < 0.06
    colour, learned = sampling.draw_background(make_preset(groups=16), seeded())
    assert learned is None
    assert torch.equal(colour, sampling.draw_background(preset, seeded())[0])  # the same draws


# ---------------------------------------------------------------------------------------------------------------- light


@torch.no_grad()
def test_light_falls_as_lambert_says() -> None:
    """A hard ball lit from the camera: bright in the middle, dark at the rim; lit from behind: ambient only."""
    preset = make_preset(scene={"blob_density": 40.0, "ray_samples": 96, "grid_size": 48})
    scene = RadianceScene(preset)
    cameras = turntable_cameras(1)
    place = torch.nn.functional.normalize(cameras.c2w[..., :3, 3], dim=-1) * 50

    def lit(position: Tensor, ambient: float, white: float = 0.0) -> Tensor:
        light = Light(position, torch.tensor([ambient]), torch.tensor([white]))
        return scene.render(cameras, 24, background=torch.zeros(1, 3), light=light).rgb[0, 0].mean(0)

    plain = scene.render(cameras, 24, background=torch.zeros(1, 3)).rgb[0, 0].mean(0)
    torch.testing.assert_close(lit(place, 1.0), plain)
    front, back = lit(place, 0.1), lit(-place, 0.1)
    assert front[12, 12] > 0.95 * plain[12, 12]
    inside = plain > 0.4
    assert (front / plain)[inside].min() < 0.75
    torch.testing.assert_close(back[12, 12], 0.1 * plain[12, 12], atol=1e-3, rtol=0.02)
    assert lit(place, 0.1, white=1.0)[12, 12] == pytest.approx(2 * front[12, 12].item(), rel=0.02)  # grey is half


def angles_deg(a: Tensor, b: Tensor) -> Tensor:
    return torch.rad2deg(torch.cosine_similarity(a, b, dim=-1).clamp(-1, 1).acos())


def test_lights_stand_beside_the_camera_as_in_mvdream() -> None:
    """10, 50 and 90 % of the angles between camera and light are 8, 22 and 52 degrees with MVDream's cameras."""
    cameras = sample_orbits(
        20_000, 1, elevation_deg=(0, 30), fovy_deg=(15, 60), distance_factor=(0.8, 1), generator=seeded()
    )
    light = sampling.draw_light(cameras, seeded(1))
    distance = light.position.norm(dim=-1)
    assert 0.8 <= distance.min() and distance.max() <= 1.5
    angles = angles_deg(light.position, cameras.c2w[..., :3, 3]).flatten()
    found = torch.quantile(angles, torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(found, torch.tensor([8.0, 22.0, 52.0]), atol=1.0, rtol=0)
    shaded = light.ambient < 1
    assert abs((~shaded).float().mean() - 0.25) < 0.02
    torch.testing.assert_close(
        light.ambient[shaded].quantile(torch.tensor([0.1, 0.9])), torch.tensor([0.1, 0.9]), atol=0.02, rtol=0
    )
    assert not (light.white.bool() & ~shaded).any() and abs(light.white[shaded].mean() - 0.5) < 0.02


def test_the_views_of_an_orbit_share_their_draw_of_the_light() -> None:
    cameras, generator = turntable_cameras(2)[torch.zeros(8, dtype=torch.long)], seeded(4)
    light = sampling.draw_light(cameras, seeded(4))
    away = torch.nn.functional.normalize(cameras.c2w[..., :3, 3] + torch.randn(8, 1, 3, generator=generator), dim=-1)
    distance = torch.lerp(torch.tensor(0.8), torch.tensor(1.5), torch.rand(8, 1, 1, generator=generator))
    unshaded, white, share = torch.rand(3, 8, generator=generator)
    torch.testing.assert_close(light.position, away * distance)
    assert light.ambient.tolist() == pytest.approx([1.0 if u < 0.25 else float(s) for u, s in zip(unshaded, share)])
    assert light.white.tolist() == [float(u >= 0.25 and w < 0.5) for u, w in zip(unshaded, white)]


def test_orientation_turns_normals_and_thins_nothing() -> None:
    """Its weights are constants, and it is a mean over the pixels that see something."""
    weights = torch.rand(6, 5, generator=seeded(), requires_grad=True)
    normals = torch.nn.functional.normalize(torch.randn(6, 5, 3, generator=seeded(1)), dim=-1).requires_grad_()
    directions = torch.nn.functional.normalize(torch.randn(6, 3, generator=seeded(2)), dim=-1)
    orientation_loss(weights, normals, directions).sum().backward()
    assert weights.grad is None and normals.grad is not None and normals.grad.abs().max() > 0

    near, far = (turntable_cameras(1, distance_factor=factor) for factor in (1.0, 2.0))
    preset = make_preset(scene={"blob_density": 40.0, "ray_samples": 48, "weight_orientation": [1, 1]})
    scene = RadianceScene(preset)
    with torch.no_grad():
        full, small = (
            scene.render(c, 48, background=torch.ones(1, 3)).regularisers["orientation"] for c in (near, far)
        )
    torch.testing.assert_close(full, small, rtol=0.25, atol=0)  # a quarter of the pixels, the same mean over them


def test_networks_of_the_scene_start_as_linear_layers_do() -> None:
    field = HashField(10.0, seed=0, device="cpu")
    for network in (field.density_network, field.colour_network):
        for layer in (network[0], network[2]):
            weight = cast(nn.Linear, layer).weight
            bound = weight.shape[1] ** -0.5
            assert 0.9 * bound < weight.abs().max() <= bound


def test_a_shaded_run_lights_late_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    lit, drawn = [], sampling.draw_light
    monkeypatch.setattr("psd.distillation.sampling.draw_light", lambda *given: lit.append(1) or drawn(*given))
    preset = make_preset(steps=4, method="sds", stages=[{"share": 0.75}, {"share": 0.25, "shading": True}])
    list(run(preset, make_models()))
    assert len(lit) == 1


# ------------------------------------------------------------------------------------------------------ view by view


class Listener(ToyPrior):
    """A single-view prior that knows the words for sides."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype, views=1)

    def embed_prompt(self, prompt: str) -> Tensor:
        side = next((i for i, name in enumerate(view_prompts.SIDES) if f"{name} view" in prompt), -1)
        return super().embed_prompt("red cube") + (side + 1)


def at(azimuth: list[float], elevation: float = 10.0):
    cameras = turntable_cameras(1)[torch.zeros(len(azimuth), dtype=torch.long)]
    return type(cameras)(
        cameras.c2w, cameras.fovy_deg, torch.tensor(azimuth, dtype=torch.float32)[:, None],
        torch.full((len(azimuth), 1), float(elevation)), cameras.distance,
    )  # fmt: skip


def test_the_prompt_names_the_side_that_the_camera_sees() -> None:
    conditions = ViewPrompts(make_preset(janus="views"), Listener())
    found = conditions.at(at([0.0, 44.0, 46.0, 134.0, 136.0, 180.0, 270.0, 359.0])).embedding
    names = [view_prompts.SIDES[round((e - conditions.plain).mean().item()) - 1] for e in found]
    assert names == ["front", "front", "side", "side", "back", "back", "side", "front"]
    high = conditions.at(at([0], elevation=70)).embedding
    assert torch.equal(high[0], conditions.sides["overhead"])


def test_perp_neg_turns_the_prompt_with_the_camera() -> None:
    conditions = ViewPrompts(make_preset(janus="perp_neg"), Listener())
    sides = conditions.sides
    found = conditions.at(at([0, 45, 90, 180, -90]))
    for row, wanted in zip(
        found.embedding,
        (sides["front"], (sides["front"] + sides["side"]) / 2, sides["side"], sides["back"], sides["side"]),
        strict=True,
    ):
        torch.testing.assert_close(row, wanted)
    assert all((w <= 1e-3).all() for w in found.weights)
    assert found.weights[0][0].abs() < 1e-3  # at the front, the front does not push
    assert found.weights[1][0] == pytest.approx(-1.574)  # the side does
    assert torch.equal(found.away[1][3], sides["front"][None][0])  # at the back, the front does


def test_perpendicular_is_what_it_says() -> None:
    a, b = (torch.randn(2, 3, 1, 4, 5, 5, generator=seeded(i), dtype=torch.float64) for i in (0, 1))
    p = perpendicular_part(a, b)
    assert ((p * b).sum((-3, -2, -1)).abs() < 1e-12).all()
    torch.testing.assert_close(perpendicular_part(p, b), p)
    torch.testing.assert_close(perpendicular_part(3 * b, b), torch.zeros_like(b), atol=1e-12, rtol=0)


def test_perp_neg_enters_guidance_and_nothing_else() -> None:
    prior = Listener(torch.float64)
    step = make_step(candidates=1, prior=prior, method="sds", janus="perp_neg")
    plain = denoising.predict_candidates(step)
    condition = ViewPrompts(step.preset, prior).at(step.cameras)
    condition = view_prompts.PromptEmbedding(
        condition.embedding.double(), tuple(x.double() for x in condition.away),
        tuple(x.double() for x in condition.weights),
    )  # fmt: skip
    turned = denoising.predict_candidates(replace(step, condition=condition))
    assert plain.away is None and turned.away is not None
    by_hand = turned.noise_pred_n + 5 * (turned.noise_pred_c + turned.away - turned.noise_pred_n)
    torch.testing.assert_close(turned.guided_noise_pred(5.0), by_hand)
    main = turned.noise_pred_c - turned.noise_pred_n
    assert ((turned.away * main).sum((-3, -2, -1)).abs() < 1e-9).all()


@pytest.mark.parametrize("kind", ["views", "perp_neg"])
@pytest.mark.parametrize("method", ["psd", "sds", "dreamdpo"])
def test_single_view_runs_go_with_each_kind(kind: str, method: str) -> None:
    preset = make_preset(steps=3, groups=2, janus=kind, method=method, negative_every=1)
    events = list(run(preset, make_models(prior=Listener())))
    assert len([event for event in events if isinstance(event, Stepped)]) == 3


def test_view_words_are_refused_where_the_prior_sees_all_views() -> None:
    with pytest.raises(PresetError, match="janus=none"):
        choose.check_models(make_preset(janus="views"), make_models())


# --------------------------------------------------------------------------------------------------------- reward views


class Watcher(QuadraticReward):
    seen: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __call__(self, images: Tensor, prompt: str) -> Tensor:
        self.seen.append(images.shape[1])
        return super().__call__(images, prompt)


@pytest.mark.parametrize("settings", [{"pair": "steered"}, {"pair": "random"}, {"method": "best_of_n"},
                                      {"method": "rewardsds"}])  # fmt: skip
def test_rewards_see_as_many_views_as_asked(settings: dict) -> None:
    watcher = Watcher()
    noises = choose.count_candidates(make_preset(**settings))
    step = make_step(candidates=noises, rewards={"quadratic": watcher}, reward_views=2, **settings)
    with torch.no_grad():
        found = choose.choose_method(step.preset).function(step)
    assert set(watcher.seen) == {2}
    assert found.gradient.shape == step.z0.shape and found.gradient.abs().amax((0, 2, 3, 4)).min() > 0


@pytest.mark.parametrize("views, few, wanted", [(4, 2, [0, 2]), (4, 1, [0]), (6, 3, [0, 2, 4]), (4, 3, [0, 1, 2])])
def test_rewards_see_views_at_equal_distances(views: int, few: int, wanted: list[int]) -> None:
    """By a slice where they can be: on a GPU a list of indices is copied there, which waits."""
    seen = make_step(candidates=1, prior=ToyPrior(torch.float64, views), reward_views=few).reward_view_index
    assert torch.arange(views)[seen].tolist() == wanted
    assert isinstance(seen, slice) == (views % few == 0)


def test_all_views_are_the_default_and_ranking_single_views_needs_them() -> None:
    assert make_step(candidates=1).reward_view_index == slice(None)
    assert make_step(candidates=1, reward_views=4).reward_view_index == slice(None)
    with pytest.raises(PresetError, match="reward_views=1"):
        choose.check_models(make_preset(reward_views=1, method="dreamdpo"), make_models())


def test_weight_decay_is_decoupled() -> None:
    """Without a gradient a parameter shrinks by lr x decay, whatever Adam's moments are."""
    from psd.distillation.state import State

    preset = make_preset(weight_decay=0.1, scene={"colour_lr": 0.5})
    state = State.create(preset, make_models(), ToyScene)
    (parameter,) = state.optimiser.param_groups[0]["params"]
    before = parameter.detach().clone()
    parameter.grad = torch.zeros_like(parameter)
    state.optimiser.step()
    torch.testing.assert_close(parameter.detach(), before * (1 - 0.5 * 0.1))
    assert isinstance(preset, Preset)
