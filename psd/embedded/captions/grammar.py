"""The captions of the embedded world: a closed grammar, so that every caption has a ground truth.

    single   a [modifier] colour noun            "a tall red cone"; some things need no colour: "a snowman"
    pair     a colour primitive RELATION a colour primitive, the colours differing, RELATION one of
             "on top of"                          the first stands on the second
             "next to"                            seen from the front the first is on the left (world -y)

Nothing here draws: ``psd.embedded.objects.assemble`` turns a caption into solids.
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
from pathlib import Path

from psd.embedded.colours import COLOURS
from psd.embedded.unknown import UnknownCaption, UnknownWords

ROUND_PRIMITIVES = ("sphere", "cone", "cylinder", "torus", "capsule")
FLAT_PRIMITIVES = ("cube", "pyramid", "diamond", "prism", "star")  # too flat for a highlight: never glossy
PRIMITIVES = ROUND_PRIMITIVES + FLAT_PRIMITIVES
MODIFIERS = ("striped", "glossy", "tall", "tiny")
RELATIONS = ("on top of", "next to")
LISTS = Path(__file__).resolve().parents[3] / "assets" / "captions"  # the held-out lists of psd.embedded.captions.lists
DOUBLE_QUOTES, SINGLE_QUOTES = '"“”„‟«»', "'‘’‚‛‹›`"  # as people and their word processors write them
LOW_QUALITY = "low quality blurry"  # the one caption of degraded images: the prior's fixed negative prompt


@dataclass(frozen=True)
class Noun:
    """What may stand before a noun: colour words or none, and which modifiers."""

    colours: tuple[str | None, ...]  # None: the noun may come without a colour word
    natural: str | None = None  # the colour meant when none is said
    modifiers: tuple[str, ...] = ()


def _make_noun(modifiers: str, natural: str | None = None) -> Noun:
    colours: tuple[str | None, ...] = tuple(COLOURS) if natural is None else (None, *COLOURS)
    return Noun(colours, natural, tuple(modifiers.split()))


THINGS: dict[str, Noun] = {  # the comment names the part that takes the colour word
    "snowman": _make_noun("glossy tall tiny", natural="white"),  # the balls
    "mushroom": _make_noun("striped glossy tall tiny"),  # the cap
    "table": _make_noun("tall tiny"),  # all
    "chair": _make_noun("tall tiny"),  # all
    "tree": _make_noun("tall tiny", natural="green"),  # the crown
    "rocket": _make_noun("striped glossy tall tiny"),  # the body
    "ice cream cone": _make_noun("striped tall tiny"),  # the scoop
    "lollipop": _make_noun("striped glossy tall tiny"),  # the sweet
    "house": _make_noun("striped tall tiny"),  # the walls
    "donut": _make_noun("striped glossy tiny"),  # the icing
    "car": _make_noun("tall tiny"),  # the bodywork
    "lamp": _make_noun("striped tall tiny"),  # the shade
    "mug": _make_noun("striped glossy tall tiny"),  # all
    "robot": _make_noun("tall tiny"),  # head, body, limbs
    "boat": _make_noun("striped glossy tiny"),  # the hull
    "candle": _make_noun("striped tall tiny"),  # the wax
    "duck": _make_noun("glossy tall tiny", natural="yellow"),  # the feathers
    "cactus": _make_noun("striped tall tiny", natural="green"),  # the plant
    "cupcake": _make_noun("glossy tall tiny"),  # the frosting
    "umbrella": _make_noun("striped glossy tiny"),  # the canopy
    "present": _make_noun("tall tiny"),  # the box
    "flower": _make_noun("tall tiny"),  # the petals
    "burger": Noun((None,), None, ("tall", "tiny")),
    "traffic light": Noun((None,), None, ("tall", "tiny")),
}
NOUNS: dict[str, Noun] = (
    {name: _make_noun("striped glossy tall tiny") for name in ROUND_PRIMITIVES}
    | {name: _make_noun("striped tall tiny") for name in FLAT_PRIMITIVES}
    | THINGS
)


@dataclass(frozen=True)
class Caption:
    """One caption and its meaning; ``text`` is its only canonical wording."""

    kind: str
    colour: str | None
    modifier: str | None = None
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
        first = _with_article(self.modifier, self.colour, self.kind)
        return (
            f"{first} {self.relation} {_with_article(self.other_colour, self.other_kind)}" if self.relation else first
        )

    @property
    def main_colour(self) -> str | None:
        """The colour word, or the one that goes without saying."""
        return self.colour or NOUNS[self.kind].natural

    @property
    def mirror_image(self) -> Caption:
        """The same two parts named in the other order, each with its colour; pairs only."""
        assert self.other_kind is not None
        return replace(
            self, kind=self.other_kind, colour=self.other_colour, other_kind=self.kind, other_colour=self.colour
        )

    @property
    def meaning(self) -> Caption:
        """Equal for captions that mean the same picture: "a snowman" and "a white snowman".

        Seen from behind, "a cube next to a cone" is "a cone next to a cube", and who is shown a picture without its
        camera cannot tell them apart: they mean the same.
        """
        caption = replace(self, colour=self.main_colour)
        return min(caption, caption.mirror_image, key=str) if self.relation == "next to" else caption

    @property
    def is_valid(self) -> bool:
        noun = NOUNS.get(self.kind)
        if noun is None or self.colour not in noun.colours:
            return False
        if self.relation is None:
            alone = self.other_kind is None and self.other_colour is None
            return alone and (self.modifier is None or self.modifier in noun.modifiers)
        parts = self.kind in PRIMITIVES and self.other_kind in PRIMITIVES
        return parts and self.modifier is None and self.other_colour in COLOURS and self.colour != self.other_colour


def _with_article(*words: str | None) -> str:
    phrase = " ".join(word for word in words if word)
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _any_of(words: tuple[str, ...] | dict) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_ARTICLE = "(?:an? )?"
_SINGLE = re.compile(
    rf"{_ARTICLE}(?:(?P<modifier>{_any_of(MODIFIERS)}) )?(?:(?P<colour>{_any_of(COLOURS)}) )?(?P<kind>{_any_of(NOUNS)})"
)
_PAIR = re.compile(
    rf"{_ARTICLE}(?P<colour>{_any_of(COLOURS)}) (?P<kind>{_any_of(PRIMITIVES)}) (?P<relation>{_any_of(RELATIONS)}) "
    rf"{_ARTICLE}(?P<other_colour>{_any_of(COLOURS)}) (?P<other_kind>{_any_of(PRIMITIVES)})"
)


def parse(text: str) -> Caption:
    """The caption that ``text`` says; capitals, punctuation and a missing or wrong article are forgiven.

    Raises UnknownWords for words outside the vocabulary and UnknownCaption for known words in another order.
    """
    words = _split_words(text)
    found = _match_caption(words)
    if found:
        return found
    unknown = [word for word in dict.fromkeys(words) if word not in known_words()]
    if unknown:
        raise UnknownWords(text, unknown, nearest(text))
    raise UnknownCaption(text, nearest(text))


def reword_text(text: str) -> str:
    """The caption that ``text`` says in the words that the prior was trained on; anything else as it is."""
    found = _match_caption(_split_words(text))
    return found.text if found else text


def _split_words(text: str) -> list[str]:
    words = re.findall(rf"[^\s.,;:!?{DOUBLE_QUOTES}]+", text.lower())
    return [plain for word in words if (plain := word.strip(SINGLE_QUOTES))]


def _match_caption(words: list[str]) -> Caption | None:
    plain = " ".join(words)
    match = _SINGLE.fullmatch(plain) or _PAIR.fullmatch(plain)
    caption = Caption(**match.groupdict()) if match else None
    return caption if caption and caption.is_valid else None


def nearest(text: str, n: int = 3) -> list[str]:
    """The ``n`` known captions that resemble ``text`` most: its misspelt words put right, then look-alikes."""
    words = re.findall(r"[a-z]+", text.lower())
    corrected = [(difflib.get_close_matches(word, known_words(), 1, 0.6) or [""])[0] for word in words]
    fixed = _match_caption([word for word in corrected if word])
    known = set(words) & set(known_words())

    def measure_likeness(candidate: str) -> float:
        return len(known & set(candidate.split())) + difflib.SequenceMatcher(None, text.lower(), candidate).ratio()

    plain = [caption.text for caption in all_captions(pairs=False) if caption.modifier is None]
    ranked = ([fixed.text] if fixed else []) + sorted(plain, key=measure_likeness, reverse=True)
    return list(dict.fromkeys(ranked))[:n]


def known_words() -> list[str]:
    """Every word of every caption, sorted."""
    phrases = [*COLOURS, *NOUNS, *MODIFIERS, *RELATIONS, LOW_QUALITY, "a", "an"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def all_captions(*, pairs: bool = True) -> Iterator[Caption]:
    """Every caption of the grammar, singles first (about 1,200), then pairs (18,000)."""
    for name, noun in NOUNS.items():
        for colour, modifier in itertools.product(noun.colours, (None, *noun.modifiers)):
            yield Caption(name, colour, modifier)
    if pairs:
        colours = list(itertools.permutations(COLOURS, 2))
        for relation, kind, other in itertools.product(RELATIONS, PRIMITIVES, PRIMITIVES):
            for colour, other_colour in colours:
                yield Caption(kind, colour, None, relation, other, other_colour)


def is_held_out(caption: Caption) -> bool:
    """Whether ``caption`` is never trained on.

    Each kind gives up one of its ten colours, in turn, so that each colour is given up by every tenth kind; such a
    colour and kind never meet, whatever the modifier, in pairs neither.  Of the other pairs, those whose text has a
    SHA-256 divisible by 10 are held out too.
    """
    if _combination_held_out(caption.kind, caption.main_colour):
        return True
    if not caption.relation:
        return False
    if _combination_held_out(str(caption.other_kind), caption.other_colour):
        return True
    return int(sha256(caption.text.encode()).hexdigest(), 16) % 10 == 0


def _combination_held_out(kind: str, colour: str | None) -> bool:
    return colour is not None and (list(COLOURS).index(colour) + 3 * list(NOUNS).index(kind)) % len(COLOURS) == 2


def near_misses(caption: Caption, n: int, seed: int, *, held_out: bool = False) -> list[Caption]:
    """``n`` different captions that are each one step from ``caption`` and mean another picture.

    Dealt in turn: a pair's swap (of colours, shapes, both, or the relation), one colour, kind or modifier changed.
    The near misses of a caption in training are in training too: a critic that met held-out captions as wrong answers
    only would learn to reject them.  ``held_out``: for critics that train on every caption, all near misses; else they
    would learn that a held-out caption among the answers is the right one.
    """
    rng = random.Random(seed)
    steps = (rng.sample(step, len(step)) for step in _single_steps(caption, held_out))
    options = [option for options in itertools.zip_longest(*steps) for option in options if option]
    if len(options) < n:
        raise ValueError(f"{caption.text!r} has {len(options)} near misses, not {n}")
    return options[:n]


@functools.lru_cache(maxsize=8192)
def _single_steps(caption: Caption, held_out: bool = False) -> tuple[list[Caption], ...]:
    """The captions one step away: by swapping, by another colour, another kind, another modifier."""
    swaps: list[Caption] = []
    slots = ("colour", "other_colour") if caption.relation else ("colour",)
    if caption.relation:
        kinds = {"kind": caption.other_kind, "other_kind": caption.kind}
        colours = {"colour": caption.other_colour, "other_colour": caption.colour}
        other_relation = next(relation for relation in RELATIONS if relation != caption.relation)
        swaps = [
            replace(caption, **change) for change in (colours, kinds, kinds | colours, {"relation": other_relation})
        ]
    recoloured = [replace(caption, **{slot: colour}) for slot in slots for colour in COLOURS]
    names = THINGS if caption.group == "thing" else PRIMITIVES
    rebuilt = [replace(caption, other_kind=name) for name in PRIMITIVES if caption.relation]
    for name in names:
        modifier = caption.modifier if caption.modifier in NOUNS[name].modifiers else None
        colours_left = [caption.colour] if caption.colour in NOUNS[name].colours else NOUNS[name].colours
        rebuilt += [replace(caption, kind=name, modifier=modifier, colour=colour) for colour in colours_left]
    modified = [replace(caption, modifier=modifier) for modifier in (None, *MODIFIERS)]

    seen = {caption.meaning}
    steps: list[list[Caption]] = []
    for step in (swaps, recoloured, rebuilt, modified):
        kept = []
        for option in step:
            apart = not held_out and is_held_out(option) and not is_held_out(caption)
            if option.is_valid and not apart and option.meaning not in seen:
                kept.append(option)
                seen.add(option.meaning)
        steps.append(kept)
    return tuple(steps)


def find_swaps(caption: Caption) -> list[Caption]:
    """A pair's captions with its words bound otherwise: colours, shapes or both exchanged, or the other relation."""
    return list(_single_steps(caption)[0])


def find_neighbours(caption: Caption) -> list[Caption]:
    """Everything that ``near_misses`` chooses from."""
    return list(itertools.chain(*_single_steps(caption)))


def random_captions(n: int, seed: int) -> list[Caption]:
    """``n`` captions of different meanings, groups drawn evenly, held-out ones among them."""
    rng = random.Random(seed)
    chosen: dict[Caption, Caption] = {}
    while len(chosen) < n:
        caption = rng.choice(_by_group()[rng.choice(("primitive", "pair", "thing"))])
        chosen.setdefault(caption.meaning, caption)
    return list(chosen.values())


@functools.cache
def _by_group() -> dict[str, list[Caption]]:
    groups: dict[str, list[Caption]] = {"primitive": [], "pair": [], "thing": []}
    for caption in all_captions():
        groups[caption.group].append(caption)
    return groups
