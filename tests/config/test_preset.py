"""Presets: what is out of range is refused by name before a model is loaded; what is in range survives a file."""

import math
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from psd.config.assignments import parse_assignments
from psd.config.errors import PresetError
from psd.config.preset import PRESETS, Preset, flatten, list_presets, list_settings, parse_mapping, parse_preset
from psd.config.reference import parameter_table
from psd.config.settings import SCENES

FIELDS = list_settings()
NUMBERS = {name: field for name, field in FIELDS.items() if field.annotation in (int, float)}
CHOICES = {
    name: get_args(field.annotation) for name, field in FIELDS.items() if get_origin(field.annotation) is Literal
}


def bound(name: str, sign: str) -> Any:
    return next((getattr(rule, sign) for rule in FIELDS[name].metadata if hasattr(rule, sign)), None)


def low(name: str) -> float:
    """The smallest number that the field accepts."""
    above = bound(name, "gt")
    return bound(name, "ge") if above is None else math.nextafter(above, math.inf)


def high(name: str) -> float:
    below = bound(name, "lt")
    return bound(name, "le") if below is None else math.nextafter(below, -math.inf)


def inside(name: str) -> st.SearchStrategy:
    if FIELDS[name].annotation is int:
        return st.integers(int(low(name)), int(high(name)))
    return st.floats(low(name), high(name))


def outside(name: str) -> st.SearchStrategy:
    below, above = (bound(name, "gt"), bound(name, "lt"))
    if FIELDS[name].annotation is int:
        return st.integers(max_value=int(low(name)) - 1) | st.integers(min_value=int(high(name)) + 1)
    return (
        st.floats(max_value=low(name), exclude_max=below is None, allow_nan=False).filter(lambda x: x < low(name))
        | st.floats(min_value=high(name), exclude_min=above is None, allow_nan=False).filter(lambda x: x > high(name))
        | st.just(math.nan)
    )


LINE = st.text(st.characters(blacklist_categories=["Cc", "Cs"]), min_size=1, max_size=100)
NAME = LINE.filter(str.strip)


def tv_of(preset: Preset) -> float:
    return flatten(preset)["scene.weight_tv"]


def of_its_kind(values: dict[str, Any]) -> dict[str, Any]:
    """Without what the kind of scene lacks."""
    every = {f"scene.{name}" for kind in SCENES.values() for name in kind.model_fields}
    lacking = every - {f"scene.{name}" for name in SCENES[values["scene.kind"]].model_fields}
    return {name: value for name, value in values.items() if name not in lacking}


def of_kind(name: str, value: Any) -> dict[str, Any]:
    """A setting with the kind of scene that has it, where that is not the default one."""
    kind = next((kind for kind, model in SCENES.items() if name.removeprefix("scene.") in model.model_fields), "grid")
    return {name: value} if kind == "grid" else {"scene.kind": kind, name: value}


PRESET = st.fixed_dictionaries(
    {
        "prompt": NAME,
        "negative_prompt": st.just("") | LINE,
        "prior": NAME,
        "rewards": st.dictionaries(NAME, st.floats(0, 100), min_size=1, max_size=8).filter(lambda x: any(x.values())),
        "judges": st.lists(NAME, min_size=1, max_size=8, unique=True),
        **{name: inside(name) for name in NUMBERS if not name.startswith(("t_min", "t_max"))},
        **{name: st.sampled_from(choices) for name, choices in CHOICES.items()},
    }
).map(of_its_kind)


@pytest.mark.parametrize("kind", SCENES)
def test_a_preset_has_few_keys(kind: str) -> None:
    """An option more needs one less: what experiments found worthless has gone (docs/evidence.md)."""
    assert len(flatten(Preset.make({"scene": {"kind": kind}}))) <= 70


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_both_bounds(name: str) -> None:
    assert low(name) <= FIELDS[name].default <= high(name)


@given(data=st.data(), name=st.sampled_from(sorted(NUMBERS)))
def test_a_number_out_of_range_is_refused_with_key_value_and_bound(data: st.DataObject, name: str) -> None:
    value = data.draw(outside(name))
    with pytest.raises(PresetError) as refused:
        Preset.make(of_kind(name, value))
    message = str(refused.value)
    assert message.startswith(f"{name}=")
    if math.isfinite(value):
        nearest = [bound(name, sign) for sign in (("le", "lt") if value > low(name) else ("ge", "gt"))]
        assert any(edge is not None and f"{edge:.12g}" in message for edge in nearest)
        if abs(value) < 10**15:
            assert repr(value) in message


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_at_its_bounds_is_accepted(name: str) -> None:
    for value in (low(name), high(name)):
        if not name.startswith(("t_min", "t_max")):  # those are tied to each other
            assert flatten(Preset.make(of_kind(name, value)))[name] == value


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [True, None, "much", [1], 10**400, "1" * 5000, {}])
def test_what_is_no_number_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(PresetError, match=f"^{name}=") as refused:
        Preset.make(of_kind(name, value))
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("name", CHOICES)
def test_a_wrong_choice_is_answered_with_all_of_them(name: str) -> None:
    with pytest.raises(PresetError) as refused:
        Preset.make(of_kind(name, "sdss"))
    assert all(f"'{choice}'" in str(refused.value) for choice in CHOICES[name])


@pytest.mark.parametrize("name", FIELDS)
def test_an_unknown_key_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(PresetError, match=f"unknown key '{name}_': did you mean '{name}'"):
        Preset.make({f"{name}_": 1})


def test_every_complaint_is_made_at_once() -> None:
    with pytest.raises(PresetError) as refused:
        Preset.make({"steps": 0, "seed": -1, "nonsense": 1})
    assert all(word in str(refused.value) for word in ("steps=0", "seed=-1", "'nonsense'"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": ""}, "prompt=''"),
        ({"prompt": " \n"}, "prompt is blank"),
        ({"prompt": "a\x00b"}, "control characters"),
        ({"prompt": "a\ud800b"}, "unable to parse raw data as a unicode"),
        ({"negative_prompt": "\x1b[31m"}, "control characters"),
        ({"prompt": "x" * 301}, "at most 300"),
        ({"rewards": {}}, "method=psd needs a reward"),
        ({"rewards": {"a": -0.1}}, r"rewards\['a'\]=-0.1 must lie in \[0, 100\]"),
        ({"rewards": {"a": 100.1}}, r"rewards\['a'\]=100.1 must lie in \[0, 100\]"),
        ({"rewards": {"a": math.nan}}, "rewards.a=nan"),
        ({"rewards": {"": 1}}, "rewards: '' is no folder"),
        ({"rewards": {"a\nb": 1, "c\x00": 1}}, r"rewards: 'c\\x00' is no folder"),
        ({"rewards": {"x" * 301: 1}}, "rewards: 'xxx.*is no folder"),
        ({"rewards": {str(i): 1 for i in range(9)}}, "rewards names 9 models: at most 8"),
        ({"rewards": ["assets/reward"]}, "rewards="),
        ({"rewards": {"a": 0, "b": 0}}, "method=psd: all rewards have weight 0: raise one, or set method=sds"),
        ({"judges": ["a", "a"]}, "names one twice"),
        ({"judges": "assets/selector"}, "judges="),
        ({"judges": [" "]}, "judges: ' ' is no folder"),
        ({"prior": ""}, "prior: '' is no folder"),
        ({"t_min_end": 0.5}, "t_min_end=0.5 is above t_max_end=0.25"),
        ({"elevation_deg": (10, 5)}, "elevation_deg"),
        ({"elevation_deg": (0, 91)}, "elevation_deg"),
        ({"elevation_deg": (0, 1, 2)}, "elevation_deg"),
        ({"fovy_deg": (0, 40)}, "fovy_deg"),
        ({"distance_factor": (1, math.inf)}, "distance_factor"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(PresetError, match=words):
        Preset.make(values)


def test_methods_without_a_reward_run_without_one() -> None:
    assert Preset.make({"method": "sds", "rewards": {}}).rewards == {}
    assert Preset.make({"method": "csd", "rewards": {"a": 0}}).rewards == {"a": 0}


@given(PRESET)
def test_a_preset_survives_its_file(values: dict[str, Any]) -> None:
    preset = Preset.make(values)
    assert Preset.make(parse_mapping(preset.to_yaml())) == preset


def test_changing_a_copy_checks_it_and_leaves_the_first_alone() -> None:
    preset = Preset()
    assert preset.with_values({"steps": 7}).steps == 7 and preset.steps == Preset().steps
    with pytest.raises(PresetError, match="steps=0"):
        preset.with_values({"steps": 0})
    with pytest.raises(ValueError, match="frozen"):
        preset.steps = 7  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "just words",
        "steps: 1\nsteps: 2",
        "rewards: {a: 1, a: 2}",
        "prompt: &a x\nprior: *a",
        "1: 2",
        "null: 2",
        "[1, 2]: 3",
        "? [1]\n: 2",
        "prompt: !!python/object/apply:os.getcwd []",
        "prompt: [" * 5000,
        "prompt: {" * 5000,
        "seed: " + "9" * 5000,
        "seed: 0x" + "f" * 5000,
        "prompt: 2026-13-45",
        "a: b: c",
        "prompt: \x07",
        "x: " + "y" * 200_000,
        "\tprompt: x",
    ],
)
def test_yaml_that_is_no_preset_is_refused_in_a_few_words(text: str) -> None:
    with pytest.raises(PresetError) as refused:
        Preset.make(parse_mapping(text))
    assert len(str(refused.value)) < 400


def test_a_small_file_of_a_billion_values_costs_nothing() -> None:
    laughs = 'a: &a ["ha","ha","ha","ha","ha","ha","ha","ha","ha"]\n' + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    with pytest.raises(PresetError, match="alias in line 2"):
        parse_mapping(laughs)


@given(st.text(max_size=200))
def test_any_text_gives_values_or_a_preset_error(text: str) -> None:
    try:
        assert isinstance(parse_mapping(text), dict)
    except PresetError:
        pass
    try:
        assert set(parse_assignments([f"steps={text}"])) == {"steps"}
    except PresetError:
        pass


def test_assignments_read_texts_as_they_stand_and_the_rest_as_yaml() -> None:
    given = [
        "prompt=no", "negative_prompt=a: b", "method=sds", "steps=7", "negative=off", "rewards={x: 2}",
        "elevation_deg=[0, 10]", "prior=a=b", "negative_lr=2e-2",
    ]  # fmt: skip
    assert parse_assignments(given) == {
        "prompt": "no", "negative_prompt": "a: b", "method": "sds", "steps": 7, "negative": False, "rewards": {"x": 2},
        "elevation_deg": [0, 10], "prior": "a=b", "negative_lr": "2e-2",
    }  # fmt: skip
    assert Preset.make(parse_assignments(["negative_lr=2e-2"])).negative_lr == 0.02  # YAML 1.1 takes it for a text
    for wrong in ("steps", "=3", "steps=[", "rewards={a: 1, a: 2}"):
        with pytest.raises(PresetError):
            parse_assignments([wrong])


@pytest.mark.parametrize(
    "values",
    [{"judges": ["assets/evidence"]}, {"rewards": {"assets/referee": 1.0}}]
    + [{"judges": [name]} for name in ("./assets/evidence", "assets/referee/", "assets/../assets/evidence")]
    + [{"judges": [str(PRESETS.parent / "assets" / "evidence")]}],
)
def test_no_run_sees_the_judges_that_measure(values: dict[str, Any]) -> None:
    with pytest.raises(PresetError, match="measures results"):
        Preset.make(values)


def test_the_choice_off_needs_no_quotes() -> None:
    assert Preset.make(parse_mapping("early_stop: off")).early_stop == "off"  # YAML 1.1 takes it for a truth
    with pytest.raises(PresetError, match="early_stop=True"):
        Preset.make(parse_mapping("early_stop: on"))


def test_a_preset_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    for name in ("huge", "../README", str(tmp_path / "no")):
        with pytest.raises(PresetError, match="tiny"):
            Preset.load(name)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "no.yaml", tmp_path / "binary.yaml"):
        with pytest.raises(PresetError, match="cannot read"):
            Preset.load(str(path))


@pytest.mark.parametrize("name", list_presets())
def test_every_shipped_preset_loads_and_explains_each_of_its_keys(name: str) -> None:
    Preset.load(name)
    lines = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    keys = [i for i, line in enumerate(lines) if re.match(r" *[a-z_]+:", line)]
    assert keys
    silent = [lines[i] for i in keys if "#" not in lines[i] and not lines[i - 1].lstrip().startswith("#")]
    assert not silent, "explain these keys beside or above them"


def test_overrides_win_over_the_file() -> None:
    assert Preset.load("tiny", {"steps": 3}).steps == 3
    dotted, nested = (Preset.load("tiny", {**way}) for way in ({"scene.grid_size": 9}, {"scene": {"grid_size": 9}}))
    assert dotted == nested and tv_of(dotted) == tv_of(Preset.load("tiny")) != tv_of(Preset())


def test_another_kind_of_scene_begins_with_its_own_defaults() -> None:
    changed = Preset.load("tiny", {"scene.kind": "hash", "scene.ray_samples": 9})
    assert changed.scene == Preset.make({"scene": {"kind": "hash", "ray_samples": 9}}).scene
    assert changed.with_values({"scene.kind": "hash", "scene.weight_tv": 1}).scene.model_dump()["ray_samples"] == 9
    for values, words in [
        ({"scene": {"kind": "cloud"}}, "'cloud'.*'grid', 'hash'"), ({"grid_size": 9}, "did you mean 'scene.grid_size'"),
        ({"scene.grid_size": 7}, "scene.grid_size=7"), ({"scene.gird_size": 9}, "did you mean 'scene.grid_size'"),
        ({"scene": {"kind": "hash", "grid_size": 9}}, "unknown key 'scene.grid_size': another kind has it"),
        ({"scene": 3}, "scene=3"), ({"scene.grid_size": True}, "grid_size=True must be a number"),
    ]:  # fmt: skip
        with pytest.raises(PresetError, match=words):
            Preset.make(values)


def test_a_preset_says_only_what_differs_from_the_one_it_extends(tmp_path: Path) -> None:
    text = "extends: tiny\nsteps: 7\nscene: {grid_size: 9}\n"
    found, base = Preset.make(parse_preset(text)), Preset.load("tiny")
    assert found == base.with_values({"steps": 7, "scene.grid_size": 9}) and tv_of(found) == tv_of(base)
    (tmp_path / "mine.yaml").write_text(text)
    assert Preset.load(str(tmp_path / "mine.yaml")) == found
    with pytest.raises(PresetError, match="extends='nothing'.*tiny"):
        parse_preset("extends: nothing")
    with pytest.raises(PresetError, match="tiny -> mine -> tiny"):
        parse_preset("extends: tiny", inside=("tiny", "mine"))
    mvdream = flatten(Preset.load("mvdream"))
    differing = {name for name, value in flatten(Preset.load("mvdream-shaded")).items() if value != mvdream[name]}
    assert differing == {"stages"}


HALF, SURFACE = {"share": 0.5}, {"kind": "surface"}


def test_a_stage_may_change_the_scene_and_choose_all_of_the_new_one() -> None:
    later = {"share": 0.5, "scene.kind": "surface", "scene.surface_cells": 9, "scene.learns": "texture"}
    preset = Preset.make({"stages": [{"share": 0.5}, later]})
    assert preset.at(0.4).scene == preset.scene == preset.scene_preset(0).scene
    assert preset.at(0.6).scene == preset.scene_preset(1).scene == preset.at(1.0).scene
    assert preset.at(0.6).scene == Preset.make({"scene": {**SURFACE, "surface_cells": 9, "learns": "texture"}}).scene
    assert Preset.make({"scene.kind": "surface"}).in_stage(0).scene.kind == "surface"


def test_a_run_has_the_models_of_all_of_its_stages() -> None:
    whole = {**HALF, "rewards": {"b": 1}}
    preset = Preset.make({"prior": "x", "rewards": {"a": 1}, "stages": [{**whole, "prior": "y"}, whole]})
    assert (preset.priors, preset.reward_names) == (["y", "x"], ["b"])  # no stage asks a
    assert preset.name_stage(lambda stage: stage.prior == "x") == "stages[1]: "
    assert preset.name_stage(lambda stage: "b" in stage.rewards) == ""
    plain = Preset.make({"prior": "x", "rewards": {"a": 1}})
    assert (plain.priors, plain.reward_names, plain.list_stages()) == (["x"], ["a"], [plain])


def test_another_kind_of_scene_may_be_chosen_for_a_preset_that_ends_with_a_surface() -> None:
    """What a stage names differs from nothing where the preset says the same."""
    for kind in ("hash", "gaussians", "surface"):
        stages = Preset.load("tiny-surface", {"scene.kind": kind}).list_stages()
        assert [stage.scene.kind for stage in stages] == [kind, "surface"]
    with pytest.raises(PresetError, match=r"stages\[1\]: 'scene.surface_cells' cannot differ in a stage"):
        Preset.load("tiny-surface", {"scene.kind": "surface", "scene.surface_cells": 16})


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"share": 0.4}, {"share": 0.5}], r"shares of stages \(0.4, 0.5\) must sum to 1"),
        ([{"share": 1, "render_size": 3}], r"stages\[0\]: render_size=3"),
        ([{"share": 0.5}, {"share": 0.5, "steps": 9}], r"stages\[1\]: 'steps' cannot differ in a stage"),
        ([{"share": 1, "kappa": 2}], "'kappa' cannot differ"),
        ([{"share": 1, "guidance_scale": 900}], r"stages\[0\]: guidance_scale=900"),
        ([{"share": 1, "scene": {"grid_size": 9}}], "'scene.grid_size' cannot differ"),
        ([{"share": 1, "scene": {"kind": "hash"}}], r"stages\[0\]: scene.kind=hash: .*own kind, grid"),
        ([HALF, {**HALF, "scene": {"kind": "hash"}}], r"stages\[1\]: scene.kind=hash cannot start from the grid"),
        ([HALF, {**HALF, "scene": {"kind": "hash"}}], "only a surface and gaussians can start from another"),
        ([HALF, {**HALF, "scene": {"kind": "gaussians", "gaussians": 9}}], r"stages\[1\]: scene.gaussians=9"),
        ([HALF, {**HALF, "scene": {"kind": "surface", "grid_size": 9}}], "unknown key 'scene.grid_size'"),
        ([HALF, {**HALF, "scene": {"kind": "surface", "surface_cells": 7}}], r"stages\[1\]: scene.surface_cells=7"),
        (
            [HALF, {"share": 0.3, "scene": SURFACE}, {"share": 0.2, "scene": {**SURFACE, "surface_cells": 9}}],
            r"stages\[2\]: scene.surface_cells=9, the stage before has 32",
        ),
        ([{"share": 1, "scene.weight_orientation": [1, -1]}], "weight_orientation"),
        ([{"share": 1, "t_min_end": 0.9}], r"stages\[0\]: t_min_end=0.9 is above t_max_end"),
        ([HALF, {**HALF, "prior": " "}], r"stages\[1\]: prior: ' ' is no folder or hub id"),
        ([HALF, {**HALF, "prior": "./assets/prior"}], "prior=.*names one twice"),
        ([HALF, {**HALF, "rewards": {}}], r"stages\[1\]: method=psd needs a reward"),
        ([HALF, {**HALF, "rewards": {"x": 101}}], r"stages\[1\]: rewards\['x'\]=101.0 must lie in \[0, 100\]"),
        ([HALF, {**HALF, "rewards": {"assets/referee": 1}}], r"stages\[1\]: assets/referee measures results"),
        ([{"share": 0.1, "prior": f"x{i}"} for i in range(10)], "prior names 10 models: at most 8"),
        ([{"share": 0}], "stages.0.share=0"), ([{}], "stages.0.share"), (3, "stages=3"),
    ],
)  # fmt: skip
def test_stages_that_cannot_work_are_refused(stages: Any, words: str) -> None:
    with pytest.raises(PresetError, match=words):
        Preset.make({"stages": stages})


def test_the_table_lists_every_parameter_once_with_its_default() -> None:
    rows = [line for line in parameter_table().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(FIELDS)
    for row, (name, field) in zip(rows, FIELDS.items(), strict=True):
        assert row.count("|") == 5, f"a bar inside the description of {name} breaks its row"
        shown = yaml.safe_load(row.split("|")[2].strip(" `"))
        assert (
            tuple(shown) if isinstance(shown, list) and isinstance(field.default, tuple) else shown
        ) == field.default


@pytest.mark.parametrize("name", ["own.yaml", "OWN.YAML", "Own.Yml"])
def test_the_suffix_of_a_preset_file_is_read_in_any_case(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("prompt: a red cube\n")
    assert Preset.load(str(tmp_path / name)).prompt == "a red cube"
