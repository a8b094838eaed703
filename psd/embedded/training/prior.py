"""The embedded prior: `UNet2DConditionModel` over four joint views of 8 x 16 x 16 latents, with its own text encoder.

Camera condition through ``class_embed_type="projection"`` and joint-view self-attention, as in MVDream; v-prediction on
the squared-cosine schedule; the text encoder is trained along; 10 % of the captions are dropped for guidance.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from einops import rearrange, repeat
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from psd.embedded.captions import grammar, lists
from psd.embedded.training import data
from psd.embedded.training.autoencoder import LATENT_CHANNELS, save_half
from psd.geometry import cameras
from psd.models.prior.joint_attention import join_views

VIEWS = 4
LATENT = 16  # latents along an edge
WIDTH = 128  # text features
TOKENS = 16
DROP = 0.1


def build_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token a word of a grammar; anything else becomes <|unknown|>, which `psd.models.prior.diffusers_prior`
    refuses by name.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["<|pad|>", "<|startoftext|>", "<|unknown|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.normalizer = normalizers.Lowercase()  # pyright: ignore
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", 1), ("<|endoftext|>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=TOKENS, pad_token="<|pad|>", bos_token="<|startoftext|>",
        eos_token="<|endoftext|>", unk_token="<|unknown|>",
    )  # fmt: skip


def build_small_text_encoder(vocabulary_size: int, *, layers: int = 3) -> CLIPTextModel:
    """A CLIP text encoder `WIDTH` wide with new weights, for captions of up to `TOKENS` tokens."""
    # eos_token_id 3, not transformers' legacy 2: with 2 it pools at the highest token id and ignores every later word.
    encoder: Any = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=layers,
            num_attention_heads=4, max_position_embeddings=TOKENS, pad_token_id=0, bos_token_id=1, eos_token_id=3,
            projection_dim=WIDTH,
        )
    )  # fmt: skip
    # CLIP's own 0.02 lets the layers drown the words while the U-Net still ignores them: after 12,000 objects all
    # captions had the same embedding to 2 %.  Words as large as the layers' outputs cannot drown.
    nn.init.normal_(encoder.get_input_embeddings().weight, std=1.0)
    nn.init.normal_(encoder.embeddings.position_embedding.weight, std=0.5)
    return encoder


def replace_vocabulary(encoder: CLIPTextModel, earlier: Any, tokenizer: Any) -> None:
    """Give ``encoder`` the words of ``tokenizer``: those of ``earlier`` keep their rows, others are drawn anew.

    New rows have the deviation of the old table, so that the layers meet no words larger or smaller than they know.
    """
    known, words = earlier.get_vocab(), tokenizer.get_vocab()
    if words == known:
        return
    old: Any = encoder.get_input_embeddings().weight.data
    new = torch.randn(len(words), old.shape[1]) * old.std()
    for word, row in words.items():
        if word in known:
            new[row] = old[known[word]]
    table = nn.Embedding(len(words), old.shape[1], padding_idx=0)
    table.weight.data.copy_(new)
    encoder.set_input_embeddings(table)
    encoder.config.vocab_size = len(words)


def build_unet() -> UNet2DConditionModel:
    """The embedded U-Net with new weights; its `VIEWS` views are joined in attention as in MVDream."""
    unet = UNet2DConditionModel(
        sample_size=LATENT, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        block_out_channels=(48, 96, 128), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=16, use_linear_projection=True,
        class_embed_type="projection", projection_class_embeddings_input_dim=16,
    )  # fmt: skip
    join_views(unet, VIEWS)
    return unet


def normalise_in_float32(unet: UNet2DConditionModel) -> None:
    """Let every GroupNorm of ``unet`` take float32, whatever comes.

    On a CPU with AMX, bfloat16 convolutions take a quarter of their time, but GroupNorm takes eight times as long:
    with this and `psd.embedded.training.loop.attend_by_products` one core trains 19.2 objects a second, 14.1 in float32
    (batch 10).
    """
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def build_scheduler() -> DDPMScheduler:
    """1,000 levels of noise on a cosine schedule (Nichol and Dhariwal 2021), trained on v."""
    return DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
    )


class DenoiserTask:
    """What the loop trains and ships as ``prior``: U-Net and text encoder together, on latents that the shipped
    autoencoder made once.
    """

    name = "prior"
    captions_seen = data.HELD_OUT

    def __init__(self, arguments: argparse.Namespace, rank: int, world: int) -> None:
        self.batch = arguments.batch
        self.device = torch.device(arguments.device)
        self.scheduler = build_scheduler()
        alpha_bar = self.scheduler.alphas_cumprod.to(self.device)
        self.alpha, self.sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        self.tokenizer = build_tokenizer(grammar.vocabulary())
        if arguments.warm_start:
            earlier = AutoTokenizer.from_pretrained(arguments.warm_start, subfolder="tokenizer")
            unet: Any = UNet2DConditionModel.from_pretrained(
                arguments.warm_start, subfolder="unet", torch_dtype=torch.float32
            )
            text = CLIPTextModel.from_pretrained(arguments.warm_start, subfolder="text_encoder", dtype=torch.float32)
            replace_vocabulary(text, earlier, self.tokenizer)
            join_views(unet, VIEWS)
        else:
            unet, text = build_unet(), build_small_text_encoder(len(self.tokenizer))
        unet.to(memory_format=torch.channels_last)  # a fifth less time on a CPU
        if arguments.bf16 and self.device.type == "cpu":
            normalise_in_float32(unet)
        self.model: Any = nn.ModuleDict({"unet": unet, "text_encoder": text})
        self.vae: Any = AutoencoderTiny.from_pretrained(arguments.vae, torch_dtype=torch.float32)
        self.vae.eval().requires_grad_(False).to(self.device)
        self.vae_folder = Path(arguments.vae)
        self.latents, self.conditions, captions = encode_shards(
            self.vae, self.vae_folder, Path(arguments.data), rank, world
        )
        self.tokens = self.tokenise_captions(captions)
        if self.device.type == "cuda":  # all of it fits: a batch is then gathered where it is used
            self.latents, self.conditions = self.latents.to(self.device), self.conditions.to(self.device)

    def tokenise_captions(self, captions: list[str]) -> Tensor:
        return self.tokenizer(captions, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids

    def loss(self, iteration: int, objects: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of v for ``objects`` objects, views of one at the same t; `DROP` without caption."""
        rows = torch.randint(len(self.latents), (objects,), generator=generator)
        here = rows.to(self.latents.device)
        z0 = self.latents[here].float().to(self.device)
        noise = torch.randn(z0.shape, generator=generator).to(self.device)
        # The larger of two draws: what the caption decides is decided at high noise; at low noise the loss of whitened
        # latents is unpredictable detail, and after 10,000 objects of uniform draws the caption was still ignored.
        t = torch.randint(1000, (objects, 2), generator=generator).amax(1).to(self.device)
        tokens = self.tokens[rows].clone()
        tokens[torch.rand(objects, generator=generator) < DROP] = self.tokenise_captions([""])[0]
        alpha, sigma = (table[t].view(-1, 1, 1, 1, 1) for table in (self.alpha, self.sigma))
        embedding = self.model["text_encoder"](tokens.to(self.device)).last_hidden_state
        v = predict_velocity(
            self.model["unet"], alpha * z0 + sigma * noise, t, embedding, self.conditions[here].to(self.device)
        )
        return (v.float() - (alpha * noise - sigma * z0)).square().mean(), {}

    def ship(self, ema: nn.Module, folder: Path) -> None:
        """A diffusers pipeline folder: unet, vae, text_encoder, tokenizer, scheduler, and the captions it knows."""
        import shutil

        assert isinstance(ema, nn.ModuleDict)
        save_half(ema["unet"], folder / "unet")
        save_half(ema["text_encoder"], folder / "text_encoder")
        self.scheduler.save_pretrained(folder / "scheduler")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        shutil.copytree(self.vae_folder, folder / "vae", dirs_exist_ok=True)
        index = {
            "_class_name": "MVDreamPipeline", "views": VIEWS, "image_size": LATENT * 4, "latent_clamp": 3.0,
            "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderTiny"],
            "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
            "scheduler": ["diffusers", "DDPMScheduler"],
            "captions": [caption.text for caption in grammar.all_captions(pairs=False)],
        }  # fmt: skip
        (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")

    def sheet(self, ema: Any, path: Path) -> None:
        """Guided samples of captions that were never trained on, four views a row, two columns."""
        captions = list(lists.load_list("tuning"))
        embeddings = ema["text_encoder"](
            self.tokenise_captions([*captions, "low quality blurry"]).to(self.device)
        ).last_hidden_state
        z0 = sample_views(ema["unet"], embeddings[:-1], embeddings[-1], guidance_scale=4.0, seed=0)
        z0 = rearrange(z0, "b v c h w -> (b v) c h w").to(self.vae.device)  # where the shards were encoded
        images = self.vae.decode(z0).sample.clamp(-1, 1)
        picture = rearrange(images, "(r k v) c h w -> (r h) (k v w) c", v=VIEWS, k=2)
        image = Image.fromarray(((picture + 1) * 127.5).round().byte().cpu().numpy())
        image = image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for index, caption in enumerate(captions):
            draw.text((index % 2 * 512 + 4, index // 2 * 128 + 2), caption, fill=(200, 0, 120))
        image.save(path)


def predict_velocity(unet: Any, z_t: Tensor, t: Tensor, embedding: Tensor, condition: Tensor) -> Tensor:
    """The network's output for ``b v`` latents; t is (b) or one integer, condition ``b v 16``, embedding ``b l d``."""
    views = z_t.shape[1]
    rows = repeat(embedding, "b l d -> (b v) l d", v=views)
    times = repeat(t, "b -> (b v)", v=views) if t.ndim else t
    condition = rearrange(condition, "b v d -> (b v) d")
    output = unet(rearrange(z_t, "b v c h w -> (b v) c h w"), times, rows, class_labels=condition).sample
    return rearrange(output, "(b v) c h w -> b v c h w", v=views)


@torch.no_grad()
def sample_views(
    unet: Any, embeddings: Tensor, negative: Tensor, *, guidance_scale: float, seed: int, steps: int = 30,
    rescale: float = 0.8, azimuth_deg: float = 0.0, elevation_deg: float = 15.0,
) -> Tensor:  # fmt: skip
    """DDIM samples ``b v c h w`` of four orthogonal views for each embedding ``b l d``, with guidance and rescaling.

    Rescaling (Lin et al. 2023) keeps guidance from burning views apart: on 60 captions of no list the reprojected
    colour error over the truth's was 1.66 without, 1.51 at 0.5 and 1.39 at 0.8, and critics named as many samples.
    """
    scheduler: Any = DDIMScheduler.from_config(build_scheduler().config, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    objects, device = len(embeddings), embeddings.device
    rig = cameras.turntable_cameras(VIEWS, elevation_deg=elevation_deg, start_deg=azimuth_deg)
    condition = repeat(cameras.mvdream_condition(rig), "1 v d -> b v d", b=2 * objects).to(device)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(objects, VIEWS, LATENT_CHANNELS, LATENT, LATENT, generator=generator).to(device)
    rows = torch.cat([embeddings, negative.expand_as(embeddings)])
    for t in scheduler.timesteps:
        v_c, v_n = predict_velocity(unet, torch.cat([z, z]), t.to(device), rows, condition).chunk(2)
        v = v_n + guidance_scale * (v_c - v_n)
        share = v_c.std((1, 2, 3, 4), keepdim=True) / v.std((1, 2, 3, 4), keepdim=True)
        v = v * (rescale * share + 1 - rescale)
        z = scheduler.step(v, int(t), z).prev_sample
    return z


def encode_shards(vae: Any, vae_folder: Path, folder: Path, rank: int, world: int) -> tuple[Tensor, Tensor, list[str]]:
    """Latents ``o v c h w`` (fp16), camera conditions ``o v 16``, captions of all finished shards; cached on disk."""
    weights = (vae_folder / "diffusion_pytorch_model.safetensors").read_bytes()
    cache = folder / f"latents-{hashlib.sha256(weights).hexdigest()[:12]}"
    cache.mkdir(exist_ok=True)
    shards = sorted(int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.safetensors"))
    if world > 1:  # every process must see the same list although shards are still being made
        agreed = [shards]
        torch.distributed.broadcast_object_list(agreed)
        shards = agreed[0]
    for shard in shards[rank::world]:
        target = cache / f"{shard:05d}.safetensors"
        if not target.exists():
            images = rearrange(data.load_shards(folder, [shard], fields=("rgb",)).rgb, "o v h w c -> (o v) c h w")
            with torch.no_grad():
                latents = torch.cat(
                    [vae.encode(i.to(vae.device).float() / 127.5 - 1).latents.cpu() for i in images.split(64)]
                )
            save_file(
                {"latents": rearrange(latents.half(), "(o v) c h w -> o v c h w", v=VIEWS).contiguous()},
                f"{target}.tmp",
            )
            Path(f"{target}.tmp").rename(target)
    if world > 1:
        torch.distributed.barrier()
    loaded = data.load_shards(folder, shards, fields=("camera",))
    latents = torch.cat([load_file(cache / f"{shard:05d}.safetensors")["latents"] for shard in shards])
    return latents, loaded.camera, loaded.captions
