"""Released checkpoints: their names map one to one, and the mapped networks compute what their makers' layouts say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from psd.config.errors import MissingError, PresetError
from psd.models.checkpoints import layouts, read
from psd.models.prior.joint_attention import join_views
from psd.models.rewards import aesthetic, image_reward
from tests.support import released

SMALL_UNET = {"width": 64, "mult": (1, 1, 2, 2), "context": 48}
SMALL_TEXT = {"width": 64, "layers": 3, "vocabulary": 40, "positions": 12}
SMALL_CLIP = {"width": 64, "layers": 2, "inner": 96, "patch": 4, "side": 3, "text": released.text_shapes(**SMALL_TEXT)}
SMALL_BLIP = {"width": 128, "layers": 2, "patch": 4, "side": 3, "text": 64, "depth": 2, "vocabulary": 30,
              "positions": 10, "joint": 8}  # fmt: skip


def on_meta(shapes: released.Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def fits(mapped: dict[str, Tensor], network: torch.nn.Module) -> None:
    """Same names, same shapes, nothing missing and nothing more."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in mapped.items()} == wanted


# ------------------------------------------------------------------------------------------------ full size, no weights


def test_mvdreams_unet_is_mapped_one_to_one() -> None:
    shapes = released.unet_shapes()
    assert len(shapes) == 690
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 867_572_164
    state = on_meta(shapes)
    with init_empty_weights():
        unet = UNet2DConditionModel(**read.unet_config(state))
    assert unet.config["block_out_channels"] == [320, 640, 1280, 1280]
    assert unet.config["attention_head_dim"] == [5, 10, 20, 20]
    fits(layouts.unet_from_ldm(state), unet)


def test_stable_diffusions_autoencoder_is_mapped_one_to_one() -> None:
    state = on_meta(released.vae_shapes())
    assert len(state) == 248
    config: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 4, "layers_per_block": 2,
    }  # fmt: skip
    with init_empty_weights():
        vae = AutoencoderKL(**config)
    fits(layouts.vae_from_ldm(state), vae)


def test_the_text_tower_of_stable_diffusion_2_is_mapped_one_to_one() -> None:
    with init_empty_weights():
        text = CLIPTextModel(CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23,
                                            num_attention_heads=16))  # fmt: skip
    fits(layouts.text_encoder_from_open_clip(on_meta(released.text_shapes())), text)


@pytest.mark.parametrize("layout", ["clip", "blip"])
def test_full_size_rewards_are_mapped_one_to_one(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The strict load itself, on tensors without storage."""
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_: self)
    if layout == "clip":
        state = on_meta(released.clip_shapes())
        assert len(state) == 686
        network: Any = read.build_open_clip(state, torch.float32)
        assert len(network.state_dict()) == 910
        assert network.config.vision_config.num_attention_heads == network.config.text_config.num_attention_heads == 16
    else:
        state = on_meta(released.blip_shapes())
        assert len(state) == 625
        network = image_reward.build_image_reward(state, torch.float32)
        assert len(network.state_dict()) == 624  # all but the position ids, which are a constant
        assert sum(p.numel() for p in network.parameters()) == pytest.approx(446.67e6, rel=1e-4)
        assert network.text_encoder.config.num_attention_heads == 12


# --------------------------------------------------------------------------------------------- the makers' arithmetic


@torch.no_grad()
@pytest.mark.parametrize("camera", [True, False])
def test_the_mapped_unet_computes_what_the_released_one_does(camera: bool) -> None:
    state = released.random_state(released.unet_shapes(**SMALL_UNET, camera=camera))
    unet = read.build_ldm_unet(state, torch.float64)
    join_views(unet, 4)
    x, text = torch.randn(8, 4, 8, 8).double(), torch.randn(8, 5, 48).double()
    condition = torch.randn(8, 16).double() if camera else None
    found = unet(x, 321, text, class_labels=condition).sample
    wanted = released.unet(released.double(state), x, 321, text, condition, views=4)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)  # the library embeds t in float32
    assert wanted.std() > 0.1


@torch.no_grad()
def test_the_mapped_autoencoder_computes_what_the_released_one_does() -> None:
    state = released.random_state(released.vae_shapes(width=32, mult=(1, 2, 2)))
    vae: Any = read.build_ldm_vae(state, torch.float64)
    x, z = torch.randn(2, 3, 16, 16).double(), torch.randn(2, 4, 4, 4).double()
    torch.testing.assert_close(vae.encode(x).latent_dist.mean, released.vae_encode(released.double(state), x))
    torch.testing.assert_close(vae.decode(z).sample, released.vae_decode(released.double(state), z))
    assert vae.config["scaling_factor"] == 0.18215


@torch.no_grad()
def test_the_mapped_text_tower_stops_before_its_last_layer() -> None:
    state = released.random_state(released.text_shapes(**SMALL_TEXT))
    text = read.build_ldm_text_encoder(state, torch.float64)
    ids = torch.tensor([[38, 5, 6, 39, 0, 0, 0, 0, 0, 0, 0, 0]])
    wanted = released.text_states(released.double(state), ids, skip_last=1)
    torch.testing.assert_close(text(ids).last_hidden_state, wanted)


@torch.no_grad()
def test_the_mapped_clip_scores_what_the_released_one_does() -> None:
    state = released.random_state(released.clip_shapes(**SMALL_CLIP))
    clip: Any = read.build_open_clip(state, torch.float64)
    ids = torch.tensor([[38, 5, 6, 39, 0, 0, 0, 0, 0, 0, 0, 0], [38, 9, 39, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    pixels = torch.randn(3, 3, 12, 12).double()
    image = clip.get_image_features(pixel_values=pixels).pooler_output
    text = clip.get_text_features(input_ids=ids).pooler_output
    found = torch.nn.functional.normalize(image, dim=-1) @ torch.nn.functional.normalize(text, dim=-1).T
    torch.testing.assert_close(found, released.clip_score(released.double(state), pixels, ids))


@torch.no_grad()
def test_the_mapped_image_reward_scores_what_the_released_one_does() -> None:
    state = released.random_state(released.blip_shapes(**SMALL_BLIP))
    network = image_reward.build_image_reward(state, torch.float64).eval()
    ids, mask = torch.tensor([[1, 7, 8, 2, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    pixels = torch.randn(3, 3, 12, 12).double()
    wanted = released.blip_score(released.double(state), pixels, ids.expand(3, -1), mask.expand(3, -1))
    torch.testing.assert_close(network.read(network.encode_pixels(pixels), ids, mask), wanted)
    assert wanted.std() > 1e-3


@torch.no_grad()
def test_a_score_head_has_no_activations() -> None:
    state = released.random_state(released.score_head_shapes(24))
    x = torch.randn(5, 24).double()
    head = aesthetic.build_score_head(state, torch.float64)
    torch.testing.assert_close(head(x)[:, 0], released.score_head(released.double(state), x))


# -------------------------------------------------------------------------------------------------------- strange files


@pytest.mark.parametrize(
    ("rename", "shapes"),
    [
        (layouts.unet_from_ldm, released.unet_shapes(**SMALL_UNET)),
        (layouts.vae_from_ldm, released.vae_shapes(width=32, mult=(1, 2))),
        (layouts.clip_from_open_clip, released.clip_shapes(**SMALL_CLIP)),
        (layouts.image_reward_from_blip, released.blip_shapes(**SMALL_BLIP)),
    ],
)
def test_a_tensor_of_another_model_is_refused_by_name(rename: Callable, shapes: released.Shapes) -> None:
    state = on_meta(shapes)
    rename(state)
    for stranger in ("output_blocks.1.0.in_layers.7.weight", "visual_encoder.head.weight", "encoder.odd.weight"):
        odd = f"blip.{stranger}" if any(name.startswith("blip.") for name in shapes) else stranger
        with pytest.raises(layouts.LayoutError, match="is no tensor of"):
            rename({**state, odd: torch.empty(1, device="meta")})


def test_a_missing_tensor_is_a_preset_error() -> None:
    state = released.random_state(released.vae_shapes(width=32, mult=(1, 1)))
    del state["encoder.norm_out.bias"]
    with pytest.raises(PresetError, match=r"conv_norm_out\.bias"):
        read.build_ldm_vae(state, torch.float32)


def test_files_are_read_as_tensors_alone(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)  # as before torch 1.6
    for name in ("a.safetensors", "a.pt", "old.pt"):
        assert read.read_state(tmp_path / name)["a"].tolist() == [0, 1, 2]

    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(MissingError, match="list.pt holds a list instead of named tensors"):
        read.read_state(tmp_path / "list.pt")
    torch.save({"a": Path("code")}, tmp_path / "code.pt")
    for name in ("a.safetensors", "a.pt", "old.pt"):  # a download that was cut
        (tmp_path / f"half-{name}").write_bytes((tmp_path / name).read_bytes()[:-20])
    (tmp_path / "empty.pt").touch()
    for name in ("code.pt", "half-a.safetensors", "half-a.pt", "half-old.pt", "empty.pt"):
        with pytest.raises(MissingError, match="downloaded again"):
            read.read_state(tmp_path / name)
