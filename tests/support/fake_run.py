"""A run without models: deterministic events of every kind, resumable, for the tests of store, worker and CLI."""

from collections.abc import Iterator

import numpy as np

from psd.config.preset import Preset
from psd.distillation import events
from psd.distillation.interfaces import Control


def views(step: int) -> np.ndarray:
    """Four 16 px views that differ from each other and from step to step."""
    v, y, x = np.mgrid[:4, :16, :16]
    return np.stack([40 * v + 4 * x, 12 * y, np.full_like(x, 10 * step % 256)], axis=-1).astype(np.uint8)


def fake_run(preset: Preset, control: Control, resume: events.Checkpointed | None = None) -> Iterator[events.Event]:
    """A random walk whose state is its checkpoint: stop and resume must equal going through."""
    step = resume.step if resume else 0
    walk = resume.tensors["walk"] if resume else np.zeros(3, np.float32)
    yield events.Started(
        step=step, preset=preset.model_dump(mode="json"), total_steps=preset.total_steps, views=4,
        environment={"torch": "none"}, notes=("nothing chosen",), time_s=0.5 * step,
    )  # fmt: skip
    live: dict = {}
    while step < preset.total_steps and not control.stopping():
        if control.live() != live:
            live = dict(control.live())
            yield events.LiveChanged(step=step, values=live)
        step += 1
        walk = walk + np.random.default_rng(step).standard_normal(3).astype(np.float32)
        metrics = {"reward/tiny": float(walk[0]), "time/step": 0.1}
        yield events.Stepped(step=step, t=1000 - step, metrics=metrics, time_s=0.5 * step)
        if step % 2 == 0:
            images = {"rgb": views(step), "normal": 255 - views(step)}
            yield events.Previewed(step=step, images=images, rewards={"tiny": [0.1, 0.2, 0.3, 0.4]}, time_s=0.5 * step)
            if step == 4:
                yield events.BestKept(step=step, judge="tiny", score=4.0, time_s=0.5 * step)
            yield events.NegativeUpdated(step=step, tokens=("low", "quality"), drift=(0.1, 0.2), nearest=("low", "bad"))
            yield events.Checkpointed(step=step, tensors={"walk": walk}, values={"third": 1 / 3}, time_s=0.5 * step)
    yield events.Warned(step=step, message="this is a fake")
    yield events.Meshed(step=step, mesh=None, statistics={"faces": 0})
    reason = "stopped" if step < preset.total_steps else "completed"
    yield events.Finished(step=step, reason=reason, scores={"tiny": float(walk[0])}, time_s=0.5 * step)
