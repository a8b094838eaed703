"""YAML as a preset may be written: plain values, nothing given twice, nothing that grows; how errors show a value.

It comes from strangers too (a shared preset, a command line), so every way in which it can be wrong is one `ValueError`
with a sentence in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Any

import yaml

from psd.config.errors import format_value

LARGEST_FILE = 100_000  # characters of YAML
TREACHEROUS = re.compile(r"[-+]?(0[0-9_]+(\.[0-9_]*)?|[0-9][0-9_]*(:[0-9._]+)+)")  # 010 would be 8, and 1:00 be 60


def read_yaml(text: str) -> Any:
    """One YAML value; raises `ValueError` for what is too large, too deep or no plain YAML."""
    if len(text) > LARGEST_FILE:
        raise ValueError(f"this YAML is too large for a preset: {LARGEST_FILE} characters at most")
    try:
        return yaml.load(text, StrictLoader)  # noqa: S506  (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        where = f" in line {place.line + 1}" if place else ""
        raise ValueError(f"not valid YAML: {error.problem or error.context}{where}") from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"not valid YAML: {error.reason} at character {error.position + 1}") from None
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError) as error:  # unhashable keys, endless numbers
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("this YAML is nested too deeply for a preset") from None


def is_printable(text: str) -> bool:
    """Whether a text has no control characters but newline and tab, and no lone surrogate."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in text if c not in "\n\t")


class StrictLoader(yaml.SafeLoader):
    """A key given twice, an alias (the way to a small file of a billion values), a number that YAML 1.1 reads as
    another one than a person does, and whatever JSON could not say (dates, sets, bytes) are refused.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias in line {self.peek_event().start_mark.line + 1}: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, times in Counter(str(key.value) for key, _ in node.value).most_common(1):
            if times > 1:
                raise yaml.YAMLError(f"{format_value(key)} is given twice: keep one")
        for key, value in node.value:
            require_plain_value(value, str(key.value))
        return super().construct_mapping(node, deep)

    def construct_undefined(self, node: yaml.Node) -> Any:
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        raise yaml.YAMLError(f"the kind {tag!r} in line {node.start_mark.line + 1}: write plain values")

    def construct_document(self, node: yaml.Node) -> Any:
        require_plain_value(node, "")
        return super().construct_document(node)


def require_plain_value(node: yaml.Node, key: str) -> None:
    """Raises `yaml.YAMLError` for a scalar, or one in a list, that would become something else than what it says."""
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    shown = f"{key}: {node.value}"[:80] if isinstance(node, yaml.ScalarNode) else key
    for item in node.value if kind == "seq" else ():
        require_plain_value(item, key)
    if kind in ("int", "float") and TREACHEROUS.fullmatch(node.value):
        cure = "write a number without leading zeros and colons, or a text in quotes"
        raise yaml.YAMLError(f"{shown!r} in line {node.start_mark.line + 1}: {cure}")
    if kind in ("timestamp", "binary", "set", "omap", "pairs"):
        raise yaml.YAMLError(
            f"{shown!r} in line {node.start_mark.line + 1} is a {kind}: write a text in quotes, or a list"
        )


StrictLoader.add_constructor(None, StrictLoader.construct_undefined)  # pyright: ignore[reportArgumentType]
