"""Shapes and dtypes in the signatures of ``psd``, checked in every test: a function's first 200 calls, then each tenth.

jaxtyping's own import hook checks the same at four times the price: it wraps functions without a shape too, and binds
the arguments of each call twice.  What it would see and this does not are functions inside functions.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from jaxtyping import AbstractArray, jaxtyped

ALL_OF_THEM = 200  # calls of a function that are all checked
ONE_OF = 10  # of the later ones
GIVEN: set[str] = set()  # names of shapes, as Latents


def check_imports(package: Path, *, but_not: tuple[str, ...] = ()) -> None:
    """From here on, check the modules of ``package`` that name a shape as they are imported; `but_not` are beginnings.

    A shape is named by jaxtyping's own words, or by a name that a module gives to one.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    GIVEN.update(
        name for text in texts.values() for name in re.findall(r"^(\w+) = \w+\[[\w.]+, \"", text, re.MULTILINE)
    )
    shape = re.compile(rf"\b({'|'.join(['jaxtyping', *GIVEN])})\b")
    paths = [path.relative_to(package.parent).with_suffix("") for path, text in texts.items() if shape.search(text)]
    modules = {".".join(path.parts) for path in paths if path.stem != "__init__"}
    sys.meta_path.insert(0, ShapedFinder({name for name in modules if not name.startswith(but_not)}))


class ShapedLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        check_members(module, module.__name__)


class ShapedFinder(MetaPathFinder):
    def __init__(self, modules: set[str]) -> None:
        self.modules = modules

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:  # fmt: skip
        spec = PathFinder.find_spec(fullname, path, target) if fullname in self.modules else None
        if spec is None or spec.origin is None:
            return None
        return spec_from_file_location(fullname, spec.origin, loader=ShapedLoader(fullname, spec.origin))


def check_members(owner: ModuleType | type, module: str) -> None:
    """Put a checked function in the place of each that ``module`` defines, in its classes too."""
    for name, value in list(vars(owner).items()):
        if inspect.isclass(value) and value.__module__ == module:
            check_members(value, module)
        elif (checked := check_member(value, module)) is not value:
            setattr(owner, name, checked)


def check_member(value: Any, module: str) -> Any:
    match value:
        case FunctionType() if value.__module__ == module:
            return check_shapes(value)
        case staticmethod() | classmethod():
            return type(value)(check_member(value.__func__, module))
        case property():
            return property(check_member(value.fget, module), value.fset, value.fdel, value.__doc__)
        case functools.cached_property():
            value.func = check_member(value.func, module)
    return value


def check_shapes(function: Callable) -> Callable:
    """Raise TypeError when an argument or the result does not have the shape that its annotation gives."""
    if not any(might_be_shape(annotation) for annotation in function.__annotations__.values()):
        return function
    signature = inspect.signature(function)
    shapes: dict[str, Any] | None = None  # looked up at the first call: by then every name is imported
    calls = 0

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal shapes, calls
        if shapes is None:
            found = {name: _shape(function, text) for name, text in function.__annotations__.items()}
            shapes = {name: shape for name, shape in found.items() if shape is not None}
        calls += 1
        if not shapes or (calls > ALL_OF_THEM and calls % ONE_OF):
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        with jaxtyped("context"):  # a letter means one length in all of a call
            for name, value in bound.arguments.items():
                several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
                for one in value if several else (value,):
                    _check(function, name, shapes.get(name), one)
            result = function(*args, **kwargs)
            _check(function, "return", shapes.get("return"), result)
        return result

    return checked


def might_be_shape(annotation: Any) -> bool:
    """One that Python keeps as text has its inner quotes as single ones."""
    return not isinstance(annotation, str) or "'" in annotation or annotation.removesuffix(" | None") in GIVEN


def _shape(function: Callable, annotation: Any) -> Any:
    """The jaxtyping class that an annotation stands for, or None."""
    if isinstance(annotation, str):
        optional = annotation.removesuffix(" | None")
        if "'" not in optional and optional not in GIVEN:
            return None
        try:
            annotation = eval(optional, inspect.unwrap(function).__globals__)  # the code's own annotations
        except (NameError, TypeError):  # a name that is imported for the type checker alone
            return None
    return annotation if inspect.isclass(annotation) and issubclass(annotation, AbstractArray) else None


def _check(function: Callable, name: str, shape: Any, value: Any) -> None:
    if shape is not None and value is not None and not isinstance(value, shape):
        found = f"{tuple(value.shape)} {value.dtype}" if hasattr(value, "shape") else repr(value)[:80]
        raise TypeError(f"{function.__module__}.{function.__qualname__}: {name} should be {shape.__name__}, is {found}")
