"""Pictures on request: shared, bounded in time, sharper when still, and gone with those who watched."""

import threading

import numpy as np
import pytest

from psd.config.preset import Preset
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.orbit import SHARE, SHARP, SMALL, STILL_S, WATCHED_S, Orbit, snap_camera

FRONT, SIDE = (0, 15), (90, 15)


class Renderer:
    """Takes ``cost_s`` of its own clock for each picture."""

    def __init__(self, cost_s: float = 0.1) -> None:
        self.now, self.cost_s, self.made = 0.0, cost_s, []

    def clock(self) -> float:
        return self.now

    def __call__(self, azimuth_deg: float, elevation_deg: float, size: int) -> np.ndarray:
        self.now += self.cost_s
        self.made.append((azimuth_deg, size))
        return np.zeros((size, size, 3), np.uint8)


def test_pictures_never_take_more_than_their_share_of_the_run() -> None:
    render = Renderer(cost_s=0.3)
    orbit = Orbit(render.clock)
    for step in range(1, 401):
        orbit.ask((3 * step % 360, 15))  # a hand that never rests
        orbit.ask(FRONT)
        render.now += 0.25
        orbit.answer(render, step)
    assert 0.8 * SHARE < len(render.made) * render.cost_s / render.now <= SHARE


def test_watchers_of_one_camera_share_a_picture_and_it_is_sharp_once_they_are_still() -> None:
    render = Renderer()
    orbit = Orbit(render.clock)
    assert snap_camera(361.0, 14.2) == snap_camera(-0.4, 15.6) == FRONT
    for _ in range(50):
        assert orbit.ask(FRONT) is None
    orbit.answer(render, 1)
    assert render.made == [(0.0, SMALL)]
    first = orbit.ask(FRONT)
    assert first and first.step == 1 and first.jpeg.startswith(b"\xff\xd8")
    render.now += 2.0
    orbit.ask(FRONT)
    orbit.answer(render, 1)
    assert render.made[1:] == [(0.0, SHARP)] and (sharp := orbit.ask(FRONT)) and sharp.number == 2
    render.now += 2.0
    orbit.ask(FRONT)
    orbit.answer(render, 1)
    assert len(render.made) == 2, "the same scene, the same picture"
    assert STILL_S < 2.0 < WATCHED_S


def test_nothing_is_rendered_for_nobody_and_each_camera_has_its_turn() -> None:
    render = Renderer()
    orbit = Orbit(render.clock)
    orbit.answer(render, 1)
    assert not render.made
    orbit.ask(FRONT)
    render.now += WATCHED_S
    orbit.answer(render, 2)
    assert not render.made, "who asked has gone"
    for step in range(3, 7):
        orbit.ask(FRONT)
        orbit.ask(SIDE)
        render.now += 1.0
        orbit.answer(render, step)
    assert [azimuth for azimuth, _ in render.made] == [0.0, 90.0, 0.0, 90.0]


def test_a_paused_run_can_be_turned_and_one_that_is_over_is_let_go() -> None:
    control, render = Controls(Preset()), Renderer(cost_s=0.0)
    control.show_scene(render, 4)
    control.pause()
    control.orbit.ask(SIDE)
    assert not control.wait_while_paused(0.0)
    assert (picture := control.orbit.ask(SIDE)) and picture.step == 4
    control.forget_scene()
    control.orbit.ask((180, 15))
    control.wait_while_paused(0.0)
    assert len(render.made) == 1


def test_a_picture_wakes_whoever_waits_for_it() -> None:
    orbit, render = Orbit(), Renderer()
    found = []
    waiter = threading.Thread(target=lambda: found.append(orbit.ask(FRONT, wait_s=10.0)))
    waiter.start()
    while not render.made:
        orbit.answer(render, 1)
    waiter.join(5)
    assert found and found[0].step == 1


@pytest.mark.parametrize(("asked", "camera"), [((720.0, 99.0), (0, 75)), ((-90.0, -99.0), (270, -30))])
def test_a_camera_stays_where_there_is_something_to_see(asked: tuple, camera: tuple) -> None:
    assert snap_camera(*asked) == camera
