"""A frozen diffusion prior in diffusers' classes, from a folder, a file or a hub id: multi- or single-view.

The embedded prior and the large ones take this road; nothing in the algorithm depends on which.
A folder holds unet, vae, text_encoder, tokenizer, scheduler; ``model_index.json`` may add ``views``, ``image_size``,
``latent_clamp`` and ``captions`` (examples of what a closed vocabulary can say).  A U-Net with a projected 16-value
class embedding is camera-conditioned in MVDream's way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from psd.config.errors import PresetError
from psd.config.preset import CompileMode
from psd.geometry.cameras import Cameras, mvdream_condition, turntable_cameras
from psd.models import vocabulary
from psd.models.prior.components import Components
from psd.models.prior.joint_attention import join_views
from psd.runtime import lanes
from psd.runtime.cuda_graphs import Graphed, launch_whole
from psd.runtime.offload import hold_on_device
from psd.runtime.precision import run_in_chunks, run_in_precision
from psd.runtime.traced import Traced

TRIED_LATENTS = 8  # latent pixels along an edge, the least that the released U-Nets can halve three times
DISPLAY_WORDS = 1000  # of a large vocabulary, the most frequent whole words are offered for nearest-token displays


class DiffusersPrior:
    """`psd.models.interfaces.Prior` over diffusers components; everything frozen, in ``dtype`` on ``device``.

    ``decoder`` is a small one for the images that rewards see, in place of the prior's own.  ``batch`` > 0 bounds the
    images that pass a network at once, and has gradients recomputed piece by piece: less memory, more time, the same
    numbers; the text encoder then waits in main memory.  ``compiled``: how the U-Net's calls are launched, and whether
    it and the encoder are compiled (`psd.runtime.cuda_graphs.launch_whole`).
    """

    def __init__(
        self,
        source: str,
        components: Components,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        decoder: AutoencoderTiny | None = None,
        batch: int = 0,
        compiled: CompileMode = "none",
    ) -> None:
        self.source, self.device, self.dtype, self.batch = source, device, dtype, batch
        self.unet, self.vae, self.text_encoder = components.unet, components.vae, components.text_encoder
        self.decoder: Any = decoder if decoder is not None else self.vae
        self.rows_apart = lanes.choose_rows(self.unet, device)
        # Convolutions on tensor cores; on a CPU a small autoencoder takes a sixth less time, the U-Net more.
        on_gpu = device.type == "cuda"
        pictures_last = on_gpu or self.rows_apart > 0
        for network, last in ((self.unet, on_gpu), (self.vae, pictures_last), (self.decoder, pictures_last)):
            network.to(device=device, memory_format=torch.channels_last if last else torch.preserve_format)
        self.text_encoder.to(device="cpu" if batch else device)
        self.tokenizer = components.tokenizer
        self.prediction_type, self.alpha_bar = components.prediction_type, components.alpha_bar
        self.camera_conditioned = self.unet.config["class_embed_type"] == "projection"
        self.views: int = components.index.get("views", 4 if self.camera_conditioned else 1)
        self.image_size: int = components.index.get("image_size", self.unet.config["sample_size"] * self.vae_factor)
        self.latent_clamp: float | None = components.index.get("latent_clamp")
        self.captions: list[str] = components.index.get("captions", [])
        join_views(self.unet, self.views)
        if self.rows_apart and compiled == "none":
            self.network: Callable[..., Tensor] = Traced(self._run_unet, self.unet)
        else:
            self.network = launch_whole(self._run_unet, [self.unet, self.vae.encoder], compiled)

    @property
    def levels(self) -> int:
        return len(self.alpha_bar)

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        signal = float(self.alpha_bar[t])
        return math.sqrt(signal), math.sqrt(1 - signal)

    def take(self, batch: int) -> None:
        """Takes at most ``batch`` images at once from now on (0: all)."""
        if batch != self.batch and isinstance(self.network, Graphed):
            self.network.discard_recordings()
        self.batch = batch

    def _run_unet(self, rows: Tensor, times: Tensor, text: Tensor, labels: Tensor | None) -> Tensor:
        return self.unet(rows, times, text, class_labels=labels).sample

    @torch.no_grad()
    def try_networks(self) -> None:
        """Calls each network once on small pictures, so that an error comes before a run has begun.

        Raises whatever a network does, and `PresetError` for a decoder that makes pictures of another size than the
        encoder takes.
        """
        images = torch.zeros(1, self.views, 3, *[TRIED_LATENTS * self.vae_factor] * 2, device=self.device)
        latents, cameras = self.encode(images), turntable_cameras(self.views)
        text = self.embed_prompt("").expand(self.views, -1, -1)
        labels = mvdream_condition(cameras)[0].to(self.device, self.dtype) if self.camera_conditioned else None
        times = torch.full((1,), len(self.alpha_bar) // 2, device=self.device)
        self._run_unet(latents[0].to(self.dtype), times, text.to(self.dtype), labels)
        if (shape := self.decode(latents).shape) != images.shape:
            raise PresetError(
                f"{self.source}: its decoder makes pictures of {shape[-1]} px of what its encoder made of"
                f" {images.shape[-1]} px: they are of different models"
            )

    @property
    def vae_factor(self) -> int:
        """Pixels of an image along an edge for one latent."""
        blocks = self.vae.config.get("block_out_channels") or self.vae.config["encoder_block_out_channels"]
        return 2 ** (len(blocks) - 1)

    def _run_rows(self, function: Callable[[Tensor], Tensor], rows: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """``function`` of pictures that know nothing of each other: a few at a time where memory is short, on lanes
        where the networks are small."""
        if self.batch:
            return run_in_chunks(function, rows, self.batch)
        return lanes.map_rows(function, rows, self.rows_apart)

    def encode(self, images: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "b v c h2 w2"]:
        """Latents of images in [0, 1]: the mean for a variational autoencoder, times its scaling factor."""

        def encode_pixels(pixels: Tensor) -> Tensor:
            encoded = self.vae.encode(pixels * 2 - 1)
            return encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mean

        flat = rearrange(images, "b v c h w -> (b v) c h w")
        found = self._run_rows(lambda part: run_in_precision(encode_pixels, part, self.dtype), flat)
        return rearrange(found * self.vae.config["scaling_factor"], "(b v) c h w -> b v c h w", v=images.shape[1])

    def decode(self, z0: Float[Tensor, "b v c h2 w2"]) -> Float[Tensor, "b v 3 h w"]:
        """Images of latents, nominally in [0, 1] but not clamped."""

        factor = self.decoder.config["scaling_factor"]

        def decode_latents(latents: Tensor) -> Tensor:
            return run_in_precision(lambda part: self.decoder.decode(part / factor).sample, latents, self.dtype)

        found = self._run_rows(decode_latents, rearrange(z0, "b v c h w -> (b v) c h w")) / 2 + 0.5
        return rearrange(found, "(b v) c h w -> b v c h w", v=z0.shape[1])

    def _token_ids(self, prompt: str) -> Tensor:
        """Token ids ``1 l``; words outside a closed vocabulary are refused, never silently unknown."""
        limit = self.tokenizer.model_max_length
        length = len(self.tokenizer(prompt).input_ids)
        if length > limit:
            raise PresetError(f"the prompt has {length} tokens; {self.source} takes {limit}: shorten it")
        if unknown := vocabulary.find_unknown_words(self.tokenizer, prompt):
            words = sorted(set(self.tokenizer.get_vocab()) - set(self.tokenizer.all_special_tokens))
            near = {word: get_close_matches(word.lower(), words, 3, cutoff=0.4) for word in unknown}
            hints = "; ".join(f"{word!r}" + (f" (near: {', '.join(n)})" if n else "") for word, n in near.items())
            examples = get_close_matches(prompt.lower(), self.captions, 3, cutoff=0.0)
            known = f"The nearest captions that it knows: {'; '.join(examples)}" if examples else ", ".join(words)
            raise PresetError(f"{self.source} never learned {hints}. {known}")
        return self.tokenizer(prompt, padding="max_length", max_length=limit, return_tensors="pt").input_ids

    def embed_prompt(self, prompt: str) -> Float[Tensor, "l d"]:
        return self._encode_text(self._token_ids(prompt))[0]

    @torch.no_grad()
    def _encode_text(self, ids: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        with hold_on_device([self.text_encoder], self.device):
            return self.text_encoder(ids.to(self.device)).last_hidden_state.float()

    def tokens(self, prompt: str) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(self._token_ids(prompt)[0].tolist())

    def word_embeddings(self) -> tuple[list[str], Float[Tensor, "w d"]]:
        """Words with the text encoder's *output* for each alone (position after the start token)."""
        return self._word_embeddings

    @cached_property
    def _word_embeddings(self) -> tuple[list[str], Float[Tensor, "w d"]]:
        by_id = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        known = [(word, number) for word, number in by_id if word not in self.tokenizer.all_special_tokens]
        if not vocabulary.has_closed_vocabulary(self.tokenizer):
            known = [(w[:-4], n) for w, n in known if w.endswith("</w>") and w[:-4].isalpha()][:DISPLAY_WORDS]
        start = self.tokenizer("").input_ids[0]
        # A token hears only those before it: two tokens a word are enough, and all words pass at once.
        ids = torch.tensor([[start, number] for _, number in known])
        return [word for word, _ in known], self._encode_text(ids)[:, 1]

    def predict_noise(
        self, z_t: Float[Tensor, "b v c h2 w2"], t: int, embedding: Float[Tensor, "b l d"], cameras: Cameras
    ) -> Float[Tensor, "b v c h2 w2"]:
        """Predicts the noise in ``z_t`` at level ``t``; a prediction of v is turned into one of noise.

        The views of a group are predicted together and stay in one batch, however small ``batch`` is.
        """
        views = z_t.shape[1]
        rows = rearrange(z_t, "b v c h w -> (b v) c h w").to(self.dtype)
        times = torch.full((1,), t, device=self.device)  # filled there: nothing is copied, so nothing waits
        conditions = None
        if self.camera_conditioned:
            conditions = rearrange(mvdream_condition(cameras), "b v d -> (b v) d").to(self.device, self.dtype)
        size = len(rows)
        if self.batch or self.rows_apart:
            size = max(1, self.batch // views) * views  # groups stay whole
        text = repeat(embedding, "b l d -> (b v) l d", v=views)

        def predict_rows(start: int) -> Tensor:
            part = slice(start, start + size)
            labels = None if conditions is None else conditions[part]
            return run_in_precision(lambda text: self.network(rows[part], times, text, labels), text[part], self.dtype)

        starts = range(0, len(rows), size)
        found = lanes.map_parts(predict_rows, starts) if self.rows_apart else list(map(predict_rows, starts))
        output = rearrange(torch.cat(found), "(b v) c h w -> b v c h w", v=views)
        if self.prediction_type == "epsilon":
            return output
        alpha, sigma = self.alpha_sigma(t)
        return alpha * output + sigma * z_t  # v = alpha noise - sigma z0 and z_t = alpha z0 + sigma noise
