"""Gradio's components as the page needs them: values that the preset checks in words, files by the page's own address.

``is_template`` lets Gradio draw a subclass as its parent.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

class FreeSlider(gr.Slider):
    """A slider whose value the reader checks, naming the key: Gradio's own complaint names none."""

    is_template = True

    def preprocess(self, payload: float) -> float:
        return payload
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

class FreeNumber(gr.Number):
    """A number field whose value the reader checks; an emptied one gives None."""

    is_template = True

    def preprocess(self, payload: float | None) -> float | int | None:
        return payload
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

class FreeDropdown(gr.Dropdown):
    """A dropdown whose value the reader checks: a page that outlives its server may hold a choice of before."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        return payload
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

class RunViewer(gr.Model3D):
    """A viewer of meshes that holds an address instead of a file, so that a new version has a new address.

    It takes the address relative to the page, and gives nothing to listeners but its other properties.
    """

    is_template = True
    data_model = None  # pyright: ignore[reportAssignmentType] - nothing to validate, copy or look up

    def preprocess(self, payload: Any) -> None:
        return None

    def postprocess(self, value: str | None) -> Any:
        if not value:
            return None
        path = value.partition("?")[0]
        return {"path": path, "url": value, "orig_name": PurePosixPath(path).name}

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component
