"""Run a preset and keep all that measuring needs: mesh, previews, and what the run cost.

Recording and measuring (`psd.evaluation.experiments.measure`) are apart, so that a better judge needs no new run.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Failed, Finished, Meshed, Previewed, Stepped, Warned
from psd.distillation.preview import VIEWS
from psd.evaluation.experiments.suite import COSTS
from psd.evaluation.metrics.ground_truth import SIDES
from psd.evaluation.speed.recorder import Call, record_calls
from psd.geometry.cameras import turntable_cameras
from psd.geometry.mesh import Mesh
from psd.geometry.mesh_picture import rasterise_mesh
from psd.runs import engine
from psd.runs.jobs.controls import Controls
from psd.runtime import memory

PICTURE_SIZE = 96  # px
# Means over the steps that have a pair.
PAIR_METRICS = {"pair_ratio": "pair/ratio", "pair_win_first": "pair/win_first", "pair_half_agrees": "pair/half_agrees"}


@dataclass(frozen=True)
class RecordedRun:
    """What a run made and what it cost; arrays, and facts that JSON can hold."""

    arrays: dict[str, np.ndarray]  # of the mesh, and steps, previews, opacity, pictures, negative
    facts: dict[str, Any]

    @property
    def mesh(self) -> Mesh | None:
        """None where the field had no surface or the run broke off; ``facts["failed"]`` says why."""
        if "failed" in self.facts:
            return None
        arrays = self.arrays
        return Mesh(arrays["vertices"], arrays["faces"], arrays["normals"], arrays["colours"])

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.draft.npz")  # two suites may make the same run at once
        arrays: dict[str, Any] = {**self.arrays, "facts": np.array(json.dumps(self.facts))}
        np.savez_compressed(draft, **arrays)
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> RecordedRun:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return cls(arrays, json.loads(str(arrays.pop("facts"))))


def record_run(preset: Preset) -> RecordedRun:
    """Run ``preset`` to its mesh and count the images that each network sees.

    A run that fails, on a value that is not finite for instance, would fail again: that is its outcome, kept as
    ``facts["failed"]`` with the step it reached and the previews until then, of which there may be none.
    """
    calls = {kind: [0, 0] for kind in COSTS}  # images without and with a backward pass

    def count_images(call: Call) -> None:
        calls[call.kind][call.grad] += call.args[0].shape[0] * call.args[0].shape[1]

    make_events = engine.prepare_events(preset, lambda preset: record_calls(engine.load_models(preset), count_images))
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    previews: dict[int, np.ndarray] = {}
    pairs: dict[str, list[float]] = {name: [] for name in PAIR_METRICS}
    start = time.monotonic()
    for event in make_events(preset, Controls(preset), None):
        match event:
            case Previewed():
                previews[event.step] = event.images["rgb"]
                arrays["opacity"] = event.images["opacity"][..., 0]
            case Stepped():
                facts |= {name: value for name, value in event.metrics.items() if name.startswith("image/")}
                for name, metric in PAIR_METRICS.items():
                    pairs[name] += [event.metrics[metric]] if metric in event.metrics else []
            case Checkpointed():
                arrays["negative"] = event.tensors["negative_value"]
            case Meshed() if event.mesh is not None:
                mesh = event.mesh
                arrays |= {name: getattr(mesh, name) for name in ("vertices", "faces", "normals", "colours")}
                facts |= {name: event.statistics[name] for name in ("watertight", "faces", "components")}
                rgb = rasterise_mesh(mesh, turntable_cameras(SIDES), PICTURE_SIZE).rgb[0]
                arrays["pictures"] = (rgb * 255).round().astype(np.uint8)
            case Warned() if event.message.startswith("There is no mesh"):
                facts["failed"] = event.message
            case Failed():
                facts |= {"failed": event.message, "steps": event.step}
            case Finished():
                facts["steps"] = event.step
    shape = (len(previews), VIEWS, preset.preview_size, preset.preview_size, 3)
    pictures = np.array(list(previews.values()), np.uint8).reshape(shape)
    arrays |= {"steps": np.array(list(previews), np.int64), "previews": pictures}
    facts |= {
        "calls": calls, "seconds": round(time.monotonic() - start, 1),
        "peak_memory_bytes": memory.process_peak_bytes(),
        **{name: fmean(values) if values else None for name, values in pairs.items()},
    }  # fmt: skip
    return RecordedRun(arrays, facts)
