"""The runner of a suite: its missing jobs in any number of one-thread processes, one JSON line each.

A run that another suite has a line of is not repeated.  What a run made stays under ``work/compare`` by its hash, so
that a new judge needs no new run.  A job that fails is reported and skipped; the next call tries it again.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from psd.evaluation.experiments.suite import (
    RESULTS,
    ROOT,
    SELECTOR,
    PlannedRun,
    Suite,
    list_caption_lists,
    list_probes,
    match_lines,
    read_caption_list,
    read_lines,
)
from psd.runs.store.files import append_line, cut_partial_line, explain_os_errors
from psd.runtime.process_pool import map_unordered

if TYPE_CHECKING:
    from psd.evaluation.experiments.record import RecordedRun

WORK = ROOT / "work" / "compare"
RUN_S = 70.0  # a run of the preset tiny on one core, where none is recorded


def run_suite(
    suite: Suite, path: Path, processes: int, chosen: Collection[str] | None = None, limit: int | None = None
) -> int:
    """Run the probes and then the runs that have no line in ``path``; return how many of them failed.

    ``chosen`` methods only, at most ``limit`` runs.
    """
    if lost := cut_partial_line(path):
        print(f"{path.name} ended in the middle of a line: {lost} bytes taken off", file=sys.stderr)
    failed = run_jobs(missing_probes(suite, path), path, processes)
    missing = match_lines(suite, read_lines(path))[1]
    missing = reuse_lines([job for job in missing if chosen is None or job.method in chosen], path)[:limit]
    failed += run_jobs(missing, path, processes)
    valid, _ = match_lines(suite, read_lines(path))
    print(f"{suite.name}: {len(valid)} of {suite.planned_runs} runs are in {path.relative_to(ROOT)}")
    return failed


def reuse_lines(todo: Sequence[PlannedRun], path: Path) -> list[PlannedRun]:
    """Append the lines that other suites have of these jobs to ``path``; return the jobs that are left.

    A job's hash holds all that decides its line, so the line of one suite holds in every other.  Only lines are in the
    repository: what such a run made need not be here, and strips then leave its caption out.
    """
    recorded = read_recorded_runs()
    for job in todo:
        if job.line_hash in recorded:
            append_line(path, dump_line({**recorded[job.line_hash], **job.key}))
    return [job for job in todo if job.line_hash not in recorded]


def read_recorded_runs() -> dict[str, dict[str, Any]]:
    """Every run that any suite has a line of, by the job's hash."""
    lines = [line for file in sorted(RESULTS.glob("*.jsonl")) for line in read_lines(file)]
    return {line["hash"]: line for line in lines if line["kind"] == "run"}


def lines_file(suite: Suite) -> Path:
    return RESULTS / f"{suite.name}.jsonl"


def made_file(job: PlannedRun) -> Path:
    """Where a run's `RecordedRun` is kept."""
    return WORK / f"{job.outcome_hash}.npz"


def missing_probes(suite: Suite, path: Path) -> list[PlannedRun]:
    recorded = {line["hash"] for line in read_lines(path)}
    return [job for job in list_probes(suite) if job.line_hash not in recorded]


def estimate_remaining(todo: Sequence[tuple[Suite, Path]]) -> str:
    """Say what there is to do in each suite, and about how many hours all of it takes.

    A run takes what runs of its method took, or the mean of all recorded runs.  A run that several suites share counts
    once; one that is made already does not count.
    """
    runs = [line for _, path in todo for line in read_lines(path) if line["kind"] == "run"]
    seconds_of: dict[str, list[float]] = {}
    for line in runs:
        seconds_of.setdefault(line["method"], []).append(line["seconds"])
    usual_s = fmean(line["seconds"] for line in runs) if runs else RUN_S
    recorded = read_recorded_runs()
    sentences, total_s, counted = [], 0.0, set()
    for suite, path in todo:
        valid, missing = match_lines(suite, read_lines(path))
        left, first = suite.planned_runs - len(valid), len(missing_probes(suite, path))
        sentences.append(f"{suite.name}: {first} probes and {left} of {suite.planned_runs} runs are to do")
        total_s += (left - len(missing)) * usual_s  # runs that wait for a probe
        for job in missing:
            if job.outcome_hash not in counted and job.line_hash not in recorded and not made_file(job).is_file():
                total_s += fmean(seconds_of.get(job.method, [job.of * usual_s]))
            counted.add(job.outcome_hash)
    total = f"In all about {total_s / 3600:.1f} hours of one core, without what is made already."
    return "\n".join([*sentences, total])


def require_weights(suite: Suite) -> None:
    """Raises `MissingError` for weights that are not here: before hours of runs, not after them."""
    from psd.models.hub import local_path

    presets = [suite.values(name) for name in suite.methods]
    chosen = {SELECTOR} if any(method.of > 1 for method in suite.methods.values()) else set()
    sources = {*suite.judges, *(name for p in presets for name in (*p.priors, *p.reward_names))}
    for source in chosen | sources:
        local_path(source)


def run_jobs(todo: Sequence[PlannedRun], path: Path, processes: int) -> int:
    """Run the jobs and append their lines to ``path`` as they come, so that an interruption loses no finished run.

    Returns how many failed: each is reported on stderr, and the others go on.
    """
    begun, failed, commit = time.monotonic(), 0, source_commit()
    for done, (job, line, error) in enumerate(map_unordered(attempt_job, todo, processes), start=1):
        about = f"{done}/{len(todo)}  {job.method:16} {job.preset.prompt:44} seed {job.preset.seed}"
        if line is None:
            failed += 1
            print(f"{about}  FAILED\n{error}", file=sys.stderr, flush=True)
            continue
        append_line(path, dump_line({**line, "commit": commit}))
        left_min = (time.monotonic() - begun) / done * (len(todo) - done) / 60
        overlap = f"iou {line['iou']:.3f}  " if "iou" in line else ""
        print(f"{about}  {overlap}{line['seconds']:.0f} s  {left_min:.0f} min left", flush=True)
    return failed


def dump_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False, ensure_ascii=False)


def source_commit() -> str | None:
    """The present commit, with a + where program, presets or assets differ from it; None without git."""
    command = ["git", "-C", str(ROOT)]
    sources = ["psd", "presets", "assets", ":(exclude)assets/results"]
    try:
        head = subprocess.run([*command, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*command, "status", "--porcelain", "--", *sources], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout else "")


def attempt_job(job: PlannedRun) -> tuple[PlannedRun, dict[str, Any] | None, str]:
    """The job with its line, or with None and the traceback of what went wrong."""
    try:
        return job, run_job(job), ""
    except Exception:  # noqa: BLE001 - the boundary: reported with its traceback, and the other jobs go on
        return job, None, traceback.format_exc()


def run_job(job: PlannedRun) -> dict[str, Any]:
    """Run one job in a process of one thread, unless what it made is here already; return its line."""
    from psd.embedded.captions import grammar
    from psd.embedded.captions.lists import draw_distractors
    from psd.evaluation.experiments.measure import measure_with_truth, measure_without_truth
    from psd.runtime import lanes

    lanes.limit_cores(1)
    made = load_made(job)
    if job.kind == "probe":
        if made.facts.get("steps") != job.preset.steps:  # without a mesh it still tells what a step costs
            raise RuntimeError(f"the probe of {job.method} did not end: {made.facts.get('failed')}")
        return {**job.key, **{name: made.facts[name] for name in ("steps", "calls", "seconds")}}
    if not job.truth:
        return {**job.key, **round_values(measure_without_truth(made, job.preset, job.judges))}
    caption = grammar.parse(job.preset.prompt)
    listed = [others for name in list_caption_lists() if (others := read_caption_list(name).get(caption.text))]
    others = [grammar.parse(text) for text in (listed[0] if listed else draw_distractors(caption))]
    return {**job.key, **round_values(measure_with_truth(made, job.preset, others, job.judges))}


def load_made(job: PlannedRun) -> RecordedRun:
    """What the job made, from its file, or by running it now: of several runs the one that is kept."""
    from psd.evaluation.experiments.measure import choose_run
    from psd.evaluation.experiments.record import RecordedRun, record_run

    file = made_file(job)
    if file.is_file():
        return RecordedRun.load(file)
    if job.of == 1:
        made = record_run(job.preset)
    else:
        made = choose_run([load_made(part) for part in job.parts], job.preset.prompt)
    with explain_os_errors(file):
        made.save(file)
    return made


def round_values(values: dict[str, Any]) -> dict[str, Any]:
    """Floats rounded to six digits, more than any measure has; raises ValueError for one that is not finite."""
    if wrong := [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise ValueError(f"{', '.join(wrong)} came out as no finite number")
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}
