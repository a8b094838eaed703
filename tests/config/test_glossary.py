"""One file of names and meanings: complete, and read by the page and the docs alike."""

from typing import Literal, get_args, get_origin

import pytest

from psd.config.glossary import explain_options, explain_term, read_glossary
from psd.config.preset import list_settings
from psd.config.reference import parameter_table

CHOICES = {
    name: get_args(field.annotation)
    for name, field in list_settings().items()
    if get_origin(field.annotation) is Literal
}


@pytest.mark.parametrize("parameter", CHOICES)
def test_every_option_has_a_name_and_a_sentence(parameter: str) -> None:
    meanings = explain_options(parameter)
    assert tuple(meanings) == CHOICES[parameter]
    for name, sentence in meanings.values():
        assert name and len(name) <= 32 and sentence.endswith(".") and sentence in parameter_table()


def test_the_glossary_explains_nothing_that_is_not_there() -> None:
    options, terms = read_glossary()
    assert set(options) == set(CHOICES)
    assert all(sentence.endswith(".") for sentence in terms.values()) and explain_term("no such term") == ""
