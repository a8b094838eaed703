"""Which captions are trained on, evenly, and which are only ever asked: ``python -m psd embedded captions``."""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from psd.embedded.captions.grammar import Caption, all_captions, draw_caption, is_held_out, near_misses, random_captions
from psd.embedded.captions.kinds import PRIMITIVES, WORLD, list_objects, read_kinds

Card = TypeVar("Card")
LISTS = WORLD / "captions"
# Thirteen of twenty captions are things, so that each of the 287 comes about as often as a primitive in its colours.
GROUPS = ("primitive",) * 2 + ("pair",) * 5 + ("thing",) * 13
PLACED = ("on top of", "next to", "next to")  # two things next to each other are learnt last, so they come more often
COLOURED_PARTS = 0.85  # of the parts of a pair that may have a colour word
NEAR_MISSES, DISTRACTORS = 20, 59  # of each asked caption: together with it the judge chooses among 60
# How many primitives, pairs, things with a colour and things without one each list has.  All but the last are held out
# of training: a thing without a colour word cannot be.  The lists are disjoint in meaning.
LIST_SIZES = {
    "tuning": (2, 8, 10, 4),
    "test": (2, 8, 10, 4),
    "confirm": (2, 8, 10, 4),
    "evaluation": (4, 46, 70, 80),
    "nouns": (0, 0, 0, 60),
}
LISTS_SEED = 11
# Nouns that the hand-drawn world had too: the prior that the first training started from had seen (other) objects of
# these in most colours, so no list asks for them with a colour.
SEEN_BEFORE = (
    "mushroom", "table", "chair", "tree", "ice cream cone", "lollipop", "house", "donut", "car", "robot", "candle",
    "cupcake", "flower",
)  # fmt: skip


def sample_training_captions(n: int, *, seed: int, held_out: bool = False) -> list[Caption]:
    """``n`` captions that cover groups, kinds, colours and relations evenly; held-out ones only for judges.

    Everything is dealt from endless shuffled decks, so that no card comes again before the rest came; what a deck holds
    twice comes twice as often.  The first captions of a longer sample are those of a shorter one.
    """
    return list(itertools.islice(_deal_captions(random.Random(seed), held_out), n))


def _deal_captions(rng: random.Random, held_out: bool) -> Iterator[Caption]:
    def is_allowed(caption: Caption) -> bool:
        return held_out or not is_held_out(caption)

    kinds = read_kinds()
    placed = [noun for noun, kind in kinds.items() if kind.is_placed]
    carriers = [noun for noun, kind in kinds.items() if kind.is_carrier]
    groups, relations = _deck(GROUPS, rng), _deck(PLACED, rng)
    singles = {"primitive": _deck(PRIMITIVES, rng), "thing": _deck(list_objects(), rng)}
    firsts, seconds = _deck(placed, rng), {"next to": _deck(placed, rng), "on top of": _deck(carriers, rng)}
    colours, dealt = {}, {}
    for noun, kind in kinds.items():
        words = [colour for colour in kind.colours if colour and is_allowed(Caption(noun, colour))]
        # Half of the single things that may have a colour word have none.
        bare = [None] * max(1, len(words)) if None in kind.colours else []
        dealt[noun] = _deck([*words, *bare], rng)
        colours[noun] = _deck(words, rng) if words else None

    def deal_colour(noun: str) -> str | None:
        deck = colours[noun]
        bare = None in kinds[noun].colours and rng.random() > COLOURED_PARTS
        return None if deck is None or bare else next(deck)

    for group in groups:
        if group == "pair":
            relation = next(relations)
            while True:
                first, second = next(firsts), next(seconds[relation])
                caption = Caption(first, deal_colour(first), relation, second, deal_colour(second))
                if caption.is_valid and is_allowed(caption):
                    yield caption
                    break
        else:
            noun = next(singles[group])
            yield Caption(noun, next(dealt[noun]))


def _deck(cards: Sequence[Card], rng: random.Random) -> Iterator[Card]:
    """Endless dealing: all cards in random order, then all again in another."""
    while True:
        yield from rng.sample(cards, len(cards))


def load_list(name: str, folder: Path = LISTS) -> dict[str, list[str]]:
    """The captions of a committed list ("tuning", "test", "confirm", "evaluation", "nouns") with 59 distractors each.

    No caption with a colour word or two parts was ever trained on.  The first 20 distractors are near misses; all 60
    mean different pictures.
    """
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["distractors"]


def write_lists(folder: Path = LISTS) -> None:
    """Make the lists, the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(LISTS_SEED)
    taken: set[Caption] = set()
    for name, counts in LIST_SIZES.items():
        # The nouns of the default preset's runs may be those of the evaluation of the prior.
        known = set() if name == "nouns" else taken
        chosen: list[Caption] = []
        for draw, count in zip(_drawers(rng), counts, strict=True):
            chosen += _pick_captions(draw, count, known | {caption.meaning for caption in chosen})
        taken |= {caption.meaning for caption in chosen}
        content = {
            "about": f"Captions with {DISTRACTORS} distractors each, the first {NEAR_MISSES} of them near misses; "
            "those with a colour word or two parts were never trained on; made by "
            "`python -m psd embedded captions`.",
            "captions": [caption.text for caption in chosen],
            "distractors": {caption.text: _draw_distractors(caption, rng) for caption in chosen},
        }
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _drawers(rng: random.Random) -> tuple[Callable[[], Caption], ...]:
    """For each group of a list a function that draws one caption fit for it, nouns as different as can be."""
    singles = [caption for caption in all_captions(pairs=False) if is_held_out(caption)]
    primitives = _deck([caption for caption in singles if caption.kind in PRIMITIVES], rng)
    coloured = [c for c in singles if c.kind not in PRIMITIVES and c.kind not in SEEN_BEFORE]
    by_noun = {noun: _deck([c for c in coloured if c.kind == noun], rng) for noun in {c.kind: 0 for c in coloured}}
    nouns, bare = _deck(list(by_noun), rng), _deck(list_objects(), rng)

    def draw_pair() -> Caption:
        while True:
            caption = draw_caption("pair", rng)
            things = [noun for noun in (caption.kind, caption.other_kind) if noun not in PRIMITIVES]
            if is_held_out(caption) and things and caption.colour and caption.other_colour:
                return caption

    return (
        lambda: next(primitives),
        draw_pair,
        lambda: next(by_noun[next(nouns)]),
        lambda: Caption(next(bare)),
    )


def _pick_captions(draw: Callable[[], Caption], count: int, taken: set[Caption]) -> list[Caption]:
    picked: dict[Caption, Caption] = {}
    while len(picked) < count:
        caption = draw()
        if caption.meaning not in taken:
            picked.setdefault(caption.meaning, caption)
    return list(picked.values())


def draw_distractors(caption: Caption) -> list[str]:
    """59 for a caption of no list, always the same ones."""
    return _draw_distractors(caption, random.Random(LISTS_SEED))


def _draw_distractors(caption: Caption, rng: random.Random) -> list[str]:
    near = near_misses(caption, NEAR_MISSES, rng.randrange(2**31), held_out=True)
    taken = {option.meaning for option in (caption, *near)}
    others = (
        option for option in random_captions(2 * DISTRACTORS, rng.randrange(2**31)) if option.meaning not in taken
    )
    return [option.text for option in itertools.islice(itertools.chain(near, others), DISTRACTORS)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m psd embedded captions``."""
    parser.add_argument("--out", type=Path, default=LISTS)


def main(args: argparse.Namespace) -> None:
    """Write the lists again."""
    write_lists(args.out)
