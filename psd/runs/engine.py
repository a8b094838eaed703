"""The engine: download what a preset names, load it, run it.  The one place that joins models to the algorithm.

The app, the command line, the bench and the experiments all come through here.  torch is imported when a run begins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.config.settings import require_start
from psd.distillation.events import Checkpointed, Event, Finished, Warned
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import MakeEvents
from psd.runtime.importing import import_for_good

if TYPE_CHECKING:
    from psd.geometry.mesh import Mesh
    from psd.models.interfaces import Models


def make_events(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
    """Download, load and run: the worker's `MakeEvents`.

    Downloads come first, as `Warned` events: size and licence before anything is fetched.  A stop ends a download.
    """
    import_for_good("psd.models.load")
    from psd.models.download import LeftError
    from psd.models.load import download_models

    step, time_s = (resume.step, resume.time_s) if resume else (0, 0.0)
    try:
        for text in download_models(preset, leave=control.stopping):
            yield Warned(step=step, time_s=time_s, message=text)
    except LeftError:
        yield Finished(step=step, time_s=time_s, reason="stopped")
        return
    start = None
    if control.start is not None and resume is None:
        from psd.runs.start import remesh_start

        start = remesh_start(control.start)
    yield from prepare_events(preset, start=start)(preset, control, resume)


def prepare_events(
    preset: Preset, load: Callable[[Preset], Models] | None = None, start: Mesh | None = None
) -> MakeEvents:  # fmt: skip
    """Load the models now, so that unknown words and missing weights are refused before a run's folder is made.

    ``load`` makes other models than `load_models`, or records their calls; ``start`` is the closed mesh that the scene
    starts from.  Raises `PresetError` for what cannot run, `MissingError` for what is not here.
    """
    import_for_good("psd.distillation.run")
    from psd.distillation.methods.choose import check_models
    from psd.distillation.run import run

    if start is not None:
        require_start(preset.scene_preset(0).scene.kind)
    models = (load or load_models)(preset)
    check_models(preset, models)
    return lambda preset, control, resume: run(
        preset, models, control=control, resume=resume, start=start
    )  # fmt: skip


def load_models(preset: Preset) -> Models:
    """The models that a preset names (`psd.models.load.load_models`), which are here or are downloaded."""
    import_for_good("psd.models.load")
    from psd.models import load

    return load.load_models(preset)


def load_ahead(preset: Preset) -> bool:
    """Load the models before a run asks for them; whether they are there.

    A failure is printed here and again by the run itself.
    """
    import_for_good("psd.models.load", "psd.distillation.run")
    from psd.models.load import download_models

    try:
        if download := next(download_models(preset), None):
            print(f"The first run of this preset begins by {download}", file=sys.stderr)
            return False
        load_models(preset)
    except (PresetError, OSError) as error:
        print(f"Cannot load the models of this preset yet: {error}", file=sys.stderr)
        return False
    return True
