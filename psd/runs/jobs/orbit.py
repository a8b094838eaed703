"""Pictures of a run from any side, rendered on request between its steps and shared by all who watch it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from psd.distillation.interfaces import RenderView
from psd.runs.store.media import encode_views

Camera = tuple[int, int]  # azimuth and elevation in degrees, on the grid of `snap_camera`
GRID_DEG = 3  # watchers whose cameras are nearer than that share a picture
LOWEST_DEG, HIGHEST_DEG = -30, 75
SHARE = 0.1  # of the run's time goes at most into these pictures
WATCHED_S = 3.0  # a camera that nobody has asked for since is forgotten
STILL_S = 0.8  # a camera that is asked for so long is still, and its picture sharp
SMALL, SHARP = 128, 256  # pixels


@dataclass(frozen=True)
class OrbitPicture:
    """A JPEG of the scene from ``camera`` after ``step`` steps; ``number`` counts the pictures of the run."""

    camera: Camera
    step: int
    number: int
    jpeg: bytes = field(repr=False)


@dataclass
class _Wish:
    since: float
    asked: float
    picture: OrbitPicture | None = None
    is_sharp: bool = False


def snap_camera(azimuth_deg: float, elevation_deg: float) -> Camera:
    """The nearest camera of the grid, in [0, 360) and [-30, 75]."""
    elevation = min(max(elevation_deg, LOWEST_DEG), HIGHEST_DEG)
    return round(azimuth_deg / GRID_DEG) * GRID_DEG % 360, round(elevation / GRID_DEG) * GRID_DEG


class Orbit:
    """What one run's watchers ask to see, and what it renders for them; safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wishes: dict[Camera, _Wish] = {}
        self._changed = threading.Condition()
        self._due = 0.0  # when the next picture may be rendered
        self._count = 0

    def ask(self, camera: Camera, wait_s: float = 0.0) -> OrbitPicture | None:
        """The newest picture from ``camera``, waiting for its first one at most ``wait_s``; None while there is none."""
        with self._changed:
            now = self._clock()
            wish = self._wishes.setdefault(camera, _Wish(now, now))
            wish.asked = now
            if wait_s:
                self._changed.wait_for(lambda: wish.picture is not None, wait_s)
            return wish.picture

    def answer(self, render: RenderView, step: int, *, is_paused: bool = False) -> None:
        """Render what was waited for longest, if something is and the run's time allows it.

        A paused run has all its time for this, and shows nothing new: each camera gets one sharp picture.
        """
        with self._changed:
            now = self._clock()
            self._wishes = {camera: wish for camera, wish in self._wishes.items() if now - wish.asked < WATCHED_S}
            if now < self._due and not is_paused:
                return
            stale = {
                camera: wish
                for camera, wish in self._wishes.items()
                if wish.picture is None or wish.picture.step < step or (not wish.is_sharp and now - wish.since > STILL_S)
            }
            if not stale:
                return
            camera, wish = min(stale.items(), key=lambda item: item[1].picture.number if item[1].picture else -1)
            is_sharp = now - wish.since > STILL_S
        begun = self._clock()
        pixels = render(float(camera[0]), float(camera[1]), SHARP if is_sharp else SMALL)
        jpeg = encode_views(pixels[None], lossless=False) if pixels is not None else b""
        taken = self._clock() - begun
        with self._changed:
            self._due = begun + taken / SHARE
            if jpeg:
                self._count += 1
                wish.picture, wish.is_sharp = OrbitPicture(camera, step, self._count, jpeg), is_sharp
            self._changed.notify_all()
