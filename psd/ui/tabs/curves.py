"""The Curves tab: a verdict in a sentence, then what is optimised against what only watches."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Hashable, Sequence

import gradio as gr

from psd.distillation.detectors import LEAST_WINDOW, PATIENCE
from psd.runs.store.files import StoreError
from psd.ui.context import PageContext, Tab
from psd.ui.inputs.vocabulary import FindTrueScores
from psd.ui.markup.change_words import list_rules
from psd.ui.markup.chart_script import HOVER, SAVE_CSV, SAVE_PNG
from psd.ui.markup.charts import line_chart
from psd.ui.markup.html import format_number, metric_label, note_html, table_html
from psd.ui.panels.stage import StagePanel, find_preview
from psd.ui.state.page import FLOATING, Look, Page, Pane, WatchedRun
from psd.ui.state.view import Curve, View
from psd.ui.tabs.scores import scores_of_views

TRUTH_HEAD = "of the true object"  # 0 %: a grey ball scores as much
IMAGE = {  # the statistics of the pictures that lie in [0, 1], as the page shows them
    "image/saturation": "saturation",
    "image/contrast": "contrast",
    "image/edge_density": "edge density",
    "image/colour_entropy": "colour entropy",
    "image/coverage": "coverage",
    "image/view_consistency": "view consistency",
}


class CurvesTab(Tab):
    """The tab's components, in the current Blocks context."""

    def __init__(self, stage: StagePanel, true_scores: Sequence[FindTrueScores]) -> None:
        self._stage = stage
        said = gr.HTML(verdict_html(WatchedRun()), elem_id="alarms")
        with gr.Row(elem_id="save-curves"):
            self.csv = gr.Button("CSV", size="sm", scale=0, min_width=64, elem_id="csv")
            self.png = gr.Button("PNG", size="sm", scale=0, min_width=64, elem_id="png")
        self.text = gr.Textbox("", visible=False)  # the CSV that was asked for last
        self.charts = gr.HTML(curves_html(View()), elem_id="charts", js_on_load=HOVER)
        scores = gr.HTML(table_of_scores(View()), elem_id="verdict", elem_classes="table")
        views = gr.HTML(scores_of_views(WatchedRun(), Look()), elem_id="view-scores", elem_classes="table")
        self.panes = [
            Pane([said], lambda p: verdict_html(p.run), lambda p: [verdict_html(p.run)], "Curves"),
            Pane([self.charts], lambda p: chart_key(p.run.view, ""), lambda p: [curves_html(p.run.view)], "Curves"),
            Pane([scores], lambda p: chart_key(p.run.view, "reward/", "judge/"),
                 lambda p: [table_of_scores(p.run.view, p.run.prompt, true_scores)], "Curves"),
            Pane([views], _preview_key, lambda p: [scores_of_views(p.run, p.look)], "Curves"),
        ]  # fmt: skip

    def wire_events(self, desk: PageContext) -> None:
        """A click looks back to its step; the curves leave as a table or as a picture."""

        def save_csv(run: str) -> str:
            try:
                return write_csv(desk.watcher.view_run(run).view) if run else ""
            except StoreError as error:
                gr.Warning(html.escape(str(error)), title="Not saved")
                return ""

        self._stage.wire_pick(self.charts, desk)
        self.csv.click(save_csv, desk.run_id, self.text, **FLOATING).success(None, self.text, None, js=SAVE_CSV)
        self.png.click(None, None, None, js=SAVE_PNG)


def write_csv(view: View) -> str:
    """Every curve as a column, a row for each step that has a value; decimated as the charts are."""
    names = list(view.curves)
    rows: dict[int, dict[str, float]] = {}
    for name in names:
        for step, value in view.curves[name].points():
            rows.setdefault(step, {})[name] = value
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *names])
    writer.writerows([step, *(rows[step].get(name, "") for name in names)] for step in sorted(rows))
    return text.getvalue()


def _preview_key(page: Page) -> object:
    seen = find_preview(page.run, page.look)
    return page.run.run_id, seen and seen.step


def curves_html(view: View) -> str:
    """Every chart of the tab, in one grid."""
    steps, rules = view.total_steps or 1, list_rules(view)

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
        line_chart("Reward against judge", "shares of their own ranges; apart: it is gamed", reward_against_judge(view),
                   steps=steps, rules=[*rules, *((alarm.step, alarm.message) for alarm in view.alarms)],
                   bounds=(0.0, 1.0)),
        line_chart("Rewards, optimised", "raw score, more is better", {**select_group("reward/"), **weighted},
                   steps=steps, rules=rules),
        line_chart("Judges, only watch", "raw score, more is better", select_group("judge/"), steps=steps, rules=rules),
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


def verdict_html(watched: WatchedRun) -> str:
    """What the curves say, in one sentence that needs no chart; an alarm only where the run goes wrong."""
    view = watched.view
    hacking = next((alarm for alarm in reversed(view.alarms) if alarm.kind == "hacking"), None)
    best = f"Best scene by the judge: step {view.best.step}." if view.best else ""
    if hacking:
        cure = "Lower the preference weight" + (
            f", or mesh the best scene (step {view.best.step})." if view.best else "."
        )
        said = f"Since step {hacking.since} the reward rises while the judge falls: the object is getting worse. {cure}"
        return note_html(said)
    return note_html(f"{_describe_course(watched)} {best}".strip(), "hint")


def _describe_course(watched: WatchedRun) -> str:
    view = watched.view
    plateau = next((alarm for alarm in reversed(view.alarms) if alarm.kind == "plateau"), None)
    if not any(name.startswith("judge/") for name in view.curves):
        return "The curves begin with the first pictures." if not view.previews.last else "No judge watches this run."
    if plateau:
        more = "more steps will not help" if watched.is_over else "what comes now is detail"
        return f"Converged at step {plateau.since}: {more}."
    if len(view.previews.items) <= LEAST_WINDOW + PATIENCE:
        return "Too few pictures yet to judge."
    if watched.is_over:
        return "The judge agrees with the reward, and was still rising: more steps may help."
    return "The judge agrees with the reward: both rise."


def changes_table(view: View) -> str:
    """What the rules on the charts stand for, in words that need no mouse."""
    rows = [[str(step), html.escape(text)] for step, text in list_rules(view)]
    rows += [[str(alarm.step), html.escape(alarm.kind)] for alarm in view.alarms]
    body = table_html(("step", "what the rule stands for"), rows, "No value was changed while it ran.")
    return f'<figure class="chart table"><figcaption>Rules on the charts</figcaption>{body}</figure>'


def table_of_scores(view: View, prompt: str = "", true_scores: Sequence[FindTrueScores] = ()) -> str:
    """First, best and latest value of every reward and judge, the latest also as a share of the way from a grey ball to
    the true object where there is one of the prompt.
    """
    rows, shares = [], []
    for name, curve in view.curves.items():
        if not name.startswith(("reward/", "judge/")):
            continue
        points = list(curve.points())
        best = max(points, key=lambda point: point[1])
        role = "optimised" if name.startswith("reward/") else "only watches"
        shares.append(_share_of_truth(points[-1][1], prompt, name.partition("/")[2], true_scores))
        rows.append([html.escape(metric_label(name)), role, format_number(points[0][1]), format_number(points[-1][1]),
                     f"{format_number(best[1])} <small>step {best[0]}</small>"])  # fmt: skip
    heads = ["score", "role", "first", "now", "best"]
    if any(shares):
        heads.insert(4, TRUTH_HEAD)
        for row, share in zip(rows, shares, strict=True):
            row.insert(4, share)
    return table_html(heads, rows, "No scores yet.")


def _share_of_truth(score: float, prompt: str, scorer: str, true_scores: Sequence[FindTrueScores]) -> str:
    """How far from a grey ball (0 %) to the true object (100 %) the score is; empty where that is not known."""
    for find in true_scores:
        if (found := find(prompt, scorer)) and found[1] > found[0]:
            ball, truth = found
            return f"{(score - ball) / (truth - ball):.0%}"
    return ""


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
    return view.total_steps, len(view.changes), len(view.stages), last
