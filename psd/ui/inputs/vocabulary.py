"""Help with prompts for models that know a closed set of things: how a prompt is read, what is offered, completions.

The page and the API get a `Vocabulary` for each such prior, by the prior's name; who starts them makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from psd.config.errors import PresetError, format_value
from psd.config.preset import Preset

LONGEST_PROMPT = 300  # characters of a preset's prompt; what is near to a longer text takes long to find
TRIED_PAIRS = 24  # completions of a pair that are read, to see which of them there are


class ReadingLike(Protocol):
    """How a prompt is read."""

    @property
    def text(self) -> str:
        """The caption that it means; empty where it names nothing known."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What is read otherwise than it was typed."""
        ...

    @property
    def nearest(self) -> tuple[str, ...]:
        """Captions of the nearest kinds where it names nothing known."""
        ...


# From a caption and a scorer ("assets/reward") to what a grey ball and the true object score, where both are known.
FindTrueScores = Callable[[str, str], tuple[float, float] | None]


@dataclass(frozen=True)
class OfferedKind:
    """A kind of thing that the models make well enough to be offered."""

    caption: str  # "a fox": what a choice of it writes
    noun: str
    category: str
    names: tuple[str, ...]  # what people call it too
    place: tuple[int, int]  # column and row of its picture on the sheet


@dataclass(frozen=True)
class Vocabulary:
    """What a prior knows that was trained on a closed set of things."""

    read: Callable[[str], ReadingLike]
    kinds: tuple[OfferedKind, ...]
    captions: tuple[str, ...]  # of one offered kind each, in all of its colours
    relations: tuple[str, ...]  # what stands between the two things of a pair
    examples: tuple[str, ...]
    hint: str  # what can be said of the kinds, in a sentence or two
    sheet: Path  # the picture with a tile for each kind
    columns: int  # tiles in a row of it
    advise: Callable[[], str]  # which models make other things, and whether this machine can run them
    find_true_scores: FindTrueScores

    def find_nearest(self, prompt: str) -> list[OfferedKind]:
        """The kinds to offer for a prompt that names nothing known."""
        offered = {kind.caption: kind for kind in self.kinds}
        return [offered[text] for text in self.read(prompt).nearest if text in offered]


def describe_problem(vocabulary: Vocabulary, prompt: str) -> str:
    """Why ``prompt`` cannot be made, and what can be done; empty where it can."""
    if len(prompt) > LONGEST_PROMPT:
        return f"the prompt has {len(prompt)} characters: at most {LONGEST_PROMPT}"
    if vocabulary.read(prompt).text:
        return ""
    near = ", ".join(kind.caption for kind in vocabulary.find_nearest(prompt))
    return (
        f"the prompt {format_value(prompt)} names nothing that the small models know. Nearest to it are: {near}. "
        f"{vocabulary.advise()}"
    )


def reword_preset(preset: Preset, vocabularies: Mapping[str, Vocabulary]) -> Preset:
    """The preset with its prompt in the words of its priors' vocabularies: "Red mushrooms!" is "a red mushroom" there.

    Raises PresetError for what names nothing that a prior knows; a prior without a vocabulary reads anything.
    """
    for vocabulary in _list_vocabularies(preset, vocabularies):
        if problem := describe_problem(vocabulary, preset.prompt):
            raise PresetError(problem)
        preset = preset.with_values({"prompt": vocabulary.read(preset.prompt).text})
    return preset


def list_notes(preset: Preset, vocabularies: Mapping[str, Vocabulary]) -> list[str]:
    """What of the preset's prompt is read otherwise than it was typed."""
    found = _list_vocabularies(preset, vocabularies)
    return list(dict.fromkeys(note for vocabulary in found for note in vocabulary.read(preset.prompt).notes))


def _list_vocabularies(preset: Preset, vocabularies: Mapping[str, Vocabulary]) -> list[Vocabulary]:
    """Those of the priors of the preset's stages that have one."""
    return [vocabularies[prior] for prior in preset.priors if prior in vocabularies]


def complete_prompt(vocabulary: Vocabulary, prompt: str, count: int = 6) -> list[str]:
    """At most ``count`` captions of offered kinds that go on as ``prompt`` begins; none for a text that none does."""
    typed = " ".join(prompt[:LONGEST_PROMPT].lower().split())
    for relation in vocabulary.relations:
        first, found, second = typed.partition(f" {relation} ")
        if found:
            return _complete_pair(vocabulary, vocabulary.read(first).text, relation, second)[:count]
    return _spread_evenly(_continue_text(vocabulary, typed), count)


def _complete_pair(vocabulary: Vocabulary, first: str, relation: str, typed: str) -> list[str]:
    """Only some things come as a pair, so completions are read to see."""
    if not first:
        return []
    seconds = _spread_evenly(_continue_text(vocabulary, typed), TRIED_PAIRS)
    pairs = (f"{first} {relation} {second}" for second in seconds)
    return [pair for pair in pairs if vocabulary.read(pair).text == pair]


def _continue_text(vocabulary: Vocabulary, typed: str) -> list[str]:
    if not typed:
        return []
    starts = typed if typed.startswith(("a ", "an ")) else (typed, f"a {typed}", f"an {typed}")
    return [text for text in vocabulary.captions if text.startswith(starts) and text != typed]


def _spread_evenly(texts: list[str], count: int) -> list[str]:
    """The shortest two, then texts evenly across the rest, so that completions differ from each other."""
    ordered = sorted(texts, key=len)
    first, rest = ordered[:2], ordered[2:]
    stride = max(1, len(rest) // max(1, count - len(first)))
    return [*first, *rest[::stride]][:count]
