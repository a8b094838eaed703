"""The report on the recorded lines of the suites: a page and charts for each suite, and the tables of docs/evidence.md.

Everything is a function of the lines, so that a test can check that the pages and the results agree.
"""

# pandas ships no types, and what pyright infers of groups and columns is wider than what they hold.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from psd.config.errors import MissingError
from psd.evaluation.experiments.suite import (
    RESULTS,
    ROOT,
    PlannedRun,
    Suite,
    match_lines,
    read_lines,
    read_suites,
    run_cost,
)
from psd.evaluation.report.charts import draw_curves, draw_intervals
from psd.evaluation.report.criteria import check_criteria, criteria_table
from psd.evaluation.report.statistics import NO_RUNS, Line, bootstrap_mean, mean_measure, pair_differences
from psd.evaluation.report.tables import (
    describe_runs,
    differences_table,
    judge_names,
    keep_common_runs,
    label_of,
    main_rows,
    matched_table,
    measures_table,
    method_of,
    pluralise,
    reference_table,
    split_rows,
    table_groups,
)

EVIDENCE_PAGE = ROOT / "docs" / "evidence.md"
BEGIN, END = "<!-- evidence: written by `python -m psd compare --report` -->", "<!-- end of evidence -->"
STRIP_PROMPTS = 6
STRIP_METHODS = 10


# --------------------------------------------------------------------------------------------------------------- charts


def write_charts(suite: Suite, lines: Sequence[Line]) -> list[Path]:
    """Reward and judges over steps for the main methods; every method's lead in the primary measure."""
    found = {label: own for label, own in main_rows(suite, lines).items() if label in suite.methods}
    heads = ["train reward", *judge_names(suite)]
    panels = {
        head: {label: drop_first_quarter(median_curve(own["curve"], index)) for label, own in found.items()}
        for index, head in enumerate(heads, start=1)
    }
    pictures: dict[str, str] = {}
    if found:
        runs = pluralise(len(next(iter(found.values()))), "run")
        pictures["curves"] = draw_curves(panels, across=f"steps, from a quarter of the run on (medians over {runs})")
    every, leads = split_rows(suite, lines), {}
    for label, own in every.items():
        other = suite.against(method_of(label))
        lead = bootstrap_mean(pair_differences(own, every.get(other, NO_RUNS), f"{heads[1]}/score"))
        if label != other and lead is not None and lead.ends is not None:
            over = "" if other == suite.baseline else f" - {other}"
            leads[f"{label}{over} ({lead.prompts})"] = lead.value, *lead.ends
    if leads:
        title = f"{heads[1]} judge: lead over {suite.baseline} or what is named, 95 % intervals over (n) captions"
        pictures["leads"] = draw_intervals(leads, title=title)
    for name, picture in pictures.items():
        (RESULTS / f"{suite.name}-{name}.svg").write_text(picture, encoding="utf-8")
    return [RESULTS / f"{suite.name}-{name}.svg" for name in pictures]


def median_curve(curves: Iterable[Sequence[Sequence[float]]], index: int) -> list[tuple[float, float]]:
    """Medians over the runs of a value at each step: a judge's raw score has no upper end, and one caption could decide
    a mean."""
    points = pd.DataFrame([point for curve in curves for point in curve])
    medians: Any = points.groupby(0)[index].median() if len(points) else {}
    return list(medians.items())


def drop_first_quarter(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without the first quarter of the run: there all rise alike, by far more than they differ by afterwards."""
    end = max((step for step, _ in curve), default=0.0)
    return [point for point in curve if point[0] >= end / 4] if len(curve) >= 4 else list(curve)


def write_strips(suite: Suite, lines: Sequence[Line], made_file: Callable[[PlannedRun], Path]) -> Path | None:
    """A few captions down; across the truth and the first main methods that have been run on them, four sides each.

    Of the captions those whose meshes are all here, None where there is none; of the sweep the baseline and the weight
    whose reward comes nearest to the reference's.  The picture's comment holds the hashes of the lines that it shows.
    """
    from PIL import Image, ImageDraw

    from psd.distillation.preview import to_uint8
    from psd.embedded.captions.grammar import parse
    from psd.evaluation.experiments.record import RecordedRun
    from psd.evaluation.experiments.suite import expand_jobs
    from psd.evaluation.metrics.ground_truth import true_sides

    held, control = {line["hash"] for line in lines}, nearest_control(suite, lines)
    methods = [
        label
        for label in main_rows(suite, lines)
        if label in suite.methods and (label not in suite.sweep or label in (control, suite.baseline))
    ][:STRIP_METHODS]
    shown = {
        (job.method, job.preset.prompt): job
        for job in expand_jobs(suite, read_lines(RESULTS / f"{suite.name}.jsonl"))
        if job.preset.seed == 0 and job.budget == "steps" and job.method in methods and job.line_hash in held
    }
    files = {cell: made_file(job) for cell, job in shown.items()}
    cells = {cell for cell, file in files.items() if file.is_file()}
    prompts = [p for p in dict.fromkeys(prompt for _, prompt in shown) if cells.issuperset((m, p) for m in methods)]
    prompts = prompts[:: max(1, len(prompts) // STRIP_PROMPTS)][:STRIP_PROMPTS]
    if not prompts:
        return None
    shown = {(m, p): job for (m, p), job in shown.items() if p in prompts}
    heads = [*(["truth"] if suite.truth else []), *methods]
    size, line, gap = 64, 14, 6
    canvas = Image.new("RGB", (len(heads) * (4 * size + gap), line + len(prompts) * (size + line)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, head in enumerate(heads):
        draw.text((column * (4 * size + gap) + 2, 1), head, fill="black")
        for row, prompt in enumerate(prompts):
            x, y = column * (4 * size + gap), line + row * (size + line)
            if column == 0:
                draw.text((2, y), prompt, fill=(110, 110, 110))
            if head in methods:
                pictures = RecordedRun.load(files[head, prompt]).arrays.get("pictures", ())
            else:
                pictures = to_uint8(true_sides(parse(prompt)).rgb)
            for view, picture in enumerate(pictures[::2]):
                canvas.paste(Image.fromarray(picture).resize((size, size)), (x + view * size, y + line))
    path = RESULTS / f"{suite.name}-strips.jpg"
    canvas.save(path, quality=88, comment=" ".join(job.line_hash for job in shown.values()))
    return path


def nearest_control(suite: Suite, lines: Sequence[Line]) -> str | None:
    """The weight of the sweep whose mean train reward comes nearest to the reference's, on the runs that all have."""
    rows = split_rows(suite, lines)
    shared = keep_common_runs({name: rows[name] for name in (suite.reference, *suite.sweep) if name in rows})
    reward = {name: mean_measure(runs, "reward") for name, runs in shared.items()}
    aim = reward.pop(suite.reference, None)
    gaps = {name: abs(its - aim) for name, its in reward.items() if its is not None and aim is not None}
    return min(gaps, key=gaps.__getitem__, default=None)


def drop_stale_pictures(suite: Suite, lines: Sequence[Line]) -> None:
    """Take away what shows lines that no longer hold: strips by their comment, the charts where no line is left."""
    from PIL import Image

    strips = RESULTS / f"{suite.name}-strips.jpg"
    if strips.is_file():
        with Image.open(strips) as picture:
            shown = picture.info.get("comment", b"").decode().split()
        if not shown or not {line["hash"] for line in lines}.issuperset(shown):
            strips.unlink()
    if not lines:
        for name in ("curves", "leads"):
            (RESULTS / f"{suite.name}-{name}.svg").unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------------- report

GUIDE = (
    "A judge's score is the mesh's minus the truth's own, in standard deviations of the scores that this judge gives"
    " to truths, clipped to [-1, 1] so that no caption dominates a mean (0: as good as the truth). The train reward "
    "is the same difference, raw. Cost is that of all network calls, in images through the U-Net, with the prices "
    "that the bench measured; seconds are those of the machine that made the run. Texture (fine texture), saturation,"
    " contrast, edges and inconsistency (reprojected colour error) are divided by the truth's. Above truth is the "
    "share of runs whose train reward exceeds the truth's; diverging is the share whose reward rose at the end while "
    "every judge fell. Failed counts the runs that ended without a mesh: such a run is named wrongly and has no "
    "overlap, and whatever needs an object (depth, normal, texture, Janus) leaves it out."
)
GUIDE_TO_WINNERS = (
    "Of the steps with a pair: first wins is the share in which the first candidate, or the steered one, wins; half "
    "agrees is the share in which every second view alone would choose the same winner."
)
GUIDE_WITHOUT_TRUTH = (
    "Scores are raw, of the field's last preview. Inconsistency is its reprojected colour error. Cost is that of all"
    " network calls, in images through the U-Net. Diverging is the share of runs whose reward rose at the end while "
    "every judge fell."
)
GUIDE_TO_DIFFERENCES = (
    "Differences are paired by caption and seed, with 95 % intervals over captions. A judge prefers a method in the "
    "share of captions (seeds averaged) for which it scores that method higher, by the raw score. Cost is relative "
    "to the other method's. Below 5 captions no interval is shown; an interval without width means that all captions"
    " agree, not that no doubt is left."
)


def valid_lines(suite: Suite) -> tuple[list[dict[str, Any]], int]:
    """The lines that still hold, and how many runs are missing."""
    lines = read_lines(RESULTS / f"{suite.name}.jsonl")
    try:
        found = match_lines(suite, lines)[0] if lines else []
    except MissingError:  # without the list of prompts nobody can tell which lines hold: they are taken at their word
        runs = [line for line in lines if line["kind"] == "run" and line["method"] in suite.methods]
        found = [{**line, "cost": run_cost(line, suite.costs)} for line in runs]
    return found, suite.planned_runs - len(found)


def suite_report(suite: Suite, lines: Sequence[Line], missing: int) -> str:
    """The whole of what a suite says, as Markdown; pictures are named where they are there."""
    methods = [f"- `{name}`: {method.about}" for name, method in suite.methods.items()]
    parts = [f"# {suite.name}", "", suite.about, "", *methods, "", progress_sentence(lines, missing), ""]
    if not lines:
        return "\n".join(parts)
    found = split_rows(suite, lines)
    labels = [label_of(*row) for row in suite.rows()]
    if absent := [f"`{label}`" for label in labels if label not in found]:
        parts += [f"Without any run yet: {', '.join(absent)}.", ""]
    main = main_rows(suite, lines)
    begun = [name for name, method in suite.methods.items() if method.main and name in found and name not in main]
    if begun and main:
        asked = suite.main.prompts * suite.main.seeds
        counts = [f"`{name}` ({len(found[name])} of {asked})" for name in begun]
        parts += [f"Not in the table of the main methods before all runs are there: {', '.join(counts)}.", ""]
    if suite.bars:
        parts += ["## Bars", "", *criteria_table(check_criteria(suite, lines)), ""]
    parts += ["## Measures", "", GUIDE if suite.truth else GUIDE_WITHOUT_TRUTH, ""]
    if any(line.get("pair_half_agrees") is not None for line in lines):
        parts += [GUIDE_TO_WINNERS, ""]
    tables = table_groups(suite, lines)
    for name, group in tables.items():
        parts += [f"### {name.capitalize()}", "", describe_runs(suite, group), "", *measures_table(suite, group), ""]
    parts += ["## Differences", "", GUIDE_TO_DIFFERENCES, ""]
    for name, group in tables.items():
        parts += [f"### {name.capitalize()}", "", *differences_table(suite, group), ""]
    if against_each := reference_table(suite, lines):
        parts += [f"## `{suite.reference}` against each, on all runs that the two have", "", *against_each, ""]
    if at_their_reward := matched_table(suite, lines):
        parts += ["## Against the swept control at the method's own train reward", "", *at_their_reward, ""]
    for name in ("curves.svg", "leads.svg", "strips.jpg"):
        if (RESULTS / f"{suite.name}-{name}").is_file():
            parts += [f"![{name.partition('.')[0]}]({suite.name}-{name})", ""]
    return "\n".join(parts)


def progress_sentence(lines: Sequence[Line], missing: int) -> str:
    """One sentence on how many runs of a suite are recorded, and on the time and memory that the whole suite takes.

    Hours are of one core and rounded up; memory is the highest peak of any process, in GB.
    """
    total = len(lines) + missing
    if not lines:
        return f"Not run yet with the present weights: {pluralise(total, 'run')} {'is' if total == 1 else 'are'} to do."
    seconds = sum(line["seconds"] for line in lines)
    hours = math.ceil(seconds / len(lines) * total / 3600)
    memory = max(line.get("peak_memory_bytes") or 0 for line in lines) / 1e9
    done = f"{len(lines)} of {total} runs" if missing else f"All {pluralise(total, 'run')}"
    return f"{done}; the whole suite takes about {pluralise(hours, 'hour')} of one core" + (
        f", at most {memory:.1f} GB a process." if memory else "."
    )


def evidence_section() -> str:
    """The generated part of docs/evidence.md: table, leads and criteria of the main suite, the state of the others."""
    parts = [BEGIN]
    for suite in read_suites():
        lines, missing = valid_lines(suite)
        page = f"[{suite.name}](../assets/results/{suite.name}.md)"
        if not suite.bars:
            parts += [f"- {page}: {suite.about} {progress_sentence(lines, missing)}"]
            continue
        parts += [f"**{page}**: {suite.about} {progress_sentence(lines, missing)}", ""]
        if lines:
            parts += [*criteria_table(check_criteria(suite, lines)), ""]
            if main := main_rows(suite, lines):
                parts += [GUIDE, "", describe_runs(suite, main), "", *measures_table(suite, main, brief=True), ""]
                parts += [GUIDE_TO_DIFFERENCES, "", *differences_table(suite, main), ""]
            for name in ("curves.svg", "leads.svg", "strips.jpg"):
                if (RESULTS / f"{suite.name}-{name}").is_file():
                    parts += [f"![{name.partition('.')[0]}](../assets/results/{suite.name}-{name})", ""]
    return "\n".join([*parts, END])


def write_report() -> int:
    """Write every suite's page and charts and the generated part of docs/evidence.md; print the criteria."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for suite in read_suites():
        lines, missing = valid_lines(suite)
        drop_stale_pictures(suite, lines)
        if lines:
            write_charts(suite, lines)
        (RESULTS / f"{suite.name}.md").write_text(suite_report(suite, lines, missing), encoding="utf-8")
        print(f"{suite.name}: {progress_sentence(lines, missing)}")
        if suite.bars:
            for criterion in check_criteria(suite, lines):
                print(f"  {criterion.what:76} {criterion.figure:24} {criterion.verdict}")
    text = EVIDENCE_PAGE.read_text(encoding="utf-8")
    EVIDENCE_PAGE.write_text(replace_section(text, evidence_section()), encoding="utf-8")
    return 0


def replace_section(text: str, section: str) -> str:
    """The page ``text`` with ``section`` in place of what stands from `BEGIN` to `END`, markers included.

    Raises `ValueError` where the markers are missing.
    """
    replaced, count = re.subn(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: section, text, count=1, flags=re.S)
    if not count:
        raise ValueError(f"docs/evidence.md lacks the markers {BEGIN} ... {END}: put them back")
    return replaced
