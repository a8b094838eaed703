"""YAML as a preset may be written: plain values, nothing given twice, nothing that grows; how errors show a value.

It comes from strangers too (a shared preset, a command line), so every way in which it can be wrong is one `ValueError`
with a sentence in it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

from psd.config.errors import format_value

LARGEST_FILE = 100_000  # characters of YAML


def read_yaml(text: str) -> Any:
    """One YAML value; raises `ValueError` for what is too large, too deep or no plain YAML."""
    if len(text) > LARGEST_FILE:
        raise ValueError(f"this YAML is too large for a preset: {LARGEST_FILE} characters at most")
    try:
        return yaml.load(text, StrictLoader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError) as error:  # no such date, unhashable keys
        raise ValueError(f"not valid YAML: {error}") from None
    except RecursionError:
        raise ValueError("this YAML is nested too deeply for a preset") from None


class StrictLoader(yaml.SafeLoader):
    """A key given twice and an alias (the way to a small file of a billion values) are refused."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias in line {self.peek_event().start_mark.line + 1}: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, times in Counter(str(key.value) for key, _ in node.value).most_common(1):
            if times > 1:
                raise yaml.YAMLError(f"{format_value(key)} is given twice: keep one")
        return super().construct_mapping(node, deep)
