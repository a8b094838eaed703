"""What people type and what it is taken for: 228 prompts, written before the module that reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psd.embedded.captions import grammar
from psd.embedded.captions.kinds import COLOURS, list_known, read_kinds
from psd.embedded.captions.unknown import UnknownCaption
from psd.embedded.captions.wording import (
    ALIASES,
    ANY,
    COLOUR_WORDS,
    OF_COLOUR,
    RELATED,
    Reading,
    find_nearest_kinds,
    list_names,
    read_prompt,
    reword_text,
)

WORDS = ["a", "red", "orange", "fox", "cats", "on", "top", "of", "next", "to", "crate", "and", "two", "dark", "t-rex"]
PROMPTS = [
    tuple(line.split(" => "))
    for line in (Path(__file__).parent / "data" / "typed_prompts.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize(("typed", "meant"), PROMPTS)
def test_what_people_type_is_what_they_mean(typed, meant):
    reading = read_prompt(typed)
    if meant.startswith("?"):
        assert reading.caption is None
        assert len(reading.nearest) == 3
        noun = meant[1:].strip()
        assert not noun or noun in {grammar.parse(text).kind for text in reading.nearest}
    else:
        assert reading.caption is not None and reading.caption.text == meant


def test_every_caption_reads_as_itself_without_a_note_but_that_it_is_not_drawn_well():
    for caption in [*grammar.all_captions(pairs=False), *grammar.random_captions(300, 1)]:
        nouns = [noun for noun in (caption.kind, caption.other_kind) if noun and noun not in list_known()]
        notes = tuple(f"{noun}: the small models do not draw it well yet" for noun in nouns)
        assert read_prompt(caption.text) == Reading(caption, notes)


def test_a_prompt_is_reworded_or_refused_with_the_nearest_kinds():
    assert reword_text("please make me a cute T-Rex!") == "a tyrannosaurus"
    with pytest.raises(UnknownCaption, match="'a dragon' .*: a tyrannosaurus; an apatosaurus; a velociraptor"):
        reword_text("a dragon")


@pytest.mark.parametrize(
    ("typed", "note"),
    [
        ("t-rex", "t-rex: a tyrannosaurus"), ("T. Rex", "t rex: a tyrannosaurus"), ("two cars", "two cars: one car"),
        ("2 red T-Rexes", "2 t-rexes: one tyrannosaurus"), ("a pair of mice", "pair of mice: one rat"),
        ("two cherries", "two cherries: cherries"), ("car 2", "2: dropped"), ("a cute fox", "cute: dropped"),
        ("a salmon-pink vase", "salmon-pink: pink"),
        ("a fox in a semi-dark wood", "in a semi-dark wood: dropped"),
        ("a fox with a big tail", "with a big tail: dropped"), ("a violet vase", "violet: purple"),
        ("a red crown", "red: dropped, crown comes in its own colours"), ("a cube", "cube: red"),
        ("a whale next to a castle", "next to a castle: dropped, these do not come as a pair"),
    ],
)  # fmt: skip
def test_what_is_read_otherwise_is_told(typed, note):
    assert note in read_prompt(typed).notes


def test_what_is_told_is_all_that_is_told():
    assert read_prompt("two cars").notes == ("two cars: one car",)
    assert read_prompt("a pair of Foxes next to 3 dogs").notes == ("pair of foxes: one fox", "3 dogs: one dog")
    assert read_prompt("a FIRE-TRUCK!").notes == ()


@pytest.mark.parametrize(
    "typed", [*COLOURS, "dark RED", "crimson", "two blue", "a light green", "please make me a pink"]
)
def test_a_colour_alone_gets_kinds_that_take_it(typed):
    reading = read_prompt(typed)
    (colour,) = {COLOUR_WORDS.get(word) for word in typed.lower().split()} & {*COLOURS}
    nouns = [grammar.parse(text).kind for text in reading.nearest]
    assert reading.caption is None and len(set(nouns)) == 3 and set(nouns) <= set(list_known())
    if typed != "orange":  # which is a fruit too
        assert all(colour in read_kinds()[noun].colours for noun in nouns)


@pytest.mark.parametrize(("typed", "noun"), [("orange", "tangerine"), ("rose", "flower"), ("gold", "gold bars")])
def test_a_colour_that_is_a_thing_gets_its_like(typed, noun):
    assert noun in {grammar.parse(text).kind for text in read_prompt(typed).nearest}


def test_every_colour_has_three_kinds_to_offer():
    assert set(OF_COLOUR) == set(COLOURS)
    assert all(len(nouns) == 3 and set(nouns) <= set(read_kinds()) for nouns in (*OF_COLOUR.values(), ANY))


@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join))
def test_any_text_is_read_or_answered_with_three_captions(text):
    reading = read_prompt(text)
    if reading.caption is None:
        assert len(reading.nearest) == 3 and all(grammar.parse(near) for near in reading.nearest)
    else:
        assert grammar.parse(reading.caption.text) == reading.caption and not reading.nearest
        assert read_prompt(reading.caption.text).caption == reading.caption


def test_names_lead_to_kinds_and_offers_are_kinds():
    kinds = read_kinds()
    assert set(list_names().values()) <= set(kinds) and set(ALIASES.values()) <= set(kinds)
    assert all(set(nouns) <= set(kinds) for nouns in RELATED.values())
    assert not set(RELATED) & set(list_names())
    assert set(COLOUR_WORDS.values()) == {*COLOURS, ""}
    assert find_nearest_kinds("unicorn")[0] == "horse"


def test_reading_needs_no_torch():
    code = "import sys, psd.embedded.captions.wording; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
