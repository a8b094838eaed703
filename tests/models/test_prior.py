"""The prior, the rewards and the judges load from folders in the released formats and keep their contracts."""

import json

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from transformers import CLIPModel

from psd.config.errors import PresetError
from psd.embedded.captions.grammar import vocabulary
from psd.embedded.training.prior import build_small_text_encoder, build_tokenizer
from psd.embedded.training.rewards import ClipCritic
from psd.geometry.cameras import Cameras, mvdream_condition, turntable_cameras
from psd.models.load import load_prior
from psd.models.prior.diffusers_prior import DiffusersPrior
from psd.models.prior.joint_attention import join_views
from psd.models.rewards.black_box import BlackBoxReward
from psd.models.rewards.critic_networks import ModulatedCritic, TwoTowerCritic, WordCritic, save_critic
from psd.models.rewards.load import load_reward
from psd.models.rewards.text_image import score_prompts, to_clip_pixels

CPU = torch.device("cpu")


def small_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128, attention_head_dim=2, norm_num_groups=8, use_linear_projection=True,
        class_embed_type="projection", projection_class_embeddings_input_dim=16,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random multi-view prior in diffusers' folder format."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("prior")
    tokenizer = build_tokenizer(vocabulary())
    small_unet().save_pretrained(root / "unet")
    build_small_text_encoder(len(tokenizer), layers=1).save_pretrained(root / "text_encoder")
    tokenizer.save_pretrained(root / "tokenizer")
    AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16), decoder_block_out_channels=(16, 16, 16), num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=(1, 1, 0), scaling_factor=0.5,
    ).save_pretrained(root / "vae")  # fmt: skip
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction").save_pretrained(root / "scheduler")
    (root / "model_index.json").write_text(json.dumps({"views": 4, "latent_clamp": 3.0}))
    return root


@pytest.fixture(scope="module")
def prior(folder) -> DiffusersPrior:
    return load_prior(str(folder), CPU)


def inputs(prior: DiffusersPrior, groups: int = 2):
    generator = torch.Generator().manual_seed(1)
    cameras = turntable_cameras(4)
    cameras = Cameras(**{name: value.expand(groups, *value.shape[1:]) for name, value in vars(cameras).items()})
    z_t = torch.randn(groups, 4, 4, 8, 8, generator=generator)
    return z_t, prior.embed_prompt("a red cube").expand(groups, -1, -1), cameras


@torch.no_grad()
def test_permuting_views_with_their_cameras_permutes_the_prediction(prior):
    z_t, embedding, cameras = inputs(prior)
    order = torch.tensor([2, 0, 3, 1])
    plain = prior.predict_noise(z_t, 500, embedding, cameras)
    permuted = prior.predict_noise(z_t[:, order], 500, embedding, cameras[:, order])
    torch.testing.assert_close(permuted, plain[:, order], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_views_of_a_group_see_each_other_and_groups_do_not(prior):
    z_t, embedding, cameras = inputs(prior)
    changed = z_t.clone()
    changed[0, 3] += 1
    difference = (
        prior.predict_noise(changed, 500, embedding, cameras) - prior.predict_noise(z_t, 500, embedding, cameras)
    ).abs()
    assert difference[0, 0].max() > 1e-4  # view 0 noticed view 3
    assert difference[1].max() == 0


@torch.no_grad()
def test_one_joined_view_is_plain_attention():
    torch.manual_seed(0)
    unet = small_unet()
    x, text, condition = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 128), torch.randn(2, 16)
    plain = unet(x, 10, text, class_labels=condition).sample
    join_views(unet, 1)
    torch.testing.assert_close(unet(x, 10, text, class_labels=condition).sample, plain)


@torch.no_grad()
def test_v_prediction_becomes_noise(prior):
    """With v the network's output, alpha v + sigma z_t is the noise whose x0 is alpha z_t - sigma v (float64)."""
    z_t, embedding, cameras = inputs(prior, 1)
    t = 700
    condition = mvdream_condition(cameras)[0]
    v = prior.unet(z_t[0], t, embedding.expand(4, -1, -1), class_labels=condition).sample.double()
    alpha, sigma = prior.alpha_bar[t].sqrt(), (1 - prior.alpha_bar[t]).sqrt()
    noise = prior.predict_noise(z_t, t, embedding, cameras)[0].double()
    x0 = (z_t[0].double() - sigma * noise) / alpha
    torch.testing.assert_close(x0, alpha * z_t[0].double() - sigma * v, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_embedding_and_no_parameter(prior):
    z_t, embedding, cameras = inputs(prior)
    embedding = embedding.clone().requires_grad_()
    prior.predict_noise(z_t, 500, embedding, cameras).square().mean().backward()
    assert embedding.grad is not None and embedding.grad.abs().max() > 0
    for network in (prior.unet, prior.vae, prior.text_encoder):
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_encode_and_decode_are_differentiable_and_keep_axes(prior):
    images = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    latents = prior.encode(images)
    assert latents.shape == (2, 4, 4, 8, 8)
    decoded = prior.decode(latents)
    assert decoded.shape == images.shape
    decoded.sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0
    swapped = prior.encode(images.detach().flip(0))
    torch.testing.assert_close(swapped, latents.detach().flip(0))


def test_the_embedded_prior_offers_captions_for_unknown_words():
    shipped = load_prior("assets/prior", torch.device("cpu"))
    with pytest.raises(PresetError, match="never learned 'elephant'.*nearest captions.*a red ") as caught:
        shipped.embed_prompt("a red elephant")
    offered = str(caught.value).rpartition(": ")[2].split("; ")
    assert len(offered) == 3 and set(offered) <= set(shipped.captions)
    for caption in offered:
        shipped.embed_prompt(caption)


def test_unknown_words_are_refused_by_name_with_near_ones(prior):
    with pytest.raises(PresetError, match="'mushrom'.*mushroom"):
        prior.embed_prompt("a red mushrom")
    with pytest.raises(PresetError, match="16"):
        prior.embed_prompt("a red cube " * 8)


def test_vocabulary_finds_each_word_nearest_to_itself(prior):
    words, features = prior.word_embeddings()
    embedding = prior.embed_prompt("mushroom")[1]
    nearest = torch.nn.functional.cosine_similarity(features, embedding, dim=-1).argmax()
    assert words[nearest] == "mushroom"
    assert prior.tokens("a red cube")[:5] == ["<|startoftext|>", "a", "red", "cube", "<|endoftext|>"]


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory):
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("reward")
    tokenizer = build_tokenizer(vocabulary())
    ClipCritic(len(tokenizer)).clip.save_pretrained(root)
    tokenizer.save_pretrained(root)
    return root


def test_clip_reward_is_the_models_own_logit(reward_folder):
    reward = load_reward(str(reward_folder), device=CPU)
    images = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ids = reward.tokenizer("a red cube", padding="max_length", return_tensors="pt").input_ids
    pixels = to_clip_pixels(images.flatten(0, 1), 64)
    model = CLIPModel.from_pretrained(reward_folder).eval()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=ids.ne(0).long(), pixel_values=pixels).logits_per_image.view(
            2, 4
        )
    torch.testing.assert_close(reward(images, "a red cube"), expected, atol=1e-4, rtol=1e-4)


def test_clip_text_tower_reads_every_word(reward_folder):
    """transformers pools at the highest token id when eos_token_id is 2, and then ignores what comes after it."""
    reward = load_reward(str(reward_folder), device=CPU)
    images = torch.rand(1, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    captions = [
        "a white cube next to a red cone",
        "a white cube next to a red cube",
        "a white cube next to a blue cone",
    ]
    assert len({reward(images, caption).item() for caption in captions}) == 3


@pytest.mark.parametrize("kind", [TwoTowerCritic, ModulatedCritic, WordCritic])
def test_critics_load_from_their_folder_and_pass_gradients(kind, tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(vocabulary())
    critic = kind(len(tokenizer)).eval()
    save_critic(critic, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = load_reward(str(tmp_path), device=CPU)
    images = torch.rand(1, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scores = reward(images, "a red cube")
    ids = tokenizer(["a red cube"], padding="max_length", return_tensors="pt").input_ids
    text = critic.encode_text(ids)
    with torch.no_grad():
        expected = critic.score(critic.encode_image(images[0]), text.expand(4, *text.shape[1:]))
    torch.testing.assert_close(scores[0], expected, atol=2e-2, rtol=2e-2)  # weights ship in half precision
    scores.sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0


@pytest.mark.parametrize("kind", [TwoTowerCritic, ModulatedCritic, WordCritic, ClipCritic])
def test_scores_among_captions_are_the_calls_own_and_the_images_are_encoded_once(kind, tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(vocabulary())
    critic = kind(len(tokenizer)).eval()
    if isinstance(critic, ClipCritic):
        critic.clip.save_pretrained(tmp_path)
    else:
        save_critic(critic, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = load_reward(str(tmp_path), device=CPU)
    calls = []
    encode = reward.encode_image
    reward.encode_image = lambda images: calls.append(len(images)) or encode(images)  # type: ignore[method-assign]
    images = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    captions = ["a red cube", "a blue cone on top of a red cube", "a fox"]
    with torch.no_grad():
        scores = score_prompts(reward, images, captions)
        assert calls == [2]
        assert torch.equal(scores, torch.stack([reward(images, caption) for caption in captions], dim=-1))
    assert scores.shape == (2, 4, 3) and len(set(scores[0, 0].tolist())) == 3


@pytest.mark.parametrize("kind", [ModulatedCritic, WordCritic])
def test_padding_does_not_change_a_critics_score(kind):
    torch.manual_seed(0)
    critic = kind(20).eval()
    image = critic.encode_image(torch.rand(1, 3, 64, 64))
    short, long = torch.tensor([[1, 5, 6, 3]]), torch.tensor([[1, 5, 6, 3, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(
            critic.score(image, critic.encode_text(short)),
            critic.score(image, critic.encode_text(long)),
            atol=1e-5,
            rtol=1e-5,
        )


def test_the_referee_is_small_and_reads_the_order_of_words():
    torch.manual_seed(0)
    critic = WordCritic(70).eval()
    assert 2 * sum(p.numel() for p in critic.parameters()) < 1_000_000  # bytes as they ship
    image = critic.encode_image(torch.rand(1, 3, 64, 64))
    one, other = (critic.score(image, critic.encode_text(torch.tensor([ids]))) for ids in ([1, 5, 6, 3], [1, 6, 5, 3]))
    assert abs(float((one - other).detach())) > 1e-4


def test_black_box_reward_checks_its_shape():
    images = torch.rand(2, 4, 3, 8, 8)
    good = BlackBoxReward("mean", lambda images, prompt: images.mean((2, 3, 4)))
    assert good(images, "").shape == (2, 4)
    with pytest.raises(ValueError, match=r"\(2,\).*\(2, 4\)"):
        BlackBoxReward("bad", lambda images, prompt: images.mean((1, 2, 3, 4)))(images, "")


SCORES = [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(
    "scores", [SCORES, np.array(SCORES), np.array(SCORES, np.float64), torch.tensor(SCORES)],
    ids=["lists", "integers", "doubles", "integer tensor"],
)  # fmt: skip
def test_black_box_reward_takes_any_numbers(scores):
    found = BlackBoxReward("mine", lambda images, prompt: scores)(torch.rand(2, 4, 3, 8, 8), "")
    assert found.dtype == torch.float32 and found.tolist() == SCORES


@pytest.mark.parametrize("scores", [None, "good", [["a"] * 4] * 2, [[1.0], [1.0, 2.0]]])
def test_black_box_reward_names_what_is_no_score(scores):
    with pytest.raises(ValueError, match=r"reward 'mine' returned \w+, which is no array.*\(2, 4\)"):
        BlackBoxReward("mine", lambda images, prompt: scores)(torch.rand(2, 4, 3, 8, 8), "")
