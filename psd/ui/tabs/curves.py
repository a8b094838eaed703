"""The Curves tab: what is optimised against what only watches, and what the pictures say that no reward saw."""

from __future__ import annotations

import html
from collections.abc import Hashable

import gradio as gr

from psd.distillation.detectors import LEAST_WINDOW, PATIENCE
from psd.ui.markup.change_words import change_rules
from psd.ui.markup.charts import line_chart
from psd.ui.markup.html import format_number, metric_label, note_html, table_html
from psd.ui.panels.stage import find_preview
from psd.ui.state.page import Look, Page, Pane, WatchedRun
from psd.ui.state.view import Curve, View
from psd.ui.tabs.scores import scores_of_views

IMAGE = {  # the statistics of the pictures that lie in [0, 1], as the page shows them
    "image/saturation": "saturation",
    "image/contrast": "contrast",
    "image/edge_density": "edge density",
    "image/colour_entropy": "colour entropy",
    "image/coverage": "coverage",
    "image/view_consistency": "view consistency",
}


def curves_tab() -> list[Pane]:
    alarm = gr.HTML(alarm_notes(View()), elem_id="alarms")
    verdict = gr.HTML(table_of_scores(View()), elem_id="verdict", elem_classes="table")
    views = gr.HTML(scores_of_views(WatchedRun(), Look()), elem_id="view-scores", elem_classes="table")
    charts = gr.HTML(curves_html(View()), elem_id="charts")
    return [
        Pane([alarm], lambda p: alarm_notes(p.run.view), lambda p: [alarm_notes(p.run.view)], "Curves"),
        Pane([verdict], lambda p: chart_key(p.run.view, "reward/", "judge/"), lambda p: [table_of_scores(p.run.view)],
             "Curves"),
        Pane([views], _preview_key, lambda p: [scores_of_views(p.run, p.look)], "Curves"),
        Pane([charts], lambda p: chart_key(p.run.view, ""), lambda p: [curves_html(p.run.view)], "Curves"),
    ]  # fmt: skip


def _preview_key(page: Page) -> object:
    seen = find_preview(page.run, page.look)
    return page.run.run_id, seen and seen.step


def curves_html(view: View) -> str:
    """Every chart of the tab, in one grid."""
    steps, rules = view.total_steps or 1, change_rules(view.changes)

    def select_curves(*names: str, **called: str) -> dict[str, Curve]:
        chosen = {name: metric_label(name) for name in names} | {
            key.replace("__", "/"): name for key, name in called.items()
        }
        return {said: view.curves[name] for name, said in chosen.items() if name in view.curves}

    def select_group(prefix: str) -> dict[str, Curve]:
        return select_curves(*(name for name in view.curves if name.startswith(prefix)))

    weighted = select_curves(weighted__reward="weighted sum") if len(view.weights) > 1 else {}
    statistics = {said: view.curves.get(name, Curve()) for name, said in IMAGE.items()}
    charts = [
        line_chart("Reward against judge", "each as a share of its own range", reward_against_judge(view), steps=steps,
                   rules=[*rules, *((alarm.step, alarm.message) for alarm in view.alarms)], bounds=(0.0, 1.0)),
        line_chart("Rewards, optimised", "raw score", {**select_group("reward/"), **weighted}, steps=steps,
                   rules=rules),
        line_chart("Judges, only watch", "raw score", select_group("judge/"), steps=steps, rules=rules),
        line_chart("Pictures", "no reward sees these numbers", statistics, steps=steps, rules=rules),
        line_chart("Preference over base", "length of the one over the other", select_curves("pair/ratio"), steps=steps,
                   rules=rules),
        line_chart("Contrast", "of the picture at which the reward's gradient is asked, over the plain prediction's",
                   select_curves("pair/contrast"), steps=steps, rules=rules),
        line_chart("Reward gap", "winner minus loser, in running means", select_curves("pair/gap", "pair/confidence"),
                   steps=steps, rules=rules),
        line_chart("Winner", "share of pairs (of a steered pair the first one is steered)",
                   select_curves(winner__first="first one", winner__half_agrees="half the views agree"), steps=steps,
                   rules=rules, bounds=(0.0, 1.0)),
        line_chart("Speed", "steps a second", select_curves(speed__steps_per_s="speed"), steps=steps, rules=rules),
        line_chart("Memory", "GB, the most held so far", memory_curve(view), steps=steps, rules=rules),
    ]  # fmt: skip
    return f'<div class="charts">{"".join(charts)}{time_of_a_step(view)}{changes_table(view)}</div>'


def reward_against_judge(view: View) -> dict[str, Curve]:
    """The weighted reward and every judge, each scaled to its own range, so that parting company shows."""
    names = ["weighted/reward", *(name for name in view.curves if name.startswith("judge/"))]
    called = {name: "reward" if name == "weighted/reward" else f"judge {metric_label(name)}" for name in names}
    return {called[name]: view.curves[name].scale_between() for name in names if name in view.curves}


def memory_curve(view: View) -> dict[str, Curve]:
    curve = view.curves.get("memory/peak_bytes")
    return {"peak": curve.scale_between(0.0, 2.0**30)} if curve else {}


def alarm_notes(view: View) -> str:
    """What the detectors said last of the selector judge, and which scene they would keep: always two notes."""
    if view.alarms:
        last, before = view.alarms[-1], len(view.alarms) - 1
        earlier = f" Earlier alarms: {before}, in the log." if before else ""
        said = note_html(f"Step {last.step}: {last.message}.{earlier}")
    else:
        said = note_html(_calm_sentence(view), "hint")
    best = view.best
    kept = (
        f"Best scene so far by the judge {metric_label(f'judge/{best.judge}')}: step {best.step}, "
        f"score {format_number(best.score)}. It is kept in every checkpoint. That score chose it, so it flatters it."
        if best else "No preview has been judged yet."
    )  # fmt: skip
    return said + note_html(kept, "hint")


def _calm_sentence(view: View) -> str:
    """What the detectors' silence means: too few previews say nothing."""
    if len(view.previews.items) <= LEAST_WINDOW + PATIENCE:
        return "No alarm yet: too few previews to tell."
    return "No alarm: the judge has not fallen while the reward rose."


def changes_table(view: View) -> str:
    """What the rules on the charts stand for, in words that need no mouse."""
    rows = [[str(step), html.escape(text)] for step, text in change_rules(view.changes)]
    rows += [[str(alarm.step), html.escape(alarm.kind)] for alarm in view.alarms]
    body = table_html(("step", "what the rule stands for"), rows, "No value was changed while it ran.")
    return f'<figure class="chart table"><figcaption>Rules on the charts</figcaption>{body}</figure>'


def table_of_scores(view: View) -> str:
    """First, best and latest value of every reward and judge."""
    rows = []
    for name, curve in view.curves.items():
        if not name.startswith(("reward/", "judge/")):
            continue
        points = list(curve.points())
        best = max(points, key=lambda point: point[1])
        role = "optimised" if name.startswith("reward/") else "only watches"
        rows.append([html.escape(metric_label(name)), role, format_number(points[0][1]), format_number(points[-1][1]),
                     f"{format_number(best[1])} <small>step {best[0]}</small>"])  # fmt: skip
    return table_html(("score", "role", "first", "now", "best"), rows, "No scores yet.")


def time_of_a_step(view: View) -> str:
    """Where the last step's time went."""
    parts = {name: curve.last[1] for name, curve in view.curves.items() if name.startswith("time/") and curve.last}
    whole = parts.pop("time/step", None)
    rows = []
    for name, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        share = seconds / whole if whole else 0.0
        rows.append([html.escape(metric_label(name)), f'<i style="width:{share:.0%}"></i><span>{seconds:.3f} s</span>',
                     f"{share:.0%}"])  # fmt: skip
    body = table_html(("part", "time", "share"), rows, "no values yet").replace("<td><i", '<td class="bar"><i')
    said = f"{whole:.2f} s" if whole else ""
    return f'<figure class="chart table"><figcaption>Last step <small>{said}</small></figcaption>{body}</figure>'


def chart_key(view: View, *prefixes: str) -> Hashable:
    """Changes with every point of the named curves, and with every rule."""
    last = tuple((name, curve.last) for name, curve in view.curves.items() if name.startswith(prefixes))
    return view.total_steps, len(view.changes), last
