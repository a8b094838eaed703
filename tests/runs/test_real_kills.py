"""Real short runs, killed at random moments as a process: what goes on from there is the run without a kill."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psd.__main__ import OK, main
from psd.distillation.events import Checkpointed, Finished, Started, Warned, to_json
from psd.runs.store.archive import list_runs, read_status, replay_events
from tests.support.compare_checkouts import CLOCK, UNTIMED, read_mesh

KILLS = {"field": 20, "surface": 10}
PATIENCE_S = 120.0
SMALL = [
    "render_size=16", "preview_size=32", "preview_every=2", "negative_every=3", "mesh_resolution=24",
    "mesh_faces=400", "scene.grid_size=16", "scene.ray_samples=8", "checkpoint_s=0.05", "threads=1", "export=best",
]  # fmt: skip
STAGES = {  # settings of a run whose last scene is ...
    "field": ["steps=6"],
    "surface": [
        "steps=12",
        "stages=[{share: 0.5}, {share: 0.5, scene: {kind: surface, surface_cells: 8}}]",
        "scene.blob_density=40",
    ],
}
IMPORTS = ["psd.runs.engine", "psd.runs.remesh", "psd.distillation.run", "psd.models.load", "transformers", "diffusers"]


def run_command(root: str, arguments: list[str]) -> None:
    """In a process of its own: the command line, silently."""
    os.environ.update(PSD_RUNS=root, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    os._exit(main(arguments))


def read_result(folder: Path) -> tuple[list[dict[str, Any]], dict[str, bytes], dict[str, np.ndarray]]:
    """Events without what the clock decides, the previews' bytes and the mesh's geometry and colours."""
    events = []
    for event in replay_events(folder, images=False):
        if isinstance(event, Started | Checkpointed | Warned):
            continue  # versions and paths; checkpoints come by the clock; a resume says from where it goes on
        record = {key: value for key, value in json.loads(to_json(event)).items() if key not in UNTIMED}
        if isinstance(metrics := record.get("metrics"), dict):
            record["metrics"] = {name: value for name, value in metrics.items() if not name.startswith(CLOCK)}
        events.append(record)
    previews = {path.name: path.read_bytes() for path in sorted((folder / "public/previews").iterdir())}
    return events, previews, read_mesh(folder)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("last", STAGES)
def test_kills_of_a_real_run_change_no_bit(last: str, tmp_path: Path) -> None:
    context, kills, most = multiprocessing.get_context("forkserver"), 0, KILLS[last]
    context.set_forkserver_preload(IMPORTS)
    begin = ["run", "a red mushroom", "--set", *SMALL, *STAGES[last]]

    def start(root: Path, arguments: list[str]) -> Any:
        process = context.Process(target=run_command, args=(str(root), arguments))
        process.start()
        return process

    for _ in range(2):  # the first one also waits for the imports
        began = time.monotonic()
        whole = start(tmp_path / "whole", begin)
        whole.join(PATIENCE_S)
        assert whole.exitcode == OK
        whole_s = time.monotonic() - began
    wanted = read_result(list_runs(tmp_path / "whole")[0].folder)
    assert len(wanted[0]) > 10 and len(wanted[2]["faces"]) > 50
    moments = []
    for number in range(3 * most):
        chance, root = random.Random(number), tmp_path / f"killed {number}"
        arguments = begin
        while True:
            process = start(root, arguments)
            process.join(chance.uniform(0.1, whole_s) if kills < most else PATIENCE_S)
            if process.exitcode is None:
                assert kills < most, "a resumed run does not end"
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                if list_runs(root):
                    kills += 1
                    moments.append(read_status(list_runs(root)[0].folder).step)
            else:
                assert process.exitcode == OK, (number, moments)
            runs = list_runs(root)
            if not runs:
                continue  # killed before there was a folder
            (run,) = runs
            assert run.status.state in ("interrupted", "finished"), number
            if process.exitcode == OK:
                break
            if run.status.state == "finished":
                break  # killed in the moment after its end
            arguments = ["resume", str(run.folder)]
        found = read_result(run.folder)
        assert found[0] == wanted[0], f"number {number}: events"
        assert found[1] == wanted[1], f"number {number}: previews"
        for name, values in wanted[2].items():
            assert np.array_equal(found[2][name], values), f"number {number}: {name} of the mesh"
        ends = [event for event in replay_events(run.folder, images=False) if isinstance(event, Finished)]
        assert len(ends) == 1 and not list(run.folder.rglob(".*")), "a half-written file was left"
        if kills >= most:
            break
    assert kills == most and len(set(moments)) > 3, moments
