"""Captions mean what they say, the lists are held out, and training meets every kind evenly."""

from __future__ import annotations

import json

import pytest

from psd.embedded.captions import grammar, kinds, lists
from psd.embedded.captions.grammar import Caption, parse
from psd.embedded.captions.unknown import UnknownCaption, UnknownWords
from psd.embedded.objects.collection import read_table


def test_every_caption_has_one_wording_and_parses_back():
    singles = list(grammar.all_captions(pairs=False))
    texts = {caption.text for caption in singles}
    assert len(texts) == len(singles)
    for caption in [*singles, *grammar.random_captions(500, 0)]:
        assert caption.is_valid and parse(caption.text) == caption
        assert set(caption.text.split()) <= set(grammar.vocabulary())


def test_the_table_of_kinds_is_the_issue():
    table = kinds.read_kinds()
    assert len(set(table) - set(kinds.PRIMITIVES)) == 287 and "star" in kinds.PRIMITIVES  # 288 nouns, the star both
    assert set(table) == set(read_table()) | set(kinds.PRIMITIVES)
    assert sum(len(files) for files in read_table().values()) == 611
    assert sum(kind.is_placed for kind in table.values()) >= 40


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A RED fox.", "a red fox"), ("fox", "a fox"), ("an fox", "a fox"), ("broccoli", "broccoli"),
        ("white grapes", "white grapes"), ("orange fox", "an orange fox"),
        ("a frog on top of a red crate", "a frog on top of a red crate"),
        ("jar of peanut butter", "a jar of peanut butter"),
    ],
)  # fmt: skip
def test_capitals_and_articles_are_forgiven(text, said):
    assert parse(text).text == said


@pytest.mark.parametrize(
    "text", ["a cube", "a red taxi", "a whale next to a castle", "a fox fox", "a red cube on top of a red cube"]
)
def test_known_words_that_form_no_caption_are_refused_with_neighbours(text):
    with pytest.raises(UnknownCaption) as refusal:
        parse(text)
    assert len(refusal.value.nearest) == 3 and not isinstance(refusal.value, UnknownWords)


def test_unknown_words_are_named():
    with pytest.raises(UnknownWords) as refusal:
        parse("a red unicorn")
    assert refusal.value.words == ["unicorn"]


def test_at_least_fifteen_percent_of_combinations_and_pairs_are_held_out():
    singles = [caption for caption in grammar.all_captions(pairs=False) if caption.colour]
    assert sum(map(grammar.is_held_out, singles)) / len(singles) > 0.15
    table = kinds.read_kinds()
    placed = [noun for noun, kind in table.items() if kind.is_placed]
    couples = [Caption(a, None, "next to", b) for a in placed for b in placed if a < b]
    assert sum(map(grammar.is_held_out, couples)) / len(couples) > 0.15
    for noun, kind in table.items():  # nothing is held out in all its colours
        held = [colour for colour in kind.colours if grammar.is_held_out(Caption(noun, colour))]
        assert len(held) == (0 if len(kind.colours) == 1 else 1 if noun in kinds.PRIMITIVES else 2)


def test_what_is_held_out_alone_is_held_out_in_pairs_and_in_both_orders():
    for caption in grammar.random_captions(600, 3):
        if caption.relation:
            parts = (Caption(caption.kind, caption.colour), Caption(str(caption.other_kind), caption.other_colour))
            assert grammar.is_held_out(caption) or not any(map(grammar.is_held_out, parts))
            assert grammar.is_held_out(caption) == grammar.is_held_out(caption.mirror_image)


def test_training_never_meets_what_is_held_out_and_judges_do():
    drawn = lists.sample_training_captions(6000, seed=3)
    assert not any(map(grammar.is_held_out, drawn))
    assert drawn[:500] == lists.sample_training_captions(500, seed=3)
    assert drawn != lists.sample_training_captions(6000, seed=4)
    assert 0.1 < sum(map(grammar.is_held_out, lists.sample_training_captions(3000, seed=3, held_out=True))) / 3000


def test_every_kind_is_trained_on_about_as_often_as_any_other():
    drawn = lists.sample_training_captions(287 * 20, seed=0)
    counts = dict.fromkeys(kinds.list_objects(), 0)
    for caption in drawn:
        if caption.group == "thing":
            counts[caption.kind] += 1
    assert max(counts.values()) - min(counts.values()) <= 1
    many = lists.sample_training_captions(40_000, seed=0)
    foxes = [caption.colour for caption in many if caption.kind == "fox" and not caption.relation]
    assert 0.4 < foxes.count(None) / len(foxes) < 0.6 and len(set(foxes)) == 9


def test_the_lists_are_the_committed_ones_held_out_and_apart(tmp_path):
    lists.write_lists(tmp_path)
    seen: set[Caption] = set()
    for name, (primitives, pairs, coloured, bare) in lists.LIST_SIZES.items():
        path = lists.LISTS / f"{name}.json"
        assert (tmp_path / path.name).read_text() == path.read_text()
        asked = lists.load_list(name)
        captions = [parse(text) for text in asked]
        assert len(captions) == primitives + pairs + coloured + bare
        assert sum(map(grammar.is_held_out, captions)) == primitives + pairs + coloured
        meanings = {caption.meaning for caption in captions}
        if name != "nouns":
            assert not meanings & seen
            seen |= meanings
        for caption, others in zip(captions, asked.values(), strict=True):
            options = [parse(text).meaning for text in others]
            assert len({*options, caption.meaning}) == 60


@pytest.mark.parametrize("text", ["a fox", "a red fox", "a blue cube", "a green frog on top of a red crate", "a star"])
def test_near_misses_are_one_step_away_and_mean_another_picture(text):
    caption = parse(text)
    near = grammar.near_misses(caption, 15, 1)
    assert len({option.meaning for option in near} - {caption.meaning}) == 15
    for option in near:
        assert option.is_valid and (option.colour is None) == (caption.colour is None)
        changed = sum(getattr(option, name) != getattr(caption, name) for name in vars(caption))
        assert changed == 1 or (caption.relation and changed in (2, 4))
    assert not any(map(grammar.is_held_out, near)) or grammar.is_held_out(caption)


def test_judges_meet_held_out_captions_right_and_wrong():
    drawn = lists.sample_training_captions(2000, seed=3, held_out=True)
    trained = [caption for caption in drawn if not grammar.is_held_out(caption)][:300]
    assert any(grammar.is_held_out(miss) for c in trained for miss in grammar.near_misses(c, 15, 0, held_out=True))
    assert not any(grammar.is_held_out(miss) for c in trained for miss in grammar.near_misses(c, 15, 0))


def test_a_pair_s_swaps_bind_its_words_otherwise():
    caption = parse("a red cube on top of a blue cylinder")
    swaps = {
        "a blue cube on top of a red cylinder", "a red cylinder on top of a blue cube",
        "a blue cylinder on top of a red cube", "a red cube next to a blue cylinder",
    }  # fmt: skip
    assert {swap.text for swap in grammar.find_swaps(caption)} == swaps
    assert grammar.near_misses(caption, 15, 1)[0].text in swaps
    on_a_crate = {swap.text for swap in grammar.find_swaps(parse("a red cone on top of a blue crate"))}
    assert on_a_crate == {"a blue cone on top of a red crate", "a red cone next to a blue crate"}  # no crate on a tip
    assert not grammar.find_swaps(parse("a red cube"))


def test_side_by_side_has_no_order_but_on_top_has_one():
    beside, above = parse("a red cube next to a blue cone"), parse("a red cube on top of a blue cylinder")
    assert beside.meaning == parse("a blue cone next to a red cube").meaning
    assert beside.meaning != parse("a blue cube next to a red cone").meaning
    assert above.meaning != above.mirror_image.meaning == parse("a blue cylinder on top of a red cube").meaning


def test_random_captions_differ_in_meaning():
    drawn = grammar.random_captions(2500, 0)
    assert len({caption.meaning for caption in drawn}) == 2500
    assert {caption.group for caption in drawn} == {"primitive", "pair", "thing"}


def test_every_list_names_its_maker():
    for name in lists.LIST_SIZES:
        content = json.loads((lists.LISTS / f"{name}.json").read_text())
        assert "python -m psd embedded captions" in content["about"]
        assert list(content["distractors"]) == content["captions"]
