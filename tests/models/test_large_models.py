"""Tiny random checkpoints in each released layout, through the loaders that the large ones take."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertTokenizer, CLIPModel, CLIPTokenizer

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.embedded.captions.grammar import vocabulary
from psd.embedded.training.prior import build_tokenizer
from psd.evaluation.experiments import run
from psd.evaluation.experiments.suite import SUITES, Suite, expand_jobs
from psd.geometry.cameras import mvdream_condition, turntable_cameras
from psd.models.checkpoints import read
from psd.models.load import load_models, load_prior
from psd.models.prior import components
from psd.models.rewards.aesthetic import AestheticReward
from psd.models.rewards.clip import HpsReward
from psd.models.rewards.image_reward import ImageReward
from psd.models.rewards.load import load_reward
from psd.models.rewards.text_image import resize_square, to_clip_pixels
from psd.runtime.precision import run_in_chunks, run_in_precision
from tests.support import released

CPU = torch.device("cpu")
UNET = released.unet_shapes(width=64, mult=(1, 1), context=64)
VAE = released.vae_shapes(width=32, mult=(1, 1, 1, 1))
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def spelling_tokenizer() -> CLIPTokenizer:
    """CLIP's, with letters for a vocabulary: the end of text is the last id, and it is what pads."""
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


TOKENIZER, WORDS = spelling_tokenizer(), build_tokenizer(vocabulary())
TEXT = released.text_shapes(width=64, layers=2, vocabulary=len(TOKENIZER), positions=77)


def tokenizer_folder(path: Path, tokenizer: Any = TOKENIZER) -> Path:
    tokenizer.save_pretrained(path)
    return path


def random_image(seed: int = 0, groups: int = 1, views: int = 4, size: int = 64) -> Tensor:
    return torch.rand(groups, views, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MVDream as its makers saved it, with a tokenizer beside it."""
    root = tmp_path_factory.mktemp("file")
    parts = {
        "model.diffusion_model.": UNET, "first_stage_model.": VAE, "cond_stage_model.model.": TEXT
    }  # fmt: skip
    state = {
        prefix + name: value
        for prefix, shapes in parts.items()
        for name, value in released.random_state(shapes).items()
    }
    torch.save({"state_dict": state, "global_step": 3}, root / "sd-v2.1-base-4view.pt")
    tokenizer_folder(root / "tokenizer")
    return root / "sd-v2.1-base-4view.pt"


@pytest.fixture(scope="module")
def mvdream_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MVDream as `ashawkey/mvdream-sd2.1-diffusers` holds it: a folder whose U-Net is of a class of its own."""
    root = tmp_path_factory.mktemp("folder")
    (root / "unet").mkdir()
    save_file(released.random_state(UNET), root / "unet" / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "MultiViewUNetModel", "camera_dim": 16, "num_head_channels": 64, "context_dim": 64}
    (root / "unet" / "config.json").write_text(json.dumps(config))
    read.build_ldm_vae(released.random_state(VAE), torch.float32).save_pretrained(root / "vae")
    text = read.build_ldm_text_encoder(released.random_state(TEXT), torch.float32)
    text.save_pretrained(root / "text_encoder")
    tokenizer_folder(root / "tokenizer")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(root / "scheduler")
    (root / "model_index.json").write_text(json.dumps({"_class_name": "MVDreamPipeline"}))
    return root


# ------------------------------------------------------------------------------------------------------------- MVDream


@torch.no_grad()
@pytest.mark.parametrize("layout", ["single_file", "mvdream_folder"])
def test_mvdream_loads_from_both_releases_and_computes_what_they_say(
    layout: str, request: pytest.FixtureRequest
) -> None:
    prior = load_prior(str(request.getfixturevalue(layout)), CPU)
    assert (prior.views, prior.image_size, prior.prediction_type, prior.latent_clamp) == (4, 256, "epsilon", None)
    assert prior.alpha_bar[500].sqrt().item() == pytest.approx(0.526, abs=2e-3)  # MVDream's schedule

    embedding = prior.embed_prompt("a red cube")
    ids = prior._token_ids("a red cube")
    text = released.text_states(released.double(released.random_state(TEXT)), ids, skip_last=1)[0]
    torch.testing.assert_close(embedding.double(), text, atol=1e-5, rtol=1e-4)

    cameras = turntable_cameras(4)
    z_t = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = prior.predict_noise(z_t, 500, embedding[None], cameras)[0]
    condition = mvdream_condition(cameras)[0].double()
    state = released.double(released.random_state(UNET))
    wanted = released.unet(state, z_t[0].double(), 500, text.expand(4, -1, -1), condition, views=4)
    torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=1e-3)

    images = random_image()
    latents = released.vae_encode(released.double(released.random_state(VAE)), images[0].double() * 2 - 1) * 0.18215
    torch.testing.assert_close(prior.encode(images)[0].double(), latents, atol=1e-4, rtol=1e-3)


def test_mvdreams_camera_is_the_released_one() -> None:
    """Elevation 15, front, in MVDream's frame."""
    rows = [[0, -0.2588, 0.9659, 0.9659], [1, 0, 0, 0], [0, 0.9659, 0.2588, 0.2588], [0, 0, 0, 1]]
    found = mvdream_condition(turntable_cameras(4, elevation_deg=15.0))[0, 0].view(4, 4)
    torch.testing.assert_close(found, torch.tensor(rows, dtype=torch.float32), atol=1e-4, rtol=0)


def test_a_checkpoint_without_a_tower_is_refused(tmp_path: Path) -> None:
    torch.save(released.random_state(VAE), tmp_path / "odd.pt")
    with pytest.raises(PresetError, match="no unet"):
        components.load_components(str(tmp_path / "odd.pt"), torch.float32)


@pytest.mark.parametrize("layout", ["single_file", "mvdream_folder"])
def test_words_for_display_are_embedded_together_as_each_alone(layout: str, request: pytest.FixtureRequest) -> None:
    prior = load_prior(str(request.getfixturevalue(layout)), CPU)
    words, vectors = prior.word_embeddings()
    assert words == list(LETTERS)
    torch.testing.assert_close(
        vectors, torch.stack([prior.embed_prompt(word)[1] for word in words]), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_each_network_is_loaded_in_the_variant_that_is_there(
    dtype: torch.dtype, mvdream_folder: Path, tmp_path: Path
) -> None:
    """The autoencoder in half precision only, beside others in single only."""
    shutil.copytree(mvdream_folder, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    found, wanted = (components.load_components(str(at), dtype) for at in (tmp_path, mvdream_folder))
    for one, other in ((found.vae, wanted.vae), (found.text_encoder, wanted.text_encoder)):
        assert all(map(torch.equal, one.parameters(), other.parameters()))


# ------------------------------------------------------------------------------------------------- memory and precision


def test_pieces_give_what_the_whole_gives_in_value_and_gradient(mvdream_folder: Path) -> None:
    whole, pieces = load_prior(str(mvdream_folder), CPU), load_prior(str(mvdream_folder), CPU, batch=3)
    images = random_image(groups=2, size=32).requires_grad_()
    results = []
    for prior in (whole, pieces):
        latents = prior.encode(images)
        decoded = prior.decode(latents)
        (gradient,) = torch.autograd.grad(decoded.square().sum(), images)
        cameras = turntable_cameras(4)[torch.tensor([0, 0])]
        with torch.no_grad():
            noise = prior.predict_noise(latents, 400, prior.embed_prompt("a red cube").expand(2, -1, -1), cameras)
        results.append((latents, decoded, gradient, noise))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@pytest.fixture
def small_decoder(tmp_path: Path) -> Path:
    """As `madebyollin/taesd` is laid out."""
    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16, 16), decoder_block_out_channels=(16, 16, 16, 16),
        num_encoder_blocks=(0, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 0),
    ).save_pretrained(tmp_path / "decoder")  # fmt: skip
    return tmp_path / "decoder"


def test_a_small_decoder_shows_the_rewards_their_images(mvdream_folder: Path, small_decoder: Path) -> None:
    prior = load_prior(str(mvdream_folder), CPU, decoder=str(small_decoder))
    latents = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = prior.decoder.decode(latents[0]).sample / 2 + 0.5  # TAESD takes scaled latents as they are
        torch.testing.assert_close(prior.decode(latents)[0], wanted)
    assert not isinstance(prior.vae, AutoencoderTiny)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_gradients_that_it_cannot_hold(dtype: torch.dtype) -> None:
    """A gradient of 1e-9, far below float16's smallest number, arrives within its three digits."""
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    value = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return torch.tanh(x @ weight.to(x.dtype))

    (wanted,) = torch.autograd.grad(1e-9 * torch.tanh(value @ weight).sum(), value)
    (found,) = torch.autograd.grad(1e-9 * run_in_precision(function, value, dtype).sum(), value)
    error = (found - wanted).norm() / wanted.norm()
    assert 0 < error < (2e-3 if dtype == torch.float16 else 2e-2)
    (plain,) = torch.autograd.grad(1e-9 * function(value.to(dtype)).float().sum(), value)
    assert dtype == torch.bfloat16 or plain.abs().max() == 0  # what it protects from
    (none,) = torch.autograd.grad(0 * run_in_precision(function, value, dtype).sum(), value)
    assert torch.equal(none, torch.zeros_like(value))


def test_in_chunks_recomputes_the_same() -> None:
    value = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    calls = []

    def function(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x.exp()

    (found,) = torch.autograd.grad(run_in_chunks(function, value, 3).sum(), value)
    assert torch.equal(found, value.detach().exp())
    assert sorted(calls) == [1, 1, 3, 3, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_prior_in_half_precision_agrees_with_single(mvdream_folder: Path, dtype: torch.dtype) -> None:
    single, half = (load_prior(str(mvdream_folder), CPU, kind) for kind in (torch.float32, dtype))
    images = random_image(size=32).requires_grad_()
    (wanted,) = torch.autograd.grad(1e-6 * single.encode(images).square().sum(), images)
    (found,) = torch.autograd.grad(1e-6 * half.encode(images).square().sum(), images)
    assert torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.99
    text = single.embed_prompt("a red cube")[None]
    torch.testing.assert_close(half.embed_prompt("a red cube")[None], text, atol=0.05, rtol=0.05)
    with torch.no_grad():
        z_t = 30 * torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))  # far beyond any latents
        noises = [prior.predict_noise(z_t, 500, text, turntable_cameras(4)) for prior in (single, half)]
    assert torch.isfinite(noises[1]).all()
    assert torch.nn.functional.cosine_similarity(noises[0].flatten(), noises[1].flatten(), dim=0) > 0.99


# ------------------------------------------------------------------------------------------------------------- rewards


@pytest.mark.parametrize("size", [64, 224, 256, 512])
def test_images_are_prepared_as_pil_prepares_them(size: int) -> None:
    """PIL rounds to bytes before and after its bicubic filter, so the two differ by a byte or so."""
    pixels = np.random.default_rng(0).integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    theirs = np.asarray(Image.fromarray(smooth).resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    ours = resize_square(torch.from_numpy(smooth.copy()).permute(2, 0, 1)[None].float() / 255, 224)
    difference = (ours[0].permute(1, 2, 0) - torch.from_numpy(theirs)).abs()
    assert difference.max() < 2 / 255 and difference.mean() < 0.35 / 255


def test_preparation_passes_gradients() -> None:
    images = random_image(size=40)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(to_clip_pixels(images, 12).square().sum(), images)
    assert (gradient.abs().sum((1, 2, 3)) > 0).all()


@pytest.fixture(autouse=True)
def small_hps(monkeypatch: pytest.MonkeyPatch) -> None:
    """HPSv2 is told by its width, which no test could afford."""
    monkeypatch.setattr(read, "HPS_WIDTH", 64)


def reward_files(root: Path) -> dict[str, Path]:
    """The released files, tiny, each with the parts that they lack beside them."""
    small = {"width": 64, "layers": 2, "inner": 96, "patch": 8, "side": 4, "text": TEXT}
    torch.save({"epoch": 1, "state_dict": released.random_state(released.clip_shapes(**small))}, root / "hps.pt")
    blip = released.blip_shapes(
        width=64, layers=2, patch=8, side=4, text=64, depth=2, vocabulary=len(WORDS), positions=40, joint=8
    )
    torch.save(released.random_state(blip), root / "ImageReward.pt")
    torch.save(released.random_state(released.score_head_shapes(64)), root / "aesthetic.pth")
    clip = read.build_open_clip(released.random_state(released.clip_shapes(**small), seed=1), torch.float32)
    clip.save_pretrained(root / "clip")
    tokenizer_folder(root / "clip")
    return {"hps": root / "hps.pt", "image": root / "ImageReward.pt", "aesthetic": root / "aesthetic.pth"}


def by_hand(kind: str, root: Path, images: Tensor, prompt: str) -> Tensor:
    """Each reward's definition, in float64 and in its makers' layout."""
    pixels = to_clip_pixels(images.flatten(0, 1), 32).double()
    if kind == "aesthetic":
        clip: Any = CLIPModel.from_pretrained(root / "clip").double()
        features = clip.get_image_features(pixel_values=pixels).pooler_output
        state = released.double(torch.load(root / "aesthetic.pth"))
        return released.score_head(state, features / features.norm(dim=-1, keepdim=True))
    if kind == "hps":
        state = released.double(torch.load(root / "hps.pt")["state_dict"])
        ids = torch.zeros(1, 77, dtype=torch.long)  # open_clip pads with 0
        spelled = TOKENIZER(prompt).input_ids
        ids[0, : len(spelled)] = torch.tensor(spelled)
        return released.clip_score(state, pixels, ids)[:, 0]
    state = released.double(torch.load(root / "ImageReward.pt"))
    found, rows = WORDS(prompt, padding="max_length", max_length=35, return_tensors="pt"), len(pixels)
    return released.blip_score(state, pixels, found.input_ids.expand(rows, -1), found.attention_mask.expand(rows, -1))


def test_imagereward_reads_what_its_tokenizer_cannot_spell(tmp_path: Path) -> None:
    """BERT's spells words of letters and has an unknown token for the rest, which is not the end of the text."""
    source = reward_files(tmp_path)["image"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS[:8], *(f"##{letter}" for letter in LETTERS[:8])]
    tokenizer_folder(tmp_path / "tokenizer", BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}))
    reward = load_reward(str(source), device=CPU)
    assert reward.tokenizer("bad \U0001f344").input_ids == [2, 6, 13, 16, 1, 3]
    assert torch.isfinite(reward(random_image(size=32), "bad \U0001f344")).all()


def test_a_judges_words_are_refused_before_a_run_begins(mvdream_folder: Path) -> None:
    """A prior that spells takes any word; the embedded judges know theirs."""
    wanted = {"device": "cpu", "prior": str(mvdream_folder), "prompt": "a red dragon"}
    with pytest.raises(PresetError, match="assets/reward never learned 'dragon'"):
        load_models(Preset.load("tiny", wanted))


@pytest.mark.parametrize(("kind", "scale"), [("hps", 0.01), ("image", 1.0), ("aesthetic", 1.0)])
def test_rewards_score_what_their_releases_score(kind: str, scale: float, tmp_path: Path) -> None:
    source = reward_files(tmp_path)[kind]
    tokenizer_folder(tmp_path / "tokenizer", WORDS if kind == "image" else TOKENIZER)
    reward = load_reward(str(source), device=CPU)
    assert isinstance(reward, {"hps": HpsReward, "image": ImageReward, "aesthetic": AestheticReward}[kind])
    assert reward.scale == scale and reward.differentiable
    images = random_image(groups=2, size=48).requires_grad_()
    scores = reward(images, "a red cube")
    with torch.no_grad():
        wanted = by_hand(kind, tmp_path, images, "a red cube").view(2, 4)
    torch.testing.assert_close(scores.double(), wanted, atol=2e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert (gradient.abs().sum((2, 3, 4)) > 0).all()

    pieces = load_reward(str(source), device=CPU, batch=3)
    found = pieces(images, "a red cube")
    torch.testing.assert_close(found, scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), images)[0], gradient, atol=1e-5, rtol=1e-3)


# ----------------------------------------------------------------------------------------------------------- the suite


@pytest.fixture
def large_suite(mvdream_folder: Path, small_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """`presets/suites/large.yaml` as it ships, on the tiny checkpoints and cut to what a CPU does in seconds."""
    files = reward_files(tmp_path)
    tokenizer_folder(tmp_path / "tokenizer")
    monkeypatch.setattr(run, "WORK", tmp_path / "made")
    one = {"prompts": 1, "seeds": 1}
    here = {
        "device": "cpu", "prior": str(mvdream_folder), "reward_decoder": str(small_decoder),
        "rewards": {str(files["hps"]): 1.0}, "negative_prompt": "ugly",
        "steps": 3, "t_max_start": 0.5, "t_min_start": 0.5, "stages": [], "groups": 1, "scene.ray_samples": 32,
        "preview_every": 3, "preview_size": 32, "mesh_resolution": 32,
    }  # fmt: skip
    whole = Suite.load(SUITES / "large.yaml").model_dump()
    changes = {"captions": ["a red cube"], "main": one, "others": one, "judges": [str(files["image"])], "set": here}
    return Suite.model_validate({**whole, **changes})


def test_the_large_suite_makes_and_judges_meshes_with_released_checkpoints(large_suite: Suite) -> None:
    """MVDream distilled under HPSv2.1 and measured by ImageReward, from the suite's own lines to the mesh."""
    job = next(job for job in expand_jobs(large_suite, []) if job.method == large_suite.reference)
    line = run.run_job(job)
    assert {"reward", "ImageReward.pt/score", "watertight", "faces", "seconds"} <= set(line) and "iou" not in line
    assert line["steps"] == 3 and line["pair_ratio"] > 0 and line["calls"]["reward"][1] > 0
