"""Controls made from the Preset's own declaration: range, unit, symbol and help are written once, in
`psd.config.preset`.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr
from gradio.components import Component
from pydantic.fields import FieldInfo

from psd.config.preset import Preset, flatten, list_settings
from psd.config.settings import SCENES

REWARD_SLOTS = 4  # sliders for reward weights; further rewards of a preset keep its weights
# The prompt has its own box; models are chosen by the preset, and stages are written as text.
ELSEWHERE = ("prompt", "prior", "judges", "loras", "stages")
SLIDER_SPAN = 10  # a slider reaches this multiple of the preset's value where the bound lies further


@dataclass(frozen=True)
class Control:
    """One field of the preset and the components that show it.

    ``read`` turns the components' values into the field's; ``write`` turns a preset into the components' updates.
    """

    name: str
    components: Sequence[Component]
    read: Callable[[Sequence[Any], Preset], Any]
    write: Callable[[Preset], list[Any]]
    live: bool


def make_control(name: str, preset: Preset) -> Control:
    """The control of setting ``name``, with the value of ``preset``, in the current Blocks context.

    One that the preset's kind of scene lacks has its default, and does not show.
    """
    info, values = list_settings()[name], flatten(preset)
    value, present = values.get(name, info.default), name in values
    live = bool(_read_extra(info, "live"))
    if isinstance(value, dict):
        return _make_weights(name, preset)
    if isinstance(value, tuple):
        with gr.Row(elem_classes="range"):
            ends = [gr.Number(value[i], label=_field_label(name, info, end), info=help_text(info), min_width=120)
                    for i, end in enumerate(("from", "to"))]  # fmt: skip
        return Control(name, ends, lambda given, _: tuple(given), lambda p: list(flatten(p)[name]), live)
    component = _make_component(name, info, value, present)

    def write(changed: Preset) -> list[Any]:
        values = flatten(changed)
        if name not in values:
            return [gr.update(visible=False)]
        if isinstance(component, gr.Slider):
            return [gr.Slider(**_slider_range(info, values[name]), visible=True)]
        return [values[name]]

    return Control(name, [component], _take_first, write, live)


def help_text(info: FieldInfo) -> str:
    """The field's description with what a user must know beside it: bounds where typed, and that it may change live."""
    low, high = read_bounds(info)
    typed = _read_extra(info, "log") and low is not None
    texts = [
        info.description or "",
        f"{low:g} to {high:g}." if typed else "",
        "Live." if _read_extra(info, "live") else "",
    ]
    return " ".join(filter(None, texts))


def read_bounds(info: FieldInfo) -> tuple[float | None, float | None]:
    """Lower and upper bound as declared, exclusive ones too; None where there is none."""
    low = high = None
    for rule in info.metadata:
        low = getattr(rule, "ge", getattr(rule, "gt", low))
        high = getattr(rule, "le", getattr(rule, "lt", high))
    return low, high


def _make_component(name: str, info: FieldInfo, value: Any, visible: bool) -> Component:
    shared: dict[str, Any] = {
        "label": _field_label(name, info), "info": help_text(info), "elem_id": f"control-{name.replace('.', '-')}",
        "visible": visible,
    }  # fmt: skip
    choices = typing.get_args(info.annotation) if typing.get_origin(info.annotation) is Literal else ()
    if choices:
        return gr.Dropdown(list(choices), value=value, **shared)
    if isinstance(value, bool):
        return gr.Checkbox(value, **shared)
    if isinstance(value, str):
        return gr.Textbox(value, max_length=_max_length(info), **shared)
    low, high = read_bounds(info)
    if name == "seed" or _read_extra(info, "log") or low is None or high is None:
        return gr.Number(value, minimum=low, maximum=high, precision=0 if isinstance(value, int) else None, **shared)
    return gr.Slider(**_slider_range(info, value), **shared)


def _slider_range(info: FieldInfo, value: float) -> dict[str, Any]:
    """A slider's range: the declared bounds, but no further than is useful around ``value``."""
    low, high = read_bounds(info)
    assert low is not None and high is not None
    if high > SLIDER_SPAN * max(value, 0.1):
        high = min(high, _round_up(SLIDER_SPAN * (value or 0.1)))
    whole = info.annotation is int
    step = _read_extra(info, "step") or (1 if whole else 10 ** math.floor(math.log10((high - low) / 50)))
    return {"minimum": low, "maximum": high, "value": value, "step": step}


def _round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(value))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= value * (1 - 1e-9))


def _make_weights(name: str, preset: Preset) -> Control:
    """One slider a reward; unused ones are hidden."""

    def slider_settings(rewards: Mapping[str, float]) -> list[dict[str, Any]]:
        named = [*rewards.items()][:REWARD_SLOTS]
        shown = [
            {"label": f"reward weight · {reward.rsplit('/', 1)[-1]}", "value": weight, "visible": True,
             "maximum": max(5.0, _round_up(2 * weight) if weight else 5.0)}
            for reward, weight in named
        ]  # fmt: skip
        unused = {"label": "unused", "value": 0.0, "visible": False, "maximum": 5.0}
        return shown + [unused] * (REWARD_SLOTS - len(named))

    info = list_settings()[name]
    sliders = [
        gr.Slider(minimum=0.0, step=0.05, info=help_text(info), elem_id=f"control-{name}-{i}", **chosen)
        for i, chosen in enumerate(slider_settings(getattr(preset, name)))
    ]

    def read_weights(given: Sequence[Any], base: Preset) -> dict[str, float]:
        return {**base.rewards, **dict(zip(base.rewards, given, strict=False))}

    def write_weights(changed: Preset) -> list[Any]:
        return [gr.Slider(**chosen) for chosen in slider_settings(getattr(changed, name))]

    return Control(name, sliders, read_weights, write_weights, live=True)


def _field_label(name: str, info: FieldInfo, end: str = "") -> str:
    plain = name.rpartition(".")[2].removesuffix("_deg").removesuffix("_s").replace("_", " ")
    plain = "scene" if name == "scene.kind" else plain
    symbol, unit = _read_extra(info, "symbol"), _read_extra(info, "unit")
    return " ".join(filter(None, (plain, end, f"({symbol})" if symbol else "", f"[{unit}]" if unit else "")))


def _read_extra(info: FieldInfo, key: str) -> Any:
    return typing.cast(dict, info.json_schema_extra)[key]


def _max_length(info: FieldInfo) -> int | None:
    return next((rule.max_length for rule in info.metadata if hasattr(rule, "max_length")), None)


def _take_first(given: Sequence[Any], _: Preset) -> Any:
    return given[0]


def group_fields(names: Sequence[str]) -> dict[str, list[str]]:
    """Field names by their declared group, in the order of declaration."""
    groups: dict[str, list[str]] = {}
    known = list_settings()
    for name in names:
        groups.setdefault(_read_extra(known[name], "group"), []).append(name)
    return groups


def read_all(controls: Sequence[Control], given: Sequence[Any], base: Preset) -> dict[str, Any]:
    """The values of all components, flat and in order, as values of settings, without those of other kinds of scene."""
    values, rest = {}, list(given)
    for item in controls:
        mine, rest = rest[: len(item.components)], rest[len(item.components) :]
        values[item.name] = item.read(mine, base)
    kind = SCENES[values.get("scene.kind", base.scene.kind)]
    others = {f"scene.{name}" for model in SCENES.values() for name in model.model_fields} - {
        f"scene.{name}" for name in kind.model_fields
    }
    return {name: value for name, value in values.items() if name not in others}
