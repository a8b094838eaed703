"""What the parts of the page share: the worker behind it, the run it looks at, the values of its controls."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from psd.config.errors import PresetError, format_value
from psd.config.preset import Preset
from psd.config.settings import merge
from psd.runs.jobs.worker import Worker
from psd.runs.store.archive import ACTIVE
from psd.runs.store.files import StoreError
from psd.ui.inputs import controls
from psd.ui.inputs.controls import FieldControl
from psd.ui.inputs.origin import name_preset
from psd.ui.inputs.vocabulary import Vocabulary, reword_preset
from psd.ui.state.page import MAKE, MOST, Look, Page, Pane, WatchedRun
from psd.ui.state.watch import Watcher

ORBIT_WAIT_S = 2.0  # for a picture from a new side; one that comes later waits for the next tick


@dataclass
class PageContext:
    """Services and shared components; listeners of every part are written against it."""

    worker: Worker
    watcher: Watcher
    vocabularies: Mapping[str, Vocabulary]
    parts: Sequence[FieldControl]
    prompt: gr.Textbox
    choice: gr.Dropdown  # the preset's name
    reset: gr.HTML  # what the sliders' reset buttons go back to
    run_id: gr.State  # of the run that is watched
    base: gr.State  # the preset whose values the controls show, as a dictionary: a preset, or the run attached to
    last: gr.BrowserState  # the run that this browser started last
    owner: gr.BrowserState  # the secret of this browser, by which its runs are its own
    news: Mapping[str, Any]  # the listener that brings the page up to date: fn, inputs, outputs

    @property
    def given(self) -> list[Component]:
        """The components whose values `read_controls` takes."""
        return [self.base, self.prompt, *(component for part in self.parts for component in part.components)]

    @property
    def shown(self) -> list[Component]:
        """The components that `show` updates."""
        return [*self.given, self.choice, self.reset]

    def read_values(self, base: Mapping[str, Any], prompt: str, *given: Any) -> dict[str, Any]:
        """What the controls say as values of the preset's fields, before any check."""
        before = Preset.make(base)
        return merge(base, {"prompt": prompt.strip(), **controls.read_all(self.parts, given, before)})

    def read_controls(self, *given: Any) -> Preset:
        """The preset that the controls say; raises PresetError, also for words that the prior does not know."""
        return reword_preset(Preset.make(self.read_values(*given)), self.vocabularies)

    @staticmethod
    def require_secret(owner: str) -> str:
        """The secret of the browser, which its page gets when it has loaded, and nowhere else: with two givers the
        later answer would lock a page out of its own run.  Raises PresetError before that.
        """
        if not owner:
            raise PresetError("the page is still loading: try once more in a moment")
        return owner

    def show(self, preset: Preset, *, prompt: bool = True, name: str = "", start: Preset | None = None) -> list[Any]:
        """Updates that let the controls say ``preset``.

        ``name`` is what the person calls it, by default the shipped preset that it is or comes from; ``start`` is what
        the reset buttons go back to, by default ``preset``.
        """
        parts = [update for part in self.parts for update in part.write(preset)]
        return [
            preset.model_dump(), preset.prompt if prompt else gr.skip(), *parts, name or name_preset(preset),
            reset_html(start or preset),
        ]  # fmt: skip

    def skipped(self) -> list[Any]:
        return [gr.skip()] * len(self.shown)


@dataclass
class Tab:
    """A tab beside the stage; one that is only looked at needs no more than its panes."""

    panes: Sequence[Pane]

    def wire_events(self, desk: PageContext) -> None:
        """Connect its components with the page, when all of it is made."""


def reset_html(preset: Preset) -> str:
    """Where the page's script finds what the reset buttons go back to."""
    return f'<i data-values="{html.escape(controls.reset_values(preset))}"></i>'


def require_whole(name: str, value: float | None, low: int, high: int) -> int:
    """A number from a field beside the preset's; raises PresetError with the name, the value and the bounds."""
    if value is None or not low <= value <= high or value != int(value):  # nan and infinity end at the bounds
        raise PresetError(f"{name}={format_value(value)} must be a whole number in [{low}, {high:,}]")
    return int(value)


@dataclass(frozen=True)
class LookInputs:
    """The components that say what the page looks at, in the order that `read_look` takes their values."""

    viewer: gr.Model3D
    place: gr.State
    tab: gr.State
    show: gr.Radio
    follow: gr.Checkbox
    step: gr.State
    orbit: gr.State
    compared: gr.Dropdown
    compared_step: gr.State
    only_mine: gr.Checkbox
    find: gr.Textbox
    sort: gr.Radio

    @property
    def inputs(self) -> list[Component]:
        return [self.viewer, self.place, self.tab, self.show, self.follow, self.step, self.orbit, self.compared,
                self.compared_step, self.only_mine, self.find, self.sort]  # fmt: skip


def read_look(
    viewer: object, place: str, tab: str, show: str, follow: bool, step: float, orbit: Sequence[int],
    compared: list[str], compared_step: float, only_mine: bool, find: str, sort: str,
) -> Look:  # fmt: skip
    """A `Look` from the values of the components of `inputs`, in their order."""
    longitude, latitude, radius = getattr(viewer, "camera_position", Look.viewer_camera)  # absent until it is turned
    return Look(
        place, tab, show, follow, int(step or 0), (orbit[0], orbit[1]), (longitude, latitude, radius),
        tuple(compared or ())[:MOST], int(compared_step or 0), only_mine, find, sort,
    )  # fmt: skip


def read_page(worker: Worker, watcher: Watcher, run: str, owner: str, seen: Look) -> Page:
    """The run that is watched, and on the Compare tab those beside it."""
    try:
        watched = watcher.view_run(run) if run else WatchedRun()
    except StoreError as error:  # its folder was deleted, say
        watched = WatchedRun(state="interrupted", message=str(error))
    compared = watcher.view_runs(seen.compared if seen.place == "Compare" else ())
    runs = watcher.runs(owner if seen.only_mine else "") if seen.place == "Runs" else ()
    is_looking = bool(run) and not watched.is_over and seen.place == MAKE and seen.follow
    picture = worker.look_at(run, seen.orbit, ORBIT_WAIT_S) if is_looking else None
    is_mine = bool(run) and worker.library.is_steerable_by(run, owner)
    mine = frozenset(run.id for run in runs if worker.library.is_steerable_by(run.id, owner))
    return Page(watched, seen, is_mine, picture, compared, runs, mine)


def collect_updates(panes: Sequence[Pane], now: Page, old: Sequence[Any]) -> list[Any]:
    """The new keys, then what has changed for each component; everything else is skipped."""
    keys, updates = [], []
    for pane, before in zip(panes, old or [None] * len(panes), strict=True):
        key = pane.key(now) if pane.is_shown(now) else before
        keys.append(key)
        updates += [gr.skip()] * len(pane.components) if key == before else pane.values(now)
    return [keys, *updates]


def find_live_preset(desk: PageContext, run: str) -> Preset | None:
    """The preset of the watched run while it can be steered; what is moved before its first step holds from there."""
    job = next((job for job in desk.worker.list_jobs() if job.id == run and job.status.state in ACTIVE), None)
    return job.preset.with_values(job.live) if job else None
