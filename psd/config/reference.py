"""The table of all parameters, for `docs/parameters.md` and `python -m psd presets table`."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from psd.config.glossary import explain_options
from psd.config.preset import list_settings
from psd.config.settings import Range, Stage, read_facts


def parameter_table() -> str:
    """All parameters as Markdown tables, one for each group: what docs/parameters.md shows."""
    lines: list[str] = []
    options: list[str] = []  # of the group's parameters, below its table
    group = ""
    for name, field in list_settings().items():
        extra = read_facts(field)
        if extra["group"] != group:
            group = extra["group"]
            lines += ["", *options] if options else []
            options = []
            lines += ["", f"**{group}**", "", "| key | default | values | what it does |", "|---|---|---|---|"]
        symbol = f" *{extra['symbol']}*" if extra["symbol"] else ""
        live = " Live." if extra["live"] else ""
        default = yaml.safe_dump(
            field.get_default(call_default_factory=True),
            default_flow_style=True,
            allow_unicode=True,
        )
        default = default.removesuffix("...\n").strip()
        lines.append(f"| `{name}`{symbol} | `{default}` | {_describe_values(field)} | {field.description}{live} |")
        meanings = explain_options(name).items()
        options += [
            f"- `{name}: {option}`, {meaning.name}: {meaning.sentence}"
            + (f" Its networks do {meaning.cost_words}." if meaning.cost else "")
            for option, meaning in meanings
        ]
    return "\n".join([*lines, "", *options]).strip() + "\n"


def _describe_values(field: FieldInfo) -> str:
    """The values that a field accepts, in words: choices, or the interval with its unit."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    if field.annotation is bool:
        return "`true`, `false`"
    bounds = {
        sign: getattr(rule, sign) for rule in field.metadata for sign in ("ge", "gt", "le", "lt") if hasattr(rule, sign)
    }
    unit = read_facts(field)["unit"]
    if not bounds:
        kinds = {str: "text", list[str]: "names", dict[str, float]: "names with weights", Range: "a pair"}
        kinds[list[Stage]] = "a list of mappings"
        return f"{kinds[field.annotation]} {unit}".rstrip()
    low = f"above {bounds['gt']}" if "gt" in bounds else f"{bounds['ge']}"
    high = f"below {bounds['lt']}" if "lt" in bounds else f"{bounds['le']}"
    return f"{low} to {high} {unit}".rstrip()
