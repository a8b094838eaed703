"""Pictures on request: shared, bounded in time, sharper when still, and gone with those who watched."""

import threading
import time

import numpy as np
import pytest

from psd.config.preset import Preset
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.orbit import RESERVE, SHARE, SIZES, SMALL, STILL_S, WATCHED_S, Orbit, snap_camera

FRONT, SIDE = (0, 15), (90, 15)


class Renderer:
    """Takes ``cost_s`` of its own clock for each small picture, and for others as their pixels ask."""

    def __init__(self, cost_s: float = 0.02) -> None:
        self.now, self.cost_s, self.taken_s, self.made = 0.0, cost_s, 0.0, []

    def clock(self) -> float:
        return self.now

    def __call__(self, azimuth_deg: float, elevation_deg: float, size: int) -> np.ndarray:
        self.taken_s += self.cost_s * (size / SMALL) ** 2
        self.now += self.cost_s * (size / SMALL) ** 2
        self.made.append((azimuth_deg, size))
        return np.zeros((size, size, 3), np.uint8)


@pytest.mark.parametrize("cost_s", [0.001, 0.05, 0.6])
def test_pictures_never_take_more_than_their_share_of_the_run(cost_s: float) -> None:
    render = Renderer(cost_s)
    orbit = Orbit(render.clock)
    for step in range(1, 401):
        for _ in range(3):
            orbit.ask((3 * step % 360, 15))  # a hand that never rests
        orbit.ask(FRONT)
        render.now += 0.5
        orbit.answer(render, step)
    assert render.made and render.taken_s / render.now <= SHARE


def test_watchers_of_one_camera_share_a_picture_and_it_is_sharp_once_they_are_still() -> None:
    render = Renderer()
    orbit = Orbit(render.clock)
    assert snap_camera(361.0, 14.2) == snap_camera(-0.4, 15.6) == FRONT
    render.now += 1.0
    for _ in range(50):
        assert orbit.ask(FRONT) is None
    orbit.answer(render, 1)
    assert render.made == [(0.0, SMALL)]
    first = orbit.ask(FRONT)
    assert first and first.step == 1 and first.jpeg.startswith(b"\xff\xd8")
    for _ in range(2):
        for _ in range(2):
            render.now += 0.7 * WATCHED_S
            orbit.ask(FRONT)
        orbit.answer(render, 1)
        assert (sharp := orbit.ask(FRONT)) and sharp.number == 2, "the same scene, the same picture"
    assert [size for _, size in render.made] == [SMALL, SIZES[-1]] and STILL_S < WATCHED_S


def test_who_watches_for_long_leaves_time_for_a_hand_that_begins_to_turn() -> None:
    render = Renderer(cost_s=0.1)
    orbit = Orbit(render.clock)
    for step in range(1, 100):
        orbit.ask(FRONT)
        render.now += 0.25
        orbit.answer(render, step)
    for camera in (SIDE, (180, 15), (270, 15))[: RESERVE - 1]:
        orbit.ask(camera)
        orbit.answer(render, 100)
        assert orbit.ask(camera), "the next step's picture is from the new side"


def test_nothing_is_rendered_for_nobody_and_each_camera_has_its_turn() -> None:
    render = Renderer()
    orbit = Orbit(render.clock)
    orbit.answer(render, 1)
    assert not render.made
    orbit.ask(FRONT)
    render.now += 2 * WATCHED_S
    orbit.answer(render, 2)
    assert not render.made, "who asked has gone"
    for step in range(3, 9):
        orbit.ask(FRONT)
        orbit.ask(SIDE)
        render.now += 1.5
        orbit.answer(render, step)
    assert [azimuth for azimuth, _ in render.made] == [0.0, 90.0] * 3


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
    orbit, render = Orbit(), Renderer(cost_s=0.0)
    found = []
    orbit.ask(SIDE)
    orbit.answer(render, 1, is_paused=True)
    waiter = threading.Thread(target=lambda: found.append(orbit.ask(FRONT, wait_s=10.0)))
    waiter.start()
    while len(render.made) < 2:
        orbit.answer(render, 1, is_paused=True)
    waiter.join(5)
    assert found and found[0].step == 1


def test_a_side_that_a_hand_has_left_is_waited_for_no_longer() -> None:
    orbit, render = Orbit(), Renderer(cost_s=0.0)
    orbit.ask(SIDE)
    orbit.answer(render, 1, is_paused=True)
    left = threading.Thread(target=lambda: orbit.ask(FRONT, wait_s=30.0))
    left.start()
    while FRONT not in orbit._wishes:
        time.sleep(0.001)
    orbit.ask((180, 15))
    left.join(5)
    assert not left.is_alive()


@pytest.mark.parametrize(("asked", "camera"), [((720.0, 99.0), (0, 75)), ((-90.0, -99.0), (270, -30))])
def test_a_camera_stays_where_there_is_something_to_see(asked: tuple, camera: tuple) -> None:
    assert snap_camera(*asked) == camera
