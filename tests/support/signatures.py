"""The checker behind jaxtyping's import hook: shapes and dtypes in the signatures of ``psd``, nothing else.

A general type checker would also refuse protocols and generators that the code uses rightly; only the tensors matter.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from jaxtyping import AbstractArray


def check_shapes(function: Callable) -> Callable:
    """Raise TypeError when an argument or the result does not have the shape that its annotation gives."""
    signature = inspect.signature(function)
    annotations: dict[str, Any] | None = None  # looked up at the first call: by then every name is imported

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal annotations
        if annotations is None:
            annotations = {name: _shape(function, text) for name, text in function.__annotations__.items()}
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
            for one in value if several else (value,):
                _check(function, name, annotations.get(name), one)
        result = function(*args, **kwargs)
        _check(function, "return", annotations.get("return"), result)
        return result

    return checked


def _shape(function: Callable, annotation: Any) -> Any:
    """The jaxtyping class that an annotation stands for, or None."""
    if isinstance(annotation, str):
        optional = annotation.removesuffix(" | None")
        if "[" not in optional and not optional.isidentifier():
            return None
        try:
            annotation = eval(optional, function.__globals__)  # the code's own annotations
        except (NameError, TypeError):  # a name that is imported for the type checker alone
            return None
    return annotation if inspect.isclass(annotation) and issubclass(annotation, AbstractArray) else None


def _check(function: Callable, name: str, shape: Any, value: Any) -> None:
    if shape is not None and value is not None and not isinstance(value, shape):
        found = f"{tuple(value.shape)} {value.dtype}" if hasattr(value, "shape") else repr(value)[:80]
        raise TypeError(f"{function.__module__}.{function.__qualname__}: {name} should be {shape.__name__}, is {found}")
