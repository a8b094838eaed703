"""Help with prompts: how one is read, what is offered, what completes it, and what is said of one that is unknown."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
from PIL import Image

import app
from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.embedded.captions import kinds, wording
from psd.runtime import diagnosis
from psd.ui.inputs.vocabulary import LONGEST_PROMPT, Vocabulary, complete_prompt, describe_problem, reword_preset
from psd.ui.markup.html import page_file_url
from psd.ui.panels.kind_picker import picker_html
from psd.ui.panels.prompt_help import reading_html

HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return app.read_vocabulary()


def test_examples_and_the_hint_are_read_as_they_stand(vocabulary: Vocabulary) -> None:
    quoted = re.findall('"([^"]+)"', vocabulary.hint)
    assert len(vocabulary.examples) == 6 and len(quoted) == 3
    for text in [*vocabulary.examples, *quoted]:
        reading = vocabulary.read(text)
        assert (reading.text, reading.notes) == (text, ()), text


def test_only_what_the_prior_draws_well_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ("cube", "taxi", "fire truck", "star")
    monkeypatch.setattr(kinds, "list_known", lambda: known)
    offered = app.read_vocabulary.__wrapped__()
    assert [kind.noun for kind in offered.kinds] == [*known]
    assert {text for text in offered.captions if text.endswith("taxi")} == {"a taxi"}
    assert all(text.endswith(known) for text in offered.captions)
    assert not complete_prompt(offered, "a mushr") and complete_prompt(offered, "a fire") == ["a fire truck"]
    shown = picker_html(offered)
    assert re.findall('data-caption="([^"]+)"', shown) == ["a red cube", "a star", "a taxi", "a fire truck"]


def test_the_nearest_are_of_those_that_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    known = tuple(noun for noun in kinds.read_kinds() if noun != "horse")
    for module in (kinds, wording):
        monkeypatch.setattr(module, "list_known", lambda: known)
    near = [kind.noun for kind in app.read_vocabulary.__wrapped__().find_nearest("a unicorn")]
    assert len(near) == 3 and "horse" not in near


def test_every_kind_is_shown_by_its_own_picture(vocabulary: Vocabulary) -> None:
    with Image.open(vocabulary.sheet) as sheet:
        width, height = sheet.size
    tile = width // vocabulary.columns
    for kind in vocabulary.kinds:
        column, row = kind.place
        assert (column * tile, row * tile) == kinds.locate_picture(kind.noun) and (row + 1) * tile <= height
        assert vocabulary.read(kind.caption).text == kind.caption
    shown = picker_html(vocabulary)
    assert shown.count('class="kind"') == len(vocabulary.kinds) and shown.count('tabindex="0"') == 1
    assert str(vocabulary.sheet.parent) not in shown and page_file_url(vocabulary.sheet) in unescape(shown)


@pytest.mark.parametrize(("word", "noun"), [("hamburger", "burger"), ("cab", "taxi"), ("galleon", "pirate ship")])
def test_a_kind_is_found_by_what_people_call_it(vocabulary: Vocabulary, word: str, noun: str) -> None:
    (words,) = re.findall(f' data-words="([^"]+)"[^>]*><i></i>{noun}<', picker_html(vocabulary))
    assert f" {word}" in words and f" {noun}" in words


@pytest.mark.parametrize(
    "typed", ["", "a", "a red mu", "mushr", "a red unicorn", "a red mushroom next to a ta", "xyzzy"]
)
def test_completions_are_captions_that_go_on(vocabulary: Vocabulary, typed: str) -> None:
    found = complete_prompt(vocabulary, typed)
    assert len(found) <= 6 and len(set(found)) == len(found)
    assert bool(found) == (typed not in ("", "a red unicorn", "xyzzy"))
    for text in found:
        assert text.startswith((typed, f"a {typed}")) and vocabulary.read(text).text == text


def test_a_pair_is_completed_only_by_what_goes_with_it(vocabulary: Vocabulary) -> None:
    found = complete_prompt(vocabulary, "Red cube on top of a yellow c")
    assert "a red cube on top of a yellow cylinder" in found and "a red cube on top of a yellow cone" not in found


def test_a_text_that_is_too_long_for_a_prompt_is_not_searched_for(vocabulary: Vocabulary) -> None:
    """To look for what is nearest to 100,000 letters takes long."""
    assert Preset.model_fields["prompt"].metadata[1].max_length == LONGEST_PROMPT
    read: list[str] = []

    def read_and_note(text: str) -> Any:
        read.append(text)
        return vocabulary.read(text)

    watched = replace(vocabulary, read=read_and_note)
    for text in ("x" * 100_000, "x" * 99_990 + " next to a"):
        assert "100000 characters: at most 300" in describe_problem(watched, text)
        assert "At most 300 characters" in reading_html(watched, text)
        complete_prompt(watched, text)
    assert all(len(text) <= LONGEST_PROMPT for text in read)


# ---- what is said


def test_the_page_says_how_a_prompt_is_read(vocabulary: Vocabulary) -> None:
    assert "Read as: a taxi<" in reading_html(vocabulary, "Taxi!")
    assert "Read as: a red mushroom. cute: dropped<" in reading_html(vocabulary, "a cute red mushroom")
    assert "Type what is to be made" in reading_html(vocabulary, " ")
    assert "Go on typing" in reading_html(vocabulary, "a red mu"), "it may still become one"
    assert "read any prompt" in reading_html(None, "a red unicorn")
    assert HOSTILE not in reading_html(vocabulary, f"a taxi {HOSTILE}") + reading_html(vocabulary, HOSTILE)


def test_what_is_unknown_gets_the_nearest_kinds_with_pictures_and_advice(vocabulary: Vocabulary) -> None:
    near = vocabulary.find_nearest("a red unicorn")
    shown = reading_html(vocabulary, "a red unicorn")
    assert len(near) == 3
    assert re.findall('data-caption="([^"]+)"', shown) == [kind.caption for kind in near]
    assert shown.count("<i></i>") == 3 and page_file_url(vocabulary.sheet) in unescape(shown)
    assert "mvdream (24 GB)" in shown


def test_a_prompt_is_run_as_it_is_read_or_refused_with_what_can_be_done(vocabulary: Vocabulary) -> None:
    asked = Preset(prompt="A red, mushroom!")
    assert reword_preset(asked, {asked.prior: vocabulary}) == asked.with_values({"prompt": "a red mushroom"})
    assert reword_preset(asked, {}) is asked  # a prior without a vocabulary reads anything
    later = asked.with_values({"prior": "any", "stages": [{"share": 0.5}, {"share": 0.5, "prior": asked.prior}]})
    assert reword_preset(later, {asked.prior: vocabulary}).prompt == "a red mushroom"
    with pytest.raises(PresetError) as refused:
        reword_preset(asked.with_values({"prompt": "a red unicorn"}), {asked.prior: vocabulary})
    said = str(refused.value)
    assert "'a red unicorn' names nothing" in said and vocabulary.advise() in said
    assert all(kind.caption in said for kind in vocabulary.find_nearest("a red unicorn"))


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (None, "This machine has no GPU that can be used."),
        (6, "(Card, 6 GB) is too small."),
        (11.7, "(Card, 12 GB) is enough for mvdream-12gb."),
        (22.2, "(Card, 22 GB) is enough for mvdream."),  # what a card of 24 GB with error correction has
    ],
)
def test_the_advice_tells_whether_this_machine_can_run_a_large_preset(
    monkeypatch: pytest.MonkeyPatch, memory: float | None, words: str
) -> None:
    class Card:
        name, total_memory = "Card", int((memory or 0) * 2**30)

    monkeypatch.setattr("torch.cuda.is_available", lambda: memory is not None)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: Card)
    monkeypatch.setattr(diagnosis, "unsupported_gpu", lambda: None)
    said = diagnosis.advise_large_preset.__wrapped__()
    assert "mvdream (24 GB), mvdream-12gb (12 GB) or mvdream-8gb (8 GB)" in said and said.endswith(words)
