"""One file of names and meanings: complete, and read by the page and the docs alike."""

from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from psd.config.glossary import explain_options, explain_term, read_glossary
from psd.config.preset import list_settings
from psd.config.reference import parameter_table

ROOT = Path(__file__).parents[2]
CHOICES = {
    name: get_args(field.annotation)
    for name, field in list_settings().items()
    if get_origin(field.annotation) is Literal
}


@pytest.mark.parametrize("parameter", CHOICES)
def test_every_option_has_a_name_and_a_sentence(parameter: str) -> None:
    meanings = explain_options(parameter)
    assert tuple(meanings) == CHOICES[parameter]
    for name, sentence, _ in meanings.values():
        assert name and len(name) <= 32 and sentence.endswith(".") and sentence in parameter_table()


def test_the_glossary_explains_nothing_that_is_not_there() -> None:
    options, terms = read_glossary()
    assert set(options) == set(CHOICES)
    assert all(sentence.endswith(".") for sentence in terms.values()) and explain_term("no such term") == ""


# The runs of the recorded comparison that show what an option costs; of a pair, those without the learned negative.
MEASURED = {
    ("method", "psd"): "steered_n",
    ("method", "best_of_n"): "best_of_n",
    ("method", "csd"): "csd",
    ("method", "dreamdpo"): "dreamdpo",
    ("method", "rewardsds"): "rewardsds",
    ("method", "reward_gradient"): "pixel_1.0",
    ("pair", "steered"): "steered",
    ("pair", "random"): "random_pair",
}


def test_costs_are_those_that_were_measured() -> None:
    page = (ROOT / "assets" / "results" / "hand-drawn" / "embedded.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in page.split("### All methods")[1].splitlines() if line[:1] == "|"]
    column = [head.strip() for head in rows[0]].index("cost")
    work = {row[0].strip(" `"): float(row[column]) for row in rows[2:] if len(row) == len(rows[0])}
    found = {
        (parameter, option): meaning.cost
        for parameter in CHOICES
        for option, meaning in explain_options(parameter).items()
        if meaning.cost is not None
    }
    assert found == {place: round(work[run] / work["sds_1"], 1) for place, run in MEASURED.items()}
    assert explain_options("method")["psd"].cost_words in parameter_table()
