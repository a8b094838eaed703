"""Which kinds a prior knows, and what the outside judge sees."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch

from psd.config.errors import MissingError
from psd.embedded.captions import grammar, kinds, lists
from psd.embedded.captions.grammar import parse
from psd.evaluation.metrics import outside
from psd.evaluation.shipped import naming


class Partial:
    """A judge that prefers some captions to all others: its features are the pictures themselves."""

    def __init__(self, preferred: set[str]) -> None:
        self.preferred = preferred

    def encode_image(self, images):
        return images

    def score_features(self, features, prompt):
        return torch.full(features.shape[:2], float(prompt in self.preferred))


def test_every_kind_is_asked_for_once_in_a_way_that_was_trained():
    captions = naming.list_plain_captions()
    assert [caption.kind for caption in captions] == list(kinds.read_kinds())
    assert all(caption.is_valid and not grammar.is_held_out(caption) for caption in captions)


def test_a_sample_is_named_where_the_judge_prefers_its_caption():
    caption = parse("a fox")
    images = torch.zeros(4, 3, 8, 8)
    judge: Any = Partial({"a fox"})
    other: Any = Partial({lists.draw_distractors(caption)[7]})
    assert naming.is_named(judge, images, caption)
    assert not naming.is_named(other, images, caption)


def test_every_noun_with_a_class_is_a_kind():
    classes = outside.read_classes()
    assert len(classes) == 149 and set(classes) <= set(kinds.read_kinds())
    assert all(0 <= index < outside.CLASSES for indices in classes.values() for index in indices)
    assert all(caption.is_valid for caption in outside.list_asked(None))


def test_each_class_has_one_number_and_one_name_in_every_row():
    with (kinds.WORLD / "imagenet.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["noun"] for row in rows}) == len(rows)
    pairs = set()
    for row in rows:
        numbers, names = list(map(int, row["indices"].split())), row["classes"].split("; ")
        assert numbers and numbers == sorted(set(numbers)), row["noun"]
        pairs |= set(zip(numbers, names, strict=True))
    assert len(pairs) == len({number for number, _ in pairs}) == len({name for _, name in pairs})


def test_a_hit_is_any_of_the_nouns_classes_among_the_first():
    fox = outside.read_classes()["fox"]
    rated = torch.zeros(2, outside.CLASSES)
    rated[0, fox[-1]], rated[0, 5], rated[1, :5] = 0.4, 0.6, 0.2
    assert outside.find_hits(rated, ["fox", "fox"], 1).tolist() == [False, False]
    assert outside.find_hits(rated, ["fox", "fox"], 5).tolist() == [True, False]


def test_the_outside_judge_knows_objects_or_says_what_it_needs(collection):
    try:
        judge = outside.OutsideJudge()
    except MissingError as error:
        assert "requirements-evidence.txt" in str(error)
        pytest.skip("the outside judge is not installed (requirements-evidence.txt)")
    captions = [parse(text) for text in ("a banana", "a toilet", "a padlock", "a barrel", "a taxi")]
    rated = outside.measure_truth(judge, collection, captions, 128)
    torch.testing.assert_close(rated.sum(-1), torch.ones(5))
    assert outside.find_hits(rated, [caption.kind for caption in captions], 5).sum() >= 3  # by chance 0.1


def test_the_kinds_that_ship_are_kinds_in_their_order():
    known, order = kinds.list_known(), list(kinds.read_kinds())
    assert known and sorted(known, key=order.index) == list(known)
