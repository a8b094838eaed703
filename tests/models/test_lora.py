"""LoRA files under each maker's names, merged by the presets' loader into tiny checkpoints in the released layouts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import conv2d

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.models.checkpoints import layouts
from psd.models.checkpoints.lora import merge_lora, read_lora
from psd.models.load import load_models, load_prior
from tests.support import released

CPU = torch.device("cpu")
RANK, WEIGHT = 4, 0.7
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0"
UNET_LAYERS = [
    f"{ATTENTION}.attn1.to_q", f"{ATTENTION}.attn1.to_out.0", f"{ATTENTION}.attn2.to_k", f"{ATTENTION}.ff.net.0.proj",
    "mid_block.attentions.0.proj_in",  # a 1x1 convolution in 1.5, a matrix in 2.1
    "up_blocks.1.resnets.0.conv1", "up_blocks.1.resnets.0.conv_shortcut", "down_blocks.0.downsamplers.0.conv",
    "time_embedding.linear_1", "conv_in",
]  # fmt: skip
TEXT_LAYERS = [f"encoder.layers.{i}.{part}" for i in (0, 1) for part in ("self_attn.q_proj", "self_attn.out_proj")]
TEXT_LAYERS += ["encoder.layers.1.mlp.fc1"]
Key = tuple[str, str]  # network (unet, text_encoder) and layer


def first_diffusers(network: str, layer: str) -> tuple[str, str, str]:
    """Before 0.19: attention of both networks alone, in its processors' names, the text tower's like the U-Net's."""
    if network == "unet":
        attention, part = layer.removesuffix(".0").rsplit(".", 1)  # the U-Net's to_out is a list
        stem = f"{attention}.processor.{part}_lora"  # and without a prefix, being alone at first
    else:
        attention, part = layer.rsplit(".", 1)
        stem = f"text_encoder.text_model.{attention}.to_{part.removesuffix('_proj')}_lora"
    return f"{stem}.down.weight", f"{stem}.up.weight", ""


def diffusers(network: str, layer: str) -> tuple[str, str, str]:
    """What its training scripts save since then."""
    stem = f"unet.{layer}.lora" if network == "unet" else f"text_encoder.text_model.{layer}.lora_linear_layer"
    return f"{stem}.down.weight", f"{stem}.up.weight", ""


def peft(network: str, layer: str) -> tuple[str, str, str]:
    stem = f"unet.{layer}" if network == "unet" else f"text_encoder.text_model.{layer}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"


def kohya(network: str, layer: str) -> tuple[str, str, str]:
    """Everything with underscores, so that layers cannot be told by splitting."""
    stem = (f"lora_unet_{layer}" if network == "unet" else f"lora_te_text_model_{layer}").replace(".", "_")
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"


SCHEMES: dict[str, Callable[[str, str], tuple[str, str, str]]] = {
    "first_diffusers": first_diffusers, "diffusers": diffusers, "peft": peft, "kohya": kohya
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {version: released.stable_diffusion_folder(root / version, version) for version in ("1.5", "2.1")}


def weights(version: str) -> dict[Key, Tensor]:
    """All tensors of the U-Net and the text tower, under the names of diffusers and transformers, in float64."""
    states = released.stable_diffusion(version)
    named = {
        "unet": layouts.unet_from_ldm(states["unet"]),
        "text_encoder": layouts.tensors_under(states["text_encoder"], "text_model."),
    }
    return {(network, name): value.double() for network, state in named.items() for name, value in state.items()}


def layers(scheme: str) -> list[Key]:
    attention = scheme == "first_diffusers"
    found = [("unet", layer) for layer in UNET_LAYERS] + [("text_encoder", layer) for layer in TEXT_LAYERS]
    return [(network, layer) for network, layer in found if not attention or "attn" in layer]


def pairs(
    keys: list[Key], into: dict[Key, Tensor], rank: int = RANK, seed: int = 0
) -> dict[Key, tuple[Tensor, Tensor]]:
    """Down and up of each layer: a convolution's down has its kernel and its up is 1x1, as all trainers have it."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for network, layer in keys:
        outputs, *inputs = into[network, f"{layer}.weight"].shape
        ones = (1,) * (len(inputs) - 1)
        down = torch.randn(rank, *inputs, generator=generator)
        found[network, layer] = (down, torch.randn(outputs, rank, *ones, generator=generator) / 10)
    return found


def write(path: Path, scheme: str, lora: dict[Key, tuple[Tensor, Tensor]], alpha: float | None) -> str:
    state = {}
    for key, (down, up) in lora.items():
        names = SCHEMES[scheme](*key)
        state |= {names[0]: down, names[1]: up} | ({} if alpha is None else {names[2]: torch.tensor(alpha)})
    save_file(state, path)
    return str(path)


def merged(into: dict[Key, Tensor], lora: dict[Key, tuple[Tensor, Tensor]], factor: float) -> dict[Key, Tensor]:
    """W + factor B A: for a convolution the one that does first A, then the 1x1 B."""
    result = dict(into)
    for (network, layer), (down, up) in lora.items():
        product = torch.einsum("or,ri...->oi...", up.double().flatten(1), down.double())
        result[network, f"{layer}.weight"] = into[network, f"{layer}.weight"] + factor * product
    return result


def loaded(folder: Path, *loras: tuple[str, float], dtype: torch.dtype = torch.float32) -> dict[Key, Tensor]:
    prior = load_prior(str(folder), CPU, dtype, loras=loras)
    networks = {"unet": prior.unet, "text_encoder": prior.text_encoder}
    return {(part, name): value for part, network in networks.items() for name, value in network.state_dict().items()}


# --------------------------------------------------------------------------------------------------------------- merged


@pytest.mark.parametrize(("stabilised", "factor"), [(False, 6.0 / RANK), (True, 6.0 / RANK**0.5)])
def test_an_alpha_of_the_metadata_counts_for_its_network(
    stabilised: bool, factor: float, folders: dict[str, Path], tmp_path: Path
) -> None:
    """As diffusers saves PEFT's configuration; the other network's is its rank."""
    before = weights("1.5")
    lora = pairs(layers("peft"), before)
    path = Path(write(tmp_path / "style.safetensors", "peft", lora, None))
    told = {"unet.lora_alpha": 6, "unet.r": RANK, "unet.use_rslora": stabilised, "unet.alpha_pattern": {}}
    save_file(load_file(path), path, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(told)})
    found = loaded(folders["1.5"], (str(path), WEIGHT))
    parts = {network: {key: value for key, value in lora.items() if key[0] == network} for network, _ in lora}
    wanted = merged(merged(before, parts["unet"], WEIGHT * factor), parts["text_encoder"], WEIGHT)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key].double(), value, atol=1e-5, rtol=1e-5)
    told["unet.alpha_pattern"] = {"to_q": 2}
    other = tmp_path / "uneven.safetensors"
    save_file(load_file(path), other, metadata={"lora_adapter_metadata": json.dumps(told)})
    with pytest.raises(PresetError, match="uneven.safetensors: its unet.alpha_pattern gives layers different"):
        loaded(folders["1.5"], (str(other), WEIGHT))


@pytest.mark.parametrize("version", ["1.5", "2.1"])
@pytest.mark.parametrize(
    ("scheme", "alpha"), [("first_diffusers", None), ("diffusers", None), ("peft", None), ("peft", 6.0), ("kohya", 1.5)]
)
def test_each_naming_adds_weight_alpha_over_rank_b_a(
    version: str, scheme: str, alpha: float | None, folders: dict[str, Path], tmp_path: Path
) -> None:
    """To the layers that it names, convolutions and the text tower's among them, and to no other."""
    before = weights(version)
    lora = pairs(layers(scheme), before)
    source = write(tmp_path / "style.safetensors", scheme, lora, alpha)
    found = loaded(folders[version], (source, WEIGHT))
    wanted = merged(before, lora, WEIGHT * (RANK if alpha is None else alpha) / RANK)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if value is before[key]:
            assert torch.equal(found[key].double(), value), key
        else:
            torch.testing.assert_close(found[key].double(), value, atol=1e-6, rtol=1e-6)
            assert (value - before[key]).std() > 0.03


def write_adapter(folder: Path, lora: dict[Key, tuple[Tensor, Tensor]], adapter: str = "", **config: object) -> str:
    """As PEFT's own ``save_pretrained`` lays it out, the name of the adapter kept where the state dict was saved."""
    folder.mkdir()
    state = {}
    for (network, layer), (down, up) in lora.items():
        stem = f"base_model.model.{'' if network == 'unet' else 'text_model.'}{layer}"
        state |= {f"{stem}.lora_A.{adapter}weight": down, f"{stem}.lora_B.{adapter}weight": up}
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK} | config))
    return str(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "keeps its strength \\(lora_alpha\\) in adapter_config.json: put that file beside it"),
        ({}, "states no lora_alpha"),
        ({"lora_alpha": "much"}, "lora_alpha = 'much' is no finite number"),
        ({"lora_alpha": 6, "peft_type": "LOHA"}, "asks for another adapter than LoRA"),
        ({"lora_alpha": 6, "use_dora": True}, "asks for DoRA"),
        ({"lora_alpha": 6, "alpha_pattern": {"to_q": 2}}, "its alpha_pattern gives layers different strengths"),
    ],
)
def test_an_adapter_of_unknown_strength_is_refused(
    config: dict[str, Any] | None, words: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    lora = pairs([("unet", UNET_LAYERS[0])], weights("1.5"))
    source = write_adapter(tmp_path / "style", lora, **(config or {}))
    if config is None:
        (tmp_path / "style" / "adapter_config.json").unlink()
    with pytest.raises(PresetError, match=f"LoRA {source}.*{words}"):
        loaded(folders["1.5"], (source, WEIGHT))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7])
def test_a_lora_of_no_finite_numbers_is_refused(value: float, folders: dict[str, Path], tmp_path: Path) -> None:
    path = Path(write(tmp_path / "style.safetensors", "kohya", pairs([("unet", UNET_LAYERS[0])], weights("1.5")), 1.0))
    state = load_file(path)
    name = next(name for name in state if "lora_down" in name)
    state[name] = torch.full_like(state[name], value) if value != 7 else state[name].to(torch.int32)
    save_file(state, path)
    with pytest.raises(PresetError, match=f"LoRA {path}: '{name}' holds no finite floating-point numbers"):
        loaded(folders["1.5"], (str(path), WEIGHT))


@pytest.mark.parametrize("adapter", ["", "default.", "default_0."])
@pytest.mark.parametrize("network", ["unet", "text_encoder"])
def test_what_peft_itself_saves_is_read(network: str, adapter: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """One network a file, named from its root; alpha stands in the configuration beside it."""
    before = weights("1.5")
    lora = pairs([key for key in layers("peft") if key[0] == network], before)
    inside = "" if network == "unet" else "text_model."
    state = {}
    for (_, layer), (down, up) in lora.items():
        stem = f"base_model.model.{inside}{layer}"
        state |= {f"{stem}.lora_A.{adapter}weight": down, f"{stem}.lora_B.{adapter}weight": up}
    save_file(state, tmp_path / "adapter_model.safetensors")
    stabilised = adapter == "default."
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "use_rslora": stabilised, "alpha_pattern": {}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = loaded(folders["1.5"], (str(tmp_path), WEIGHT))
    for key, value in merged(before, lora, WEIGHT * 6 / (RANK**0.5 if stabilised else RANK)).items():
        torch.testing.assert_close(found[key].double(), value, atol=1e-5, rtol=1e-5)
    config["alpha_pattern"] = {"to_q": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(PresetError, match="its alpha_pattern gives layers different"):
        read_lora(tmp_path / "adapter_model.safetensors", "owner/style")


@torch.no_grad()
@pytest.mark.parametrize("layer", ["up_blocks.1.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv"])
def test_a_merged_convolution_does_what_its_trainer_ran_beside_it(
    layer: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The down convolution, with the layer's kernel and stride, and after it the 1x1 up convolution."""
    lora = pairs([("unet", layer)], weights("1.5"))
    ((down, up),) = lora.values()
    source = write(tmp_path / "locon.safetensors", "kohya", lora, 2.0)
    new, old = (load_prior(str(folders["1.5"]), CPU, loras=loras) for loras in (((source, WEIGHT),), ()))
    found, plain = new.unet.get_submodule(layer), old.unet.get_submodule(layer)
    x = torch.randn(1, down.shape[1], 6, 6, generator=torch.Generator().manual_seed(1))
    beside = conv2d(conv2d(x, down, stride=plain.stride, padding=plain.padding), up)
    torch.testing.assert_close(found(x), plain(x) + WEIGHT * 2 / RANK * beside, atol=1e-4, rtol=1e-4)


def test_a_presets_loras_add_up_each_with_its_weight(folders: dict[str, Path], tmp_path: Path) -> None:
    """One of them a folder, as a hub repository is; a negative weight takes away."""
    before, keys = weights("1.5"), [("unet", UNET_LAYERS[0]), ("text_encoder", TEXT_LAYERS[0])]
    first, second = pairs(keys, before), pairs(keys, before, rank=2, seed=1)
    (tmp_path / "repository").mkdir()
    write(tmp_path / "repository" / "pytorch_lora_weights.safetensors", "diffusers", first, None)
    loras = {
        str(tmp_path / "repository"): 0.8,
        write(tmp_path / "other.safetensors", "kohya", second, 1.0): -0.5,
    }
    preset = Preset.load(
        "tiny", {"device": "cpu", "prior": str(folders["1.5"]), "prompt": "a red cube", "loras": loras}
    )
    prior: Any = load_models(preset).prior
    wanted = merged(merged(before, first, 0.8), second, -0.5 / 2)
    for network, layer in keys:
        module = (prior.unet if network == "unet" else prior.text_encoder).get_submodule(layer)
        torch.testing.assert_close(module.weight.double(), wanted[network, f"{layer}.weight"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_lora_is_rounded_once_into_half_precision(
    dtype: torch.dtype, folders: dict[str, Path], tmp_path: Path
) -> None:
    """A file in half precision, as most are, into a prior in half precision: off by the rounding of the sum alone."""
    before = {key: value.to(dtype).double() for key, value in weights("1.5").items()}
    rounded = {key: (down.to(dtype), up.to(dtype)) for key, (down, up) in pairs(layers("kohya"), before).items()}
    source = write(tmp_path / "half.safetensors", "kohya", rounded, 1.0)
    found = loaded(folders["1.5"], (source, WEIGHT), dtype=dtype)
    wanted = merged(before, rounded, WEIGHT / RANK)
    for network, layer in rounded:
        key = (network, f"{layer}.weight")
        half_a_step = torch.finfo(dtype).eps / 2  # relative, at most
        assert found[key].dtype == dtype
        assert ((found[key].double() - wanted[key]).abs() <= 1.001 * half_a_step * wanted[key].abs() + 1e-7).all()


# -------------------------------------------------------------------------------------------------------------- refused

STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"  # 64 x 128 here
DOWN, UP, TWO = f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight", "lora_te2_text_model_encoder_layers_0_mlp_fc1"
PAIR = {DOWN: (4, 128), UP: (64, 4)}
WRONG: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {  # the tensors' shapes, and what is said of them
    "no tensors": ({}, "holds no tensors"),
    "no LoRA": ({"unet.conv_in.weight": (64, 4, 3, 3)}, "'unet.conv_in.weight' is neither"),
    "a layer more": (
        {"lora_unet_up_blocks_3_conv.lora_up.weight": (4, 4)},
        "'lora_unet_up_blocks_3_conv' fits no layer",
    ),
    "a second text tower (SDXL)": ({f"{TWO}.lora_up.weight": (512, 4)}, f"'{TWO}' fits no layer"),
    "text of another width": (
        {**PAIR, DOWN: (4, 192)},
        rf"'{STEM}' has shapes \(64, 4\) and \(4, 192\), which make no weight of \(64, 128\)",
    ),
    "a layer transposed": ({DOWN: (4, 64), UP: (128, 4)}, rf"'{STEM}' has shapes"),
    "two ranks": ({**PAIR, UP: (64, 2)}, rf"'{STEM}' has shapes"),
    "half of a pair": ({DOWN: (4, 128)}, f"'{STEM}' has no up projection"),
    "an alpha alone": ({f"{STEM}.alpha": ()}, f"'{STEM}' has no down and no up projection"),
    "a Hadamard product (LoHa)": ({f"{STEM}.hada_w1_a": (64, 4)}, f"'{STEM}.hada_w1_a' is neither"),
    "magnitudes apart (DoRA)": ({**PAIR, f"{STEM}.dora_scale": (1, 128)}, f"'{STEM}.dora_scale' is neither"),
    "three factors (LyCORIS)": ({**PAIR, f"{STEM}.lora_mid.weight": (4, 4)}, f"'{STEM}.lora_mid.weight' is neither"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_by_its_name_and_its_tensors(case: str, folders: dict[str, Path]) -> None:
    shapes, complaint = WRONG[case]
    prior = load_prior(str(folders["1.5"]), CPU)
    before = {name: value.clone() for name, value in prior.unet.state_dict().items()}
    with pytest.raises(PresetError, match=f"LoRA owner/style:? {complaint}"):
        merge_lora(
            {name: torch.ones(shape) for name, shape in shapes.items()},
            prior.unet,
            prior.text_encoder,
            1,
            "owner/style",
        )
    assert all(torch.equal(value, before[name]) for name, value in prior.unet.state_dict().items())


def test_a_lora_of_another_release_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """The U-Nets agree on the queries' shape; keys and values look at texts of another width."""
    keys = [("unet", f"{ATTENTION}.attn2.{part}") for part in ("to_q", "to_k")]
    source = write(tmp_path / "style.safetensors", "peft", pairs(keys, weights("1.5")), None)
    with pytest.raises(PresetError, match=r"style\.safetensors: 'unet\..*attn2\.to_k' has shapes .*another model"):
        load_prior(str(folders["2.1"]), CPU, loras=((source, 1.0),))
