"""The live controls of a run: values to change, pause, stop."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psd.config.errors import PresetError
from psd.config.preset import Preset, list_settings
from psd.config.settings import read_facts
from psd.distillation.interfaces import RenderView
from psd.runs.jobs.orbit import Orbit


class Controls:
    """The controls of one run (`psd.distillation.interfaces.Control`), safe to use from any thread."""

    def __init__(self, preset: Preset, start: Path | None = None) -> None:
        self._preset, self.start = preset, start  # the run whose object it starts from
        self._live: Mapping[str, Any] = {}  # replaced as a whole, never changed
        self._replayed: Mapping[str, Any] = {}
        self._to_replay: Sequence[tuple[int, Mapping[str, Any]]] = ()
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        self._going = threading.Event()
        self._going.set()
        self.pauses = 0  # how many there were
        self.orbit = Orbit()
        self._scene: tuple[RenderView, int] | None = None  # as it was shown last

    def live(self) -> Mapping[str, Any]:
        return {**self._replayed, **self._live}

    def change(self, values: Mapping[str, Any]) -> None:
        """Move live sliders; raises PresetError for a field that is not live or a value that is out of bounds."""
        with self._changing:
            self._live = self._check_values({**self._live, **values})

    def replay_changes(self, changes: Sequence[tuple[int, Mapping[str, Any]]]) -> list[str]:
        """Make earlier changes again, each (step, values) when the run reaches its step (`reach_step`).

        What the user changes in the meantime goes over them.  Returns complaints about those that cannot be made.
        """
        accepted, complaints = [], []
        for step, values in changes:
            try:
                accepted.append((step, self._check_values(values)))
            except PresetError as error:
                complaints.append(f"a live change of step {step} was skipped: {error}")
        self._to_replay = accepted
        return complaints

    def reach_step(self, step: int) -> None:
        """The run has completed ``step`` steps."""
        while self._to_replay and self._to_replay[0][0] <= step:
            (_, values), *self._to_replay = self._to_replay
            self._replayed = {**self._replayed, **values}

    def _check_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values of live fields as the preset takes them; raises PresetError."""
        for name in values:
            if name not in LIVE_FIELDS:
                raise PresetError(f"{name} cannot change during a run; these can: {', '.join(LIVE_FIELDS)}")
        checked = self._preset.with_values(values)
        return {name: getattr(checked, name) for name in values}

    def stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        """Ask for the end: the run still exports what it has."""
        self._stopping.set()
        self._going.set()

    @property
    def is_paused(self) -> bool:
        return not self._going.is_set()

    def pause(self) -> None:
        if not self.stopping():
            self.pauses += 1
            self._going.clear()

    def resume(self) -> None:
        self._going.set()

    def wait_while_paused(self, timeout_s: float) -> bool:
        """Whether the run goes on, as soon as it does; False when the time is up.  The scene can be looked at."""
        if self._scene is not None:
            self.orbit.answer(*self._scene, is_paused=True)
        return self._going.wait(timeout_s)

    def show_scene(self, render: RenderView, step: int) -> None:
        self._scene = render, step
        self.orbit.answer(render, step)

    def forget_scene(self) -> None:
        """The run is over: its tensors are not needed any more."""
        self._scene = None


LIVE_FIELDS = tuple(name for name, info in list_settings().items() if read_facts(info)["live"])
