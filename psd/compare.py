"""``python -m psd compare``: run a suite's missing jobs, one JSON line each; and the report that they make.

Any number of one-thread processes share the jobs out.  What a run made stays under ``work/compare`` by its hash: other
suites that contain the same run, and later judges, need not repeat it.  Lines accumulate in ``assets/results``; with
changed parameters (``--set``) it is a trial, whose lines stay under ``work`` too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psd.files import append_line, cut_partial_line, explaining
from psd.parameters import assignments
from psd.preset import PresetError
from psd.suite import RESULTS, ROOT, SUITES, Job, Suite, caption_list, current, probes, read_lines

WORK = ROOT / "work" / "compare"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", default=str(SUITES / "embedded.yaml"), help="a file of presets/suites")
    parser.add_argument("--only", action="append", metavar="METHOD", help="only this method; may be repeated")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N runs")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="a trial with other parameters")
    parser.add_argument("--list", action="store_true", help="only say what there is to do")
    parser.add_argument("--report", action="store_true", help="only write tables, pictures and README's section again")
    parser.add_argument(
        "--learn-negative", metavar="FILE",
        help="write the mean negative that the runs of --only ended with, as a start for negative_start",
    )  # fmt: skip


def main(arguments: argparse.Namespace) -> int:
    if arguments.report:
        from psd.evidence import write_report

        return write_report()
    suite = load(arguments)
    path = WORK / f"{suite.name}-trial.jsonl" if arguments.set else RESULTS / f"{suite.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if lost := cut_partial_line(path):
        print(f"{path.name} ended in the middle of a line: {lost} bytes taken off", file=sys.stderr)
    chosen = set(arguments.only or suite.methods)
    if unknown := chosen - set(suite.methods):
        raise PresetError(f"no method {', '.join(sorted(unknown))} in {suite.name}: {', '.join(suite.methods)}")
    if arguments.learn_negative:
        return learn_negative(suite, path, chosen, Path(arguments.learn_negative))
    told = {line["hash"] for line in read_lines(path)}
    first = [job for job in probes(suite) if job.hash not in told]
    if arguments.list:
        found, _ = current(suite, read_lines(path))
        print(f"{suite.name}: {len(first)} probes and {suite.planned - len(found)} of {suite.planned} runs are to do")
        return 0
    require(suite)
    work_off(first, path, arguments.processes)
    _, missing = current(suite, read_lines(path))
    missing = [job for job in missing if job.method in chosen][: arguments.limit]
    work_off(missing, path, arguments.processes)
    found, _ = current(suite, read_lines(path))
    print(f"{suite.name}: {len(found)} of {suite.planned} runs are in {path.relative_to(ROOT)}")
    if not arguments.set:
        from psd.evidence import write_report, write_strips

        write_strips(suite, found, made_file)
        return write_report()
    return 0


def load(arguments: argparse.Namespace) -> Suite:
    suite = Suite.load(Path(arguments.suite))
    return Suite.model_validate({**suite.model_dump(), "set": {**suite.set, **assignments(arguments.set)}})


def require(suite: Suite) -> None:
    """Raises `MissingError` for weights that are not here: before hours of runs, not after them."""
    from psd.hub import local

    presets = [suite.values(name) for name in suite.methods]
    for source in {*suite.judges, *(p.prior for p in presets), *(name for p in presets for name in p.rewards)}:
        local(source)


def work_off(todo: Sequence[Job], path: Path, processes: int) -> None:
    """Run the jobs and append their lines as they come; what is done stays done, whatever stops this."""
    if not todo:
        return
    begun = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(min(processes, len(todo))) as pool:
        for done, line in enumerate(pool.imap_unordered(work, todo), start=1):
            append_line(path, json.dumps(line, allow_nan=False, ensure_ascii=False))
            left_min = (time.monotonic() - begun) / done * (len(todo) - done) / 60
            found = f"iou {line['iou']:.3f}  " if "iou" in line else ""
            print(
                f"{done}/{len(todo)}  {line['method']:16} {line['prompt']:44} seed {line['seed']}  "
                f"{found}{line['seconds']:.0f} s  {left_min:.0f} min left",
                flush=True,
            )


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
    """Six digits are more than any measure has."""
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}


def learn_negative(suite: Suite, path: Path, chosen: set[str], out: Path) -> int:
    """The mean of the negative embeddings that finished runs ended with: what they have in common."""
    import torch
    from safetensors.torch import save_file

    from psd.suite import jobs
    from psd.tiny.scenes import Distilled

    files = [made_file(job) for job in jobs(suite, read_lines(path)) if job.method in chosen]
    ends = [torch.from_numpy(Distilled.load(file).arrays["negative"]) for file in files if file.is_file()]
    if not ends:
        raise PresetError(
            f"no run of {', '.join(sorted(chosen))} is under {WORK.relative_to(ROOT)}: run the suite first"
        )
    mean = torch.stack(ends).mean(0)
    spread = torch.stack(ends).std(0, correction=0).square().mean().sqrt()
    save_file({"negative": mean.contiguous()}, out)
    print(f"{out}: the mean of {len(ends)} runs; they differ from it by {float(spread):.3f} (RMS)")
    return 0
