"""What a server that strangers can reach lets in: prompts, models and pictures.  Every refusal is logged.

The word list is `WORDS` (``assets/blocked_words.txt`` explains its form); the image filter is any function that takes
the pictures of a preview and says what is wrong with them.
"""

from __future__ import annotations

import importlib
import logging
import re
import unicodedata
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from psd.config.errors import PresetError, format_value
from psd.config.preset import PRESETS, Preset, list_presets
from psd.distillation.events import Previewed

LOG = logging.getLogger(__name__)
WORDS = PRESETS.parent / "assets" / "blocked_words.txt"
LOOKALIKES = str.maketrans("0134578@$!|", "oieastbasil")

ImageFilter = Callable[[UInt8[np.ndarray, "v h w 3"]], str]


class PromptFilter:
    """Refuses prompts that hold a word of a list.  Accents, case, width, digits for letters and hidden characters are
    seen through; words inside longer words are not looked for unless the list says so.
    """

    def __init__(self, path: Path = WORDS) -> None:
        self.path = path

    @cached_property
    def _word_pattern(self) -> re.Pattern[str]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise PresetError(f"cannot read the word list {self.path}: {error}") from None
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
    return [preset.prior, *preset.rewards, *preset.judges, *preset.loras, *decoder]


def load_image_filter(name: str) -> Callable[[Previewed], str]:
    """The screen (`psd.runs.jobs.drive.Screen`) that a ``module:function`` names; raises PresetError when there is
    none.
    """
    module, _, function = name.partition(":")
    try:
        check: ImageFilter = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise PresetError(f"no image filter {format_value(name)} ({error}): name it as module:function") from None
    return lambda event: check(event.images["rgb"])
