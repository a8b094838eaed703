"""The page without a browser: the fold, the curves, the controls made from the preset."""

import copy
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import gradio as gr
import numpy as np
import pytest

from psd.__main__ import make_parser, resolve_preset
from psd.config.errors import PresetError
from psd.config.preset import Preset, list_presets, list_settings, parse_mapping
from psd.distillation import events
from psd.geometry.export import FORMATS
from psd.runs.jobs.orbit import OrbitPicture
from psd.runs.jobs.worker import Worker
from psd.runs.store.archive import Run, Status
from psd.runs.store.files import StoreError
from psd.ui.context import require_whole
from psd.ui.inputs import controls
from psd.ui.inputs.origin import name_preset
from psd.ui.markup import html
from psd.ui.markup.change_words import list_moves, list_rules
from psd.ui.markup.charts import heat_map, line_chart, line_style, round_ticks
from psd.ui.panels import share, stage, status
from psd.ui.state.page import LISTED, MOST, Look, Page, WatchedRun
from psd.ui.state.view import BUCKETS, MOMENTS, Curve, ThinnedEvents, View, fold_event
from psd.ui.state.watch import Watcher
from psd.ui.tabs import compare, curves, mesh, ranking
from psd.ui.tabs import scores as scores_tab
from psd.ui.tabs.curves import curves_html
from psd.ui.tabs.negative import negative_charts, tokens_table
from psd.ui.tabs.runs import card_html, find_runs, runs_html, start_from
from tests.support.fake_run import fake_run, views

STORY: list[events.Event] = [
    events.Started(step=0, preset={"prompt": "a taxi"}, total_steps=4, views=4, environment={}, notes=("cpu",)),
    events.Previewed(
        step=0, images={"rgb": views(0)}, rewards={"reward/r": [1.0, 3.0]}, file="public/previews/000000.jpg"
    ),
    events.Stepped(step=1, t=900, metrics={"loss/tv": 0.1, "pair/gap": 0.2}, time_s=2.0),
    events.Stepped(step=2, t=800, metrics={"reward/r": 4.0, "judge/j": 5.0}, time_s=4.0),
    events.NegativeUpdated(
        step=2, tokens=("low",), drift=(0.5,), nearest=("red",), metrics={"negative/drift": 0.5}, time_s=4.0
    ),
    events.Previewed(
        step=2, images={"rgb": views(2)}, rewards={"reward/r": [4.0, 4.0]}, file="public/previews/000002.jpg"
    ),
    events.LiveChanged(step=2, values={"guidance_scale": 6.0}),
    events.Warned(step=2, message="a warning"),
    events.Meshed(step=2, mesh=None, statistics={"faces": 1234}, file="public/exports/mesh.glb"),
    events.Finished(step=2, reason="stopped", scores={"judge/j": 5.0}, time_s=5.0),
]


def fold_story(happened: list[events.Event]) -> View:
    view = View()
    for event in happened:
        view = fold_event(view, event)
    return view


def test_fold_changes_neither_view_nor_event() -> None:
    view = View()
    for event in STORY:
        before = copy.deepcopy((view, event.step, getattr(event, "metrics", None), getattr(event, "rewards", None)))
        after = fold_event(view, event)
        assert before == (view, event.step, getattr(event, "metrics", None), getattr(event, "rewards", None))
        assert after == fold_event(view, event), "the same arguments gave another view"
        view = after


def test_the_view_tells_the_story() -> None:
    view = fold_story(STORY)
    assert (view.step, view.total_steps, view.reason, view.time_s) == (2, 4, "stopped", 5.0)
    assert view.steps_per_s == pytest.approx(0.5) and view.remaining_s == pytest.approx(4.0)
    assert view.mesh and view.mesh.statistics["faces"] == 1234 and view.warning == "a warning"
    assert list(view.curves["reward/r"].points()) == [(0, 2.0), (2, 4.0)]  # a mean of views, and once a step
    assert list(view.curves["judge/j"].points()) == [(2, 5.0)]
    assert list(view.curves) == ["reward/r", "pair/gap", "judge/j", "negative/drift"], "only what is drawn is kept"
    assert [change.values for change in view.changes] == [{"guidance_scale": 6.0}] and view.live["guidance_scale"] == 6
    text = "\n".join(view.log)
    assert all(part in text for part in ("cpu", "guidance_scale = 6.0", "a warning", "1,234 faces", "stopped"))


def test_what_is_yes_or_no_in_a_step_is_drawn_as_a_share_of_the_last_ones() -> None:
    """A mean that forgets: 1, then 1 + (0 - 1) / 20, then 19 / 20 of that; the metrics themselves are not kept."""
    names = {"pair/win_first": "winner/first", "pair/half_agrees": "winner/half_agrees"}
    for metric, name in names.items():
        values = [1.0, 0.0, 0.0]
        view = fold_story(
            [*STORY[:1], *(events.Stepped(step=at, t=9, metrics={metric: v}) for at, v in enumerate(values, 1))]
        )
        assert [value for _, value in view.curves[name].points()] == pytest.approx([1.0, 0.95, 0.9025])
        assert metric not in view.curves
        said = {"winner/first": "first one <b>", "winner/half_agrees": "half the views agree"}
        assert [text in curves_html(view) for text in said.values()] == [key == name for key in said]


def test_a_failure_keeps_what_was_reached_and_says_the_cure() -> None:
    view = fold_story([*STORY[:4], events.Failed(step=2, message="render is not finite", cure="lower guidance_scale")])
    assert view.reason == "failed" and view.step == 2 and "reward/r" in view.curves
    failed = WatchedRun("run", state="failed", view=view)
    shown = stage.said_html(Page(failed)) + status.status_line(failed)
    assert "render is not finite" in shown and "lower guidance_scale" in shown and "Failed" in shown


def test_a_failure_tells_what_was_tried_before_it() -> None:
    warned = events.Warned(step=2, message="Out of memory: going on with views = 1.")
    view = fold_story([*STORY[:3], warned, events.Failed(step=3, message="Out of memory.", cure="Use fewer views.")])
    shown = status.trouble_html(WatchedRun("run", state="failed", view=view))
    assert "Out of memory. Use fewer views." in shown and "going on with views = 1" in shown


def test_the_buttons_that_show_are_those_that_can_be_pressed() -> None:
    def shown(page: Page) -> list[bool]:
        return [update.visible for update in status._button_updates(page)]

    over, running = WatchedRun("run", state="finished", view=View(step=4, total_steps=9)), WatchedRun("run")
    running = replace(running, state="running")
    assert shown(Page()) == [False] * 5
    assert shown(Page(running, is_mine=True)) == [True, True, False, False, True]
    assert shown(Page(over, is_mine=True)) == [False, False, True, False, True]
    assert shown(Page(over)) == shown(Page(running)) == [False] * 4 + [True]
    assert status.FOREIGN in stage.said_html(Page(over)) and not stage.said_html(Page(running, is_mine=True))


def test_a_view_from_json_lines_is_the_live_view() -> None:
    """What was shown live is shown again after a restart: arrays are no part of a view."""
    assert fold_story([events.from_json(events.to_json(event)) for event in STORY]) == fold_story(STORY)


def test_a_view_holds_no_array() -> None:
    view = fold_story(STORY)
    assert view.previews.last and view.mesh
    assert not view.previews.last.images and view.mesh.mesh is None


@pytest.mark.parametrize("length", [1, 2, BUCKETS, BUCKETS + 1, 2 * BUCKETS + 1, 3000])
def test_a_curve_stays_small_and_keeps_its_extremes(length: int) -> None:
    values = np.random.default_rng(length).standard_normal(length).tolist()
    curve = Curve()
    for step, value in enumerate(values):
        curve = curve.add_newest(step, value)
    points = list(curve.points())
    assert len(points) <= 2 * BUCKETS and points == sorted(points)
    assert max(value for _, value in points) == max(values) and min(value for _, value in points) == min(values)
    assert all(values[step] == value for step, value in points), "a point that nobody measured"
    assert sum(bucket.count for bucket in curve.buckets) == len(values)
    if len(values) <= BUCKETS:
        assert points == list(enumerate(values))


# ---- controls


@pytest.fixture(scope="module")
def parts() -> list[controls.FieldControl]:
    with gr.Blocks(analytics_enabled=False):
        return [controls.make_control(name, Preset()) for name in list_settings() if name not in controls.ELSEWHERE]


def test_every_field_has_a_control_with_label_and_help(parts: list[controls.FieldControl]) -> None:
    assert {part.name for part in parts} | set(controls.ELSEWHERE) == set(list_settings())
    for part in parts:
        info = list_settings()[part.name]
        extra = info.json_schema_extra
        assert isinstance(extra, dict)
        for component in part.components:
            if not component.visible:
                continue
            label, text = str(component.label), str(component.info)
            assert label and info.description and info.description in text, part.name
            assert str(extra["symbol"]) in label and str(extra["unit"]) in label
        assert part.live == bool(extra["live"])


def test_what_the_controls_show_is_the_preset(parts: list[controls.FieldControl]) -> None:
    preset = Preset()
    shown = [component.value for part in parts for component in part.components]
    values = controls.read_all(parts, shown, preset)
    assert Preset.make({"prompt": preset.prompt, **values}) == preset


def test_another_preset_reaches_every_control(parts: list[controls.FieldControl]) -> None:
    """Sliders whose range ends below the new value move their end as well."""
    other = Preset().with_values(
        {"steps": 9000, "method": "sds", "guidance_scale": 100.0, "elevation_deg": (5.0, 6.0), "negative": False,
         "rewards": {"a/one": 3.0, "b/two": 0.5}, "negative_lr": 0.5, "negative_prompt": "ugly", "scene.grid_size": 500}
    )  # fmt: skip
    given: list = []
    for part in parts:
        updates = part.write(other)
        assert len(updates) == len(part.components)
        for component, update in zip(part.components, updates, strict=True):
            if update == gr.update(visible=False):  # of another kind of scene
                given.append(component.value)
                continue
            value = update.value if isinstance(update, gr.components.Component) else update
            if isinstance(component, gr.Slider):
                ends = update if isinstance(update, gr.Slider) else component
                assert ends.minimum <= value <= ends.maximum, part.name
            given.append(value)
    base = Preset(rewards={"a/one": 1.0, "b/two": 1.0})
    assert base.with_values(controls.read_all(parts, given, base)) == other


@pytest.mark.parametrize(
    "values",
    [{"scene.kind": "hash", "scene.ray_samples": 200}, {"scene.kind": "surface", "scene.shape_lr": 0.3},
     {"scene.kind": "gaussians", "scene.gaussians": 700}],
)  # fmt: skip
def test_another_kind_of_scene_hides_what_it_lacks_and_is_read_without_it(
    values: dict[str, Any], parts: list[controls.FieldControl]
) -> None:
    other = Preset().with_values(values)
    updates = {part.name: part.write(other) for part in parts}
    assert updates["scene.grid_size"] == [gr.update(visible=False)]
    given = [
        component.value if isinstance(update, dict) else getattr(update, "value", update)
        for part in parts
        for component, update in zip(part.components, updates[part.name], strict=True)
    ]
    assert Preset().with_values(controls.read_all(parts, given, Preset())) == other
    (size,) = next(part for part in parts if part.name == "scene.grid_size").write(Preset())
    assert size.visible and size.value == Preset().scene.grid_size  # pyright: ignore[reportAttributeAccessIssue]


def test_sliders_stay_within_the_declared_bounds(parts: list[controls.FieldControl]) -> None:
    for part in parts:
        low, high = controls.read_bounds(list_settings()[part.name])
        for component in part.components:
            if isinstance(component, gr.Slider) and part.name != "rewards":
                assert low is not None and high is not None
                assert low <= component.minimum < component.maximum <= high, part.name


# ---- what is shown


HOSTILE = '<img src=x onerror="alert(1)">${1+1}{{this}}'


def bar(watched: WatchedRun) -> str:
    return status.status_line(watched) + stage.said_html(Page(watched)) + stage.take_html(watched)


def picture(watched: WatchedRun) -> str:
    page = Page(watched)
    drawn = stage.picture_html(page) + stage.timeline_html(page) + stage.film_html(page)
    return drawn + scores_tab.scores_of_views(watched, Look())


def scores(watched: WatchedRun) -> str:
    return compare.scores_table([watched]) + compare.compared_views_html(Page(compared=(watched,)))


@pytest.mark.parametrize("show", [bar, picture, mesh.download_links, scores])
def test_what_people_typed_is_never_markup(show: Callable[[WatchedRun], str], tmp_path: Path) -> None:
    exports = tmp_path / html.EXPORTS
    exports.mkdir(parents=True)
    for name in mesh.DOWNLOADS:
        (exports / name).touch()
    view = fold_story([*STORY[:-1], events.Failed(step=2, message=HOSTILE, cure=HOSTILE)])
    shown = show(WatchedRun("id", tmp_path, state="failed", prompt=HOSTILE, view=view))
    assert "<img src=x" not in shown and 'onerror="' not in shown


def test_a_textured_obj_is_handed_out_with_its_texture(tmp_path: Path) -> None:
    exports = tmp_path / html.EXPORTS
    exports.mkdir(parents=True)
    for name in ("mesh.glb", "mesh.obj", "mesh.obj.zip"):
        (exports / name).touch()
    shown = mesh.download_links(WatchedRun("id", tmp_path, prompt="a cube", view=fold_story(STORY)))
    assert 'download="a-cube.glb"' in shown and 'download="a-cube.zip" aria-label="Download OBJ as' in shown
    assert "mesh.obj.zip?v=" in shown and "mesh.obj?v=" not in shown
    assert all(f"<b>{suffix.upper()}</b> {known.frame}" in shown for suffix, known in FORMATS.items())


def test_tokens_and_notes_are_escaped() -> None:
    view = fold_event(View(), events.NegativeUpdated(step=1, tokens=("<s>",), drift=(0.1,), nearest=("<b>",)))
    assert "<s>" not in tokens_table(view) and "&lt;s&gt;" in tokens_table(view)
    assert "<s>" not in negative_charts(view)
    assert "<img" not in html.note_html(HOSTILE)


@pytest.mark.parametrize(("azimuth", "place"), [(30, 0), (60, 1), (180, 2), (330, 0)])
def test_the_stage_shows_the_kept_view_that_is_nearest_to_the_camera(azimuth: int, place: int) -> None:
    watched = WatchedRun("id", Path("runs/id"), "running", view=fold_story(STORY[:2]), shots=4)
    shown = stage.picture_html(Page(watched, Look(orbit=(azimuth, 15))))
    assert f"width:400%;transform:translateX({-25 * place}%)" in shown
    assert shown.count("gradio_api/file=runs/id/previews/000000.jpg?v=0") == 1


def test_the_stage_shows_what_was_rendered_from_the_camera_while_the_newest_is_followed() -> None:
    watched = WatchedRun("id", Path("runs/id"), "running", view=fold_story(STORY[:2]), shots=4)
    orbit = OrbitPicture((60, 15), 7, 1, b"jpeg")
    shown = stage.picture_html(Page(watched, Look(orbit=(60, 15)), orbit_picture=orbit))
    assert "data:image/jpeg;base64,anBlZw==" in shown and "step 7" in shown
    for look in (Look(follow=False), Look(show="Normals")):
        assert "base64" not in stage.picture_html(Page(watched, look, orbit_picture=orbit))


def test_the_time_line_fills_up_and_marks_what_was_moved() -> None:
    watched = WatchedRun("id", Path("x"), view=fold_story(STORY[:7]))
    shown = stage.timeline_html(Page(watched))
    assert shown.count('class="shot thumb empty"') == 3 and shown.count("<img") == 5
    assert shown.count('aria-current="step"') == 1 and 'style="left:50.0%"' in shown
    assert "step 2: guidance_scale = 6" in shown
    back = stage.timeline_html(Page(watched, Look(follow=False, step=1)))
    assert back.index('aria-current="step"') < shown.index('aria-current="step"')


@pytest.mark.parametrize("scores", [[4.45101, 4.45102, 4.45103, 4.45104], [1.0, 1.0, 2.0, 3.0], [2.0] * 4])
def test_no_view_is_the_lowest_whose_score_reads_like_another_s(scores: list[float]) -> None:
    view = fold_event(
        fold_story(STORY[:2]), events.Previewed(step=2, images={}, rewards={"reward/r": scores}, file="a.jpg")
    )
    watched = WatchedRun("id", Path("x"), view=view)
    assert "class=low" not in scores_tab.scores_of_views(watched, Look())
    other = fold_event(view, events.Previewed(step=3, images={}, rewards={"reward/r": [3.0, 1.0, 2.0]}, file="b.jpg"))
    assert "<b class=low>1 ▾</b>" in scores_tab.scores_of_views(WatchedRun("id", Path("x"), view=other), Look())


def test_series_differ_in_colour_and_in_dash() -> None:
    view = fold_event(View(), events.Stepped(step=1, t=1, metrics={f"reward/{i}": 1.0 for i in range(6)}))
    shown = line_chart("t", "u", view.curves, steps=4)
    colours = re.findall(r'<polyline [^>]*stroke="(#\w+)" stroke-dasharray="([^"]*)"', shown)
    assert len({colour for colour, _ in colours}) == len({dash for _, dash in colours}) == 6


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (0.0012, 0.0013), (5, 5), (0, 0), (-1e6, 2e6)])
def test_round_ticks_enclose_the_values(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    slack = 1e-9 * max(abs(low), abs(high))
    assert ticks[0] - slack <= low <= high <= ticks[-1] + slack and 2 <= len(ticks) <= 8
    strides = np.diff(ticks)
    assert np.allclose(strides, strides[0]) and strides[0] > 0


def test_a_chart_places_its_points() -> None:
    curve = Curve().add_newest(0, 0.0).add_newest(10, 1.0)
    shown = line_chart("t", "u", {"a": curve}, steps=10, rules=[(5, "s = 6")], bounds=(0, 1))
    assert '<polyline points="52.0,202.0 470.0,10.0"' in shown and "step 5: s = 6" in shown
    assert 'x1="261.0" x2="261.0"' in shown, "the rule stands at its step"


def test_a_long_run_draws_at_most_600_points_a_series() -> None:
    view = View(total_steps=3000)
    for step in range(1, 3001):
        metrics = {"pair/ratio": step % 7 / 7, "judge/j": float(step), "reward/r": -float(step)}
        view = fold_event(view, events.Stepped(step=step, t=1, metrics=metrics))
    series = re.findall(r'<polyline points="([^"]*)"', curves_html(view))
    assert max(len(points.split()) for points in series) <= 600 and len(series) > 4


def test_moments_are_thinned_evenly_and_keep_the_newest() -> None:
    moments: ThinnedEvents[events.Previewed] = ThinnedEvents()
    for step in range(1, 1001):
        moments = moments.add_newest(events.Previewed(step=step, images={}))
        assert moments.last and moments.last.step == step and len(moments.items) <= MOMENTS + 1
    strides = {b.step - a.step for a, b in zip(moments.items[:-2], moments.items[1:-1], strict=True)}
    assert strides == {moments.stride} and moments.items[0].step == 1
    found = moments.at(500)
    assert found and 500 - moments.stride < found.step <= 500
    assert moments.until(500).last == found


def test_a_resumed_run_forgets_what_came_after_its_checkpoint() -> None:
    again = events.Started(step=1, preset={}, total_steps=9, views=4, environment={})
    view = fold_event(fold_story(STORY), again)
    assert (view.step, view.total_steps, view.reason) == (1, 9, "")
    assert list(view.curves["reward/r"].points()) == [(0, 2.0)] and not view.changes
    assert view.previews.last and view.previews.last.step == 0


def test_the_weighted_reward_follows_live_weights() -> None:
    start = events.Started(step=0, preset={"rewards": {"a": 1.0, "b": 2.0}}, total_steps=4, views=4, environment={})
    view = fold_event(
        fold_event(View(), start), events.Stepped(step=1, t=1, metrics={"reward/a": 3.0, "reward/b": 5.0})
    )
    view = fold_event(view, events.LiveChanged(step=1, values={"rewards": {"a": 0.0, "b": 1.0}}))
    view = fold_event(view, events.Stepped(step=2, t=1, metrics={"reward/a": 3.0, "reward/b": 5.0}))
    assert list(view.curves["weighted/reward"].points()) == [(1, 13.0), (2, 5.0)]


def test_the_weighted_reward_follows_the_stages() -> None:
    preset = {"rewards": {"a": 1.0}, "stages": [{"share": 0.5}, {"share": 0.5, "rewards": {"b": 2.0}}]}
    view = fold_event(View(), events.Started(step=0, preset=preset, total_steps=4, views=4, environment={}))
    assert view.weights == {"a": 1.0}
    view = fold_event(view, events.LiveChanged(step=1, values={"rewards": {"a": 3.0}}))
    assert view.weights == {"a": 3.0}
    view = fold_event(view, events.Stepped(step=3, t=1, stage=1, metrics={"reward/b": 5.0}))
    assert view.weights == {"b": 2.0} and list(view.curves["weighted/reward"].points()) == [(3, 10.0)]


def test_a_stage_is_named_in_the_status_on_the_curves_and_on_the_time_line() -> None:
    preset = Preset.load("tiny-surface").model_dump(mode="json")
    start = events.Started(step=0, preset=preset, total_steps=40, views=4, environment={})
    before = fold_story([start, events.Stepped(step=30, t=1, metrics={"reward/r": 1.0})])
    after = fold_story([start, events.Stepped(step=30, t=1, metrics={"reward/r": 1.0}), STORY[6],
                  events.Stepped(step=31, t=1, metrics={"reward/r": 2.0}, stage=1)])  # fmt: skip
    said = "stage 2: triangle surface"
    assert before.stage == 0 and said not in curves_html(before)
    assert (after.stage, after.stages) == (1, ((31, 1),)) and said in curves_html(after)
    assert list_rules(after) == [(2, "guidance_scale = 6"), (31, said)], "what was moved holds in the stage"
    for view, cell in (
        (before, "stage 1 of 2</small><b>dense grid"),
        (after, "stage 2 of 2</small><b>triangle surface"),
    ):
        assert cell in status.status_line(WatchedRun("r", Path("x"), "running", view=view))
    assert said in stage.timeline_html(Page(WatchedRun("r", Path("x"), "running", view=after)))
    begun = fold_story([start, events.Stepped(step=31, t=1, metrics={}, stage=1)])
    assert list_rules(begun) == [(31, f"{said}, guidance_scale = 2.5")]
    moved = fold_event(begun, events.LiveChanged(step=33, values={"guidance_scale": 3.0}))
    assert list_moves(moved) == [(31, f"{said}, guidance_scale = 2.5"), (33, "guidance_scale = 3")]
    assert list_moves(after) == [(2, "guidance_scale = 6")]
    assert fold_event(after, replace(start, step=20)).stage == 0, "it goes on from before the boundary"
    assert "stage" not in status.status_line(WatchedRun("r", Path("x"), "running", view=fold_story(STORY)))


def test_heat_goes_from_dark_to_light() -> None:
    shown = heat_map([("low", [0.0, 1.0])], [5, 10], "RMS")
    assert shown.index("#00224e") < shown.index("#fee838") and "low, step 10: 1" in shown


def run_of(run_id: str, judge: float, consistency: float, **values: object) -> WatchedRun:
    metrics = {"judge/j": judge, "image/view_consistency": consistency}
    view = fold_event(View(total_steps=10), events.Stepped(step=5, t=1, metrics=metrics))
    return WatchedRun(run_id, Path("x"), "stopped", method="psd", seed=1, view=view)


def test_ranking_weighs_judge_and_consistency_alike() -> None:
    runs = [run_of("a", 1.0, 0.5), run_of("b", 3.0, 0.9), run_of("c", 2.0, 0.1), WatchedRun("d", state="stopped")]
    ranked = ranking.rank_runs(runs)
    assert [watched.run_id for watched, _ in ranked] == ["b", "c", "a", "d"]
    assert [place for _, place in ranked] == [1.0, 2.5, 2.5, 5.0]
    assert ranking.best_to_continue([*runs, WatchedRun("e", state="stopped", prompt="another")]) is None
    best = ranking.best_to_continue(runs)
    assert best and best.run_id == "b"
    assert ranking.best_to_continue([*runs, WatchedRun("e", state="running")]) is None


def test_the_verdict_of_a_comparison_names_the_gain_and_what_it_cost() -> None:
    runs = [run_of("a", 1.0, 0.5), replace(run_of("b", 3.5, 0.9), method="sds")]
    runs = [replace(run, view=replace(run.view, time_s=time)) for run, time in zip(runs, (10.0, 14.0), strict=True)]
    assert ranking.verdict_sentence(runs) == "sds leads psd by 2.5 of the judge's score, in 1.4 times the time."
    going = [runs[0], replace(runs[1], state="running")]
    assert ranking.verdict_sentence(going) == "sds leads psd by 2.5 of the judge's score so far."
    assert "tie by the judge" in ranking.verdict_sentence([runs[0], replace(runs[0], run_id="c", seed=2)])
    assert "no scale in common" in ranking.verdict_sentence([runs[0], replace(runs[1], prompt="another")])
    assert ranking.verdict_sentence(runs[:1]) == ""


def test_compared_runs_differ_in_what_is_compared_only() -> None:
    wanted = Preset(prompt="a taxi", seed=2**31 - 1)
    psd, sds, preset = compare.preset_variants(wanted, ["psd", "sds"], ["tiny"])
    assert list(share.preset_differences(psd, sds)) == ["method", "negative"] and not sds.negative
    assert (preset.prompt, preset.seed) == (psd.prompt, psd.seed)
    assert [made.seed for made in compare.seed_variants(wanted, 3)] == [2**31 - 1, 0, 1]


def test_pictures_of_compared_runs_are_of_one_step() -> None:
    view = fold_story(STORY[:6])
    page = Page(
        look=Look(compared_step=1), compared=(WatchedRun("a", Path("x"), view=view), WatchedRun("b", Path("y")))
    )
    assert compare.compared_views_html(page).count("000000.jpg?v=0") == 4


# ---- curves


def test_the_verdict_is_one_sentence_and_an_alarm_only_where_the_run_goes_wrong() -> None:
    judged = events.Stepped(step=2, t=1, metrics={"reward/r": 4.0, "judge/j": 5.0})
    plateau = events.Alarmed(step=4, kind="plateau", since=3, message="flat")
    hacking = events.Alarmed(step=4, kind="hacking", since=2, message="gamed")

    def verdict(*happened: events.Event, state: str = "running") -> str:
        return curves.verdict_html(WatchedRun("r", state=state, view=fold_story([*STORY[:3], judged, *happened])))

    assert "Too few pictures yet" in verdict()
    assert "Converged at step 3: more steps will not help." in verdict(plateau, state="finished")
    assert "Converged at step 3: what comes now is detail." in verdict(plateau)
    many = [events.Previewed(step=step, images={}, rewards={}, file="a.jpg") for step in range(3, 20)]
    assert "both rise" in verdict(*many) and "more steps may help" in verdict(*many, state="finished")
    best = events.BestKept(step=2, judge="j", score=5.0)
    said = verdict(best, hacking)
    assert "Since step 2 the reward rises while the judge falls" in said and "mesh the best scene (step 2)" in said
    assert ["problem" in verdict(*found) for found in ([], [plateau], [best], [hacking])] == [False] * 3 + [True]


def test_the_curves_as_a_table_hold_every_value() -> None:
    rows = [line.split(",") for line in curves.write_csv(fold_story(STORY)).splitlines()]
    assert rows[0] == ["step", "reward/r", "pair/gap", "judge/j", "negative/drift"]
    assert rows[1:] == [["0", "2.0", "", "", ""], ["1", "", "0.2", "", ""], ["2", "4.0", "", "5.0", "0.5"]]


# ---- presets as text


STRANGE = Preset.load("mvdream").with_values(
    {"prompt": "a taxi; rm -rf '$HOME' \"x\"", "seed": 7, "negative_lr": 1e-05, "elevation_deg": (5.0, 6.0),
     "rewards": {"assets/reward": 0.5, "a/b": 2.0}, "negative": False, "method": "sds", "negative_prompt": "no: yes"}
)  # fmt: skip


def test_the_command_runs_the_same_preset() -> None:
    words = shlex.split(share.command_line(STRANGE, "mvdream"))
    assert words[:3] == ["python", "-m", "psd"]
    assert resolve_preset(make_parser().parse_args(words[3:])) == STRANGE


def test_the_snippet_starts_the_same_preset() -> None:
    text = share.client_snippet(STRANGE, "mvdream", "http://127.0.0.1:7860")
    called = {}

    class Client:
        def __init__(self, address: str) -> None:
            called["address"] = address

        def predict(self, **given: object) -> None:
            called.update(given)

    exec(text.replace("from gradio_client import Client", ""), {"Client": Client})
    values = {**parse_mapping(called["overrides"]), "prompt": called["prompt"], "seed": called["seed"]}
    assert Preset.load(called["preset"], values) == STRANGE and called["api_name"] == "/start_run"


def test_the_shared_file_is_the_preset() -> None:
    address = re.search(r'href="data:text/yaml;charset=utf-8,([^"]*)"', share.preset_link(STRANGE))
    assert address and Preset.make(parse_mapping(unquote(address[1]))) == STRANGE


def test_the_difference_is_what_differs() -> None:
    assert share.diff_table(Preset.load("tiny"), "tiny").count("<tr>") == 2  # the heading, and that there is nothing
    assert "negative_lr" in share.diff_table(STRANGE, "mvdream") and "scene.grid_size" not in share.diff_table(
        STRANGE, "mvdream"
    )


def test_padding_shares_a_row() -> None:
    padded = events.NegativeUpdated(step=1, tokens=("low", "_", "_"), drift=(0.1, 0.3, 0.4), nearest=("low", "a", "a"))
    shown = tokens_table(fold_event(View(), padded))
    assert shown.count("<tr><th scope=row>") == 2 and "_ × 2" in shown and "0.3536" in shown


@pytest.mark.parametrize(("seconds", "text"), [(None, "–"), (0.4, "0:00"), (61, "1:01"), (3661, "1:01:01")])
def test_durations(seconds: float | None, text: str) -> None:
    assert html.format_minutes(seconds) == text


# ---- live and stored


def test_a_stored_run_shows_what_the_live_one_showed(tmp_path: Path) -> None:
    worker = Worker(fake_run, tmp_path)
    run_id = worker.submit(Preset(steps=6, prompt="a taxi"))
    watcher = Watcher(worker)
    while not (live := watcher.view_run(run_id)).is_over:
        worker.wait(run_id, live.view.step, timeout_s=0.1)
    assert worker.shutdown()
    later = Worker(fake_run, tmp_path)
    stored = Watcher(later).view_run(run_id)
    assert later.shutdown()
    assert (stored.view, stored.state, stored.prompt, stored.shots) == (live.view, "finished", "a taxi", 4)
    assert stored.view.step == 6 and stored.view.curves


@pytest.mark.parametrize("run_id", ["..", "../secret", "", "/etc", "20260101-000000_a_s0_00000000"])
def test_an_address_names_runs_only(run_id: str, tmp_path: Path) -> None:
    worker = Worker(fake_run, tmp_path / "runs")
    (tmp_path / "secret").mkdir()
    with pytest.raises(StoreError, match="no run"):
        Watcher(worker).view_run(run_id)
    assert worker.shutdown()


def test_a_run_that_goes_on_again_forgets_the_warning_of_its_end() -> None:
    view = fold_story(STORY)
    assert view.warning == "a warning"
    assert fold_event(view, STORY[0]).warning == ""


def test_a_page_holds_the_newest_runs_and_says_so() -> None:
    many = tuple(Run(Path(f"r{i}"), Status(prompt=f"mug {i}", state="finished")) for i in range(LISTED + 3))
    shown = runs_html(Page(runs=many))
    assert f"first {LISTED} of {LISTED + 3}" in shown and shown.count('class="card"') == LISTED
    assert "first" not in runs_html(Page(runs=many[:LISTED]))
    found = runs_html(Page(look=Look(find="MUG finished 7"), runs=many[:20]))
    assert found.count('class="card"') == 2 and "mug 17<" in found
    assert "No run fits" in runs_html(Page(look=Look(find="fox"), runs=many))


def test_a_card_offers_what_its_watcher_may_do(tmp_path: Path) -> None:
    run = Run(Path("r1"), Status(prompt=HOSTILE, state="stopped", step=3, total=9, best_score=2.0))
    mine, theirs = card_html(run, True), card_html(run, False)
    acts = [re.findall(r'data-act="([a-z ]+)"', shown) for shown in (mine, theirs)]
    assert acts == [["name", "tag", "remix", "zip", "link", "pin", "go on", "delete"], ["remix", "zip", "link"]]
    assert "<img src=x" not in mine + theirs
    mesh = tmp_path / "r1" / html.EXPORTS / "mesh.glb"
    mesh.parent.mkdir(parents=True)
    mesh.write_bytes(b"glb")
    assert 'data-act="from"' in card_html(replace(run, folder=tmp_path / "r1"), False)
    best = [Run(Path(f"r{i}"), Status(prompt="a", state="finished", best_score=float(i % 3))) for i in range(3)]
    assert [run.id for run in find_runs(best, "", "Best")] == ["r2", "r1", "r0"]


def test_any_run_can_be_started_from() -> None:
    """Its preset is kept where its first scene can start from a mesh, and gets Gaussians elsewhere."""
    gaussians = start_from(Preset.load("tiny-gaussians", {"seed": 5, "scene.gaussians": 700}), "r1")
    assert (
        gaussians.model_dump()
        == Preset.load("tiny-gaussians", {"seed": 5, "scene.gaussians": 700, "scene.start": "r1"}).model_dump()
    )
    for name in ("tiny", "tiny-surface", "mvdream"):
        preset = Preset.load(name, {"seed": 5})
        found = start_from(preset, "r1")
        assert found.scene.kind == "gaussians" and found.scene.start == "r1" and not found.stages
        assert (found.prompt, found.seed, found.prior) == (preset.prompt, 5, preset.prior)


# ---- names, files and numbers


def test_values_are_named_by_the_shipped_preset_they_come_from() -> None:
    base = Preset.load("mvdream")
    assert name_preset(base) == "mvdream" == name_preset(base.with_values({"prompt": "a taxi", "seed": 7}))
    assert name_preset(base.with_values({"kappa": 2.0})) == "own (from mvdream, 1 value differs)"
    changed = base.with_values({"kappa": 2.0, "guidance_scale": 60.0, "threads": 2})
    assert name_preset(changed) == "own (from mvdream, 3 values differ)"
    assert all(name_preset(Preset.load(name)) == name for name in list_presets())


def test_a_slider_reaches_what_its_field_allows_and_zero_means_a_number_to_type(
    parts: list[controls.FieldControl],
) -> None:
    typed = {"extra_steps", "threads", "reward_views", "network_batch"}
    for part in parts:
        info = list_settings()[part.name]
        for component in part.components:
            assert not isinstance(component, gr.Slider) or part.name not in typed
            if isinstance(component, gr.Slider) and part.name != "rewards":
                assert (component.minimum, component.maximum) == controls.read_bounds(info), part.name
            if isinstance(component, gr.Number):
                assert (component.minimum, component.maximum, component.precision) == (None, None, None), part.name


def test_compared_runs_are_named_by_what_differs() -> None:
    def made(run_id: str, prompt: str = "a taxi", method: str = "psd", seed: int = 0, **values: object) -> WatchedRun:
        return WatchedRun(run_id, prompt=prompt, method=method, seed=seed, view=View(preset=values))

    def names(*runs: WatchedRun) -> list[str]:
        return list(ranking.name_runs(runs).values())

    first, second = "20261128-144018_a_s0_00000000", "20261128-150109_a_s0_00000000"
    assert names(made(first, "a duck"), made(second, "a mug", "sds")) == ["a duck", "a mug"]
    assert names(made(first), made(second, method="sds", seed=1)) == ["psd", "sds"]
    assert names(made(first), made(second, seed=1)) == ["seed 0", "seed 1"]
    assert names(made(first, kappa=1.0), made(second, kappa=2.0)) == ["kappa 1.0", "kappa 2.0"]
    assert names(made(first), made(second)) == ["14:40:18", "15:01:09"]
    three = names(made(first), made(second, method="sds"), made("c", method="sds", seed=1))
    assert three == ["psd · seed 0", "sds · seed 0", "sds · seed 1"]
    assert names(made(first)) == ["psd · seed 0"] and names(WatchedRun("r")) == ["r"] and names() == []
    presets = [Preset.load(name).model_dump() for name in ("tiny", "mvdream")]
    assert names(*(WatchedRun(f"r{i}", view=View(preset=p)) for i, p in enumerate(presets))) == ["tiny", "mvdream"]


def test_eight_compared_runs_have_eight_signs() -> None:
    assert (
        len({line_style(place) for place in range(MOST)}) == len({line_style(place)[0] for place in range(MOST)}) == 8
    )


def test_a_text_changes_what_it_names() -> None:
    assert share.read_changes("kappa: 3\nreading: S") == {"kappa": 3, "pair": "steered"}
    with pytest.raises(PresetError, match="no longer has"):
        share.read_changes("steer_both: true")


@pytest.mark.parametrize("value", [math.nan, math.inf, None, 1.5, 0, 9])
def test_a_number_beside_the_preset_s_is_refused_by_name_value_and_bounds(value: float | None) -> None:
    assert require_whole("seeds", 2.0, 1, 8) == 2
    with pytest.raises(PresetError, match=rf"seeds={value} must be a whole number in \[1, 8\]"):
        require_whole("seeds", value, 1, 8)


def test_the_threshold_s_range_is_the_runs_own_whatever_is_made_again() -> None:
    def meshed(threshold: float, faces: int) -> events.Meshed:
        facts = {"threshold": threshold, "faces": faces, "textured": faces > 500}
        return events.Meshed(step=4, mesh=None, statistics=facts, file="public/exports/mesh.glb")

    view = fold_story([*STORY[:1], meshed(8.0, 300), meshed(2.0, 1234)])
    slider, faces, texture, scene, _ = mesh._update_choices(Page(WatchedRun("r", view=view)))
    assert (slider.minimum, slider.value, slider.maximum) == (2.0, 2.0, 32.0)
    assert (faces, texture, scene) == (1300, True, "last")


@pytest.mark.parametrize(("show", "end"), [("Mesh", ""), ("Wireframe", ""), (stage.SPLAT_VIEW, ".splat")])
def test_the_viewer_gets_no_address_twice(tmp_path: Path, show: str, end: str) -> None:
    """Given one again while its code is on the way, Gradio's viewer would stay empty for good."""
    (tmp_path / stage.SPLAT_FILE).parent.mkdir(parents=True)
    (tmp_path / stage.SPLAT_FILE).touch()
    page = Page(WatchedRun("r", tmp_path, "stopped", view=fold_story(STORY)), Look(show=show))
    first, second = [stage._update_viewer(page)[0].value for _ in range(2)]
    assert first["url"] != second["url"] and first["url"].partition("#")[0] == second["url"].partition("#")[0]
    assert f"/mesh{end or '.glb'}?v=" in first["url"] and first["path"].endswith(end)
    assert stage._update_viewer(Page(WatchedRun("r", tmp_path, "running", view=fold_story(STORY))))[0].value is None
