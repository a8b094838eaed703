"""What makes a method an endpoint: checked arguments, errors in words, and its documentation where clients read it."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import gradio as gr
from gradio.components.api_component import Api as ApiValue
from gradio.utils import get_function_description
from pydantic import ConfigDict, ValidationError, validate_call

from psd.config.errors import PresetError
from psd.runs.store.files import StoreError
from psd.ui.protection import hide_paths

if TYPE_CHECKING:
    from gradio.block_function import BlockFunction

LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # what JSON may hold and UTF-8 may not


def error_message(error: Exception, root: Path) -> str:
    """What a caller may read: no folder of this server, and parameters by their names."""
    if isinstance(error, ValidationError):
        lines = [f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors(include_url=False)[:8]]
        return "; ".join(lines)
    return hide_paths(str(error), root)


def explain_errors(endpoint: Callable[..., Any], root: Path) -> Callable[..., Any]:
    """With arguments of the declared types, and complaints as messages instead of tracebacks."""
    checked = _check_arguments(endpoint)

    @wraps(endpoint)
    def call_endpoint(*args: Any, **keywords: Any) -> Any:
        try:
            return checked(*args, **keywords)
        except (PresetError, StoreError, ValidationError) as error:
            raise gr.Error(error_message(error, root), print_exception=False) from None

    return _with_types(call_endpoint, endpoint)


def explain_stream_errors(endpoint: Callable[..., AsyncIterator[Any]], root: Path) -> Callable[..., AsyncIterator[Any]]:
    """The same for a generator."""
    checked = _check_arguments(endpoint)

    @wraps(endpoint)
    async def stream_endpoint(*args: Any, **keywords: Any) -> AsyncIterator[Any]:
        try:
            async for value in checked(*args, **keywords):
                yield value
        except (PresetError, StoreError, ValidationError) as error:
            raise gr.Error(error_message(error, root), print_exception=False) from None

    return _with_types(stream_endpoint, endpoint)


def _check_arguments(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint, which takes each argument by name, of its declared type, and no truth value as a number."""
    checked: Any = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(endpoint)
    signature, hints = inspect.signature(endpoint), get_type_hints(endpoint)

    def call_checked(*args: Any, **keywords: Any) -> Any:
        try:
            given = signature.bind(*args, **keywords).arguments
        except TypeError as error:
            raise PresetError(f"{endpoint.__name__}: {error}") from None
        for name, value in given.items():
            if isinstance(value, bool) and bool not in (hints[name], *get_args(hints[name])):
                raise PresetError(f"{name}={value} is yes or no: give a number or a text")
            if any(isinstance(text, str) and LONE_SURROGATE.search(text) for text in (value, *_list_items(value))):
                raise PresetError(f"{name} holds half of a character (a lone surrogate): send whole ones")
        return checked(**given)

    return call_checked


def _list_items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _with_types(wrapper: Callable[..., Any], endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Gradio reads types from signatures, and takes annotations that are strings for types that it does not know."""
    hints = get_type_hints(endpoint)
    result = hints["return"]
    if inspect.isasyncgenfunction(endpoint):
        (result,) = get_args(result)  # what is returned at once
    signature = inspect.signature(endpoint)
    parameters = [value.replace(annotation=hints[name]) for name, value in signature.parameters.items()]
    wrapper.__signature__ = signature.replace(  # pyright: ignore[reportFunctionMemberAccess]
        parameters=parameters, return_annotation=result
    )
    wrapper.__annotations__ = {**hints, "return": result}
    return wrapper


def document_parameters(function: BlockFunction) -> None:
    """Put what the docstring says of each parameter where `view_api()` and the page of the API read it."""
    endpoint: Any = function.fn
    _, parameters, returns = get_function_description(endpoint)
    names = [name for name in parameters if name != "request"]
    component: Any  # Gradio keeps what its page of the API says in attributes that it does not declare
    for component, name in zip(function.inputs, names, strict=True):
        component.label = name
        component._api_info = {**component._api_info, "additional_description": parameters[name]}
    for component in function.outputs:
        component.label = "result"
        component._api_info = {**component._api_info, "description": " ".join(returns)}


def require_every_value(function: BlockFunction, values: list[Any]) -> None:
    """Takes the place of `Blocks.validate_inputs`, which drops values that are too many and prints tracebacks."""
    if len(values) != len(function.inputs):
        raise gr.Error(
            f"{function.api_name} takes {len(function.inputs)} values, not {len(values)}", print_exception=False
        )
    is_endpoint = all(isinstance(component, ApiValue) for component in function.inputs)
    if is_endpoint and any(map(_has_mapping, values)):  # Gradio would fetch the address of a file
        raise gr.Error(f"{function.api_name} takes texts, numbers and lists only", print_exception=False)


def _has_mapping(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_has_mapping, value)))
