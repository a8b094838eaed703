"""Pictures of a run from any side, rendered on request between parts of its steps and shared by all who watch it."""

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
MOST_S = 3.0  # of that time may be saved up
WATCHED_S = 3.0  # a camera that nobody has asked for since is forgotten
STILL_S = 0.8  # a camera that is asked for so long is still
SMALL = 128  # pixels of the first picture from a new side
SIZES = (128, 192, 256, 384)  # of those from a side that is watched: the largest of which one comes every `FRESH_S`
FRESH_S = 4.0
RESERVE = 3  # small pictures that are always left for a hand that begins to turn
FIRST_COST_S = 0.1  # of a small picture, until one was measured


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
    size: int = 0  # of the picture


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
        self._count = 0
        self._newest: Camera | None = None  # side that was asked for last and was not there
        self._saved_s, self._counted = 0.0, clock()  # time that pictures may take, and until when it was counted
        self._pixel_s = FIRST_COST_S / SMALL**2

    def ask(self, camera: Camera, wait_s: float = 0.0) -> OrbitPicture | None:
        """The newest picture from ``camera``; waits at most ``wait_s`` for the first one, and is None without.

        It is not waited for any longer when another side is asked for, which then comes first.
        """
        with self._changed:
            now = self._clock()
            wish = self._wishes.setdefault(camera, _Wish(now, now))
            wish.asked = now
            if wish.picture is None:
                self._newest = camera
                self._changed.notify_all()
            if wait_s and self._count:  # a run that shows nothing is not waited for
                self._changed.wait_for(lambda: wish.picture is not None or self._newest != camera, wait_s)
            return wish.picture

    def answer(self, render: RenderView, step: int, *, is_paused: bool = False) -> None:
        """Render what was asked for last, if something is and the run's time allows it.

        A new side gets a small picture at once; one that is watched a sharper one, again and again.  A paused run has
        all its time for this.
        """
        with self._changed:
            now = self._clock()
            self._saved_s = min(MOST_S, self._saved_s + SHARE * (now - self._counted))
            self._counted = now
            self._wishes = {camera: wish for camera, wish in self._wishes.items() if now - wish.asked < WATCHED_S}
            chosen = self._choose(now, step)
            if chosen is None:
                return
            camera, wish, size = chosen
            left = RESERVE * self._cost_s(SMALL) if wish.picture else 0.0
            if self._saved_s < self._cost_s(size) + left and not is_paused:
                return
        pixels = render(float(camera[0]), float(camera[1]), size)
        jpeg = encode_views(pixels[None], lossless=False) if pixels is not None else b""
        with self._changed:
            taken = self._clock() - now
            self._pixel_s = taken / size**2
            if not is_paused:
                self._saved_s -= taken
            if jpeg:
                self._count += 1
                wish.picture, wish.size = OrbitPicture(camera, step, self._count, jpeg), size
            self._changed.notify_all()

    def _choose(self, now: float, step: int) -> tuple[Camera, _Wish, int] | None:
        """A new side first, else the one whose picture is the oldest of those that have changed since."""
        new = [(wish.asked, camera, wish) for camera, wish in self._wishes.items() if wish.picture is None]
        if new:  # the last one is where a hand that turns has come to
            return (*max(new, key=lambda entry: entry[0])[1:], SMALL)
        size = max((size for size in SIZES if self._cost_s(size) <= SHARE * FRESH_S), default=SMALL)
        stale = [
            (wish.picture.number, camera, wish)
            for camera, wish in self._wishes.items()
            if wish.picture and now - wish.since > STILL_S and (wish.picture.step < step or wish.size < size)
        ]
        return (*min(stale, key=lambda entry: entry[0])[1:], size) if stale else None

    def _cost_s(self, size: int) -> float:
        return self._pixel_s * size**2
