"""A preset's parameters as text: ``key=value`` of the command line, and the tables of docs/parameters.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_origin

from psd.config.errors import PresetError, format_value
from psd.config.preset import list_settings, parse_value


def parse_assignments(pairs: Iterable[str]) -> dict[str, Any]:
    """``key=value`` strings of the command line: texts as they stand, other values as YAML (``rewards={name: 2}``)."""
    values, known = {}, list_settings()
    for pair in pairs:
        key, separator, value = pair.partition("=")
        key = key.strip()
        if not separator or not key:
            raise PresetError(f"{format_value(pair)} is not key=value (a prompt goes before --set)")
        field = known.get(key)
        if field is not None and (field.annotation is str or get_origin(field.annotation) is Literal):
            values[key] = value  # so that prompt=no means the word, and prompt=a: b is no mapping
        else:
            try:
                values[key] = parse_value(value)
            except PresetError as error:
                raise PresetError(f"{key}: {error}") from None
    return values
