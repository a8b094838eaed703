"""Blocks that check what a request brings before any listener sees it.

The page's own listeners can be called by anybody who reaches the server, with anything that JSON can say.  Here is the
one place that compares each value with its component: a value of another kind is refused in words, without a traceback.
Whether a value of the right kind makes sense is the listener's business.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.components import Component
from gradio.utils import get_type_hints

from psd.ui.inputs.components import FreeNumber, FreeSlider, RunViewer
from psd.ui.protection import hide_paths

LOG = logging.getLogger(__name__)


def is_text(value: object) -> bool:
    """Whether it is a string that can be written as UTF-8: a lone surrogate cannot."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def is_number(value: object) -> bool:
    """Whether it is a finite number; JSON as Python reads it also knows NaN and Infinity."""
    return (isinstance(value, int) and not isinstance(value, bool)) or is_finite_number(value)


def is_finite_number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def is_table_of_texts(value: object) -> bool:
    return isinstance(value, dict) and all(is_text(key) and is_text(text) for key, text in value.items())


def is_viewer(value: object) -> bool:
    """The properties of a viewer; its camera is three numbers, each None until it is turned."""
    camera = value.get("camera_position", [None] * 3) if isinstance(value, dict) else None
    return isinstance(camera, Sequence) and len(camera) == 3 and all(at is None or is_number(at) for at in camera)


def is_upload(value: object) -> bool:
    return isinstance(value, dict) and is_text(value.get("path"))


# What a component of a kind may bring, and what to call that; the first kind that fits counts.
COMPONENT_CHECKS: Sequence[tuple[type | tuple[type, ...], Callable[[Any], bool], str]] = (
    ((FreeNumber, FreeSlider), lambda value: value is None or is_number(value), "a number"),
    ((gr.Number, gr.Slider), is_number, "a number"),
    ((gr.Textbox, gr.Code, gr.HTML, gr.Radio), is_text, "text"),
    (gr.Checkbox, lambda value: isinstance(value, bool), "true or false"),
    (gr.CheckboxGroup, is_list_of_texts, "a list of texts"),
    (gr.Dataset, lambda value: isinstance(value, int) and not isinstance(value, bool), "the number of a sample"),
    (RunViewer, is_viewer, "the properties of a viewer"),
    (gr.UploadButton, is_upload, "an uploaded file"),
)


def find_kind(component: Component) -> tuple[Callable[[Any], bool], str] | None:
    """The check of what a component may bring and its name; None for one that only the server writes."""
    if isinstance(component, gr.Dropdown):
        return (is_list_of_texts, "a list of texts") if component.multiselect else (is_text, "text")
    if isinstance(component, gr.BrowserState):
        default = component.default_value
        kinds = {list: (is_list_of_texts, "a list of texts"), dict: (is_table_of_texts, "texts by name")}
        check, name = kinds.get(type(default), (is_text, "text"))
        return lambda value: value is None or check(value), name  # none while a browser has kept none
    return next(((check, name) for kind, check, name in COMPONENT_CHECKS if isinstance(component, kind)), None)


class CheckedBlocks(gr.Blocks):
    """`gradio.Blocks` whose listeners get values of their components' kinds, and `gradio.Error` says what else came."""

    async def process_api(self, block_fn: BlockFunction | int, inputs: list[Any], *args: Any, **keywords: Any) -> Any:
        listener = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        if listener.fn is not None and not listener.batch:
            require_event(listener.fn, keywords.get("event_data"))
        return await super().process_api(block_fn, inputs, *args, **keywords)

    async def preprocess_data(
        self, block_fn: BlockFunction, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        if not isinstance(inputs, list) or len(inputs) != len(block_fn.inputs):
            count = len(inputs) if isinstance(inputs, list) else "no list of"
            words = f"{block_fn.api_name or block_fn.name} takes {len(block_fn.inputs)} values, not {count}"
            raise gr.Error(words, print_exception=False)
        require_kinds(block_fn.inputs, inputs)
        # Which mesh a viewer shows is the server's to say; Gradio would look for the address among its own files.
        inputs = [{**value, "value": None} if isinstance(component, RunViewer) else value
                  for component, value in zip(block_fn.inputs, inputs, strict=True)]  # fmt: skip
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except Exception as error:  # of Gradio, about a value that it cannot read: what it says goes back, in words
            LOG.debug("a value that no component reads", exc_info=True)
            words = hide_paths(str(getattr(error, "message", error)).partition("\n")[0])
            raise gr.Error(words or type(error).__name__, print_exception=False) from None


def require_kinds(components: Sequence[Any], values: Sequence[Any]) -> None:
    """Raises `gradio.Error` for a value of another kind than its component's, and for any text that is no Unicode."""
    for place, (component, value) in enumerate(zip(components, values, strict=True), 1):
        kind = None if getattr(component, "stateful", False) else find_kind(component)
        name = getattr(component, "label", None) or f"value {place}"
        if kind is not None and not kind[0](value):
            raise gr.Error(f"{name}: {describe_kind(value)} came instead of {kind[1]}", print_exception=False)
        if not is_unicode(value):
            raise gr.Error(f"{name}: a text that is no Unicode (a lone surrogate) came", print_exception=False)


def require_event(function: Callable[..., Any], event: gr.EventData | None) -> None:
    """Raises `gradio.Error` where a listener that asks for an event's data is called without them."""
    wanted = [kind for kind in get_type_hints(function).values() if _is_event(kind)]
    if not wanted:
        return
    data = getattr(event, "_data", None)
    keys = ("index", "value") if gr.SelectData in wanted else ()
    if not isinstance(data, Mapping) or not is_unicode(data) or not all(key in data for key in keys):
        raise gr.Error("this call tells of a click, and none came with it", print_exception=False)


def _is_event(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, gr.EventData)


def is_unicode(value: Any) -> bool:
    """Whether every text in it, however deep, can be written as UTF-8."""
    if isinstance(value, str):
        return is_text(value)
    if isinstance(value, Mapping):
        return all(is_unicode(key) and is_unicode(item) for key, item in value.items())
    return all(map(is_unicode, value)) if isinstance(value, list | tuple) else True


def describe_kind(value: Any) -> str:
    """A value's kind as a reader of JSON knows it."""
    names = {type(None): "nothing", bool: "true or false", int: "a number", float: "a number", str: "text",
             list: "a list", dict: "an object"}  # fmt: skip
    if isinstance(value, float) and not is_finite_number(value):
        return "no finite number"
    return names.get(type(value), type(value).__name__)
