"""Sources that are damaged, half there or of another kind of model are refused in words."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from psd.__main__ import BAD_INPUT, MISSING, main
from psd.config.errors import MissingError, PresetError
from psd.config.preset import Preset
from psd.distillation.formulas import predict_x0
from psd.geometry.cameras import turntable_cameras
from psd.models import hub
from psd.models.checkpoints import digests
from psd.models.load import download_models, load_models, load_prior
from psd.models.prior.components import load_components, load_small_decoder
from psd.models.prior.diffusers_prior import DiffusersPrior
from psd.models.rewards.load import load_reward
from tests.models.test_prior import (
    CPU,
    reward_folder,  # noqa: F401 - a fixture
)
from tests.models.test_prior import folder as prior_folder  # noqa: F401 - a fixture
from tests.support import released

ROOT = Path(__file__).resolve().parents[2]
UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT, TOKENS = "text_encoder/model.safetensors", "tokenizer/tokenizer_config.json"
Edit = Callable[[Path], object]


def change_tensors(file: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Edit:
    def edit(folder: Path) -> None:
        save_file(change(load_file(folder / file)), folder / file, {"format": "pt"})

    return edit


def drop_tensor(file: str, name: str) -> Edit:
    return change_tensors(file, lambda state: {key: value for key, value in state.items() if key != name})


def set_tensor(file: str, name: str, make: Callable[[Tensor], Tensor]) -> Edit:
    return change_tensors(file, lambda state: {**state, name: make(state[name]).contiguous()})


def set_keys(file: str, **values: Any) -> Edit:
    """Keys of a JSON file; ... takes one away."""

    def edit(folder: Path) -> None:
        found = json.loads((folder / file).read_text()) | values
        (folder / file).write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))

    return edit


def write_file(file: str, content: bytes) -> Edit:
    return lambda folder: (folder / file).write_bytes(content)


def cut_file(file: str) -> Edit:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-40])


def remove_file(file: str) -> Edit:
    return lambda folder: (folder / file).unlink()


def set_inf(value: Tensor) -> Tensor:
    return value.index_fill(0, torch.tensor([0]), float("inf"))


UNET_KEYS = "unet/config.json"
SCHEDULE = "scheduler/scheduler_config.json"
PRIORS: dict[str, tuple[Edit, str]] = {
    "text tensor gone": (
        drop_tensor(TEXT, "embeddings.token_embedding.weight"),
        "text_encoder/model.safetensors has no tensor embeddings.token_embedding.weight",
    ),
    "unet tensor gone": (drop_tensor(UNET, "conv_in.weight"), f"{UNET} has no tensor conv_in.weight"),
    "vae tensor gone": (drop_tensor(VAE, "decoder.layers.0.bias"), f"{VAE} has no tensor decoder.layers.0.bias"),
    "text tensor of integers": (
        set_tensor(TEXT, "final_layer_norm.weight", lambda value: value.to(torch.int32)),
        "holds final_layer_norm.weight as I32",
    ),
    "text tensor of another shape": (
        set_tensor(TEXT, "final_layer_norm.weight", lambda value: value[:-1]), "final_layer_norm.weight"
    ),
    "infinite weight": (set_tensor(UNET, "conv_out.weight", set_inf), "holds inf or nan in conv_out.weight"),
    "weights cut": (cut_file(TEXT), "copy or download it again"),
    "SDXL": (set_keys(UNET_KEYS, addition_embed_type="text_time"), "is an SDXL U-Net"),
    "latent consistency": (set_keys(UNET_KEYS, time_cond_proj_dim=256), "latent consistency model"),
    "inpainting": (set_keys(UNET_KEYS, in_channels=9), "is an inpainting U-Net: in_channels = 9"),
    "unCLIP": (set_keys(UNET_KEYS, projection_class_embeddings_input_dim=2048), "'projection' of 2048 values"),
    "other text width": (set_keys(UNET_KEYS, cross_attention_dim=768), "reads texts of width 768"),
    "other U-Net": (set_keys(UNET_KEYS, _class_name="UNet3DConditionModel"), "its U-Net is a 'UNet3DConditionModel'"),
    "no U-Net class": (set_keys(UNET_KEYS, _class_name=...), "its U-Net is a None"),
    "other autoencoder": (
        set_keys("vae/config.json", _class_name="AsymmetricAutoencoderKL"),
        "its autoencoder is a 'AsymmetricAutoencoderKL'; AutoencoderKL and AutoencoderTiny are read",
    ),
    "no autoencoder class": (set_keys("vae/config.json", _class_name=...), "its autoencoder is a None"),
    "scaled channels": (set_keys("vae/config.json", latents_mean=[0.0] * 4), "channel by channel"),
    "other text encoder": (set_keys("text_encoder/config.json", model_type="t5"), "is of type 't5'"),
    "flow matching": (
        set_keys(SCHEDULE, _class_name="FlowMatchEulerDiscreteScheduler"), "is a flow-matching model"
    ),
    "flow prediction": (set_keys(SCHEDULE, prediction_type="flow_prediction"), "is a flow-matching model"),
    "sample prediction": (set_keys(SCHEDULE, prediction_type="sample"), "predicts 'sample'"),
    "unknown betas": (set_keys(SCHEDULE, beta_schedule="cosine"), "beta_schedule 'cosine'"),
    "no betas": (set_keys(SCHEDULE, beta_schedule=...), "beta_schedule None"),
    "no beta_end": (set_keys(SCHEDULE, beta_schedule="linear", beta_end=...), "beta_end None"),
    "zero SNR with epsilon": (
        set_keys(SCHEDULE, prediction_type="epsilon", rescale_betas_zero_snr=True), "ends in pure noise"
    ),
    "empty index": (write_file("model_index.json", b""), "model_index.json is no JSON file"),
    "cut index": (cut_file("model_index.json"), "model_index.json is no JSON file"),
    "list as index": (write_file("model_index.json", b"[]"), "holds a list instead of keys and values"),
    "cut autoencoder config": (cut_file("vae/config.json"), "vae/config.json is no JSON file"),
    "views in words": (set_keys("model_index.json", views="four"), "views = 'four'"),
    "infinite clamp": (set_keys("model_index.json", latent_clamp=float("inf")), "latent_clamp = inf"),
    "no tokenizer config": (remove_file(TOKENS), "has no tokenizer_config.json"),
    "no pad token": (set_keys(TOKENS, pad_token=...), "no pad_token"),
    "no unknown token": (set_keys(TOKENS, unk_token=...), "no unk_token"),
    "length in words": (set_keys(TOKENS, model_max_length="long"), "tokenizer"),
    "length 0": (set_keys(TOKENS, model_max_length=0), "model_max_length 0"),
    "odd heads": (set_keys(UNET_KEYS, attention_head_dim="many"), "cannot be read as a model"),
}  # fmt: skip


@pytest.fixture
def prior_copy(prior_folder: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(prior_folder, tmp_path / "prior"))


@pytest.mark.parametrize("case", PRIORS)
def test_a_damaged_or_foreign_prior_is_refused_by_what_it_is(case: str, prior_copy: Path) -> None:
    edit, words = PRIORS[case]
    edit(prior_copy)
    with pytest.raises(PresetError) as caught:
        load_components(str(prior_copy), torch.float32)
    assert words in str(caught.value) and str(prior_copy) in str(caught.value)


def test_a_shipped_prior_that_lacks_one_tensor_is_refused_and_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "assets/prior", tmp_path / "prior"))
    (folder / "README.md").unlink()
    drop_tensor(TEXT, "embeddings.token_embedding.weight")(folder)
    with pytest.raises(MissingError, match=f"{folder}: {TEXT} has no tensor embeddings.token_embedding.weight"):
        load_components(str(folder), torch.float32)


def staged(**stage: Any) -> Preset:
    values = {"prompt": "a red cube", "negative_prompt": "a blue cube", "judges": [], "device": "cpu"}
    return Preset.make({**values, "stages": [{"share": 0.5}, {"share": 0.5, **stage}]})


@pytest.mark.parametrize("stage", [{"prior": "no/prior"}, {"rewards": {"no/reward": 1.0}}])
def test_a_missing_model_of_a_later_stage_is_refused_at_the_start_with_its_stage(
    stage: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "is_offline", lambda: True)
    preset = staged(**stage)
    for begin in (load_models, lambda preset: list(download_models(preset))):
        with pytest.raises(MissingError, match=r"^stages\[1\]: no/\w+ is not here"):
            begin(preset)
    with pytest.raises(MissingError, match="^no/prior is not here"):
        load_models(staged().with_values({"prior": "no/prior", "stages": []}))


def test_all_stages_are_loaded_once_and_their_priors_must_read_the_prompt(
    prior_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = {"share": 0.25}
    preset = staged(prior=str(prior_copy))
    again = preset.with_values({"stages": [half, {**half, "prior": str(prior_copy)}, half, {"share": 0.25}]})
    models = load_models(again)
    assert list(models.priors) == ["assets/prior", str(prior_copy)] and len({*models.priors.values()}) == 2
    said = [note for note in models.notes if note.startswith("prior ")]
    assert [note.split(" in ")[0] for note in said] == ["prior assets/prior", f"prior {prior_copy}"]
    real = DiffusersPrior.embed_prompt

    def embed(self: DiffusersPrior, prompt: str) -> Tensor:
        if self.source == str(prior_copy) and prompt == preset.prompt:
            raise PresetError(f"{self.source} never learned 'cube'")
        return real(self, prompt)

    monkeypatch.setattr(DiffusersPrior, "embed_prompt", embed)
    with pytest.raises(PresetError, match=rf"^stages\[1\]: {prior_copy} never learned 'cube'"):
        load_models(preset)


def test_a_prior_whose_networks_do_not_run_is_refused_before_a_run_begins(prior_copy: Path) -> None:
    set_keys("vae/config.json", scaling_factor=[1, 2])(prior_copy)
    with pytest.raises(PresetError, match=f"{prior_copy} cannot be read as a model"):
        load_prior(str(prior_copy), CPU)


@pytest.mark.parametrize("length", [..., 1e30, 128])
def test_a_tokenizer_is_held_to_the_places_of_its_text_encoder(length: float, prior_copy: Path) -> None:
    wanted = load_prior(str(prior_copy), CPU).embed_prompt("a red cube")
    load_prior.cache_clear()
    set_keys(TOKENS, model_max_length=length, max_length=...)(prior_copy)
    torch.testing.assert_close(load_prior(str(prior_copy), CPU).embed_prompt("a red cube"), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    "file", ["model_index.json", UNET_KEYS, "vae/config.json", "text_encoder/config.json", SCHEDULE]
)
def test_a_byte_order_mark_is_named(file: str, prior_copy: Path) -> None:
    (prior_copy / file).write_bytes(b"\xef\xbb\xbf" + (prior_copy / file).read_bytes())
    with pytest.raises(MissingError, match=f"{file} begins with a byte order mark"):
        load_components(str(prior_copy), torch.float32)


@torch.no_grad()
def test_a_prior_of_v_that_ends_in_pure_noise_tells_clean_latents_at_its_last_level(prior_copy: Path) -> None:
    """Where all is noise, z0 = -v; the way over the predicted noise divides by alpha."""
    set_keys(SCHEDULE, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True)(
        prior_copy
    )
    prior = load_prior(str(prior_copy), CPU)
    z_t, text, cameras = torch.randn(1, 4, 4, 8, 8), prior.embed_prompt("a red cube")[None], turntable_cameras(4)
    found = predict_x0(z_t, prior.predict_noise(z_t, 999, text, cameras), *prior.alpha_sigma(999))
    prior.prediction_type = "epsilon"  # what the network says, as it is
    v = prior.predict_noise(z_t, 999, text, cameras)
    torch.testing.assert_close(found, -v, atol=3e-3, rtol=0)
    assert (prior.alpha_bar[:-1] > prior.alpha_bar[1:]).all()


# -------------------------------------------------------------------------------------------------------------- rewards

REWARDS: dict[str, tuple[Edit, str]] = {
    "module. before each name": (
        change_tensors("model.safetensors", lambda state: {f"module.{name}": it for name, it in state.items()}),
        "has no tensor logit_scale and",
    ),
    "no text projection": (
        drop_tensor("model.safetensors", "text_projection.weight"), "has no tensor text_projection.weight"
    ),
    "no image tower": (
        change_tensors("model.safetensors", lambda state: {k: v for k, v in state.items() if "vision" not in k}),
        "has no tensor vision_model",
    ),
    "text tensor gone": (
        drop_tensor("model.safetensors", "text_model.encoder.layers.0.mlp.fc1.weight"),
        "has no tensor text_model.encoder.layers.0.mlp.fc1.weight",
    ),
    "integers": (
        set_tensor("model.safetensors", "visual_projection.weight", lambda value: (100 * value).to(torch.int8)),
        "holds visual_projection.weight as I8",
    ),
    "nan": (
        set_tensor("model.safetensors", "visual_projection.weight", lambda value: value * float("nan")),
        "holds inf or nan in visual_projection.weight",
    ),
    "no tokenizer config": (remove_file("tokenizer_config.json"), "has no tokenizer_config.json"),
    "another model": (set_keys("config.json", model_type="siglip"), "is a model of type 'siglip'"),
    "empty config": (write_file("config.json", b""), "config.json is no JSON file"),
    "too few words": (set_keys("tokenizer.json", model=...), "cannot be read as a model"),
}  # fmt: skip


@pytest.mark.parametrize("case", REWARDS)
def test_a_damaged_or_foreign_reward_is_refused_by_what_it_is(
    case: str, reward_folder: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    folder = Path(shutil.copytree(reward_folder, tmp_path / "reward"))
    edit, words = REWARDS[case]
    edit(folder)
    with pytest.raises(PresetError) as caught:
        load_reward(str(folder), device=CPU)
    assert words in str(caught.value) and str(folder) in str(caught.value)


CRITICS: dict[str, tuple[Edit, str]] = {
    "tensor gone": (drop_tensor("model.safetensors", "image_projection.weight"), "image_projection.weight"),
    "tensor too many": (
        change_tensors("model.safetensors", lambda state: {**state, "odd": torch.zeros(1)}), '"odd"'
    ),
    "integers": (
        set_tensor("model.safetensors", "image_projection.weight", lambda value: value.to(torch.int64)),
        "image_projection.weight as torch.int64",
    ),
    "unknown kind": (set_keys("config.json", critic="three_tower"), "no critic 'three_tower'"),
    "other width": (set_keys("config.json", width=64), "does not fit TwoTowerCritic"),
    "odd width": (set_keys("config.json", width="wide"), "cannot be read as a model"),
    "no length": (set_keys("tokenizer_config.json", model_max_length=..., max_length=...), "no model_max_length"),
    "tokenizer of another": (set_keys("config.json", vocabulary_size=9), "9 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("case", CRITICS)
def test_a_damaged_critic_is_refused_by_what_it_lacks(case: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "assets/reward", tmp_path / "reward"))
    (folder / "README.md").unlink()
    edit, words = CRITICS[case]
    edit(folder)
    with pytest.raises(PresetError) as caught:
        load_reward(str(folder), device=CPU)
    assert (words in str(caught.value) or case == "tokenizer of another") and str(folder) in str(caught.value)


# ------------------------------------------------------------------------------------------------------ shipped weights


def flip_bit(file: str) -> Edit:
    def edit(folder: Path) -> None:
        data = bytearray((folder / file).read_bytes())
        data[-1000] ^= 0x40
        (folder / file).write_bytes(data)

    return edit


DAMAGES: dict[str, Edit] = {
    "flipped bit": flip_bit("model.safetensors"),
    "all zero": change_tensors("model.safetensors", lambda state: {k: torch.zeros_like(v) for k, v in state.items()}),
    "other heads": lambda folder: (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 8')
    ),
    "other length": set_keys("tokenizer_config.json", model_max_length=12),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shipped_model_that_is_not_what_its_card_states_is_refused(damage: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "assets/selector", tmp_path / "selector"))
    load_reward(str(folder), device=CPU)
    DAMAGES[damage](folder)
    with pytest.raises(MissingError, match="is not the file whose sha256 its README.md states"):
        load_reward(str(folder), device=CPU)
    (folder / "README.md").unlink()  # nobody vouches for it any more
    load_reward(str(folder), device=CPU)


def test_line_ends_of_another_system_are_no_damage(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "assets/selector", tmp_path / "selector"))
    config = folder / "config.json"
    config.write_bytes(config.read_bytes().replace(b"\n", b"\r\n"))
    load_reward(str(folder), device=CPU)


def test_every_file_that_decides_what_a_shipped_model_computes_stands_in_its_card() -> None:
    folders = [path for path in sorted((ROOT / "assets").iterdir()) if any(path.rglob("*.safetensors"))]
    folders = [path for path in folders if not path.name.startswith("next-")]  # milestones, which no preset uses
    assert len(folders) == 5
    for folder in folders:
        assert sorted(digests.read_card_digests(folder)) == digests.list_decisive_files(folder)
        assert not digests.find_wrong_files(folder)


def test_a_digest_is_computed_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    first = digests.compute_digest(file)
    before = digests._hash_file.cache_info().misses
    assert digests.compute_digest(file) == first and digests._hash_file.cache_info().misses == before
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert digests.compute_digest(file) != first


# -------------------------------------------------------------------------------------------- checkpoints of one file


def save_checkpoint(path: Path, state: dict[str, Tensor]) -> str:
    torch.save(state, path)
    return str(path)


def ldm_state(*, camera: bool) -> dict[str, Tensor]:
    """A whole checkpoint in ldm's layout."""
    width, text = {"width": 64, "mult": (1, 1, 2, 2), "context": 64}, {"width": 64, "layers": 2, "vocabulary": 40}
    parts = {
        "model.diffusion_model.": released.unet_shapes(**width, camera=camera),
        "first_stage_model.": released.vae_shapes(width=32, mult=(1, 2, 2)),
        "cond_stage_model.model.": released.text_shapes(**text, positions=77),
    }
    return {
        prefix + name: value
        for prefix, shapes in parts.items()
        for name, value in released.random_state(shapes).items()
    }


@pytest.mark.parametrize("extra", [{}, {"v_pred": torch.zeros(0)}, {"global_step": torch.tensor(875000)}])
def test_stable_diffusion_in_one_file_is_refused_for_it_does_not_say_what_it_predicts(
    extra: dict[str, Tensor], tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path / "v2-1_768-ema-pruned.ckpt", ldm_state(camera=False) | extra)
    with pytest.raises(PresetError, match="has no camera embedding: in one file only MVDream is read"):
        load_components(path, torch.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state | {"model.diffusion_model.odd.weight": torch.zeros(1)}, "'odd.weight' is no tensor of"),
        (
            lambda state: {k: v for k, v in state.items() if "1.1.proj_in" not in k},
            "no tensor input_blocks.1.1.proj_in.weight",
        ),
        (lambda state: {k: v for k, v in state.items() if "quant_conv" not in k}, "no tensor post_quant_conv.weight"),
        (lambda state: state | {"model.diffusion_model.out.2.weight": torch.tensor(1.0)}, "cannot be read as a model"),
    ],
)
def test_an_mvdream_file_with_other_tensors_is_refused_by_name(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: str, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "assets/reward", tmp_path / "tokenizer")
    path = save_checkpoint(tmp_path / "mvdream.pt", change(ldm_state(camera=True)))
    with pytest.raises(PresetError) as caught:
        load_components(path, torch.float32)
    assert words in str(caught.value) and path in str(caught.value)


@pytest.mark.parametrize("layers", [(0, 3, 6, 9, 11), (0, 2, 4, 6), (0, 1)])
def test_a_score_head_of_other_layers_is_refused(layers: tuple[int, ...], tmp_path: Path) -> None:
    """LAION's heads with activations (relu, MSE) hold no tensor for them."""
    widths = [768, *[16] * (len(layers) - 1), 1]
    state = {}
    for number, inputs, outputs in zip(layers, widths[:-1], widths[1:], strict=True):
        state |= {
            f"layers.{number}.weight": torch.zeros(outputs, inputs),
            f"layers.{number}.bias": torch.zeros(outputs),
        }
    path = save_checkpoint(tmp_path / "head.pth", state)
    with pytest.raises(PresetError, match=f"{path}: its score head has layers 0"):
        load_reward(path, device=CPU)


def test_the_first_hps_is_refused_for_its_tower_has_another_activation(tmp_path: Path) -> None:
    """OpenAI's ViT-L/14 in open_clip's names, as HPS v1 is stored, in its true width and nothing else."""
    text = released.text_shapes(width=64, layers=1, vocabulary=40, positions=77)
    shapes = released.clip_shapes(width=1024, layers=1, inner=64, patch=2, side=2, text=text)
    shutil.copytree(ROOT / "assets/reward", tmp_path / "tokenizer")
    path = save_checkpoint(tmp_path / "hpc.pt", released.random_state(shapes))
    with pytest.raises(PresetError, match=f"{path}: its image tower is 1024 wide, where HPSv2's ViT-H-14 is 1280"):
        load_reward(path, device=CPU)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x04K\x01.", b"\x80\x02}q\x00X", b"<html>"])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    path.write_bytes(content)
    with pytest.raises(PresetError, match="odd.pt"):
        load_reward(str(path), device=CPU)


def test_a_small_decoder_is_one(prior_copy: Path) -> None:
    set_keys("vae/config.json", _class_name="AutoencoderKL")(prior_copy)
    with pytest.raises(PresetError, match="is a 'AutoencoderKL'; a reward_decoder is an AutoencoderTiny"):
        load_small_decoder(str(prior_copy / "vae"), torch.float32)


# ---------------------------------------------------------------------------------------------------- addresses, errors


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("owner/name", ("owner/name", "")),
        ("owner/name/weights/a.pt", ("owner/name", "weights/a.pt")),
        ("https://huggingface.co/owner/name", ("owner/name", "")),
        ("http://www.huggingface.co/owner/name/", ("owner/name", "")),
        ("huggingface.co/owner/na.me-1_x", ("owner/na.me-1_x", "")),
        ("https://hf.co/owner/name?library=diffusers#use", ("owner/name", "")),
        ("https://huggingface.co/owner/name/tree/main", ("owner/name", "")),
        ("https://huggingface.co/owner/name/tree/main/unet", ("owner/name", "")),
        ("https://huggingface.co/owner/name/blob/main/weights/a.pt", ("owner/name", "weights/a.pt")),
        ("https://huggingface.co/owner/name/resolve/main/a.pt?download=true", ("owner/name", "a.pt")),
    ],
)
def test_the_address_of_a_page_is_the_model_on_it(source: str, wanted: tuple[str, str]) -> None:
    assert hub.split_source(source) == wanted
    assert hub.plain_source(source) == "/".join(filter(None, wanted))


@pytest.mark.parametrize(
    "source",
    ["gpt2", "a b/c", "https://civitai.com/models/1", "https://huggingface.co/owner", "owner/", "-a/b", "a--b/c",
     "owner/name/../../x", "https://huggingface.co/owner/name/tree/v1.1", "o/" + "n" * 97, "prior\n", "\0"],
)  # fmt: skip
def test_what_is_no_model_is_refused_before_the_hub_is_asked(source: str) -> None:
    with pytest.raises(PresetError):
        hub.find_model(source, "prior")


def test_a_broken_index_of_shards_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors"):
        (tmp_path / name).write_text("{}")
    for content in ("", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(MissingError, match="index.json"):
            hub.find_model(str(tmp_path), "reward")


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (drop_tensor(UNET, "conv_in.weight"), MISSING),
        (set_keys(UNET_KEYS, addition_embed_type="text_time"), BAD_INPUT),
        (cut_file("vae/config.json"), MISSING),
        (set_keys(UNET_KEYS, attention_head_dim="many"), MISSING),
        (remove_file(TOKENS), MISSING),
    ],
)
def test_the_command_line_ends_with_one_line_and_its_code(
    edit: Edit, code: int, prior_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(prior_copy)
    assert main(["run", "a red cube", "--out", str(tmp_path / "runs"), "--set", f"prior={prior_copy}"]) == code
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("psd: ") and str(prior_copy) in last and not (tmp_path / "runs").exists()


def test_a_pasted_address_is_looked_for_by_its_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["run", "a red cube", "--set", "prior=https://huggingface.co/owner/name"]) == MISSING
    assert "owner/name is not here" in capsys.readouterr().err
