"""What a page shows at one moment: the run it looks at, what it chose to see of it, and the panes that draw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradio.components import Component

from psd.runs.store.archive import Run
from psd.ui.state.view import View

MOST = 8  # runs side by side

LISTED = 100  # runs on the Runs tab
# Of every listener that only the page uses.
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# The same for one that answers in a message above the page, which Gradio shows of listeners in its queue only.
FLOATING: dict[str, Any] = {**QUIET, "queue": True, "concurrency_limit": 4}


@dataclass(frozen=True)
class WatchedRun:
    """A run as the page sees it: its folder, the store's word for its state, and what its events said."""

    run_id: str = ""
    folder: Path = Path()
    state: str = "idle"  # a key of `psd.ui.markup.html.STATES`
    message: str = ""  # about the state
    prompt: str = ""
    method: str = ""
    seed: int | None = None
    view: View = View()
    shots: int = 4  # views side by side in a preview's file
    memory_bytes: int = 0  # of this process
    ahead: int = 0  # runs that go first
    wait_s: float | None = None  # until they are done, where that is known
    left_s: float | None = None  # of its own work

    @property
    def is_over(self) -> bool:
        return self.state in ("idle", "finished", "stopped", "failed", "interrupted")


@dataclass(frozen=True)
class Look:
    """What the page chose to see: which tab, which kinds of picture, the step to look back at."""

    tab: str = "Live"
    kinds: tuple[str, ...] = ("rgb", "normal")
    follow: bool = True  # the newest preview, whatever ``step``
    step: int = 0
    camera: tuple[float | None, float | None, float | None] = (None, None, None)  # of the mesh viewer, as it stands
    compared: tuple[str, ...] = ()  # run ids
    compared_step: int = 0
    only_mine: bool = False


@dataclass(frozen=True)
class Page:
    run: WatchedRun = field(default_factory=WatchedRun)
    look: Look = field(default_factory=Look)
    is_mine: bool = False  # this browser may steer the run
    compared: tuple[WatchedRun, ...] = ()
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Pane:
    """Components, a key that changes whenever their content does, and that content.

    A pane of a tab is asked for content only while its tab is open.
    """

    components: Sequence[Component]
    key: Callable[[Page], object]
    values: Callable[[Page], Sequence[Any]]
    tab: str = ""

    def is_shown(self, page: Page) -> bool:
        return self.tab in ("", page.look.tab)
