"""Names and meanings of options and terms, read from glossary.yaml: for the page and the docs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml


class Meaning(NamedTuple):
    """The name of an option, a sentence about it, and the cost of a step with it where that was measured.

    ``cost``: the work of all networks in a step, over that of `method: sds`, with the embedded models
    (assets/results/hand-drawn/embedded.md).
    """

    name: str
    sentence: str
    cost: float | None = None

    @property
    def cost_words(self) -> str:
        """``2.4 times the work of sds``; empty where it was not measured."""
        if self.cost is None:
            return ""
        return f"{self.cost:g} times the work of sds" if self.cost != 1 else "as much work as sds"


@cache
def read_glossary() -> tuple[Mapping[str, Mapping[str, Meaning]], Mapping[str, str]]:
    """Options by parameter, and terms with their sentences."""
    text = Path(__file__).with_name("glossary.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    options = {
        parameter: {option: Meaning(*meaning) for option, meaning in meanings.items()}
        for parameter, meanings in values["options"].items()
    }
    return options, values["terms"]


def explain_options(parameter: str) -> Mapping[str, Meaning]:
    """The options of a parameter; empty where it offers no choice of them."""
    return read_glossary()[0].get(parameter, {})


def explain_term(term: str) -> str:
    """A sentence about a term; empty where it needs none."""
    return read_glossary()[1].get(term, "")
