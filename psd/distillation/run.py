"""The algorithm: from a prompt to a 3D object, as an iterator of events.

`run` is the whole of it; what turns predictions and rewards into a direction is `psd.distillation.methods.preference`,
the learned negative `psd.distillation.negative`.  Gradients enter the scene by ``torch.autograd.backward([z0,
regulariser], [score, None])`` (with ``score_space: image`` the images stand in z0's place): a score is a gradient, not
a loss.  No context manager spans a ``yield``: a generator may resume on another thread. Axes: b group (one orbit), v
view, c channel, h w pixels, k candidate.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from psd import __version__
from psd.config.errors import PresetError
from psd.config.preset import Preset, list_settings
from psd.distillation import detectors, recovery, sampling
from psd.distillation.events import (
    Alarmed,
    Checkpointed,
    Event,
    Finished,
    LiveChanged,
    NegativeUpdated,
    Started,
    Stepped,
    Warned,
    with_time,
)
from psd.distillation.interfaces import Control, NoControl
from psd.distillation.methods import choose
from psd.distillation.reporting import PreviewAttempt, judge_events, make_preview, mesh_events, preview_events
from psd.distillation.state import State
from psd.distillation.step import StepContext
from psd.geometry.cameras import sample_orbits
from psd.models.interfaces import Models, Prior
from psd.models.prior.view_prompts import ViewPrompts
from psd.runtime import deferred, memory, precision
from psd.runtime.deferred import DeferredChecks, Number, scalar
from psd.runtime.devices import to_like
from psd.runtime.offload import COMPUTING
from psd.runtime.timing import Clock
from psd.scenes.choose import make_scene
from psd.scenes.interfaces import MakeScene

SCALER = "gradient_scaler"  # its state among a checkpoint's values, where float16 is used


def run(
    preset: Preset,
    models: Models,
    *,
    control: Control | None = None,
    resume: Checkpointed | None = None,
    clock: Clock | None = None,
    make_scene: MakeScene = make_scene,
) -> Iterator[Event]:
    """Distils ``preset.prompt`` into a scene and meshes it, telling the world as it goes.

    Started; per step Stepped, now and then Previewed, BestKept, Alarmed, NegativeUpdated, Checkpointed, LiveChanged; at
    the end, and after a stop, Previewed, Checkpointed, Meshed and Finished.  On a CPU the same preset gives the same
    events, times, memory and Checkpointed before the end apart, which follow the wall clock; and ``resume`` goes on bit
    for bit.  A non-finite value ends the run with Failed, after a Checkpointed of the last good state; in the last
    preview it is a Warned, and the mesh is made; a preview's score is only left out.  Out of memory it goes on smaller
    (`psd.distillation.recovery.reduced_preset`), once; a preview then does without its judges, and the mesh with half
    of its resolution. What overflows in float16 is tried again first (`psd.runtime.precision.GradientScaler`).
    `PresetError` comes before Started, on the first ``next``.  ``clock`` measures (a GPU honestly, if it synchronises).
    """
    choose.check_models(preset, models)
    memory.reset_peak()
    state = State.create(preset, models, make_scene)
    if resume is not None:
        state.restore_checkpoint(resume)
    conditions = ViewPrompts(preset, models.prior)
    control, clock = control or NoControl(), clock or Clock()
    refused: dict = {}  # live values that were no good: said once
    said: set[str] = set()  # other warnings that would come again and again
    scaler = precision.GradientScaler()
    if resume is not None and SCALER in resume.values:
        scaler.load_state(resume.values[SCALER])
    if state.smaller:
        preset = recovery.reduced_preset(preset)
        models.fewer()
    live = preset.with_values(state.live)
    begun = saved = time.monotonic()
    earlier = resume.time_s if resume is not None else 0.0

    def stamp(event: Event) -> Event:
        return with_time(event, earlier + time.monotonic() - begun)

    def checkpoint_event(generator_state: Tensor | None = None) -> Event:
        made = state.make_checkpoint(generator_state)
        return stamp(replace(made, values={**made.values, SCALER: scaler.state()}) if scaler.in_use else made)

    yield stamp(started_event(preset, models, state))
    state.scene.advance(max(state.step - 1, 0) / preset.steps)  # as the last step left it
    look = make_preview(state, preset, models) if state.step == 0 else PreviewAttempt()
    for event in preview_events(look, state.step, said):
        yield stamp(event)
    if look.wrong is not None:
        yield checkpoint_event()
        yield stamp(recovery.preview_not_finite(look.wrong, state.step, "before the first step"))
        return

    early = False
    while state.step < preset.total_steps and not (early or control.stopping()):
        # ---- the hand on the controls
        wish = {**state.live, **control.live()}
        if wish not in (state.live, refused):
            try:
                live = apply_live_values(preset, models, wish)
            except PresetError as error:
                refused = wish
                yield stamp(Warned(step=state.step, message=f"The new values were not taken: {error}"))
            else:
                changes = {name: value for name, value in wish.items() if state.live.get(name) != value}
                if "rewards" in changes:
                    state.monitor = detectors.Monitor()  # other weights, another curve
                state.live = wish
                yield stamp(LiveChanged(step=state.step, values=changes))

        # ---- one step; nothing has moved yet when it refuses a value
        clock.restart()
        generator_state = state.generator.get_state()
        shared, noises = sampling.step_generators(state.generator)
        t = sampling.draw_timestep(live, state.step, models.prior.levels, shared)
        done = overflow = None
        try:
            with COMPUTING, precision.use_scaler(scaler):
                done = optimise_step(live, models, state, conditions, t, shared, noises, clock)
        except deferred.NonFiniteError as error:
            overflow = recovery.step_not_finite(error, state.step, t)
        except (MemoryError, RuntimeError) as error:
            if not memory.is_out_of_memory(error):
                raise
        # from here on out of the exception, whose frames hold the step's tensors
        if overflow is not None:
            remedy = scaler.back_off()
            if remedy == "none":
                if scaler.in_use:
                    overflow = replace(overflow, cure=f"{precision.CURE}; or {overflow.cure}")
                yield checkpoint_event(generator_state)
                yield stamp(overflow)
                return
            if remedy == "same draws":
                state.generator.set_state(generator_state)
            if remedy not in said:
                said.add(remedy)
                yield stamp(Warned(step=state.step, message=f"{overflow.message}; {precision.REMEDIES[remedy]}"))
            continue
        if done is None:  # out of memory
            state.generator.set_state(generator_state)
            models.fewer()
            memory.release_memory()
            if state.smaller:
                yield checkpoint_event()
                yield stamp(recovery.step_out_of_memory(preset, state.step))
                return
            state.smaller, preset = True, recovery.reduced_preset(preset)
            live = preset.with_values(state.live)
            yield stamp(
                Warned(step=state.step, message=f"Out of memory: going on with {recovery.describe_sizes(preset)}.")
            )
            continue
        metrics, negative = done
        scaler.record_success()
        state.step += 1
        metrics |= clock.lap_metrics()

        # ---- what the world sees of it
        last = state.step == preset.total_steps
        on_grid = state.step % preset.preview_every == 0
        look = make_preview(state, preset, models) if last or on_grid else PreviewAttempt()
        if look.seen is not None:
            metrics |= look.seen.metrics | {"memory/peak_bytes": float(memory.peak_bytes())}
        yield stamp(Stepped(step=state.step, t=t, metrics=metrics))
        if negative is not None:
            yield stamp(negative)
        if look.wrong is not None and not last:
            yield checkpoint_event()
            yield stamp(recovery.preview_not_finite(look.wrong, state.step, f"of step {state.step}, t = {t}"))
            return
        for event in preview_events(look, state.step, said):
            yield stamp(event)
        if look.seen is not None and on_grid:  # an extended run judges what the whole one would
            for event in judge_events(live, models, state, look.seen):
                early |= isinstance(event, Alarmed) and preset.ends_at(event.kind)
                yield stamp(event)
        if (look.short or time.monotonic() - saved >= preset.checkpoint_s) and not last:
            yield checkpoint_event()  # at once where memory is short: it may be gone altogether next time
            saved = time.monotonic()

    # ---- the end: keep everything, then the surface
    yield checkpoint_event()
    if look == PreviewAttempt():
        look = make_preview(state, preset, models)
        for event in preview_events(look, state.step, said):
            yield stamp(event)
    if look.wrong is not None:
        yield stamp(Warned(step=state.step, message=f"There is no preview of the end: {look.wrong}."))
    for event in mesh_events(preset, models, state, make_scene):
        yield stamp(event)
    reason = "completed" if state.step == preset.total_steps else "stopped early" if early else "stopped"
    yield stamp(Finished(step=state.step, reason=reason, scores=look.seen.mean_scores if look.seen is not None else {}))


@torch.enable_grad()
def optimise_step(
    preset: Preset, models: Models, state: State, conditions: ViewPrompts, t: int,
    shared: torch.Generator, noises: torch.Generator, clock: Clock,
) -> tuple[dict[str, float], NegativeUpdated | None]:  # fmt: skip
    """One step of the scene, and of the negative embedding when it is due; the generators are
    `sampling.step_generators`'.

    Raises `NonFiniteError`, naming the tensor, before the scene, its optimiser or a running mean has changed.
    """
    prior, scene, readings = models.prior, state.scene, DeferredChecks()
    progress = preset.progress(state.step)
    _, stage_progress = preset.stage_at(progress)
    preset = preset.at(progress)

    # ---- 1: cameras, render, latents, differentiable to the scene
    scene.advance(state.step / preset.steps, preset.scene)
    cameras = sample_orbits(
        preset.groups, prior.views, elevation_deg=preset.elevation_deg, fovy_deg=preset.fovy_deg,
        distance_factor=preset.distance_factor, generator=shared,
    ).to(prior.device)  # fmt: skip
    background, learned = sampling.draw_background(preset, shared)
    light = sampling.draw_light(cameras, shared) if preset.shading else None
    with clock.part("render"):
        render = scene.render(
            cameras, preset.render_size, background=background, generator=shared,
            learned=learned, light=light,
        )  # fmt: skip
    readings.check_finite("render", render.rgb)
    with clock.part("encode"):
        images = resize_images(render.rgb, prior.image_size)
        z0 = prior.encode(images if preset.score_space == "latent" else images.detach())
    readings.check_finite("latents", z0)

    # ---- 2: noises, the same draws on every device
    count = choose.count_candidates(preset)
    noise = sampling.draw_noise(count, z0.shape, noises)

    @lru_cache(maxsize=1)  # reward_gradient asks for that of its base before the step does: one decoding
    def root_and_gradient(gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Where the score enters the scene: the latents, or the images with what the score means for them."""
        if preset.score_space == "latent":
            return z0, gradient
        with clock.part("decode"):
            return images, image_score(prior, images.detach(), z0.detach(), gradient)

    def pull_back(gradient: Tensor) -> Tensor:
        root, gradient = root_and_gradient(gradient)
        return torch.autograd.grad(root, render.rgb, gradient, retain_graph=True)[0]

    # ---- 3 to 8: the method's score
    step = StepContext(
        preset=preset, prior=prior, rewards=models.rewards, gap_scale=state.gap_scale, cameras=cameras,
        images=render.rgb.detach(), z0=z0.detach(), noise=to_like(noise, z0), t=t, progress=progress,
        condition=conditions.at(cameras), negative=state.negative.value, clock=clock, readings=readings,
        pull_back=pull_back, generator=noises,
    )  # fmt: skip
    with torch.no_grad():
        found = choose.choose_method(preset).function(step)
        root, gradient = root_and_gradient(found.gradient)
    readings.check_finite("score", gradient)

    # ---- 9: backward, scene
    terms = {**render.regularisers, **scene.regularisers()}
    for name, value in terms.items():
        readings.check_finite(f"regulariser {name}", value)
    roots, gradients = [root], [gradient]
    if found.pixels is not None:
        roots, gradients = [*roots, render.rgb], [*gradients, found.pixels]
    weights = preset.scene.regulariser_weights(stage_progress)
    weighted = [weights[name] * value for name, value in terms.items()]
    if weighted:
        roots, gradients = [*roots, torch.stack(weighted).sum()], [*gradients, None]
    state.optimiser.zero_grad(set_to_none=True)
    with clock.part("backward"):
        torch.autograd.backward(roots, gradients)
    for index, group in enumerate(state.optimiser.param_groups):
        for parameter in group["params"]:
            if parameter.grad is not None:
                readings.check_finite(f"gradient of the scene ({group.get('name', index)})", parameter.grad)

    # ---- checks and numbers, read in one wait, before anything moves; the render waited to count its samples, a
    # negative update will for its own numbers
    shown: dict[str, Number] = {f"loss/{name}": scalar(value) for name, value in terms.items()} | dict(found.metrics)
    metrics, gaps = readings.settle_checks(shown | {"score/norm": scalar(found.gradient.norm())}, found.gaps)

    # ---- 10: the negative embedding
    negative = None
    if state.negative.due(preset, state.step, t, prior.levels):
        with state.negative.restore_on_error():  # so that nothing has moved, whatever fails
            with clock.part("negative"):
                update = state.negative.update(step, found)
                readings.settle_checks()
            if update:
                update |= state.negative.statistics(conditions.plain)
                metrics |= update
                negative = state.negative.update_event(prior, preset, state.step + 1, update)

    with clock.part("optimiser"):
        state.decay(preset)
        state.optimiser.step()
        scene.after_step(state.optimiser)
    state.gap_scale.update(gaps, t)
    return metrics, negative


# -------------------------------------------------------------------------------------------------------------- helpers


def image_score(
    prior: Prior, images: Float[Tensor, "b v 3 h w"], z0: Float[Tensor, "b v c h2 w2"],
    gradient: Float[Tensor, "b v c h2 w2"],
) -> Float[Tensor, "b v 3 h w"]:  # fmt: skip
    """A score of the latents as one of the images: (x - D(z0 - B g)) / B, B rows, D the decoder, z0 - B g the target.

    As HiFA's residual in image space (Zhu and Zhuang 2023).  An encoder is not injective: pulled through it from grey,
    the embedded one's "green" ends in a mixture of navy and bright green pixels with the latents of green.  What the
    decoder paints is a picture.
    """
    rows = z0.shape[0] * z0.shape[1]
    return (images - prior.decode(z0 - rows * gradient).clamp(0, 1)) / rows


def resize_images(images: Float[Tensor, "b v 3 h w"], size: int) -> Float[Tensor, "b v 3 size size"]:
    """To the prior's pixels, differentiably; unchanged where the size is right."""
    if images.shape[-1] == size:
        return images
    flat = interpolate(images.flatten(0, 1), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return flat.unflatten(0, images.shape[:2])


def apply_live_values(preset: Preset, models: Models, wish: dict) -> Preset:
    """The preset with the live values; raises `PresetError` for what is no live field, no value or no loaded reward."""
    known = list_settings()
    for name in wish:
        about = known[name].json_schema_extra if name in known else {"live": True}
        if not (isinstance(about, dict) and about["live"]):
            raise PresetError(f"{name} cannot change during a run: set it before the start")
    live = preset.with_values(wish)
    if unknown := set(live.rewards) - set(models.rewards):
        raise PresetError(f"rewards {', '.join(sorted(unknown))} are not loaded: name them at the start, with weight 0")
    choose.check_models(live, models)
    return live


def started_event(preset: Preset, models: Models, state: State) -> Started:
    environment = {
        "psd": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(models.prior.device),
        "threads": str(torch.get_num_threads()),
    }
    return Started(
        step=state.step, preset=preset.model_dump(mode="json"), total_steps=preset.total_steps,
        views=models.prior.views, environment=environment, notes=(*models.notes, *state.scene.notes),
    )  # fmt: skip
