"""What is wrong with the values of a file or a form, in sentences that hold the value, the bound and the cure."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError

from psd.plain_yaml import shown


def explain(error: ValidationError, known: Iterable[str]) -> str:
    """Pydantic's findings: key, value, bound; unknown keys with the nearest of the ``known`` ones."""
    lines = []
    for issue in error.errors(include_url=False)[:8]:  # who sends thousands needs no list of them
        key = ".".join(map(str, issue["loc"]))[:100] or "preset"
        if issue["type"] == "extra_forbidden":
            near = get_close_matches(key, known, 1)
            lines.append(f"unknown key {shown(key)}" + (f": did you mean {near[0]!r}?" if near else ""))
        elif issue["type"] == "value_error":
            lines.append(issue["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{key}={shown(issue['input'])}: {issue['msg'][0].lower()}{issue['msg'][1:]}")
    return "; ".join(lines)
