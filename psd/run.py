"""The algorithm: from a prompt to a 3D object, as an iterator of events.

`run` is the whole of it; what turns predictions and rewards into a direction is `psd.methods`, the learned negative
`psd.negative`.  Gradients enter the scene by ``torch.autograd.backward([z0, regulariser], [score, None])`` (with
``score_space: image`` the images stand in z0's place): a score is a gradient, not a loss.  No context manager spans a
``yield``: a generator may resume on another thread.
Axes: b group (one orbit), v view, c channel, h w pixels, k candidate.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from psd import __version__, draws, failures, memory, methods, monitor, score
from psd.cameras import sample_orbits
from psd.clock import Clock
from psd.events import (
    Alarmed,
    BestKept,
    Checkpointed,
    Event,
    Finished,
    LiveChanged,
    Meshed,
    NegativeUpdated,
    Previewed,
    Started,
    Stepped,
    Warned,
    timed,
)  # fmt: skip
from psd.janus import Conditions
from psd.preset import Preset, PresetError
from psd.preview import Preview, preview
from psd.protocols import Control, Models, NoControl, Prior
from psd.readings import Number, Readings, number, sent
from psd.state import State, revived
from psd.step import Step


def run(
    preset: Preset,
    models: Models,
    *,
    control: Control | None = None,
    resume: Checkpointed | None = None,
    clock: Clock | None = None,
) -> Iterator[Event]:
    """Distils ``preset.prompt`` into a scene and meshes it, telling the world as it goes.

    Started; per step Stepped, now and then Previewed, BestKept, Alarmed, NegativeUpdated, Checkpointed, LiveChanged; at
    the end, and after a stop, Previewed, Checkpointed, Meshed and Finished.  On a CPU the same preset gives the same
    events, times, memory and Checkpointed before the end apart, which follow the wall clock; and ``resume`` goes on bit
    for bit.  A non-finite value ends the run with Failed, after a Checkpointed of the last good state; in the last
    preview it is a Warned, and the mesh is made.  Out of memory it goes on smaller (`psd.memory.smaller`), once.
    `PresetError` comes before Started, on the first ``next``.  ``clock`` measures (a GPU honestly, if it synchronises).
    """
    methods.check(preset, models)
    memory.forget_peak()
    state = State.create(preset, models)
    if resume is not None:
        state.restore(resume)
    conditions = Conditions(preset, models.prior)
    control, clock = control or NoControl(), clock or Clock()
    refused: dict = {}  # live values that were no good: said once
    if state.smaller:
        preset = memory.smaller(preset)
        models.fewer()
    live = preset.changed(state.live)
    begun = saved = time.monotonic()
    earlier = resume.time_s if resume is not None else 0.0

    def now(event: Event) -> Event:
        return timed(event, earlier + time.monotonic() - begun)

    yield now(started(preset, models, state.step))
    state.scene.advance(max(state.step - 1, 0) / preset.steps)  # as the last step left it
    seen, wrong = looked(state, preset, models) if state.step == 0 else (None, None)
    if seen is not None:
        yield now(shown(seen, state.step))
    if wrong is not None:
        yield now(state.checkpoint())
        yield now(failures.unseen(wrong, state.step, "before the first step"))
        return

    early = False
    while state.step < preset.total_steps and not (early or control.stopping()):
        # ---- the hand on the controls
        wish = {**state.live, **control.live()}
        if wish not in (state.live, refused):
            try:
                live = listened(preset, models, wish)
            except PresetError as error:
                refused = wish
                yield now(Warned(step=state.step, message=f"The new values were not taken: {error}"))
            else:
                changes = {name: value for name, value in wish.items() if state.live.get(name) != value}
                if "rewards" in changes:
                    state.monitor = monitor.Monitor()  # other weights, another curve
                state.live = wish
                yield now(LiveChanged(step=state.step, values=changes))

        # ---- one step; nothing has moved yet when it refuses a value
        clock.restart()
        generator_state = state.generator.get_state()
        shared, noises = draws.generators(state.generator)
        t = draws.timestep(live, state.step, len(models.prior.alpha_bar), shared)
        done = None
        try:
            done = optimise(live, models, state, conditions, t, shared, noises, clock)
        except score.NonFiniteError as error:
            yield now(state.checkpoint(generator_state))
            yield now(failures.not_finite(error, state.step, t))
            return
        except (MemoryError, RuntimeError) as error:
            if not memory.is_out_of_memory(error):
                raise
        if done is None:  # out of memory, and out of the exception, whose frames hold the step's tensors
            state.generator.set_state(generator_state)
            models.fewer()
            memory.release()
            if state.smaller:
                yield now(state.checkpoint())
                yield now(failures.too_large(preset, state.step))
                return
            state.smaller, preset = True, memory.smaller(preset)
            live = preset.changed(state.live)
            yield now(Warned(step=state.step, message=f"Out of memory: going on with {memory.in_words(preset)}."))
            continue
        metrics, negative = done
        state.step += 1
        metrics |= clock.lap()

        # ---- what the world sees of it
        last = state.step == preset.total_steps
        on_grid = state.step % preset.preview_every == 0
        seen, wrong = looked(state, preset, models) if last or on_grid else (None, None)
        if seen is not None:
            metrics |= seen.metrics | {"memory/peak_bytes": float(memory.peak_bytes())}
        yield now(Stepped(step=state.step, t=t, metrics=metrics))
        if negative is not None:
            yield now(negative)
        if wrong is not None and not last:
            yield now(state.checkpoint())
            yield now(failures.unseen(wrong, state.step, f"of step {state.step}, t = {t}"))
            return
        if seen is not None:
            yield now(shown(seen, state.step))
        if seen is not None and on_grid:  # an extended run judges what the whole one would
            for event in judged(live, models, state, seen):
                early |= isinstance(event, Alarmed) and preset.ends_at(event.kind)
                yield now(event)
        if time.monotonic() - saved >= preset.checkpoint_s and not last:
            yield now(state.checkpoint())
            saved = time.monotonic()

    # ---- the end: keep everything, then the surface
    yield now(state.checkpoint())
    if seen is None and wrong is None:
        seen, wrong = looked(state, preset, models)
        if seen is not None:
            yield now(shown(seen, state.step))
    if wrong is not None:
        yield now(Warned(step=state.step, message=f"There is no preview of the end: {wrong}."))
    for event in surface(preset, models, state):
        yield now(event)
    reason = "completed" if state.step == preset.total_steps else "stopped early" if early else "stopped"
    yield now(Finished(step=state.step, reason=reason, scores=seen.means if seen is not None else {}))


@torch.enable_grad()
def optimise(
    preset: Preset, models: Models, state: State, conditions: Conditions, t: int,
    shared: torch.Generator, noises: torch.Generator, clock: Clock,
) -> tuple[dict[str, float], NegativeUpdated | None]:  # fmt: skip
    """One step of the scene, and of the negative embedding when it is due; the generators are `draws.generators`'.

    Raises `NonFiniteError`, naming the tensor, before the scene, its optimiser or a running mean has changed.
    """
    prior, scene, readings = models.prior, state.scene, Readings()
    progress = preset.progress(state.step)
    preset = preset.at(progress)

    # ---- 1: cameras, render, latents, differentiable to the scene
    scene.advance(state.step / preset.steps)
    cameras = sample_orbits(
        preset.groups, prior.views, elevation_deg=preset.elevation_deg, fovy_deg=preset.fovy_deg,
        distance_factor=preset.distance_factor, generator=shared,
    ).to(prior.device)  # fmt: skip
    background, learned = draws.background(preset, shared)
    light = draws.light(cameras, shared) if preset.shading and preset.late(progress) else None
    with clock.part("render"):
        render = scene.render(
            cameras, preset.render_size, background=background.to(prior.device), generator=shared,
            learned=learned, light=light,
        )  # fmt: skip
    readings.finite("render", render.rgb)
    with clock.part("encode"):
        images = resized(render.rgb, prior.image_size)
        z0 = prior.encode(images if preset.score_space == "latent" else images.detach())
    readings.finite("latents", z0)

    # ---- 2: noises, the same draws on every device
    count = methods.candidates(preset)
    noise = draws.noise(count, z0.shape, noises, antithetic=preset.antithetic)

    @lru_cache(maxsize=1)  # reward_gradient asks for that of its base before the step does: one decoding
    def pulled(gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Where the score enters the scene: the latents, or the images with what the score means for them."""
        if preset.score_space == "latent":
            return z0, gradient
        with clock.part("decode"):
            return images, image_score(prior, images.detach(), z0.detach(), gradient)

    def pull_back(gradient: Tensor) -> Tensor:
        root, gradient = pulled(gradient)
        return torch.autograd.grad(root, render.rgb, gradient, retain_graph=True)[0]

    # ---- 3 to 8: the method's score
    step = Step(
        preset=preset, prior=prior, rewards=models.rewards, gap_scale=state.gap_scale, cameras=cameras,
        images=render.rgb.detach(), opacity=render.opacity.detach(), z0=z0.detach(), noise=sent(noise, z0), t=t,
        progress=progress, condition=conditions.at(cameras), negative=state.negative.value,
        negative_start=state.negative.start, clock=clock, readings=readings, pull_back=pull_back, generator=noises,
    )  # fmt: skip
    with torch.no_grad():
        found = methods.METHODS[preset.method](step)
        root, gradient = pulled(found.gradient)
    readings.finite("score", gradient)

    # ---- 9: backward, scene
    terms = {**render.regularisers, **scene.regularisers()}
    for name, value in terms.items():
        readings.finite(f"regulariser {name}", value)
    roots, gradients = [root], [gradient]
    if found.pixels is not None:
        roots, gradients = [*roots, render.rgb], [*gradients, found.pixels]
    weighted = [weight(preset, name, progress) * value for name, value in terms.items()]
    if weighted:
        roots, gradients = [*roots, torch.stack(weighted).sum()], [*gradients, None]
    state.optimiser.zero_grad(set_to_none=True)
    with clock.part("backward"):
        torch.autograd.backward(roots, gradients)
    for index, group in enumerate(state.optimiser.param_groups):
        for parameter in group["params"]:
            if parameter.grad is not None:
                readings.finite(f"gradient of the scene ({group.get('name', index)})", parameter.grad)

    # ---- checks and numbers, read in one wait, before anything moves; the render waited to count its samples, a
    # negative update will for its own numbers
    shown: dict[str, Number] = {f"loss/{name}": number(value) for name, value in terms.items()} | dict(found.metrics)
    metrics, gaps = readings.settle(shown | {"score/norm": number(found.gradient.norm())}, found.gaps)

    # ---- 10: the negative embedding
    negative = None
    if state.negative.due(preset, state.step, t, len(prior.alpha_bar)):
        with state.negative.undone_by_errors():  # so that nothing has moved, whatever fails
            with clock.part("negative"):
                update = state.negative.update(step, found)
                readings.settle()
            if update:
                update |= state.negative.statistics(conditions.plain)
                metrics |= update
                negative = state.negative.event(prior, preset, state.step + 1, update)

    with clock.part("optimiser"):
        state.decay(preset)
        state.optimiser.step()
    state.gap_scale.update(gaps, t)
    return metrics, negative


# -------------------------------------------------------------------------------------------------------------- helpers


def weight(preset: Preset, name: str, progress: float) -> float:
    """Of a regulariser; that of orientation may grow, as normals mean nothing before there is a surface."""
    full = getattr(preset, f"weight_{name}")
    if name != "orientation":
        return full
    grown = min(1.0, progress / preset.late_start)
    return full * (preset.orientation_start + (1 - preset.orientation_start) * grown)


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


def resized(images: Float[Tensor, "b v 3 h w"], size: int) -> Float[Tensor, "b v 3 size size"]:
    """To the prior's pixels, differentiably; unchanged where the size is right."""
    if images.shape[-1] == size:
        return images
    flat = interpolate(images.flatten(0, 1), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return flat.unflatten(0, images.shape[:2])


def listened(preset: Preset, models: Models, wish: dict) -> Preset:
    """The preset with the live values; raises `PresetError` for what is no live field, no value or no loaded reward."""
    for name in wish:
        about = Preset.model_fields[name].json_schema_extra if name in Preset.model_fields else {"live": True}
        if not (isinstance(about, dict) and about["live"]):
            raise PresetError(f"{name} cannot change during a run: set it before the start")
    live = preset.changed(wish)
    if unknown := set(live.rewards) - set(models.rewards):
        raise PresetError(f"rewards {', '.join(sorted(unknown))} are not loaded: name them at the start, with weight 0")
    methods.check(live, models)
    return live


def started(preset: Preset, models: Models, step: int) -> Started:
    environment = {
        "psd": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(models.prior.device),
        "threads": str(torch.get_num_threads()),
    }
    return Started(
        step=step, preset=preset.model_dump(mode="json"), total_steps=preset.total_steps, views=models.prior.views,
        environment=environment, notes=models.notes,
    )  # fmt: skip


def judged(preset: Preset, models: Models, state: State, seen: Preview) -> Iterator[BestKept | Alarmed]:
    """What the selector judge, the first of the judges, makes of a preview: a new best, alarms."""
    selector = next(iter(models.judges.values()), None)
    if selector is None:
        return
    found = seen.means[f"judge/{selector.name}"]
    if state.best is None or found > state.best.score:
        state.keep_best(found)
        yield BestKept(step=state.step, judge=selector.name, score=found)
    reward = None
    if preset.optimises_reward:
        optimised = ((weight, models.rewards[name]) for name, weight in preset.rewards.items())
        reward = sum(weight * seen.means[f"reward/{it.name}"] / it.scale for weight, it in optimised)
    state.monitor, alarms = monitor.fold(state.monitor, state.step, found, reward)
    for alarm in alarms:
        yield Alarmed(step=state.step, kind=alarm.kind, since=alarm.since, message=alarm.message)


def looked(state: State, preset: Preset, models: Models) -> tuple[Preview | None, score.NonFiniteError | None]:
    """A preview, or what in it is not finite."""
    try:
        return preview(state.scene, preset, models), None
    except score.NonFiniteError as error:
        return None, error


def shown(seen: Preview, step: int) -> Previewed:
    return Previewed(step=step, images=seen.images, rewards=seen.scores)


def surface(preset: Preset, models: Models, state: State) -> Iterator[Event]:
    """The mesh of the last or of the best scene with a turntable, and what the user should know of it."""
    from psd.mesh import MeshError, extract, statistics
    from psd.turntable import turntable

    device, step, scene = models.prior.device, state.step, state.scene
    best = state.best if preset.export == "best" else None
    if best is not None:
        scene = revived(preset, models.scene, best.scene, best.step)
    elif preset.export == "best":
        yield Warned(step=step, message="No preview was judged before the end: the mesh is that of the last scene.")
    try:
        mesh = extract(
            scene, resolution=preset.mesh_resolution, faces=preset.mesh_faces, texture=preset.texture, device=device
        )
    except MeshError as error:
        yield Warned(step=step, message=f"There is no mesh: {error}")
        return
    for note in mesh.notes:
        yield Warned(step=step, message=note)
    film = turntable(scene, size=preset.preview_size, device=device)
    scene_step = best.step if best is not None else None
    yield Meshed(step=step, mesh=mesh, turntable=film, scene_step=scene_step, statistics=statistics(mesh))
