"""Errors of values in a file or a form, as sentences that hold the value, the bound and the cure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it may be what is missing
    from pydantic import ValidationError


def explain_validation(
    error: ValidationError, known: Iterable[str], tags: Mapping[str, Container[str]] | None = None
) -> str:
    """Puts pydantic's findings in words: key, value, bound; unknown keys with the nearest of the ``known`` ones.

    ``tags``: of keys whose value is one of several kinds, the names of the kinds, which are no part of a key.
    """
    lines = []
    for issue in error.errors(include_url=False)[:8]:  # who sends thousands needs no list of them
        first, *rest = issue["loc"] or ("preset",)
        if rest and str(rest[0]) in (tags or {}).get(str(first), ()):
            rest = rest[1:]
        key = ".".join(map(str, [first, *rest]))[:100]
        if issue["type"] == "extra_forbidden":
            near = get_close_matches(key, known, 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            lines.append(f"unknown key {format_value(key)}" + (": another kind has it" if key in near else hint))
        elif issue["type"] == "value_error":
            where = f"{key}." if issue["loc"] else ""
            lines.append(where + issue["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{key}={format_value(issue['input'])}: {issue['msg'][0].lower()}{issue['msg'][1:]}")
    return "; ".join(lines)


def format_value(value: Any) -> str:
    """A value as an error message may hold it: one line, never long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print very long integers
        return "a number too large to print"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


class PresetError(ValueError):
    """A value that cannot work: the message holds the value, the bound and the cure."""


class MissingError(PresetError):
    """The value is right, but this machine lacks what it names: a model, a package, a device."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the error's kind where the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)
