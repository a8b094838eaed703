"""Help with a closed set of prompts: completions while typing, a check in words, captions built from known words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from psd.config.errors import PresetError
from psd.config.preset import Preset

EXAMPLES = (
    "a red mushroom", "a snowman", "a striped blue mug", "a green cube on top of a yellow cylinder", "a pink donut",
    "a glossy purple rocket",
)  # fmt: skip


class CaptionLike(Protocol):
    @property
    def text(self) -> str: ...


LONGEST_PROMPT = 300  # characters of a preset's prompt; to search the vocabulary for a longer text takes minutes


class Vocabulary(Protocol):
    """A closed grammar of captions; `psd.embedded.captions.grammar` is one.  Complaints are ValueErrors."""

    @property
    def COLOURS(self) -> Mapping[str, Any]: ...
    @property
    def MODIFIERS(self) -> Sequence[str]: ...
    @property
    def RELATIONS(self) -> Sequence[str]: ...
    @property
    def PRIMITIVES(self) -> Sequence[str]: ...
    @property
    def THINGS(self) -> Mapping[str, Any]: ...
    def parse(self, text: str, /) -> CaptionLike: ...
    def nearest(self, text: str, n: int, /) -> list[str]: ...
    def all_captions(self) -> Iterable[CaptionLike]: ...


def caption_problem(vocabulary: Vocabulary, prompt: str) -> str:
    """Why ``prompt`` is no caption of the vocabulary, in words; empty when it is one."""
    if len(prompt) > LONGEST_PROMPT:
        return f"the prompt has {len(prompt)} characters: at most {LONGEST_PROMPT}"
    try:
        vocabulary.parse(prompt)
    except ValueError as error:
        return str(error)
    return ""


def reword_preset(preset: Preset, vocabularies: Mapping[str, Vocabulary]) -> Preset:
    """The preset with its prompt in the words of its prior's vocabulary: "Red mushroom!" is "a red mushroom" there.

    Raises PresetError for what is no caption of it; a prior without a vocabulary reads anything.
    """
    vocabulary = vocabularies.get(preset.prior)
    if vocabulary is None:
        return preset
    if problem := caption_problem(vocabulary, preset.prompt):
        raise PresetError(problem)
    return preset.with_values({"prompt": vocabulary.parse(preset.prompt).text})


def suggest_captions(vocabulary: Vocabulary, prompt: str, n: int = 6) -> list[str]:
    """At most ``n`` captions: those that go on as ``prompt`` begins, then the nearest known ones."""
    prompt = prompt[:LONGEST_PROMPT]
    typed = " ".join(prompt.lower().split())
    if not typed:
        return list(EXAMPLES[:n])
    with_article = typed if typed.startswith(("a ", "an ")) else f"a {typed}"
    going_on = [text for text in _caption_texts(vocabulary) if text.startswith((typed, with_article)) and text != typed]
    found = _spread_evenly(going_on, n) if going_on else vocabulary.nearest(prompt, n)
    return list(dict.fromkeys(found))


def build_caption(modifier: str, colour: str, thing: str, relation: str, other_colour: str, other: str) -> str:
    """The caption that the builder's choices say; empty choices are left out, the grammar judges the result."""
    first = _join_phrase(modifier, colour, thing)
    return f"{first} {relation} {_join_phrase(other_colour, other)}" if relation else first


def _join_phrase(*words: str) -> str:
    phrase = " ".join(filter(None, words))
    return f"{'an' if phrase[:1] in tuple('aeiou') else 'a'} {phrase}"


@lru_cache(maxsize=4)
def _caption_texts(vocabulary: Vocabulary) -> tuple[str, ...]:
    return tuple(caption.text for caption in vocabulary.all_captions())


def _spread_evenly(texts: list[str], n: int) -> list[str]:
    """The shortest two, then texts evenly across the rest, so that completions differ from each other."""
    ordered = sorted(texts, key=len)
    first, rest = ordered[:2], ordered[2:]
    stride = max(1, len(rest) // max(1, n - len(first)))
    return [*first, *rest[::stride]][:n]
