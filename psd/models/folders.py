"""Networks and tokenizers from folders in the libraries' own format, with nothing missing and nothing made up.

The libraries fill a tensor that a folder lacks with random numbers and take a tokenizer without a length for one
without an end.  Both would run, and score or distil nonsense.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from torch import nn
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from psd.config.errors import MissingError, PresetError, format_value
from psd.models import vocabulary
from psd.models.checkpoints.read import require_finite_weights, require_float_tensors
from psd.models.checkpoints.refusals import FETCH_AGAIN, explain_load_errors
from psd.models.hub import Located

UNLIMITED = 1_000_000  # tokens; transformers says 1e30 where a tokenizer's folder states no length


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """The libraries' own tables of tensors are not printed: what matters in them is raised in words."""
    before = transformers_logging.get_verbosity(), diffusers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before[0])
        diffusers_logging.set_verbosity(before[1])


def load_network(kind: type, at: Located, source: str, dtype: torch.dtype, part: str = "") -> Any:
    """``kind.from_pretrained`` of a folder, or of its ``part``, on the CPU in ``dtype``.

    Raises `MissingError`, naming source, file and tensor, where a tensor is missing, has another shape, holds whole
    numbers or is not finite, and for whatever else the library stumbles over.  Tensors that the network has no place
    for are left out.
    """
    files = [name for name in at.files if name.rpartition("/")[0] == part and name.endswith(".safetensors")]
    where = f"{source}: {files[0] if len(files) == 1 else f'{part}/*.safetensors'.lstrip('/')}"
    if kind.__module__.startswith("transformers"):
        how: dict[str, Any] = {"dtype": dtype, "ignore_mismatched_sizes": True}  # reported, and refused below
    else:
        how = {"torch_dtype": dtype}
    with explain_load_errors(source), quiet_libraries():
        for file in files:
            require_float_tensors(_tensor_types(at.path / file), f"{source}: {file}")
        network, report = kind.from_pretrained(
            str(at.path), **({"subfolder": part} if part else {}), variant=at.weight_variant(part),
            output_loading_info=True, local_files_only=True, use_safetensors=True, **how,
        )  # fmt: skip
        if missing := sorted(report["missing_keys"]):
            first, *others = missing
            more = f" and {len(others)} more" if others else ""
            raise MissingError(
                f"{where} has no tensor {first}{more}, which {kind.__name__} needs: {FETCH_AGAIN}"
                f"{describe_prefix(report['unexpected_keys'], missing)}"
            )
        if mismatched := sorted(report["mismatched_keys"]):
            raise MissingError(
                f"{where} holds {mismatched[0][0]} in another shape than its config.json asks for: {FETCH_AGAIN}"
            )
        require_finite_weights(network, where)
    return network


def describe_prefix(unexpected: Iterable[str], missing: Iterable[str]) -> str:
    """A hint where all that is missing is there under a prefix, as a wrapper of the training left it."""
    lacking = set(missing)
    for name in sorted(unexpected):
        prefix, _, rest = name.partition(".")
        if rest in lacking:
            return f" (it is there as {prefix}.{rest}: take the prefix {prefix + '.'!r} off the names)"
    return ""


def _tensor_types(path: Path) -> dict[str, str]:
    """Tensor -> type by its name in safetensors, from the file's head."""
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping


def load_tokenizer(folder: Path, source: str, *, positions: int = UNLIMITED, rows: int = UNLIMITED) -> Any:
    """The tokenizer in ``folder``, for a network with ``positions`` places for tokens and ``rows`` of embeddings.

    Its ``model_max_length`` is at most ``positions``, also where its files state none or a larger one.
    Raises `MissingError` for a folder without tokenizer_config.json, which says what begins, ends and pads a text, and
    for what the library cannot read; `PresetError` for a tokenizer that cannot serve that network.
    """
    with explain_load_errors(source), quiet_libraries():
        if not (folder / "tokenizer_config.json").is_file():
            raise MissingError(
                f"{source} has no tokenizer_config.json beside its tokenizer, which says how long texts are and what"
                f" pads them: {FETCH_AGAIN}"
            )
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        length = tokenizer.model_max_length
        if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 2:
            raise PresetError(
                f"{source}: model_max_length {format_value(length)} of its tokenizer is no length of 2 up"
            )
        tokenizer.model_max_length = int(min(length, positions))
        if tokenizer.model_max_length >= UNLIMITED:
            raise PresetError(
                f"{source}: its tokenizer states no model_max_length, and a text that is padded to another length is"
                " scored otherwise: add the length that it was trained with to tokenizer_config.json"
            )
        if tokenizer.pad_token_id is None:
            raise PresetError(f"{source}: its tokenizer has no pad_token: name the one that it was trained with")
        if vocabulary.has_closed_vocabulary(tokenizer) and tokenizer.unk_token_id is None:
            raise PresetError(f"{source}: its tokenizer has no unk_token, so unknown words would go unseen: name it")
        if (most := max(tokenizer.get_vocab().values())) >= rows:
            raise PresetError(
                f"{source}: its tokenizer counts to {most}, but its text encoder knows {rows} tokens: they are of"
                " different models"
            )
        tokenizer("a", padding="max_length", truncation=True, return_tensors="pt")  # what it stumbles over, now
    return tokenizer


def count_text_places(network: nn.Module) -> dict[str, int]:
    """``positions`` and ``rows`` for `load_tokenizer`, of a CLIP text tower or a model that contains one."""
    config: Any = network.config
    text = getattr(config, "text_config", config)
    return {"positions": text.max_position_embeddings, "rows": text.vocab_size}
