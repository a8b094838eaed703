"""Gradio's components as the page needs them: values that the preset checks in words, files by address."""

from __future__ import annotations

from abc import ABCMeta
from pathlib import PurePosixPath
from typing import Any, TypeVar

import gradio as gr
from gradio.components import Component

AnyComponent = TypeVar("AnyComponent", bound=Component)


def derive_component(base: type[AnyComponent], **members: Any) -> type[AnyComponent]:
    """A subclass that Gradio draws as its parent.

    A ``class`` statement would run the metaclass of Gradio, which writes a .pyi file beside this one at every start.
    """
    members = {"__module__": __name__, "is_template": True, **members}
    return ABCMeta.__new__(type(base), base.__name__, (base,), members)


def take_value(self: Component, payload: Any) -> Any:
    """The value as it came: the preset, or whoever asks, checks it and names the key, which Gradio does not."""
    return payload


def take_nothing(self: Component, payload: Any) -> None:
    return None


def hand_address(self: Component, value: str | None) -> dict[str, Any] | None:
    """An address of a file relative to the page, as the viewer reads it."""
    if not value:
        return None
    path = value.partition("?")[0]
    return {"path": path, "url": value, "orig_name": PurePosixPath(path).name}


def describe_viewer(self: Component) -> dict[str, Any]:
    return {"type": "object"}


# A page that outlives its run may hold a choice that is gone.
FreeRadio = derive_component(gr.Radio, preprocess=take_value)
FreeSlider = derive_component(gr.Slider, preprocess=take_value)
FreeNumber = derive_component(gr.Number, preprocess=take_value)  # an emptied one gives None
# A page that outlives its server may hold a choice of before.
FreeDropdown = derive_component(gr.Dropdown, preprocess=take_value)
# A viewer of meshes that holds an address instead of a file, so that a new version has a new address.
RunViewer = derive_component(
    gr.Model3D, preprocess=take_nothing, postprocess=hand_address, api_info=describe_viewer, data_model=None
)
