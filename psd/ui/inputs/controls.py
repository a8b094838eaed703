"""Controls made from the Preset's own declaration: range, unit, symbol and help are written once, in
`psd.config.preset`.
"""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr
from gradio.components import Component
from pydantic.fields import FieldInfo

from psd.config.glossary import explain_options
from psd.config.preset import Preset, flatten, list_settings
from psd.config.settings import SCENES, read_facts
from psd.ui.inputs.components import FreeDropdown, FreeNumber, FreeSlider

REWARD_SLOTS = 4  # sliders for reward weights; further rewards of a preset keep its weights
LARGEST_WEIGHT = 100  # of a reward
# The prompt has its own box; models are chosen by the preset, and stages are written as text.
ELSEWHERE = ("prompt", "prior", "judges", "stages")
# A slider spans all that its field allows.  Where that is more than this multiple of the default, a hand could not set
# a useful value with it: such a field is a number to type.
WIDEST = 60
USUAL = 10  # up to this multiple of the default a slider's step is fine enough to choose among
PREFIX = "control-"  # of the components' ids


@dataclass(frozen=True)
class FieldControl:
    """One field of the preset and the components that show it.

    ``read`` turns the components' values into the field's; ``write`` turns a preset into the components' updates.
    """

    name: str
    components: Sequence[Component]
    read: Callable[[Sequence[Any], Preset], Any]
    write: Callable[[Preset], list[Any]]
    live: bool


def make_control(name: str, preset: Preset) -> FieldControl:
    """The control of setting ``name``, with the value of ``preset``, in the current Blocks context.

    One that the preset's kind of scene lacks has its default, and does not show.
    """
    info, values = list_settings()[name], flatten(preset)
    value, present = values.get(name, info.default), name in values
    live = bool(read_facts(info)["live"])
    if isinstance(value, dict):
        return _make_weights(name, preset)
    if isinstance(value, tuple):
        with gr.Row(elem_classes="range"):
            ends = [FreeNumber(value[i], label=_field_label(name, info, end), info=help_text(info), min_width=120,
                               elem_id=f"{control_id(name)}-{end}", visible=present)
                    for i, end in enumerate(("from", "to"))]  # fmt: skip

        def write_ends(changed: Preset) -> list[Any]:
            values = flatten(changed)
            if name not in values:
                return [gr.update(visible=False) for _ in ends]
            return [FreeNumber(value=end, visible=True) for end in values[name]]

        return FieldControl(name, ends, lambda given, _: tuple(given), write_ends, live)
    component = _make_component(name, info, value, present)

    def write(changed: Preset) -> list[Any]:
        values = flatten(changed)
        if name not in values:
            return [gr.update(visible=False)]
        if not name.startswith("scene."):
            return [values[name]]
        # What is not given again falls back to Gradio's own: bounds, or an empty list of choices.
        if isinstance(component, gr.Dropdown):
            return [type(component)([*component.choices], value=values[name], visible=True)]  # type: ignore[list-item]
        if isinstance(component, gr.Slider):
            return [type(component)(component.minimum, component.maximum, value=values[name], visible=True)]
        return [type(component)(value=values[name], visible=True)]

    return FieldControl(name, [component], _take_first, write, live)


def help_text(info: FieldInfo) -> str:
    """The field's description, and its bounds where it is typed."""
    low, high = read_bounds(info)
    is_typed = low is not None and high is not None and not has_slider(info)
    texts = [
        info.description or "",
        f"{low:,.12g} to {high:,.12g}." if is_typed else "",
    ]
    return " ".join(filter(None, texts))


def has_slider(info: FieldInfo) -> bool:
    """Whether a number is set by a slider: its bounds are near enough to each other, and it is no logarithmic one.

    An integer that begins at 0 stands for a choice of the machine's ("0: all"), so it is typed.
    """
    low, high = read_bounds(info)
    if low is None or high is None or read_facts(info)["log"]:
        return False
    if info.annotation is int:
        return bool(info.default) and high <= WIDEST * info.default
    return high <= max(1.0, WIDEST * info.default)


def read_bounds(info: FieldInfo) -> tuple[float | None, float | None]:
    """Lower and upper bound as declared, exclusive ones too; None where there is none."""
    low = high = None
    for rule in info.metadata:
        low = getattr(rule, "ge", getattr(rule, "gt", low))
        high = getattr(rule, "le", getattr(rule, "lt", high))
    return low, high


def control_id(name: str) -> str:
    """The id of a setting's component on the page."""
    return PREFIX + name.replace(".", "-")


def _make_component(name: str, info: FieldInfo, value: Any, visible: bool) -> Component:
    shared: dict[str, Any] = {
        "label": _field_label(name, info), "info": help_text(info), "elem_id": control_id(name), "visible": visible,
    }  # fmt: skip
    choices = typing.get_args(info.annotation) if typing.get_origin(info.annotation) is Literal else ()
    if choices:
        meanings = explain_options(name)
        named = [
            (" · ".join(filter(None, (choice, meanings[choice].name, meanings[choice].cost_words))), choice)
            for choice in choices
        ]
        return FreeDropdown(named, value=value, **shared)
    if isinstance(value, bool):
        return gr.Checkbox(value, **shared)
    if isinstance(value, str):
        return gr.Textbox(value, max_length=_max_length(info), **shared)
    if not has_slider(info):
        return FreeNumber(value, **shared)
    low, high = read_bounds(info)
    assert low is not None and high is not None
    return FreeSlider(low, high, value, step=slider_step(info), buttons=["reset"], **shared)


def slider_step(info: FieldInfo) -> float:
    """The declared step, 1 for integers, else a power of ten of which some fifty lie in the field's usual range."""
    low, high = read_bounds(info)
    assert low is not None and high is not None
    usual = min(high, USUAL * info.default) if info.default else high
    return read_facts(info)["step"] or (1 if info.annotation is int else 10 ** math.floor(math.log10(usual / 50)))


def _make_weights(name: str, preset: Preset) -> FieldControl:
    """One slider a reward; unused ones are hidden.  What lies beyond a slider can be typed."""

    def slider_settings(rewards: Mapping[str, float]) -> list[dict[str, Any]]:
        named = [*rewards.items()][:REWARD_SLOTS]
        shown = [
            {"label": f"Reward weight · {reward.rsplit('/', 1)[-1]}", "value": weight, "visible": True,
             "maximum": 10 if weight <= 10 else LARGEST_WEIGHT}
            for reward, weight in named
        ]  # fmt: skip
        unused = {"label": "unused", "value": 0.0, "visible": False, "maximum": 10}
        return shown + [unused] * (REWARD_SLOTS - len(named))

    info = list_settings()[name]
    help_ = f"{help_text(info)} 0 to {LARGEST_WEIGHT} when typed."
    sliders = [
        FreeSlider(0, step=0.05, info=help_, buttons=["reset"], elem_id=f"{PREFIX}{name}-{i}", **chosen)
        for i, chosen in enumerate(slider_settings(getattr(preset, name)))
    ]

    def read_weights(given: Sequence[Any], base: Preset) -> dict[str, float]:
        return {**base.rewards, **dict(zip(base.rewards, given, strict=False))}

    def write_weights(changed: Preset) -> list[Any]:
        return [FreeSlider(**chosen) for chosen in slider_settings(getattr(changed, name))]

    return FieldControl(name, sliders, read_weights, write_weights, live=True)


def _field_label(name: str, info: FieldInfo, end: str = "") -> str:
    plain = name.rpartition(".")[2].removesuffix("_deg").removesuffix("_s").replace("_", " ")
    plain = "scene" if name == "scene.kind" else plain
    plain = plain[0].upper() + plain[1:]
    symbol, unit = (read_facts(info)[key] for key in ("symbol", "unit"))
    return " ".join(filter(None, (plain, end, f"({symbol})" if symbol else "", f"[{unit}]" if unit else "")))


def _max_length(info: FieldInfo) -> int | None:
    return next((rule.max_length for rule in info.metadata if hasattr(rule, "max_length")), None)


def _take_first(given: Sequence[Any], _: Preset) -> Any:
    return given[0]


def reset_values(preset: Preset) -> str:
    """What the reset button of each slider goes back to, as JSON: the component's id without `PREFIX` -> value."""
    numbers = {
        control_id(name): value
        for name, value in flatten(preset).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    weights = {f"{control_id('rewards')}-{i}": weight for i, weight in enumerate(preset.rewards.values())}
    return json.dumps({name.removeprefix(PREFIX): value for name, value in {**numbers, **weights}.items()})


def group_fields(names: Sequence[str]) -> dict[str, list[str]]:
    """Field names by their declared group, in the order of declaration."""
    groups: dict[str, list[str]] = {}
    known = list_settings()
    for name in names:
        groups.setdefault(read_facts(known[name])["group"], []).append(name)
    return groups


def read_all(controls: Sequence[FieldControl], given: Sequence[Any], base: Preset) -> dict[str, Any]:
    """The values of all components, flat and in order, as values of settings, without those of other kinds of scene."""
    values, rest = {}, list(given)
    for item in controls:
        mine, rest = rest[: len(item.components)], rest[len(item.components) :]
        values[item.name] = item.read(mine, base)
    kind = SCENES.get(values.get("scene.kind", base.scene.kind))  # None: the preset refuses it in words
    others = (
        {f"scene.{name}" for model in SCENES.values() for name in model.model_fields}
        - {f"scene.{name}" for name in kind.model_fields}
        if kind
        else set()
    )
    return {name: value for name, value in values.items() if name not in others}
