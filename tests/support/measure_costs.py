"""What runs of a few steps take, to fit `psd.runs.jobs.preset_cost`: ``python -m tests.support.measure_costs``.

Each variant of tests/runs/data/run-costs.json, or those whose names are given, is run in a process of its own on one
core, and its figures are written back: processor seconds of a step without a preview and of the mesh, and the most
memory that the process held.  Then the seconds of what `preset_cost` counts are printed, by least squares of the
relative errors; its constants are rounded from them by hand.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "runs/data/run-costs.json"
NEVER = {"preview_every": 10_000, "negative": False}
STEPS = 4


def measure_variant(preset: str, values: dict[str, Any]) -> dict[str, float]:
    from psd.config.preset import Preset
    from psd.distillation.events import Finished, Previewed, Stepped
    from psd.runs import engine
    from psd.runs.jobs.controls import Controls
    from psd.runtime import lanes, memory

    lanes.limit_cores(1)
    chosen = Preset.load(preset, {**NEVER, "judges": [], "steps": STEPS, **values})
    steps, last, end_s = [], None, 0.0  # the first step compiles and allocates
    for event in engine.prepare_events(chosen)(chosen, Controls(chosen), None):
        now = time.process_time()
        match event:
            case Stepped():
                steps += [] if last is None else [now - last]
                last = now
            case Previewed():
                last = last and now
            case Finished():
                end_s = now - (last or now)
    return {
        "step_s": round(statistics.median(steps), 3), "end_s": round(end_s, 3),
        "memory_mib": round(memory.process_peak_bytes() / 2**20),
    }  # fmt: skip


def fit_constants(variants: list[dict[str, Any]]) -> None:
    from dataclasses import astuple, fields

    import numpy as np
    from scipy.optimize import nnls

    from psd.config.preset import Preset
    from psd.runs.jobs.preset_cost import StepWork, count_step_work

    rows, spent, names = [], [], ["step", *(field.name for field in fields(StepWork))]
    for variant in variants:
        values = {**NEVER, "steps": 10_000, **variant["values"]}
        rows.append([1.0, *astuple(count_step_work(Preset.load(variant.get("preset", "tiny"), values)))])
        spent.append(variant["step_s"])
    is_grid = np.array([not str(variant["values"].get("scene.kind")).startswith("hash") for variant in variants])
    table, seconds = np.array(rows)[is_grid], np.array(spent)[is_grid]
    found, _ = nnls(table / seconds[:, None], np.ones(len(seconds)))
    for name, value in zip(names, found):
        print(f"{name:16s} {value:.2e} s")
    for variant, ratio in zip([v for v, own in zip(variants, is_grid) if own], table @ found / seconds):
        print(f"{variant['name']:16s} estimated over measured {ratio:.2f}")


def main(names: Sequence[str]) -> None:
    """Measures the variants of these ``names``, or all."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    for variant in record["variants"]:
        if names and variant["name"] not in names:
            continue
        asked = json.dumps([variant.get("preset", "tiny"), variant["values"]])
        command = [sys.executable, "-m", "tests.support.measure_costs", asked]
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=alone).stdout
        variant.update(json.loads(said.splitlines()[-1]))
        print(variant, flush=True)
        lines = ",\n  ".join(json.dumps(one) for one in record["variants"])
        text = f'{{\n "what": {json.dumps(record["what"])},\n "variants": [\n  {lines}\n ]\n}}\n'
        RECORD.write_text(text, encoding="utf-8")
    fit_constants(record["variants"])


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("["):  # one of its own processes
        print(json.dumps(measure_variant(*json.loads(sys.argv[1]))))
    else:
        main(sys.argv[1:])
