"""The algorithm: from a prompt to a 3D object, as an iterator of events.

`run` is the whole of it and `optimise_step` its step; `psd.distillation.methods` turns predictions and rewards into a
score, `psd.distillation.negative` learns the negative.  Gradients enter the scene by ``torch.autograd.backward([z0,
regulariser], [score, None])`` (with ``score_space: image`` the images stand in z0's place): a score is a gradient, not
a loss.  No context manager spans a ``yield``: a generator may resume on another thread.  Axes: b group (one orbit), v
view, c channel, h w pixels, k candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from psd.config.preset import Preset
from psd.distillation import controls, recovery, reporting, sampling, stages
from psd.distillation.events import Checkpointed, Event, NegativeUpdated
from psd.distillation.interfaces import Control
from psd.distillation.methods import choose
from psd.distillation.negative import is_compared
from psd.distillation.results import Score
from psd.distillation.session import Session
from psd.distillation.state import State
from psd.distillation.step import StepContext
from psd.geometry.cameras import Cameras, sample_orbits
from psd.models.interfaces import Models, Prior
from psd.models.prior.view_prompts import ViewPrompts
from psd.runtime import memory
from psd.runtime.deferred import DeferredChecks, Number, scalar
from psd.runtime.devices import to_like
from psd.runtime.timing import Clock
from psd.scenes.choose import make_scene
from psd.scenes.interfaces import MakeScene, Render, Scene

if TYPE_CHECKING:
    from psd.geometry.mesh import Mesh


def run(
    preset: Preset,
    models: Models,
    *,
    control: Control | None = None,
    resume: Checkpointed | None = None,
    clock: Clock | None = None,
    make_scene: MakeScene = make_scene,
    start: Mesh | None = None,
) -> Iterator[Event]:
    """Distil ``preset.prompt`` into a scene and mesh it; yields what happens as it happens.

    Started; per step Stepped, now and then Previewed, BestKept, Alarmed, NegativeUpdated, Checkpointed, LiveChanged; at
    the end, and after a stop, Previewed, Checkpointed, Meshed and Finished.  On a CPU the same preset gives the same
    events, times, memory and Checkpointed before the end apart, which follow the wall clock; and ``resume`` goes on bit
    for bit.  A stage of another kind of scene starts from the mesh of the scene before it; one that cannot ends the run
    with Failed after a Checkpointed.  A value that is not finite ends the run with Failed, after a Checkpointed of the
    last good state; in the last preview it is a Warned, and the mesh is made; a preview's score is only left out.  Out
    of memory it goes on smaller (`psd.distillation.less_memory.reduced_preset`), once; a preview then does without its
    judges, and the mesh with half of its resolution.  What overflows in float16 is tried again first
    (`psd.runtime.precision.GradientScaler`).  `PresetError` comes before Started, on the first ``next``.  ``clock``
    measures (a GPU honestly, if it synchronises).  The scene begins as the closed mesh ``start``, which a Checkpointed
    at step 0 keeps.
    """
    choose.check_models(preset, models)
    memory.reset_peak()
    session = Session.open(preset, models, control, resume, clock, make_scene, start)
    for event in distil(session):
        yield session.stamp(event)


def distil(session: Session) -> Iterator[Event]:
    """The steps of a run, from where it stands to its mesh; the events have no times yet."""
    render = partial(reporting.render_view, session)

    def show_scene() -> None:
        session.control.show_scene(render, session.state.step)

    yield from reporting.report_start(session)
    if session.was_given_shape and not session.failed:
        yield session.checkpoint()  # what it starts from is nowhere else
    show_scene()
    session.clock.between = show_scene  # a whole step is long to wait for
    while session.has_steps_left:
        yield from controls.take_live_values(session)
        yield from stages.enter_stage(session)
        if session.failed:
            continue
        attempt = recovery.attempt_step(session, optimise_step)
        if attempt.result is None:
            yield from recovery.recover(session, attempt)
            continue
        metrics, negative = attempt.result
        session.finish_step()
        show_scene()
        yield from reporting.report_step(session, attempt.t, metrics | session.clock.lap_metrics(), negative)
    if not session.failed:
        yield from reporting.report_end(session)


@torch.enable_grad()
def optimise_step(
    preset: Preset, models: Models, state: State, prompts: ViewPrompts, t: int,
    shared: torch.Generator, noises: torch.Generator, clock: Clock,
) -> recovery.StepResult:  # fmt: skip
    """Makes one step of the scene, and one of the negative embedding when that is due.

    ``shared`` and ``noises`` are the generators of `sampling.step_generators`.

    Raises `NonFiniteError`, naming the tensor, before the scene, its optimiser or a running mean has changed.
    """
    prior, scene, readings = models.prior, state.scene, DeferredChecks()
    progress = preset.progress(state.step)
    preset = preset.at(progress)
    scene.advance(state.step / preset.steps, preset.scene)

    # ---- 1: cameras and render
    cameras = sample_cameras(preset, prior, shared)
    render = render_scene(preset, scene, cameras, shared, clock)
    readings.check_finite("render", render.rgb)

    # ---- 2: encode, differentiable to the scene
    entry = encode_render(preset, prior, render, clock)
    readings.check_finite("latents", entry.z0)

    # ---- 3: the noise level, `t`, was drawn before: `sampling.draw_timestep`

    # ---- 4: noises, the same draws on every device
    noise = to_like(sampling.draw_noise(choose.count_candidates(preset), entry.z0.shape, noises), entry.z0)

    # ---- 5: the score of the method
    step = StepContext(
        preset=preset, prior=prior, rewards=models.rewards, gap_scale=state.gap_scale, cameras=cameras,
        images=render.rgb.detach(), z0=entry.z0.detach(), noise=noise, t=t, progress=progress,
        condition=prompts.at(cameras), negative=state.negative.value, clock=clock, readings=readings,
        pull_back=entry.pull_back, generator=noises,
    )  # fmt: skip
    with torch.no_grad():
        found = choose.choose_method(preset).function(step)
        root, gradient = entry.place(found.gradient)
    readings.check_finite("score", gradient)

    # ---- 6: backward through the render, with the regularisers
    terms = {**render.regularisers, **scene.regularisers()}
    for name, value in terms.items():
        readings.check_finite(f"regulariser {name}", value)
    back_propagate(preset, state, terms, [(root, gradient), (render.rgb, found.pixels)], clock)
    check_scene_gradients(state.optimiser, readings)

    # ---- checks and numbers, read in one wait, before anything moves; the render waited to count its samples, a
    # negative update will for its own numbers
    shown: dict[str, Number] = {f"loss/{name}": scalar(value) for name, value in terms.items()} | dict(found.metrics)
    metrics, gaps = readings.settle_checks(shown | {"score/norm": scalar(found.gradient.norm())}, found.gaps)

    # ---- 7: the negative embedding
    negative = None
    if state.negative.is_due(preset, state.step, t, prior.levels):
        negative = update_negative(step, found, state, prompts)
        if negative is not None:
            metrics |= negative.metrics

    # ---- 8: the optimiser's step, and the running means
    with clock.part("optimiser"):
        state.decay(preset)
        state.optimiser.step()
        scene.after_step(state.optimiser)
    state.gap_scale.update(gaps, t)
    return metrics, negative


# -------------------------------------------------------------------------------------------------- parts of the step


def sample_cameras(preset: Preset, prior: Prior, generator: torch.Generator) -> Cameras:
    """``groups`` orbits of as many views as the prior knows."""
    return sample_orbits(
        preset.groups, prior.views, elevation_deg=preset.elevation_deg, fovy_deg=preset.fovy_deg,
        distance_factor=preset.distance_factor, generator=generator,
    ).to(prior.device)  # fmt: skip


def render_scene(
    preset: Preset, scene: Scene, cameras: Cameras, generator: torch.Generator, clock: Clock
) -> Render:  # fmt: skip
    """The scene before a background and, with ``shading``, in a light that are drawn for this step."""
    background, learned = sampling.draw_background(preset, generator)
    light = sampling.draw_light(cameras, generator) if preset.shading else None
    with clock.part("render"):
        return scene.render(
            cameras, preset.render_size, background=background, generator=generator, learned=learned, light=light
        )


@dataclass(eq=False)
class Entry:
    """The way of a score into the scene: by the latents of a render, or by its images with ``score_space: image``."""

    preset: Preset
    prior: Prior
    rgb: Float[Tensor, "b v 3 h w"]  # the render
    images: Float[Tensor, "b v 3 h2 w2"]  # at the prior's size
    z0: Float[Tensor, "b v c h3 w3"]
    clock: Clock
    _placed: tuple[Tensor, Tensor] | None = None  # the last score of the latents, and of the images

    def place(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The tensor that the score is a gradient of, and the score there; ``gradient`` is that of the latents."""
        if self.preset.score_space == "latent":
            return self.z0, gradient
        # reward_gradient asks for that of its base before the step does: one decoding
        if self._placed is None or self._placed[0] is not gradient:
            with self.clock.part("decode"):
                score = image_score(self.prior, self.images.detach(), self.z0.detach(), gradient)
            self._placed = (gradient, score)
        return self.images, self._placed[1]

    def pull_back(self, gradient: Tensor) -> Float[Tensor, "b v 3 h w"]:
        """A gradient of the latents as one of the render: the encoder's vector-Jacobian product."""
        root, gradient = self.place(gradient)
        return torch.autograd.grad(root, self.rgb, gradient, retain_graph=True)[0]


def encode_render(preset: Preset, prior: Prior, render: Render, clock: Clock) -> Entry:
    """The render's latents at the prior's size, with a way back unless the score enters by the images."""
    with clock.part("encode"):
        images = resize_images(render.rgb, prior.image_size)
        z0 = prior.encode(images if preset.score_space == "latent" else images.detach())
    return Entry(preset, prior, render.rgb, images, z0, clock)


def back_propagate(
    preset: Preset, state: State, terms: Mapping[str, Tensor], scores: Sequence[tuple[Tensor, Tensor | None]],
    clock: Clock,
) -> None:  # fmt: skip
    """Gradients of the scene: of each (tensor, score at it) that has a score, and of the weighted regularisers."""
    roots = [root for root, gradient in scores if gradient is not None]
    gradients: list[Tensor | None] = [gradient for _, gradient in scores if gradient is not None]
    _, stage_progress = preset.stage_at(preset.progress(state.step))
    weights = preset.scene.regulariser_weights(stage_progress)
    weighted = [weights[name] * value for name, value in terms.items()]
    if weighted:
        roots, gradients = [*roots, torch.stack(weighted).sum()], [*gradients, None]
    state.optimiser.zero_grad(set_to_none=True)
    with clock.part("backward"):
        torch.autograd.backward(roots, gradients)


def check_scene_gradients(optimiser: torch.optim.Optimizer, readings: DeferredChecks) -> None:
    for index, group in enumerate(optimiser.param_groups):
        for parameter in group["params"]:
            if parameter.grad is not None:
                readings.check_finite(f"gradient of the scene ({group.get('name', index)})", parameter.grad)


def update_negative(step: StepContext, found: Score, state: State, prompts: ViewPrompts) -> NegativeUpdated | None:
    """Move the negative embedding; None where no reward has a gradient.  Nothing has moved when it raises."""
    with state.negative.restore_on_error():
        with step.clock.part("negative"):
            compare = is_compared(step.preset, state.step)
            update = state.negative.update(step, found, compare=compare)
            step.readings.settle_checks()
        if not update:
            return None
        update |= state.negative.statistics(prompts.plain)
        return state.negative.update_event(step.prior, step.preset, state.step + 1, update)


def image_score(
    prior: Prior, images: Float[Tensor, "b v 3 h w"], z0: Float[Tensor, "b v c h2 w2"],
    gradient: Float[Tensor, "b v c h2 w2"],
) -> Float[Tensor, "b v 3 h w"]:  # fmt: skip
    """A score of the latents as one of the images: (x - D(z0 - B g)) / B, B rows, D the decoder, z0 - B g the target.

    As HiFA's residual in image space (Zhu and Zhuang 2023).  An encoder is not injective: pulled through it from grey,
    the embedded one's "green" ends speckled, with the latents of an even green.  What the decoder paints is a picture.
    """
    rows = z0.shape[0] * z0.shape[1]
    return (images - prior.decode(z0 - rows * gradient).clamp(0, 1)) / rows


def resize_images(images: Float[Tensor, "b v 3 h w"], size: int) -> Float[Tensor, "b v 3 size size"]:
    """Resizes images to the pixels of the prior, differentiably; unchanged where the size is right."""
    if images.shape[-1] == size:
        return images
    flat = interpolate(images.flatten(0, 1), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return flat.unflatten(0, images.shape[:2])
