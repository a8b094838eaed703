"""`load_models`: the one place that chooses device, precision and backend, loads, caches and explains."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from psd.config.errors import MissingError, PresetError
from psd.config.preset import CompileMode, Preset
from psd.models import hub
from psd.models.checkpoints.refusals import explain_load_errors
from psd.models.interfaces import Models, Prior, Reward
from psd.models.prior import components
from psd.models.prior.diffusers_prior import DiffusersPrior
from psd.models.rewards.black_box import BlackBoxReward
from psd.models.rewards.load import load_reward
from psd.models.rewards.text_image import ImageTextReward, refuse_unknown_words
from psd.runtime import diagnosis, lanes, memory
from psd.runtime.devices import choose_device, choose_precision


def orbit_batch(preset: Preset, priors: Iterable[Prior]) -> int:
    """Images that pass a network at once after memory ran short: an orbit's, fewer where the preset takes fewer."""
    views = max(prior.views for prior in priors)
    return min(preset.network_batch or views, views)


_loading = threading.RLock()  # a cache that two threads ask at once loads twice


def load_models(
    preset: Preset, *, black_boxes: dict[str, Callable[[Tensor, str], Any]] | None = None, say: hub.Say | None = None
) -> Models:
    """Loads the models that ``preset`` names, once a process and shared (all networks are frozen).

    ``black_boxes`` adds rewards that are plain callables; the preset weighs them by name in ``rewards``.  ``say`` hears
    of downloads before they begin (without it stderr does).
    Raises `PresetError` for words that a model never learned, `MissingError` for models that are not there.
    """
    device, why = choose_device(preset.device)
    try:
        with _loading:
            return _load_networks(preset, device, why, black_boxes or {}, say)
    except (MemoryError, RuntimeError) as error:
        if not memory.is_out_of_memory(error):
            raise
        cure = diagnosis.out_of_memory_help(error, str(device))
    unload_all()  # out of the exception, whose frames hold what was loaded
    raise MissingError(cure)


def unload_all() -> None:
    """Free all models that no run holds."""
    _held.clear()
    load_prior.cache_clear()
    load_judge.cache_clear()
    memory.release_memory()


def _load_networks(
    preset: Preset,
    device: torch.device,
    why: str,
    callables: Mapping[str, Callable[[Tensor, str], Any]],
    say: hub.Say | None,
) -> Models:
    dtype = choose_precision(preset.precision, device)
    evict_other_models(preset, device, dtype)
    priors: dict[str, DiffusersPrior] = {}
    for name in preset.priors:
        with naming_stage(preset, lambda stage, name=name: stage.prior == name):
            priors[name] = load_prior(
                name, device, dtype, decoder=preset.reward_decoder, batch=preset.network_batch,
                compiled=preset.compile, say=say,
            )  # fmt: skip
            for prompt in (preset.prompt, preset.negative_prompt):
                priors[name].embed_prompt(prompt)  # unknown words are refused here, before anything is made
    # An earlier run may have done otherwise.
    threads = lanes.share_cores(preset.threads, small=all(prior.rows_apart > 0 for prior in priors.values()))

    def find_reward(name: str) -> Reward:
        if name in callables:
            return BlackBoxReward(name, callables[name])
        with naming_stage(preset, lambda stage: name in (*stage.rewards, *stage.judges)):
            judge = _judge_for(preset, name, device, dtype, say)
            refuse_unknown_words(judge.tokenizer, preset.prompt, name)
        return judge

    rewards, judges = ({name: find_reward(name) for name in names} for names in (preset.reward_names, preset.judges))
    scorers = [one for one in {**rewards, **judges}.values() if isinstance(one, ImageTextReward)]
    networks = [*priors.values(), *scorers]

    def set_max_batches(batch: int) -> None:
        for network in networks:
            network.take(batch)

    set_max_batches(preset.network_batch)  # an earlier run may have had to do with fewer
    of_priors = (f"prior {name} in {prior.dtype}" for name, prior in priors.items())
    return Models(
        priors=priors,
        rewards=rewards,
        judges=judges,
        notes=(why, threads, *of_priors, *hub.licence_lines(preset)),
        fewer=lambda: set_max_batches(orbit_batch(preset, priors.values())),
    )


@contextmanager
def naming_stage(preset: Preset, uses: Callable[[Preset], bool]) -> Iterator[None]:
    """A `PresetError` of the block says which stage asks for the model, where the first does not (``uses``)."""
    try:
        yield
    except PresetError as error:
        if where := preset.name_stage(uses):
            raise type(error)(f"{where}{error}") from error
        raise


def _judge_for(
    preset: Preset, name: str, device: torch.device, dtype: torch.dtype, say: hub.Say | None = None, *,
    visiting: bool = False,
) -> ImageTextReward:  # fmt: skip
    """A reward or judge as runs of ``preset`` have it, the same one for all who ask; or one that leaves nothing on the
    device between its calls."""
    watching = name not in preset.reward_names
    return load_judge(
        name, device=device, dtype=dtype, batch=preset.network_batch,
        compiled="none" if watching or visiting else preset.compile,
        parked=visiting or (watching and preset.network_batch > 0), say=say,
    )  # fmt: skip


def borrow_judge(preset: Preset, name: str) -> ImageTextReward:
    """A reward or judge of ``preset`` for pictures from outside; who calls it holds `psd.runtime.offload.COMPUTING`.

    Where the device holds the models of ``preset``, it is their own; beside those of another preset, or before any,
    it visits a GPU from main memory, so that a run there keeps all of the room that it was measured for.
    Raises `MissingError` for a model that is not there.
    """
    device, _ = choose_device(preset.device)
    dtype = choose_precision(preset.precision, device)
    with _loading:
        visiting = device.type != "cpu" and _held.get(device) != model_key(preset, dtype)
        return _judge_for(preset, name, device, dtype, visiting=visiting)


_held: dict[torch.device, tuple] = {}  # `model_key` of each device


def model_key(preset: Preset, dtype: torch.dtype) -> tuple:
    """The values of a preset that decide which networks are on a device, and how."""
    names = {*preset.reward_names, *preset.judges}
    return dtype, {*preset.priors}, names, preset.reward_decoder, preset.network_batch, preset.compile


def evict_other_models(preset: Preset, device: torch.device, dtype: torch.dtype) -> None:
    """Frees a GPU of the models of another preset before new ones come; main memory keeps several."""
    wanted = model_key(preset, dtype)
    if device.type != "cpu" and _held.get(device, wanted) != wanted:
        unload_all()
    _held[device] = wanted


def download_models(preset: Preset, leave: Callable[[], bool] = lambda: False) -> Iterator[str]:
    """Downloads what the preset names and is not here; says before each what it is, then how far
    (`hub.download_model`).
    """
    half = choose_precision(preset.precision, choose_device(preset.device)[0]) != torch.float32
    for wanted in hub.required_sources(preset):
        try:
            yield from hub.download_model(*wanted, half=half, leave=leave)
        except MissingError as error:  # no context manager spans a yield
            where = preset.name_stage(lambda stage, wanted=wanted: wanted in hub.required_sources(stage))
            raise MissingError(f"{where}{error}") from error


@lru_cache(maxsize=2)
def load_prior(
    source: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    decoder: str = "",
    batch: int = 0,
    compiled: CompileMode = "none",
    say: hub.Say | None = None,
) -> DiffusersPrior:
    """Loads a prior from a folder, a file or a hub id and tries its networks once; the last two are kept.

    ``decoder`` names a small decoder to use in place of the prior's own, ``batch`` > 0 bounds the images at once.
    Raises `MissingError` and `PresetError` with a cure.
    """
    found = components.load_components(source, dtype, say=say)
    small = components.load_small_decoder(decoder, dtype, say) if decoder else None
    with explain_load_errors(source):
        prior = DiffusersPrior(source, found, device=device, dtype=dtype, decoder=small, batch=batch, compiled=compiled)
        prior.try_networks()
    return prior


load_judge = lru_cache(maxsize=8)(load_reward)  # the same network for all who ask it
