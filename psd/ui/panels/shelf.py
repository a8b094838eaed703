"""The shelf: finished runs that ship, on the stage while no run is watched; a click opens one as it is.

A tile shows one of a strip of views.  A pointer that moves over it turns the object; under the keyboard's focus, and on
a screen for fingers, it turns by itself (`assets/app.css`).  Nothing moves where the person asked for less motion.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from psd.config.errors import PresetError
from psd.runs.store.archive import Run, read_preset
from psd.runs.store.files import StoreError
from psd.runs.store.films import STRIP, STRIP_VIEWS
from psd.ui.markup.html import file_url, file_version
from psd.ui.state.page import FLOATING, MAKE, Page, Pane

if TYPE_CHECKING:
    from psd.ui.context import PageContext

HEAD = "Made with this program. Open one to turn it and to see its curves and its recipe, or describe your own."
# The address names the run that is opened, so that it can be sent; the way back leads to the shelf again.
TURN_TILES = f"""
const still = matchMedia('(prefers-reduced-motion: reduce)')
const show = (tile, view) => tile.style.setProperty('--view', view)
element.addEventListener('pointermove', event => {{
  const tile = event.target.closest('.tile')
  if (!tile || still.matches || event.pointerType === 'touch') return
  const box = tile.getBoundingClientRect(), share = (event.clientX - box.left) / box.width
  show(tile, Math.min({STRIP_VIEWS - 1}, Math.max(0, Math.floor(share * {STRIP_VIEWS}))))
}})
element.addEventListener('pointerout', event => {{
  const tile = event.target.closest('.tile')
  if (tile && !tile.contains(event.relatedTarget)) show(tile, 0)
}})
element.addEventListener('click', event => {{
  const tile = event.target.closest('.tile')
  if (!tile) return
  history.pushState(null, '', '?run=' + encodeURIComponent(tile.dataset.run))
  trigger('click', {{run: tile.dataset.run}})
}})
window.addEventListener('popstate', () => location.reload())
"""


class ShelfPanel:
    """The component, in the current Blocks context; ``runs`` are those that ship."""

    def __init__(self, runs: Sequence[Run]) -> None:
        tiles = shelf_html(runs)
        self.shelf = gr.HTML("", elem_id="shelf", js_on_load=TURN_TILES)
        self.panes = [Pane([self.shelf], is_shown, lambda page: [tiles if is_shown(page) else ""], MAKE)]

    def wire_events(self, desk: PageContext) -> None:
        def open_run(event: gr.EventData) -> list[Any]:
            """Watch the run, with its values in the controls."""
            try:
                folder = desk.worker.library.find_folder(str(event._data.get("run")))
                return [folder.name, *desk.show(read_preset(folder))]
            except (PresetError, StoreError) as error:
                gr.Warning(html.escape(str(error)), title="Not opened")
                return [gr.skip(), *desk.skipped()]

        self.shelf.click(open_run, None, [desk.run_id, *desk.shown], **FLOATING).then(**desk.news)


def is_shown(page: Page) -> bool:
    """Whether the stage is free."""
    return not page.run.run_id


def shelf_html(runs: Sequence[Run]) -> str:
    """A tile for each run that has a strip of views; nothing where there is none."""
    tiles = "".join(map(tile_html, runs))
    return f'<p class="head">{HEAD}</p><div class="tiles">{tiles}</div>' if tiles else ""


def tile_html(run: Run) -> str:
    """A button with the object's views and its caption; the first view is what stands still."""
    version = file_version(run.folder / STRIP)
    if not version:
        return ""
    caption = html.escape(run.status.prompt)
    return (
        f'<button type="button" class="tile" data-run="{html.escape(run.id)}" aria-label="Open {caption}">'
        f'<span class="spin"><img src="{file_url(run.id, STRIP, version)}" alt="" draggable="false" decoding="async" '
        f'style="--views:{STRIP_VIEWS}"></span><span class="caption">{caption}</span></button>'
    )
