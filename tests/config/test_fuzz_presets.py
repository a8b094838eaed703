"""Hundreds of mutated preset texts: a preset that says what stands there, or one line that says what is wrong."""

import math
import random
from typing import Any

import pytest
import yaml

from psd.config.assignments import parse_assignments
from psd.config.errors import PresetError
from psd.config.preset import PRESETS, Preset, flatten, list_presets, parse_preset
from psd.config.settings import SCENES

TEXTS = [(PRESETS / f"{name}.yaml").read_text(encoding="utf-8") for name in list_presets()]
VALUES = [
    "010", "0o17", "0x1f", "1:00", "1:30.5", "1_000", "1e3", "1e400", "-1", "0", "-0.0", "5e-324", ".inf", "-.inf",
    ".nan", "true", "off", "no", "~", "null", "", "''", "' '", '"\\ud800"', '"\\0"', "2026-01-01", "2026-13-45",
    "[]", "{}",
    "[1]", "[true, 30]", "[30, 1]", "[1, 2, 3]", "{a: 1}", "{a: true}", "{1: 2}", "{a: {b: 1}}", "!!set {1, 2}",
    "!!binary aGk=", "!!python/object/apply:os.getcwd []", "!!int '7'", "!!float '010'", "*a", "&a 3", "9" * 400,
    "x" * 400,
    "{assets/reward: 1, ./assets/reward: 1}", "[assets/selector, ./assets/selector]", "[assets/evidence]",
    "{./assets/../assets/referee: 2}", "~nobody/model", "https://huggingface.co/owner/name", "steps: 3", "tiny", "💥",
]  # fmt: skip
LETTERS = "{}[]:,#&*!|>'\"%@`-~\t\n\r\0\x1b\x85\u2028\ufeff 019.eExo_"


def mutate_text(text: str, chance: random.Random) -> str:
    """A preset's text with one to three changes: of a value, a key, a line, or a few letters."""
    for _ in range(chance.choice([1, 1, 2, 3])):
        lines = text.splitlines(keepends=True)
        given = [number for number, line in enumerate(lines) if ":" in line.partition("#")[0]]
        if not given:
            return text
        number, place = chance.choice(given), chance.randrange(len(text) + 1)
        key, _, value = lines[number].partition("#")[0].partition(":")
        match chance.randrange(9):
            case 0 | 1 | 2:
                lines[number] = f"{key}: {chance.choice(VALUES)}\n"
                text = "".join(lines)
            case 3:
                other = chance.choice([*Preset.model_fields, "stepps", "scene.grid_size", "extends", "<<", "1", "? x"])
                lines[number] = f"{other}:{value.rstrip()}\n"
                text = "".join(lines)
            case 4:
                lines.insert(chance.randrange(len(lines)), lines[number])
                text = "".join(lines)
            case 5:
                del lines[number]
                text = "".join(lines)
            case 6:
                text = text[:place] + "".join(chance.choices(LETTERS, k=chance.randrange(1, 5))) + text[place:]
            case 7:
                text = text[:place] + text[place + chance.randrange(1, 40) :]
            case 8:
                text = text[:place]
    return text


class PlainText(yaml.BaseLoader):
    """Every scalar as the text that stands there: a reading that knows no kinds, to compare with."""


def read_number(text: str) -> float | None:
    """The number that a person reads in a text."""
    try:
        return float(int(text, 16)) if text.lower().startswith("0x") else float(text)
    except ValueError:
        return None


def require_same_numbers(found: dict[str, Any], written: Any, what: str) -> None:
    """Every number of the preset that the text gives stands there as people read it."""
    flat = {**written, **{f"scene.{key}": text for key, text in dict(written.get("scene") or {}).items()}}
    for key, text in flat.items():
        values, texts = found.get(key), text
        if isinstance(values, dict):
            texts = [texts[name] for name in values] if isinstance(texts, dict) else texts
            values = list(values.values())
        if isinstance(values, int | float) and not isinstance(values, bool):
            values, texts = [values], [texts]
        if not isinstance(values, list | tuple) or not isinstance(texts, list) or len(values) != len(texts):
            continue
        for value, item in zip(values, texts, strict=True):
            if isinstance(value, int | float) and isinstance(item, str) and not isinstance(value, bool):
                assert read_number(item) == value, f"{what}: {key}={item!r} became {value}"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_a_mutated_preset_says_what_stands_there_or_is_refused_in_a_line(part: int) -> None:
    accepted = refused = 0
    for number in range(100):
        chance = random.Random(1000 * part + number)
        base = chance.choice(TEXTS)
        text = mutate_text(base, chance)
        what = f"part {part}, number {number}"
        try:
            preset = Preset.make(parse_preset(text))
        except PresetError as error:
            refused += 1
            words = str(error)
            assert words and "\n" not in words and len(words) < 1000, f"{what}: {words!r}"
            assert "tag:yaml.org" not in words and "<unicode string>" not in words, f"{what}: {words!r}"
            words.encode()
        else:
            accepted += 1
            written = yaml.load(text, PlainText)  # noqa: S506  (it makes texts only)
            require_same_numbers(flatten(preset), written, what)
            assert Preset.make(parse_preset(preset.to_yaml())) == preset, f"{what}: another one after its own file"
            for value in flatten(preset).values():
                assert not isinstance(value, float) or math.isfinite(value), what
    assert accepted > 10 and refused > 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: 010", "'steps: 010' in line 1: write a number without leading zeros"),
        ("seed: 1\nsteps: 1:00", "'steps: 1:00' in line 2"),
        ("guidance_scale: 1:30.5", "without leading zeros and colons"),
        ("elevation_deg: [007, 30]", "elevation_deg: 007"),
        ("scene: {grid_size: 010}", "grid_size: 010"),
        ("prompt: 010", "or a text in quotes"),
        ("rewards: {assets/reward: true}", "must hold numbers, no truth values"),
        ("elevation_deg: [true, 30]", "must hold numbers, no truth values"),
        ("scene: {weight_orientation: [true, 1]}", "must hold numbers, no truth values"),
        ("judges: [assets/selector, ./assets/selector]", "names one twice"),
        ("rewards: {assets/reward: 1, assets//reward: 1}", "names one twice"),
        ("rewards: {assets/x: 1, assets/../assets/x: 1}", "names one twice"),
        ("elevation_deg: !!set {30, 1}", "is a set"),
        ("prompt: 2026-01-01", "is a timestamp: write a text in quotes"),
        ("prompt: !!binary aGk=", "is a binary"),
        ("prompt: !!python/name:os.getcwd", "write plain values"),
        ("steer_radius: 5e-324", "steer_radius"),
        ("prompt: [", "in line 1"),
    ],
)
def test_what_would_become_another_value_is_refused_by_key_and_line(text: str, words: str) -> None:
    with pytest.raises(PresetError, match=words.replace("[", r"\[")) as refused:
        Preset.make(parse_preset(text))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("pair", ["steps=010", "elevation_deg=[010, 30]", "rewards={a: 1:00}", "kappa=00.5"])
def test_an_assignment_too_is_refused_by_its_key(pair: str) -> None:
    with pytest.raises(PresetError, match=f"{pair.partition('=')[0]}: .*without leading zeros and colons"):
        parse_assignments([pair])


def test_plain_numbers_stay_numbers() -> None:
    text = "steps: 10\nseed: 0\nguidance_scale: 0.5\nkappa: 1e-3\nscene: {weight_tv: 0, grid_size: 0x10}\nprompt: '010'"
    found = flatten(Preset.make(parse_preset(text)))
    assert [found[key] for key in ("steps", "seed", "guidance_scale", "kappa", "scene.weight_tv", "prompt")] == [
        10, 0, 0.5, 0.001, 0.0, "010",
    ]  # fmt: skip
    assert found["scene.grid_size"] == 16 and set(SCENES) == {"grid", "hash", "surface", "gaussians"}
