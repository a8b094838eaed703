"""What a grey ball and the true object score: the table that ships is that of the weights that ship."""

from __future__ import annotations

import json

import pytest

from psd.embedded.captions.grammar import all_captions, parse
from psd.embedded.captions.kinds import TRUE_SCORES, find_true_scores
from psd.evaluation.shipped.true_scores import digest_scorers, list_scorers, measure_scores


def test_the_table_is_of_the_weights_that_ship_and_of_every_caption_of_one_thing():
    table = json.loads(TRUE_SCORES.read_text(encoding="utf-8"))
    assert table["weights"] == digest_scorers(), "stale: run `python -m psd embedded true-scores`"
    assert list(table["scores"]) == [caption.text for caption in all_captions(pairs=False)]
    scorers = set(list_scorers())
    assert all(set(found) == scorers for found in table["scores"].values())


def test_a_true_object_nearly_always_scores_more_than_a_grey_ball():
    for scorer in list_scorers():
        scales = [find_true_scores(caption.text, scorer) for caption in all_captions(pairs=False)]
        assert sum(scale is not None and scale[1] > scale[0] for scale in scales) > 0.95 * len(scales), scorer


def test_what_was_not_measured_has_no_scale():
    assert find_true_scores("a fox next to a tent", "assets/reward") is None
    assert find_true_scores("a fox", "assets/evidence") is None


def test_scores_are_measured_as_they_were(collection):
    for text, found in measure_scores([parse("a red mushroom"), parse("a taxi")], collection).items():
        for scorer, scores in found.items():
            assert scores == pytest.approx(find_true_scores(text, scorer), abs=0.02)
