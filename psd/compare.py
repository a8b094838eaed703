"""``python -m psd compare``: run a suite's missing jobs, one JSON line each; and the report that they make.

Any number of one-thread processes share the jobs out.  A run that another suite has a line of is not repeated, and what
a run made stays under ``work/compare`` by its hash, so that later judges need not repeat it either.  A job that fails
is told and skipped, and tried again by the next call.  Lines accumulate in ``assets/results``; those of a trial, with
changed parameters (``--set``), stay under ``work`` too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from psd.files import append_line, cut_partial_line, explaining
from psd.parameters import assignments
from psd.preset import MissingError, PresetError
from psd.suite import RESULTS, ROOT, SUITES, Job, Suite, caption_list, current, probes, read_lines
from psd.tables import counted
from psd.workers import unordered

WORK = ROOT / "work" / "compare"
TUNING = "tuning"  # the suite that defaults are chosen by: nothing that is reported rests on it
RUN_S = 70.0  # a run of the preset tiny on one core, where none is recorded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--suite", default=str(SUITES / "embedded.yaml"), help="a file of presets/suites")
    which.add_argument("--all", action="store_true", help="every suite that the report rests on and that can run here")
    parser.add_argument("--only", action="append", metavar="METHOD", help="only this method; may be repeated")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N runs")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="a trial with other parameters")
    parser.add_argument("--list", action="store_true", help="only say what there is to do")
    parser.add_argument("--report", action="store_true", help="only write tables, pictures and README's section again")


def main(arguments: argparse.Namespace) -> int:
    if arguments.report:
        from psd.evidence import write_report

        return write_report()
    if arguments.all:
        return run_all(arguments)
    suite = load(arguments)
    path = WORK / f"{suite.name}-trial.jsonl" if arguments.set else lines_file(suite)
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = set(arguments.only or suite.methods)
    if unknown := chosen - set(suite.methods):
        raise PresetError(f"no method {', '.join(sorted(unknown))} in {suite.name}: {', '.join(suite.methods)}")
    if arguments.list:
        print(outlook([(suite, path)]))
        return 0
    require(suite)
    failed = run_suite(suite, path, arguments.processes, chosen, arguments.limit)
    return ended(failed, [] if arguments.set else [suite])


def run_all(arguments: argparse.Namespace) -> int:
    """Every suite whose weights are here, the main one first, and one report at the end."""
    from psd.evidence import suites

    if arguments.only or arguments.set or arguments.limit is not None:
        raise PresetError("--all runs whole suites: leave out --only, --set and --limit")
    todo = []
    for suite in suites():
        if suite.name == TUNING:
            continue
        if not suite.truth:
            print(f"{suite.name} is left out: it needs a GPU, and --suite presets/suites/{suite.name}.yaml runs it")
            continue
        try:
            require(suite)
        except MissingError as error:
            print(f"{suite.name} is left out: {error}")
            continue
        todo.append((suite, lines_file(suite)))
    print(outlook(todo), flush=True)
    if arguments.list:
        return 0
    failed = sum(run_suite(suite, path, arguments.processes) for suite, path in todo)
    return ended(failed, [suite for suite, _ in todo])


def run_suite(
    suite: Suite, path: Path, processes: int, chosen: Collection[str] | None = None, limit: int | None = None
) -> int:
    """The probes and then the runs that have no line yet; how many of them failed."""
    if lost := cut_partial_line(path):
        print(f"{path.name} ended in the middle of a line: {lost} bytes taken off", file=sys.stderr)
    failed = work_off(missing_probes(suite, path), path, processes)
    missing = current(suite, read_lines(path))[1]
    missing = take_over([job for job in missing if chosen is None or job.method in chosen], path)[:limit]
    failed += work_off(missing, path, processes)
    found, _ = current(suite, read_lines(path))
    print(f"{suite.name}: {len(found)} of {suite.planned} runs are in {path.relative_to(ROOT)}")
    return failed


def take_over(todo: Sequence[Job], path: Path) -> list[Job]:
    """Append the lines that other suites have of these jobs; the jobs that are left.

    A job's hash holds all that decides its line, so that the line of one suite holds in every other.  Only lines are
    in the repository: what such a run made need not be here, and strips then leave its caption out.
    """
    told = recorded_runs()
    for job in todo:
        if job.hash in told:
            append_line(path, dumped({**told[job.hash], **job.key}))
    return [job for job in todo if job.hash not in told]


def recorded_runs() -> dict[str, dict[str, Any]]:
    """Every run that any suite has a line of, by the job's hash."""
    lines = [line for file in sorted(RESULTS.glob("*.jsonl")) for line in read_lines(file)]
    return {line["hash"]: line for line in lines if line["kind"] == "run"}


def ended(failed: int, reported: Sequence[Suite]) -> int:
    """Pictures of what was run and the report, and what the command answers."""
    if reported:
        from psd.evidence import recorded, write_report, write_strips

        for suite in reported:
            write_strips(suite, recorded(suite)[0], made_file)
        write_report()
    if failed:
        print(f"{counted(failed, 'job')} failed, as told above; the same command tries again", file=sys.stderr)
    return 1 if failed else 0


def lines_file(suite: Suite) -> Path:
    return RESULTS / f"{suite.name}.jsonl"


def missing_probes(suite: Suite, path: Path) -> list[Job]:
    told = {line["hash"] for line in read_lines(path)}
    return [job for job in probes(suite) if job.hash not in told]


def outlook(todo: Sequence[tuple[Suite, Path]]) -> str:
    """What there is to do in each suite, and about how long all of it takes.

    A run takes what runs of its method took, or what recorded runs took on average.  One that several suites share
    counts once, and one that is made already not at all.
    """
    recorded = [line for _, path in todo for line in read_lines(path) if line["kind"] == "run"]
    taken: dict[str, list[float]] = {}
    for line in recorded:
        taken.setdefault(line["method"], []).append(line["seconds"])
    usual = fmean(line["seconds"] for line in recorded) if recorded else RUN_S
    told = recorded_runs()
    said, seconds, seen = [], 0.0, set()
    for suite, path in todo:
        found, missing = current(suite, read_lines(path))
        left, first = suite.planned - len(found), len(missing_probes(suite, path))
        said.append(f"{suite.name}: {first} probes and {left} of {suite.planned} runs are to do")
        seconds += (left - len(missing)) * usual  # what waits for a probe
        for job in missing:
            if job.made not in seen and job.hash not in told and not made_file(job).is_file():
                seconds += fmean(taken.get(job.method, [usual]))
            seen.add(job.made)
    return "\n".join([*said, f"In all about {seconds / 3600:.1f} hours of one core, without what is made already."])


def load(arguments: argparse.Namespace) -> Suite:
    suite = Suite.load(Path(arguments.suite))
    return Suite.model_validate({**suite.model_dump(), "set": {**suite.set, **assignments(arguments.set)}})


def require(suite: Suite) -> None:
    """Raises `MissingError` for weights that are not here: before hours of runs, not after them."""
    from psd.hub import local

    presets = [suite.values(name) for name in suite.methods]
    for source in {*suite.judges, *(p.prior for p in presets), *(name for p in presets for name in p.rewards)}:
        local(source)


def work_off(todo: Sequence[Job], path: Path, processes: int) -> int:
    """Run the jobs and append their lines as they come: what is done stays done, whatever stops this.

    How many jobs failed: each is told on stderr, and the others go on.
    """
    begun, failed, at = time.monotonic(), 0, commit()
    for done, (job, line, error) in enumerate(unordered(attempt, todo, processes), start=1):
        about = f"{done}/{len(todo)}  {job.method:16} {job.preset.prompt:44} seed {job.preset.seed}"
        if line is None:
            failed += 1
            print(f"{about}  FAILED\n{error}", file=sys.stderr, flush=True)
            continue
        append_line(path, dumped({**line, "commit": at}))
        left_min = (time.monotonic() - begun) / done * (len(todo) - done) / 60
        found = f"iou {line['iou']:.3f}  " if "iou" in line else ""
        print(f"{about}  {found}{line['seconds']:.0f} s  {left_min:.0f} min left", flush=True)
    return failed


def dumped(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False, ensure_ascii=False)


def commit() -> str | None:
    """The commit that the lines come of, with a + where program, presets or assets differ from it; None without git."""
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


def attempt(job: Job) -> tuple[Job, dict[str, Any] | None, str]:
    """The job's line, or none and why not."""
    try:
        return job, work(job), ""
    except Exception:  # noqa: BLE001 - the boundary: told with its traceback, and the other jobs go on
        return job, None, traceback.format_exc()


def work(job: Job) -> dict[str, Any]:
    """One job in a process of its own thread: its line."""
    import torch

    from psd.tiny import captions, grammar
    from psd.tiny.scenes import Distilled, assess, distil, observe

    torch.set_num_threads(1)
    file = made_file(job)
    if file.is_file():
        made = Distilled.load(file)
    else:
        made = distil(job.preset)
        with explaining(file):
            made.save(file)
    if job.kind == "probe":
        if made.facts.get("steps") != job.preset.steps:  # without a mesh it still tells what a step costs
            raise RuntimeError(f"the probe of {job.method} did not end: {made.facts.get('failed')}")
        return {**job.key, **{name: made.facts[name] for name in ("steps", "calls", "pair_ratio", "seconds")}}
    if not job.truth:
        return {**job.key, **rounded(observe(made, job.preset, job.judges))}
    caption = grammar.parse(job.preset.prompt)
    listed = [others for name in caption_lists() if (others := caption_list(name).get(caption.text))]
    others = [grammar.parse(text) for text in listed[0]] if listed else captions.distractors(caption)
    return {**job.key, **rounded(assess(made, job.preset, others, job.judges))}


def caption_lists() -> list[str]:
    return sorted(path.stem for path in (ROOT / "assets" / "captions").glob("*.json"))


def made_file(job: Job) -> Path:
    return WORK / f"{job.made}.npz"


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Six digits are more than any measure has; raises ValueError for one that is no number."""
    if wrong := [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise ValueError(f"{', '.join(wrong)} came out as no finite number")
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}
