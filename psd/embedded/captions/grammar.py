"""The captions of the embedded world: a closed grammar, so that every caption has a ground truth.

    single   [a] [colour] noun               "a red fox", "a fox" in its own colours, "a blue cone"
    pair     single RELATION single          "a frog on top of a red crate", RELATION one of
             "on top of"                      the first stands on the second
             "next to"                        seen from the front the first is on the left (world -y)

Which nouns there are, which take a colour word and which come in pairs is said by ``psd.embedded.captions.kinds``.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256

from psd.embedded.captions.kinds import COLOURS, PRIMITIVES, Kind, list_objects, read_kinds
from psd.embedded.captions.unknown import UnknownCaption, UnknownWords

RELATIONS = ("on top of", "next to")
LOW_QUALITY = "low quality blurry"  # the one caption of degraded images: the prior's fixed negative prompt
HELD_OUT_PAIRS_PERCENT = 16


@dataclass(frozen=True)
class Caption:
    """One caption and its meaning; ``text`` is its only canonical wording."""

    kind: str
    colour: str | None = None
    relation: str | None = None
    other_kind: str | None = None
    other_colour: str | None = None

    @property
    def group(self) -> str:
        """ "pair", "primitive" or "thing"."""
        if self.relation:
            return "pair"
        return "primitive" if self.kind in PRIMITIVES else "thing"

    @property
    def text(self) -> str:
        first = _phrase(self.kind, self.colour)
        return f"{first} {self.relation} {_phrase(str(self.other_kind), self.other_colour)}" if self.relation else first

    @property
    def mirror_image(self) -> Caption:
        """The same two parts named in the other order, each with its colour; pairs only."""
        assert self.other_kind is not None
        return replace(
            self, kind=self.other_kind, colour=self.other_colour, other_kind=self.kind, other_colour=self.colour
        )

    @property
    def meaning(self) -> Caption:
        """Equal for captions that mean the same picture.

        Seen from behind, "a cube next to a cone" is "a cone next to a cube", and who is shown a picture without its
        camera cannot tell them apart: they mean the same.
        """
        return min(self, self.mirror_image, key=str) if self.relation == "next to" else self

    @property
    def is_valid(self) -> bool:
        kinds = read_kinds()
        kind = kinds.get(self.kind)
        if kind is None or self.colour not in kind.colours:
            return False
        if self.relation is None:
            return self.other_kind is None and self.other_colour is None
        other = kinds.get(str(self.other_kind))
        if other is None or self.other_colour not in other.colours or not kind.is_placed:
            return False
        if self.colour == self.other_colour and (self.colour is not None or self.kind == self.other_kind):
            return False
        return other.is_carrier if self.relation == "on top of" else other.is_placed


def _phrase(noun: str, colour: str | None) -> str:
    words = f"{colour} {noun}" if colour else noun
    article = read_kinds()[noun].article
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}" if article else words


def _either(words: tuple[str, ...] | dict) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


@functools.cache
def _patterns() -> tuple[re.Pattern, re.Pattern]:
    colour, kind = _either(COLOURS), _either(read_kinds())
    single = rf"(?:an? )?(?:(?P<colour>{colour}) )?(?P<kind>{kind})"
    other = rf"(?:an? )?(?:(?P<other_colour>{colour}) )?(?P<other_kind>{kind})"
    return re.compile(single), re.compile(rf"{single} (?P<relation>{_either(RELATIONS)}) {other}")


def parse(text: str) -> Caption:
    """The caption that ``text`` says; capitals, punctuation and a missing or wrong article are forgiven.

    Raises UnknownWords for words outside the vocabulary and UnknownCaption for known words in another order.
    """
    words = _words(text)
    found = _match(words)
    if found:
        return found
    unknown = [word for word in dict.fromkeys(words) if word not in vocabulary()]
    if unknown:
        raise UnknownWords(text, unknown, find_nearest(text))
    raise UnknownCaption(text, find_nearest(text))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s.,;:!?\"]+", text.lower())


def _match(words: list[str]) -> Caption | None:
    plain = " ".join(words)
    single, pair = _patterns()
    match = single.fullmatch(plain) or pair.fullmatch(plain)
    caption = Caption(**match.groupdict()) if match else None
    return caption if caption and caption.is_valid else None


def find_nearest(text: str, n: int = 3) -> list[str]:
    """The ``n`` single captions that resemble ``text`` most in spelling."""
    words = set(_words(text))

    def likeness(candidate: str) -> float:
        return len(words & set(candidate.split())) + difflib.SequenceMatcher(None, text.lower(), candidate).ratio()

    plain = [caption.text for caption in all_captions(pairs=False)]
    return sorted(plain, key=likeness, reverse=True)[:n]


@functools.cache
def vocabulary() -> list[str]:
    """Every word of every caption, sorted."""
    phrases = [*COLOURS, *read_kinds(), *RELATIONS, LOW_QUALITY, "a", "an"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def all_captions(*, pairs: bool = True) -> Iterator[Caption]:
    """Every caption of the grammar: about 1,800 singles, then some 100,000 pairs."""
    kinds = read_kinds()
    for noun, kind in kinds.items():
        for colour in kind.colours:
            yield Caption(noun, colour)
    if pairs:
        placed = [kind for kind in kinds.values() if kind.is_placed]
        for relation, first, second in itertools.product(RELATIONS, placed, kinds.values()):
            if second.is_carrier if relation == "on top of" else second.is_placed:
                yield from _colour_pairs(first, second, relation)


def _colour_pairs(first: Kind, second: Kind, relation: str) -> Iterator[Caption]:
    for colour, other in itertools.product(first.colours, second.colours):
        caption = Caption(first.noun, colour, relation, second.noun, other)
        if caption.is_valid:
            yield caption


def is_held_out(caption: Caption) -> bool:
    """Whether ``caption`` is never trained on.

    Each kind that takes a colour gives up two of its ten (a primitive one) in turn, so that each colour is given up
    by every fifth kind; such a colour and kind never meet, in pairs neither.  Of the two kinds of a pair, 16 % of the
    couples, by their SHA-256, never meet in any relation or colour.
    """
    if _is_combination_held_out(caption.kind, caption.colour):
        return True
    if not caption.relation:
        return False
    other = str(caption.other_kind)
    return _is_combination_held_out(other, caption.other_colour) or _is_couple_held_out(caption.kind, other)


@functools.cache
def _indices() -> dict[str, int]:
    return {noun: index for index, noun in enumerate(read_kinds())}


def _is_combination_held_out(noun: str, colour: str | None) -> bool:
    # The primitives' rule is the one of the hand-drawn world, whose prior the first training started from.
    if colour is None:
        return False
    turn = (list(COLOURS).index(colour) + 3 * _indices()[noun]) % len(COLOURS)
    return turn == 2 or (turn == 7 and noun not in PRIMITIVES)


@functools.cache
def _is_couple_held_out(one: str, two: str) -> bool:
    couple = " and ".join(sorted((one, two)))
    return int(sha256(couple.encode()).hexdigest(), 16) % 100 < HELD_OUT_PAIRS_PERCENT


def near_misses(caption: Caption, n: int, seed: int, *, held_out: bool = False) -> list[Caption]:
    """``n`` different captions that are each one step from ``caption`` and mean another picture.

    Dealt in turn: a pair's swap (of colours, kinds, both, or the relation), another colour, another kind of the same
    category, another kind.  A colour word is neither added nor dropped: an object's own colour may be that colour.
    The near misses of a caption in training are in training too: a critic that met held-out captions as wrong answers
    only would learn to reject them.  ``held_out``: for critics that train on every caption, all near misses; else they
    would learn that a held-out caption among the answers is the right one.
    """
    rng = random.Random(seed)
    steps = (rng.sample(step, len(step)) for step in _steps(caption, held_out))
    options = [option for options in itertools.zip_longest(*steps) for option in options if option]
    if len(options) < n:
        raise ValueError(f"{caption.text!r} has {len(options)} near misses, not {n}")
    return options[:n]


@functools.lru_cache(maxsize=8192)
def _steps(caption: Caption, held_out: bool = False) -> tuple[list[Caption], ...]:
    """The captions one step away: by swapping, by another colour, a kind of the same category, another kind."""
    kinds = read_kinds()
    swapped: list[Caption] = []
    slots = [("kind", "colour")]
    if caption.relation:
        slots.append(("other_kind", "other_colour"))
        swapped_kinds = {"kind": caption.other_kind, "other_kind": caption.kind}
        swapped_colours = {"colour": caption.other_colour, "other_colour": caption.colour}
        other_relation = next(relation for relation in RELATIONS if relation != caption.relation)
        changes = (swapped_colours, swapped_kinds, swapped_kinds | swapped_colours, {"relation": other_relation})
        swapped = [replace(caption, **change) for change in changes]
    recoloured = [
        replace(caption, **{slot: colour}) for _, slot in slots if getattr(caption, slot) for colour in COLOURS
    ]
    alike: list[Caption] = []
    unlike: list[Caption] = []
    for slot, _ in slots:
        category = kinds[getattr(caption, slot)].category
        for noun, kind in kinds.items():
            (alike if kind.category == category else unlike).append(replace(caption, **{slot: noun}))

    seen = {caption.meaning}
    steps: list[list[Caption]] = []
    for step in (swapped, recoloured, alike, unlike):
        kept = []
        for option in step:
            apart = not held_out and is_held_out(option) and not is_held_out(caption)
            if option.is_valid and not apart and option.meaning not in seen:
                kept.append(option)
                seen.add(option.meaning)
        steps.append(kept)
    return tuple(steps)


def find_swaps(caption: Caption) -> list[Caption]:
    """A pair's captions with its words bound otherwise: colours, kinds or both exchanged, or the other relation."""
    return list(_steps(caption, held_out=True)[0])


def find_neighbours(caption: Caption) -> list[Caption]:
    """Everything that ``near_misses`` chooses from."""
    return list(itertools.chain(*_steps(caption)))


def random_captions(n: int, seed: int) -> list[Caption]:
    """``n`` captions of different meanings, groups drawn evenly, held-out ones among them."""
    rng = random.Random(seed)
    chosen: dict[Caption, Caption] = {}
    while len(chosen) < n:
        caption = draw_caption(rng.choice(("primitive", "pair", "thing")), rng)
        chosen.setdefault(caption.meaning, caption)
    return list(chosen.values())


def draw_caption(group: str, rng: random.Random) -> Caption:
    """A caption of ``group``, kinds drawn evenly; half of the things that take a colour word come without one."""
    kinds = read_kinds()
    if group == "primitive":
        return Caption(rng.choice(PRIMITIVES), rng.choice(list(COLOURS)))
    if group == "thing":
        noun = rng.choice(list_objects())
        return Caption(noun, _draw_colour(kinds[noun], rng, share=0.5))
    placed = [kind for kind in kinds.values() if kind.is_placed]
    carriers = [kind for kind in kinds.values() if kind.is_carrier]
    while True:
        relation = rng.choice(RELATIONS)
        first, second = rng.choice(placed), rng.choice(carriers if relation == "on top of" else placed)
        colours = (_draw_colour(kind, rng, share=0.85) for kind in (first, second))
        caption = Caption(first.noun, next(colours), relation, second.noun, next(colours))
        if caption.is_valid:
            return caption


def _draw_colour(kind: Kind, rng: random.Random, *, share: float) -> str | None:
    """A colour for a ``share`` of those that take one; primitives always have one, stars in ``share`` only."""
    colours = [colour for colour in kind.colours if colour]
    if not colours or (None in kind.colours and rng.random() > share):
        return None
    return rng.choice(colours)
