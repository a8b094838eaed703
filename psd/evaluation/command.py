"""``python -m psd compare``: run the missing jobs of a suite, and write the report from all recorded lines.

`psd.evaluation.experiments.run` runs the jobs.  Their lines accumulate in ``assets/results``; the lines of a trial with
changed parameters (``--set``) stay under ``work``.  The report's modules are imported where they are needed: ``--help``
stays quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from psd.config.assignments import parse_assignments
from psd.config.errors import MissingError, PresetError
from psd.evaluation.experiments import run
from psd.evaluation.experiments.suite import SUITES, Suite, read_suites

TUNING = "tuning"  # the suite that defaults are chosen by: no reported figure rests on it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--suite", default=str(SUITES / "embedded.yaml"), help="a file of presets/suites")
    which.add_argument("--all", action="store_true", help="every suite that the report rests on and that can run here")
    parser.add_argument("--only", action="append", metavar="METHOD", help="only this method; may be repeated")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N runs")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="a trial with other parameters")
    parser.add_argument("--objects", type=Path, metavar="DIR", help="the folder of objects (default: PSD_OBJECTS)")
    parser.add_argument("--list", action="store_true", help="only say what there is to do")
    parser.add_argument(
        "--report", action="store_true", help="only write pages, charts and the tables of docs/evidence.md again"
    )


def main(arguments: argparse.Namespace) -> int:
    """Do what the arguments ask for and return the exit code; raises `PresetError` for arguments that do not fit,
    and `MissingError` for objects or weights that are not here."""
    if arguments.report:
        from psd.evaluation.report.write import write_report

        return write_report()
    if arguments.objects:
        from psd.embedded.objects.collection import choose_collection

        choose_collection(arguments.objects)
    if arguments.all:
        return run_all(arguments)
    suite = load_suite(arguments)
    path = run.WORK / f"{suite.name}-trial.jsonl" if arguments.set else run.lines_file(suite)
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = set(arguments.only or suite.methods)
    if unknown := chosen - set(suite.methods):
        raise PresetError(f"no method {', '.join(sorted(unknown))} in {suite.name}: {', '.join(suite.methods)}")
    if arguments.list:
        print(run.estimate_remaining([(suite, path)]))
        return 0
    run.require_weights(suite)
    failed = run.run_suite(suite, path, arguments.processes, chosen, arguments.limit)
    return finish(failed, [] if arguments.set else [suite])


def run_all(arguments: argparse.Namespace) -> int:
    """Run every suite whose weights are here, the main one first, and write one report at the end."""
    if arguments.only or arguments.set or arguments.limit is not None:
        raise PresetError("--all runs whole suites: leave out --only, --set and --limit")
    todo = []
    for suite in read_suites():
        if suite.name == TUNING:
            continue
        if not suite.truth:
            print(f"{suite.name} is left out: it needs a GPU, and --suite presets/suites/{suite.name}.yaml runs it")
            continue
        try:
            run.require_weights(suite)
        except MissingError as error:
            print(f"{suite.name} is left out: {error}")
            continue
        todo.append((suite, run.lines_file(suite)))
    print(run.estimate_remaining(todo), flush=True)
    if arguments.list:
        return 0
    failed = sum(run.run_suite(suite, path, arguments.processes) for suite, path in todo)
    return finish(failed, [suite for suite, _ in todo])


def load_suite(arguments: argparse.Namespace) -> Suite:
    """The suite of ``--suite`` with the values of ``--set``."""
    suite = Suite.load(Path(arguments.suite))
    return Suite.model_validate({**suite.model_dump(), "set": {**suite.set, **parse_assignments(arguments.set)}})


def finish(failed: int, reported: Sequence[Suite]) -> int:
    """Write the pictures of the ``reported`` suites and the report, if there are any; return the exit code."""
    if reported:
        from psd.evaluation.report.write import valid_lines, write_report, write_strips

        for suite in reported:
            write_strips(suite, valid_lines(suite)[0], run.made_file)
        write_report()
    if failed:
        from psd.evaluation.report.tables import pluralise

        jobs_failed = pluralise(failed, "job")
        print(f"{jobs_failed} failed, with the errors above; the same command tries again", file=sys.stderr)
    return 1 if failed else 0
