"""What a page shows at one moment: the run it looks at, what it chose to see of it, and the panes that draw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradio.components import Component

from psd.runs.jobs.orbit import Camera, OrbitPicture
from psd.runs.store.archive import Run
from psd.ui.state.view import View

MOST = 8  # runs side by side
MAKE = "Make"  # the place where runs are started and watched
FRONT_CAMERA: Camera = (30, 15)  # three quarters

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
    is_shipped: bool = False  # it came with the program

    @property
    def is_over(self) -> bool:
        return self.state in ("idle", "finished", "stopped", "failed", "interrupted")


@dataclass(frozen=True)
class Look:
    """What the page chose to see: which place and tab, which kind of picture, the step to look back at."""

    place: str = MAKE  # or Runs, or Compare
    tab: str = "Curves"  # of those beside the stage
    show: str = "Colour"  # what the stage shows
    follow: bool = True  # the newest preview, whatever ``step``
    step: int = 0
    orbit: Camera = FRONT_CAMERA  # of the run that goes on
    viewer_camera: tuple[float | None, float | None, float | None] = (None, None, None)  # as it stands
    compared: tuple[str, ...] = ()  # run ids
    compared_step: int = 0
    only_mine: bool = False
    find: str = ""  # words that the listed runs hold
    sort: str = "Newest"


@dataclass(frozen=True)
class Page:
    """All that a browser's page shows at one moment; panes are made from it."""

    run: WatchedRun = field(default_factory=WatchedRun)
    look: Look = field(default_factory=Look)
    is_mine: bool = False  # this browser may steer the run
    orbit_picture: OrbitPicture | None = None  # of the run that goes on, from the look's camera
    compared: tuple[WatchedRun, ...] = ()
    runs: tuple[Run, ...] = ()
    mine: frozenset[str] = frozenset()  # ids of the listed runs that this browser may steer

    def may_steer(self, run: Run) -> bool:
        return run.id in self.mine


@dataclass(frozen=True)
class Pane:
    """Components, a key that changes whenever their content does, and that content.

    A pane of a tab or a place is asked for content only while that is open.
    """

    components: Sequence[Component]
    key: Callable[[Page], object]
    values: Callable[[Page], Sequence[Any]]
    tab: str = ""

    def is_shown(self, page: Page) -> bool:
        look = page.look
        return self.tab in ("", look.place) or (look.place == MAKE and self.tab == look.tab)
