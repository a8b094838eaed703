"""Choose who computes the hash grid: tinycudann, Triton kernels or plain torch."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

from psd.runtime import diagnosis
from psd.scenes.fields.hash_encoding import HashEncoding

OLDEST_FOR_TRITON = (7, 5)  # compute capability


def use_tinycudann(encoding: HashEncoding) -> HashEncoding:
    """The same encoding, its features computed by tiny-cuda-nn; its slopes are its own as before."""
    import tinycudann  # pyright: ignore[reportMissingImports]

    settings = {
        "otype": "HashGrid",
        "n_levels": encoding.LEVELS,
        "n_features_per_level": encoding.FEATURES,
        "log2_hashmap_size": encoding.LOG2_ROWS,
        "base_resolution": encoding.BASE,
        "per_level_scale": encoding.SCALE,
    }
    fused = tinycudann.Encoding(3, settings, dtype=torch.float32)
    fused.params = encoding.params
    encoding.fused = (fused,)
    return encoding


def hash_backend(device: torch.device) -> tuple[str, str]:
    """What computes the hash grid on ``device``, and why: tinycudann, triton or plain torch."""
    if device.type != "cuda":
        return "plain", f"plain torch: kernels are for NVIDIA GPUs, this is {device.type}"
    reason, but = triton_problem(device), ""
    if importlib.util.find_spec("tinycudann"):
        broken = diagnosis.import_error("tinycudann")
        if not broken:
            slopes = f"; slopes in plain torch, slowly: {reason}" if reason else ""
            return "tinycudann", f"tinycudann, which is installed{slopes}"
        but = f"; tinycudann cannot be used here ({broken})"
    if reason:
        return "plain", f"plain torch, which is slow on a GPU: {reason}{but}"
    return "triton", f"Triton kernels, compiled here{but}"


@cache
def triton_problem(device: torch.device) -> str:
    """Why this project's kernels cannot run on a GPU, with the cure; "" where one was launched."""
    if importlib.util.find_spec("triton") is None:
        return "Triton comes with torch on Linux"
    if torch.cuda.get_device_capability(device) < OLDEST_FOR_TRITON:
        return "this one is older than Triton's kernels"
    try:
        from psd.scenes.fields.hash_triton import try_kernels

        try_kernels(device)
    except Exception as error:  # noqa: BLE001 - a C compiler that is not there or fails, a driver, Triton itself
        return f"Triton cannot compile its kernels here ({diagnosis.first_line(error)}): install gcc and python3-dev"
    return ""


def make_hash_encoding(generator: torch.Generator, device: torch.device) -> HashEncoding:
    """The encoding as `hash_backend` says; the same parameters and values everywhere."""
    name, _ = hash_backend(device)
    kind = HashEncoding
    if name != "plain" and not triton_problem(device):
        from psd.scenes.fields.hash_triton import TritonHashEncoding

        kind = TritonHashEncoding
    encoding = kind(generator).to(device)
    return use_tinycudann(encoding) if name == "tinycudann" else encoding
