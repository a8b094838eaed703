"""The checker behind jaxtyping's import hook: shapes and dtypes in the signatures of ``psd``, nothing else.

A general type checker would also refuse protocols and generators that the code uses rightly; only the tensors matter.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import AbstractArray


def find_shaped(package: Path) -> list[str]:
    """The modules that name a shape: by jaxtyping's own words, or by a name that another module gave to one."""
    texts = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    given = {name for text in texts.values() for name in re.findall(r"^(\w+) = \w+\[[\w.]+, \"", text, re.MULTILINE)}
    shape = re.compile(rf"\b({'|'.join(['jaxtyping', *given])})\b")
    named = (path for path, text in texts.items() if shape.search(text) and path.stem != "__init__")
    return [".".join(path.relative_to(package.parent).with_suffix("").parts) for path in named]


def check_shapes(function: Callable) -> Callable:
    """Raise TypeError when an argument or the result does not have the shape that its annotation gives."""
    signature = inspect.signature(function)
    shapes: dict[str, Any] | None = None  # looked up at the first call: by then every name is imported

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal shapes
        if shapes is None:
            found = {name: _shape(function, text) for name, text in function.__annotations__.items()}
            shapes = {name: shape for name, shape in found.items() if shape is not None}
        if not shapes:  # most functions, in the inner loops too
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
            for one in value if several else (value,):
                _check(function, name, shapes.get(name), one)
        result = function(*args, **kwargs)
        _check(function, "return", shapes.get("return"), result)
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
