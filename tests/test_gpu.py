"""What only an NVIDIA GPU can show: speed and memory in the exact shapes, twins, a whole run.

`make test-gpu` runs these with the other tests marked gpu and prints the figures that they record.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from psd import bench, memory, methods
from psd.cameras import rays, turntable
from psd.events import Finished, Meshed, Stepped
from psd.halves import Half, halves
from psd.preset import Preset
from psd.randomised import random_models
from psd.run import run
from psd.scene import RadianceScene

pytestmark = pytest.mark.gpu
LARGE = {"prompt": "a corgi", "negative_prompt": "blurry"}
CAPS = {"mvdream": 22, "mvdream-shaded": 22, "mvdream-12gb": 11, "mvdream-8gb": 7, "sd21": 22, "sd15": 22}  # GiB
PHASES = {  # early: small pictures of a soft blob; late: large ones of a solid thing, as the second half of a run sees
    "early": {"late_start": 1.0},
    "late": {"blob_density": 100.0},
}


def cuda() -> torch.device:
    return torch.device("cuda")


def phase(name: str, which: str, **changes: Any) -> Preset:
    preset = Preset.load(name, {**LARGE, **PHASES[which], **changes})
    if which == "late":
        late = {"groups": preset.late_groups, "render_size": preset.late_render_size, "late_start": 1e-6}
        preset = preset.changed(late)
    return preset


def halves_of(name: str, **changes: Any) -> dict[str, Half]:
    return {half.name: half for half in halves(Preset.load(name, {**LARGE, **changes}), 1000)}


def measured(name: str, which: str, steps: int = 8, cap: float | None = None, **changes: Any) -> bench.Report:
    """With at most ``cap`` GiB from the moment when the models stand: random weights are drawn in float32."""
    preset = phase(name, which, **changes)
    memory.release()  # the models before, which would count against the cap
    models = random_models(preset, cuda(), torch.float16)
    try:
        bench.cap_memory(cap)
        return bench.measure(preset, models, steps, weigh=[halves_of(name, **changes)[which]])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("name", CAPS)
def test_a_step_in_the_exact_shapes(name: str, record_property) -> None:
    """it/s of a whole run are the mean over its halves, without previews, checkpoints and mesh; memory is capped at
    what the preset is meant for."""
    mean = 0.0
    for which, half in halves_of(name).items():
        found = measured(name, which, cap=CAPS[name])
        mean += half.share * found.step_s
        record_property(f"{which} it/s", round(1 / found.step_s, 2))
        record_property(f"{which} GiB", round((found.cuda_memory_bytes or 0) / 2**30, 2))
        record_property(f"{which} overhead", f"{found.overhead_share:.1%}")
        spent = {part: f"{value['median_s'] * 1e3:.1f}" for part, value in found.parts.items()}
        record_property(f"{which} ms", " ".join(f"{part}={ms}" for part, ms in spent.items()))
    record_property("run it/s", round(1 / mean, 2))
    record_property("10,000 steps, minutes", round(10_000 * mean / 60, 1))


def test_what_speeds_a_step_up(record_property) -> None:
    """The second half of `mvdream`, where the negative learns too, each switch alone."""
    for what, changes in {
        "as shipped": {}, "without CUDA graphs": {"compile": False}, "two reward views": {"reward_views": 2},
        "full decoder": {"reward_decoder": ""}, "negative off": {"negative": False},
    }.items():  # fmt: skip
        found = measured("mvdream", "late", 6, **changes)
        record_property(f"{what}, it/s", round(1 / found.step_s, 2))


def test_what_the_steered_pair_costs(record_property) -> None:
    """Over plain score distillation; through the small decoder, and the random pair beside it."""
    times = {}
    for what, changes in {
        "sds": {"method": "sds"}, "steered": {"negative": False}, "random": {"reading": "A", "negative": False}
    }.items():  # fmt: skip
        times[what] = measured("mvdream", "late", 6, **changes).step_s
        record_property(f"{what} ms", round(times[what] * 1e3, 1))
    assert times["sds"] < times["steered"]


@pytest.mark.parametrize("reward_views", [0, 2])
def test_nothing_waits_for_the_gpu_while_the_method_runs(
    reward_views: int, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    """torch complains of each wait: both networks, decoder, rewards and their gradients."""
    plain, calls = methods.METHODS["psd"], []

    def strict(step):
        calls.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(calls) > 2 else "default")  # texts and graphs come first
        try:
            return plain(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setitem(methods.METHODS, "psd", strict)
    preset = phase(
        "mvdream", "early", steps=5, judges=[], preview_size=32, mesh_resolution=16, negative=False,
        reward_views=reward_views,
    )  # fmt: skip
    models = random_models(preset, cuda(), torch.float16, tiny=True)
    steps = [event for event in run(preset, models) if isinstance(event, Stepped)]
    assert len(steps) == 5 == len(calls)
    record_property("strict steps", len(calls) - 2)


def test_a_whole_run_of_the_embedded_models(record_property) -> None:
    from psd.models import load_models

    preset = Preset.load("tiny", {"device": "cuda", "steps": 12})
    events = list(run(preset, load_models(preset)))
    assert isinstance(events[-1], Finished) and events[-1].reason == "completed"
    assert any(isinstance(event, Meshed) for event in events)
    steps = [event for event in events if isinstance(event, Stepped)]
    record_property("it/s", round(10 / (steps[-1].time_s - steps[1].time_s), 2))


@pytest.fixture(scope="module")
def compiled_nerfacc():
    """nerfacc compiles its kernels at its first use, which takes longer than all tests here."""
    nerfacc = pytest.importorskip("nerfacc")
    from torch.utils.cpp_extension import _get_build_directory

    if not any(Path(_get_build_directory("nerfacc_cuda", verbose=False)).glob("*.so")):
        pytest.skip("nerfacc is not compiled: NVCC_APPEND_FLAGS=-std=c++17 python -c 'import nerfacc.cuda._backend'")
    return nerfacc


def test_nerfaccs_packed_rendering_agrees(compiled_nerfacc, record_property) -> None:
    """Its occupancy grid marches, its packed kernels composite; values and the table's gradient against ours."""
    nerfacc = compiled_nerfacc
    preset = Preset.load("mvdream", {**LARGE, "blob_density": 40.0, "ray_samples": 512, "background": "plain"})
    scene = RadianceScene(preset, cuda())
    scene.advance(0.0)
    field: Any = scene.field
    cameras, white = turntable(2).to(cuda()), torch.ones(1, 3)
    origins, directions = (x.flatten(0, -2) for x in rays(cameras, 64))
    ours = scene.render(cameras, 64, background=white).rgb

    estimator = nerfacc.OccGridEstimator([-1, -1, -1, 1, 1, 1], resolution=field.CELLS, levels=1).cuda()
    estimator.binaries = field.occupied(1e-3 / scene.step)[None]
    ray, t_starts, t_ends = estimator.sampling(origins, directions, render_step_size=scene.step, early_stop_eps=0)

    def look(t_starts, t_ends, ray):
        found = field.sample(origins[ray] + directions[ray] * ((t_starts + t_ends) / 2)[:, None])
        return found.colour, found.density

    colour, _, _, _ = nerfacc.rendering(
        t_starts, t_ends, ray, n_rays=len(origins), rgb_sigma_fn=look, render_bkgd=white[0].cuda()
    )
    theirs = colour.view(1, 2, 64, 64, 3).movedim(-1, 2)
    difference = (ours - theirs).abs().max().item()
    (one,), (other,) = (torch.autograd.grad(x.square().sum(), field.encoding.params) for x in (ours, theirs))
    alike = cosine_similarity(one, other, dim=0).item()
    record_property("largest difference", f"{difference:.1e}")
    record_property("gradients' cosine", f"{alike:.4f}")
    assert difference < 0.02 and alike > 0.98
