"""Which captions are trained on, evenly, and which are only ever asked: ``python -m psd embedded captions``."""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from psd.embedded.captions.grammar import (
    COLOURS,
    LISTS,
    NOUNS,
    PRIMITIVES,
    RELATIONS,
    THINGS,
    Caption,
    all_captions,
    is_held_out,
    near_misses,
    parse,
    random_captions,
)

Card = TypeVar("Card")
# Two parts are learnt last, those next to each other very last: runs gave both one colour.  So the prior sees them most
# (45 % pairs, two thirds of them next to each other); judges see 35, 35 and 30 %.
GROUPS = ("primitive",) * 5 + ("pair",) * 9 + ("thing",) * 6
JUDGES_GROUPS = ("primitive",) * 7 + ("pair",) * 7 + ("thing",) * 6
PLACED = ("on top of", "next to", "next to")
MODIFIED = (True,) * 3 + (False,) * 7  # of the single nouns
JUDGES_MODIFIED = (True,) * 6 + (False,) * 4  # judges are asked about modifiers as often as about nouns
NEAR_MISSES, DISTRACTORS = 20, 59  # of each asked caption: together with it the judge chooses among 60
# How many primitives, pairs and things each list has, and how many of its primitives and things have a modifier.
LIST_SIZES = {"test24": ((8, 8, 8), 0.5), "tuning": ((5, 6, 5), 0.5), "evaluation": ((30, 100, 70), 1.0)}
# Captions for methods to be compared on after test24 had been looked at.  Hardly a held-out single is in no list, so
# they are of the evaluation list, on which models had been measured, but no method run.
CONFIRM, CONFIRM_SIZE = "confirm24", ((8, 8, 8), 0.5)
LISTS_SEED = 2


def sample_training_captions(n: int, *, seed: int, held_out: bool = False) -> list[Caption]:
    """``n`` captions that cover groups, kinds, colours, modifiers and pairs evenly; held-out ones only for judges.

    Everything is dealt from endless shuffled decks, so that no card comes again before the rest came; what a deck holds
    twice comes twice as often.  The first captions of a longer sample are those of a shorter one.
    """
    return list(itertools.islice(_training_captions(random.Random(seed), held_out), n))


def _training_captions(rng: random.Random, held_out: bool) -> Iterator[Caption]:
    def is_allowed(caption: Caption) -> bool:
        return held_out or not is_held_out(caption)

    shares = (JUDGES_GROUPS, JUDGES_MODIFIED, RELATIONS) if held_out else (GROUPS, MODIFIED, PLACED)
    groups, modified = _deal_cards(shares[0], rng), _deal_cards(shares[1], rng)
    kinds = {"primitive": _deal_cards(PRIMITIVES, rng), "thing": _deal_cards(tuple(THINGS), rng)}
    colours = {
        kind: _deal_cards([colour for colour in noun.colours if is_allowed(Caption(kind, colour))], rng)
        for kind, noun in NOUNS.items()
    }
    modifiers = {kind: _deal_cards(noun.modifiers, rng) for kind, noun in NOUNS.items()}
    pairs = _deal_cards(list(itertools.product(shares[2], PRIMITIVES, PRIMITIVES)), rng)
    pair_colours = _deal_cards(list(itertools.permutations(COLOURS, 2)), rng)
    for group in groups:
        if group == "pair":
            relation, kind, other = next(pairs)
            options = (Caption(kind, one, None, relation, other, two) for one, two in pair_colours)
            yield next(caption for caption in options if is_allowed(caption))
        else:
            kind = next(kinds[group])
            yield Caption(kind, next(colours[kind]), next(modifiers[kind]) if next(modified) else None)


def _deal_cards(cards: Sequence[Card], rng: random.Random) -> Iterator[Card]:
    """Endless dealing: all cards in random order, then all again in another."""
    while True:
        yield from rng.sample(cards, len(cards))


def load_list(name: str, folder: Path = LISTS) -> dict[str, list[str]]:
    """The captions of a committed list ("evaluation", "tuning", "test24", "confirm24"), each with its 59 distractors.

    None was ever trained on.  The first 20 distractors are near misses; all 60 mean different pictures.
    """
    return json.loads((folder / f"{name}.json").read_text())["distractors"]


def write_lists(folder: Path = LISTS) -> None:
    """Make the lists, the same ones every time: three disjoint in meaning, and one that is part of the evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(LISTS_SEED)
    pools = {group: [] for group in ("primitive", "pair", "thing")}
    for caption in all_captions():
        # "a cube next to a cone" is no test if "a cone next to a cube" was trained on
        if is_held_out(caption) and (caption.relation is None or is_held_out(caption.mirror_image)):
            pools[caption.group].append(caption)
    for name, (counts, modified) in LIST_SIZES.items():
        chosen = []
        for (group, pool), count in zip(pools.items(), counts, strict=True):
            picked = _pick_varied(pool, count, modified, rng)
            pools[group] = [caption for caption in pool if caption not in picked]
            chosen += picked
        distractors = {caption.text: _draw_distractors(caption, rng) for caption in chosen}
        _write_list(folder / f"{name}.json", distractors)
    asked = load_list("evaluation", folder)
    counts, modified = CONFIRM_SIZE
    by_group = {group: [c for c in map(parse, asked) if c.group == group] for group in pools}
    chosen = [
        caption.text
        for group, count in zip(pools, counts, strict=True)
        for caption in _pick_varied(by_group[group], count, modified, rng)
    ]
    _write_list(folder / f"{CONFIRM}.json", {text: asked[text] for text in chosen})


def _write_list(path: Path, distractors: dict[str, list[str]]) -> None:
    content = {
        "about": f"Captions never trained on, each with {DISTRACTORS} distractors, the first {NEAR_MISSES} of them "
        "near misses; made by `python -m psd embedded captions`.",
        "captions": list(distractors),
        "distractors": distractors,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def _pick_varied(pool: list[Caption], count: int, modified: float, rng: random.Random) -> list[Caption]:
    """``count`` of the pool: kinds as different as can be, up to a share ``modified`` of them with a modifier."""
    left, picked = rng.sample(pool, len(pool)), []
    used = dict.fromkeys([*NOUNS, *RELATIONS], 0)
    for _ in range(count):
        plain_only = sum(caption.modifier is not None for caption in picked) >= modified * count
        allowed = [caption for caption in left if not (plain_only and caption.modifier)] or left
        best = min(
            allowed, key=lambda c: (used[c.kind] + used.get(c.other_kind or "", 0), used.get(c.relation or "", 0))
        )
        for word in (best.kind, best.other_kind, best.relation):
            if word:
                used[word] += 1
        picked.append(best)
        left.remove(best)
    return picked


def find_distractors(caption: Caption) -> list[Caption]:
    """59 for a caption of no list, always the same ones."""
    return [parse(text) for text in _draw_distractors(caption, random.Random(LISTS_SEED))]


def _draw_distractors(caption: Caption, rng: random.Random) -> list[str]:
    near = near_misses(caption, NEAR_MISSES, rng.randrange(2**31))
    taken = {option.meaning for option in (caption, *near)}
    others = (
        option for option in random_captions(2 * DISTRACTORS, rng.randrange(2**31)) if option.meaning not in taken
    )
    return [option.text for option in itertools.islice(itertools.chain(near, others), DISTRACTORS)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m psd embedded captions``."""
    parser.add_argument("--out", type=Path, default=LISTS)


def main(args: argparse.Namespace) -> None:
    """Write the held-out lists again."""
    write_lists(args.out)
