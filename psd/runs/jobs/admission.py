"""What a server that strangers can reach lets in: prompts, models and pictures.  Every refusal is logged.

The word list is `WORDS` (``assets/blocked_words.txt`` explains its form); the image filter is any function that takes
the pictures of a preview and says what is wrong with them.
"""

from __future__ import annotations

import importlib
import logging
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from psd.config.errors import PresetError, format_value
from psd.config.preset import PRESETS, Preset, list_presets
from psd.distillation.events import Checkpointed, Event, Previewed, Started, Warned
from psd.runs.jobs import preset_cost
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import MakeEvents

LOG = logging.getLogger(__name__)
WORDS = PRESETS.parent / "assets" / "blocked_words.txt"
LOOKALIKES = str.maketrans("0134578@$!|", "oieastbasil")

ImageFilter = Callable[[UInt8[np.ndarray, "v h w 3"]], str]


class PromptFilter:
    """Refuses prompts that hold a word of a list, whatever accents, case, width or digits for letters disguise it.

    Words inside longer words are not looked for unless the list says so.  Raises PresetError for a list that cannot be
    read.
    """

    def __init__(self, path: Path = WORDS) -> None:
        self._word_pattern = self._read_words(path)

    @staticmethod
    def _read_words(path: Path) -> re.Pattern[str]:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise PresetError(f"cannot read the word list {path}: {error}") from None
        entries = [normalise_text(line.partition("#")[0]).strip() for line in lines]
        words = [re.escape(word.rstrip("*")) + (r"\w*" if word.endswith("*") else r"\b") for word in entries if word]
        return re.compile(r"\b(?:" + "|".join(words) + ")") if words else re.compile(r"(?!)")

    @cached_property
    def _shipped_negatives(self) -> set[str]:
        """Negative prompts of the shipped presets: they name what to avoid."""
        return {Preset.load(name).negative_prompt for name in list_presets()}

    def __call__(self, preset: Preset) -> None:
        """Raises PresetError for a prompt that is refused.

        A negative prompt too, unless a shipped preset says the same: with a guidance scale near 0 it is what is made.
        """
        for text, excused in ((preset.prompt, set()), (preset.negative_prompt, self._shipped_negatives)):
            if (found := self._word_pattern.search(normalise_text(text))) and text not in excused:
                LOG.warning("prompt refused for %r: %s", found.group(), format_value(text))
                raise PresetError(f"this server makes nothing of prompts with {found.group()!r}: say it differently")


def normalise_text(text: str) -> str:
    """Letters as a person reads them: no accents, no hidden characters, no digits in the place of letters."""
    letters = unicodedata.normalize("NFKD", " ".join(text.split())).casefold()
    seen = (letter for letter in letters if unicodedata.category(letter) not in ("Mn", "Cf", "Cc"))
    return "".join(seen).translate(LOOKALIKES)


def require_known_models(preset: Preset) -> None:
    """Raises PresetError for models that no shipped preset names: a stranger must not choose what a server loads."""
    known = {model for name in list_presets() for model in model_names(Preset.load(name))}
    if strange := [model for model in model_names(preset) if model not in known]:
        LOG.warning("models refused: %s", format_value(strange))
        raise PresetError(f"this server has no model {format_value(strange[0])}; there are: {', '.join(sorted(known))}")


def model_names(preset: Preset) -> list[str]:
    """Everything that a run of ``preset`` would look for on the disk or the hub."""
    decoder = [preset.reward_decoder] if preset.reward_decoder else []
    return [*preset.priors, *preset.reward_names, *preset.judges, *decoder]


class RunLimits:
    """Refuses runs that would take more memory or time than an operator gives one, before they begin.

    Both are estimated from the preset (`psd.runs.jobs.preset_cost`).  Where the models' speed is not known, a run may
    ask for twice as many pictures of the prior's network as the dearest shipped preset with that prior; of several
    priors, that which allows fewest counts.
    """

    def __init__(self, max_memory_bytes: float, max_run_s: float) -> None:
        self.max_memory_bytes, self.max_run_s = max_memory_bytes, max_run_s

    def __call__(self, preset: Preset) -> None:
        if excess := self.describe_excess(preset):
            LOG.warning("run refused: %s", excess)
            raise PresetError(excess)

    def describe_excess(self, preset: Preset) -> str:
        """What of the preset is above the limits, with the keys to lower; empty when nothing is."""
        memory = preset_cost.estimate_memory(preset)
        if memory > self.max_memory_bytes:
            keys = preset_cost.costly_keys(preset, preset_cost.estimate_memory)
            return (
                f"this run would take about {memory / 2**30:.1f} GiB of memory, and a run here may take "
                f"{self.max_memory_bytes / 2**30:.1f}{_name_keys(keys)}"
            )

        def run_s(candidate: Preset) -> float | None:
            return preset_cost.estimate_cost(candidate, preset_cost.machine_speed()).run_s(candidate)

        seconds = run_s(preset)
        if seconds is not None and seconds > self.max_run_s:
            keys = preset_cost.costly_keys(preset, lambda candidate: run_s(candidate) or 0.0)
            return (
                f"this run would take about {seconds / 60:,.0f} minutes, and a run here may take "
                f"{self.max_run_s / 60:,.3g}{_name_keys(keys)}"
            )
        if seconds is None and self.max_run_s < math.inf:
            return self._describe_many_images(preset)
        return ""

    @staticmethod
    def _describe_many_images(preset: Preset) -> str:
        def count_images(candidate: Preset) -> float:
            return preset_cost.count_step_work(candidate).network_images * candidate.total_steps

        shipped = [Preset.load(name) for name in list_presets()]
        dearest = [
            max((count_images(other) for other in shipped if prior in other.priors), default=math.inf)
            for prior in preset.priors
        ]
        most = 2 * min(dearest)
        if count_images(preset) <= most:
            return ""
        keys = preset_cost.costly_keys(preset, count_images)
        return (
            f"this run would send {count_images(preset) / 1e6:.3g} million pictures through the prior's network, and a "
            f"run here may send {most / 1e6:.3g} million{_name_keys(keys)}"
        )


def _name_keys(keys: Mapping[str, Any]) -> str:
    named = ", ".join(f"{key} ({format_value(value)})" for key, value in keys.items())
    return f": change {named}" if named else ""


def warn_of_cost(make_events: MakeEvents, limits: RunLimits) -> MakeEvents:
    """The same events, with a `Warned` after `Started` for a run above the limits: on one's own machine it may run."""

    def make_warned_events(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        for event in make_events(preset, control, resume):
            yield event
            if isinstance(event, Started) and (excess := limits.describe_excess(preset)):
                yield Warned(step=event.step, time_s=event.time_s, message=f"Large for this server: {excess}")

    return make_warned_events


def load_image_filter(name: str) -> Callable[[Previewed], str]:
    """The screen (`psd.runs.jobs.drive.Screen`) that a ``module:function`` names.

    Raises PresetError where there is none.
    """
    module, _, function = name.partition(":")
    try:
        check: ImageFilter = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise PresetError(f"no image filter {format_value(name)} ({error}): name it as module:function") from None
    if not callable(check):
        raise PresetError(f"the image filter {format_value(name)} is no function: name it as module:function")
    return lambda event: check(event.images["rgb"])
