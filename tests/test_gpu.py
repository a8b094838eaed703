"""What only an NVIDIA GPU can show: speed and memory in the exact shapes, twins, a whole run.

`make test-gpu` runs these after the other tests marked gpu and prints the figures that they record.  It begins none
after seven minutes, so what is short, and says whether figures mean anything, comes first.
"""

import json
import statistics
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from psd.config.preset import Preset
from psd.distillation import run as algorithm
from psd.distillation.events import Finished, Meshed, Stepped, Warned
from psd.distillation.methods import choose
from psd.distillation.run import run
from psd.distillation.state import State, load_optimiser, optimiser_state, parameters_by_name
from psd.evaluation.speed import bench, throughput
from psd.geometry.cameras import camera_rays, turntable_cameras
from psd.models.random_weights import random_models
from psd.runtime import devices, memory
from psd.runtime.devices import to_device
from psd.scenes.radiance import RadianceScene, masked_indices, pack_samples

pytestmark = pytest.mark.gpu
CAPS = {"mvdream": 22, "mvdream-shaded": 22, "mvdream-12gb": 11, "mvdream-8gb": 7, "sd21": 22, "sd15": 22}  # GB
WHOLE = ("mvdream", "mvdream-8gb")  # of which previews, checkpoints and mesh are timed too
PHASES = {  # early: small pictures of a soft blob; late: large ones of a solid thing, as the second half of a run sees
    "early": {},
    "late": {"scene.blob_density": 100.0},
}


def cuda() -> torch.device:
    return torch.device("cuda")


def phase(name: str, which: str, **changes: Any) -> Preset:
    """One of the two stages of a preset as a run of its own."""
    return Preset.load(name, {**PHASES[which], **changes}).in_stage(list(PHASES).index(which))


def halves_of(name: str, **changes: Any) -> dict[str, throughput.StageShare]:
    return dict(zip(PHASES, throughput.weigh_stages(Preset.load(name, changes), [1000] * len(PHASES)), strict=True))


def paced(name: str, which: str, **changes: Any) -> float:
    """Mean seconds of a step of one half, undisturbed."""
    preset = phase(name, which, **changes)
    memory.release_memory()  # the models before
    models = random_models(preset, cuda(), torch.float16)
    return throughput.measure_throughput(
        preset, models, 6, [halves_of(name, **changes)[which]], torch.cuda.synchronize
    ).step_s


def test_a_gpu_gets_and_finds_what_a_cpu_has() -> None:
    """Expanded cameras and lists arrive whole; places, jitter and packing are what they are meant to be."""

    def seeded(seed: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    values = [torch.rand(3, 1, generator=seeded()).expand(3, 4), torch.rand(5, 4, generator=seeded()).T]
    for _ in range(50):  # buffers are used again while earlier transfers may be under way
        for value in values:
            assert torch.equal(to_device(value, cuda()).cpu(), value)
    mask = torch.rand(100_000, generator=seeded()) < 0.3
    assert torch.equal(masked_indices(mask.cuda(), int(mask.sum())).cpu(), masked_indices(mask, int(mask.sum())))
    assert len(masked_indices(mask[:0].cuda(), 0)) == 0
    jitter = [devices.draw_uniform((1000, 2), seeded(seed), cuda()) for seed in (0, 0, 1)]
    assert torch.equal(jitter[0], jitter[1]) and not torch.equal(jitter[0], jitter[2])
    assert jitter[0].device.type == "cuda" and 0 <= jitter[0].min() and jitter[0].max() < 1
    edges = torch.rand(40, 10, generator=seeded(1), dtype=torch.float64).sort(-1).values
    kept = torch.rand(40, 9, generator=seeded(2)) < 0.2
    origins, directions = torch.randn(2, 40, 3, generator=seeded(3), dtype=torch.float64)
    given = kept, torch.arange(40), origins, directions, edges[:, :-1], edges[:, 1:]
    here, there = pack_samples(*given), pack_samples(*map(torch.Tensor.cuda, given))
    torch.testing.assert_close({k: v.cpu() for k, v in vars(there).items()}, vars(here), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("reward_views", [0, 2])
def test_nothing_waits_for_the_gpu_but_what_must_be_known(
    reward_views: int, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    """torch complains of each wait: none in the method (both networks, decoder, rewards and their gradients), in a
    whole step those that psd/scenes/radiance.py gives reasons for and one for the step's numbers.
    """
    most = 3 + 1 + 1  # a render; a refreshed occupancy, in a run of five steps at each; the numbers
    plain, whole, calls, waits = choose.METHODS["steered"].function, algorithm.optimise_step, [], []

    def strict(step):
        calls.append(1)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error" if len(calls) > 2 else "default")  # texts and graphs come first
        try:
            return plain(step)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def counted(*given, **keywords):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return whole(*given, **keywords)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                found = [w for w in caught if "called a synchronizing CUDA operation" in str(w.message)]
                waits.append([f"{Path(w.filename).name}:{w.lineno}" for w in found])

    monkeypatch.setitem(choose.METHODS, "steered", replace(choose.METHODS["steered"], function=strict))
    monkeypatch.setattr(algorithm, "optimise_step", counted)
    preset = phase(
        "mvdream", "early", steps=5, judges=[], preview_size=32, mesh_resolution=16, negative=False,
        reward_views=reward_views,
    )  # fmt: skip
    models = random_models(preset, cuda(), torch.float16, tiny=True)
    steps = [event for event in run(preset, models) if isinstance(event, Stepped)]
    assert len(steps) == 5 == len(calls)
    record_property("strict steps", len(calls) - 2)
    record_property("waits of a step", len(waits[-1]))
    assert all(len(found) <= most for found in waits[2:]), waits[2:]
    assert len(waits[-1]) >= 4, "a render and the numbers wait at least: torch counts no more"


def test_a_whole_run_of_the_embedded_models(record_property) -> None:
    from psd.models.load import load_models

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
    preset = Preset.load("mvdream", {"scene": {"blob_density": 40.0, "ray_samples": 512, "background": "plain"}})
    scene = RadianceScene(preset, cuda())
    scene.advance(0.0)
    field: Any = scene.field
    cameras, white = turntable_cameras(2).to(cuda()), torch.ones(1, 3)
    origins, directions = (x.flatten(0, -2) for x in camera_rays(cameras, 64))
    ours = scene.render(cameras, 64, background=white).rgb

    estimator = nerfacc.OccGridEstimator([-1, -1, -1, 1, 1, 1], resolution=field.CELLS, levels=1).cuda()
    estimator.binaries = field.occupied_cells(1e-3 / scene.step)[None]
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


@pytest.mark.parametrize("name", CAPS)
def test_a_step_in_the_exact_shapes(name: str, record_property) -> None:
    """it/s of a whole run are the mean over its halves.  Memory is capped at what the preset is meant for, from the
    moment when the models stand (random weights are drawn in float32): a run that does not fit fails this."""
    preset, peak, mean, waiting, over = Preset.load(name), memory.Peak(0), 0.0, 0.0, 0.0
    memory.release_memory()  # the models before, which would count against the cap
    models = random_models(preset, cuda(), torch.float16)
    try:
        throughput.cap_memory(CAPS[name] * 1e9 / 2**30)
        for which, half in halves_of(name).items():
            found = bench.measure_steps(phase(name, which), models, 8, weigh=[half])
            mean, peak = mean + half.share * found.step_s, peak | found.peak
            waiting += half.share * found.waiting_step_s
            over += half.share * found.waiting_step_s * found.overhead_share
            record_property(f"{which} it/s", round(1 / found.step_s, 2))
            record_property(f"{which} overhead", f"{found.overhead_share:.1%}")
            spent = {part: f"{value['median_s'] * 1e3:.1f}" for part, value in found.parts.items()}
            record_property(f"{which} ms", " ".join(f"{part}={ms}" for part, ms in spent.items()))
            if found.repeated:
                record_property(f"{which} steps that overflowed", found.repeated)
        more = throughput.time_side_work(preset, models, torch.cuda.synchronize) if name in WHOLE else None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    record_property("run it/s", round(1 / mean, 2))
    record_property("10,000 steps alone, minutes", round(10_000 * mean / 60, 1))
    if more is not None:
        peak |= more.peak
        record_property("with previews, checkpoints and mesh, minutes", round(more.whole_s(preset, mean) / 60, 1))
        record_property("a preview, s", round(more.preview_s, 2))
        record_property("a checkpoint, s", round(more.checkpoint_s, 2))
        record_property("mesh, s", "none" if more.mesh_s is None else round(more.mesh_s, 1))
    assert peak.reserved and peak.allocated and peak.allocated <= peak.reserved <= CAPS[name] * 1.01e9
    record_property("GB of the GPU", round(peak.reserved / 1e9, 2))
    record_property("GB in tensors", round(peak.allocated / 1e9, 2))
    card = torch.cuda.get_device_name()
    for bar in throughput.check_targets(
        preset, exact=True, card=card, step_s=mean, reserved=peak.reserved, overhead_share=over / waiting
    ):
        record_property(f"bar, {bar.asked}", f"{bar.found}, {'met' if bar.met else 'MISSED'}")


@pytest.mark.parametrize("name", ["mvdream-surface", "mvdream-gaussians"])
def test_every_stage_of_a_pipeline_in_the_exact_shapes(name: str, record_property) -> None:
    """Steps of each stage, one after the other, with memory capped at what the preset is meant for."""
    memory.release_memory()
    preset = throughput.short_schedule(Preset.load(name), 4, {"judges": [], "negative_every": 1})
    models = random_models(preset, cuda(), torch.float16)
    try:
        throughput.cap_memory(22e9 / 2**30)
        events = list(run(preset, models))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert isinstance(events[-1], Finished) and events[-1].reason == "completed", events[-1]
    assert not [event for event in events if isinstance(event, Warned) and "memory" in event.message]
    steps = [event for event in events if isinstance(event, Stepped)]
    assert sorted({event.stage for event in steps}) == list(range(len(preset.stages)))
    for before, after in zip(steps, steps[1:]):
        if after.stage == before.stage:
            record_property(f"stage {after.stage + 1}, last step, s", round(after.time_s - before.time_s, 2))
    record_property("GB of the GPU", round(memory.peak_bytes() / 1e9, 2))


def test_what_the_steered_pair_costs(record_property) -> None:
    """Over plain score distillation; through the small decoder, and the random pair beside it."""
    times = {}
    for what, changes in {
        "sds": {"method": "sds"}, "steered": {"negative": False}, "random": {"pair": "random", "negative": False}
    }.items():  # fmt: skip
        times[what] = paced("mvdream", "late", **changes)
        record_property(f"{what} ms", round(times[what] * 1e3, 1))
    assert times["sds"] < times["steered"]


def test_what_speeds_a_step_up(record_property) -> None:
    """The second half of `mvdream`, where the negative learns too, each switch alone."""
    for what, changes in {
        "as shipped": {}, "without CUDA graphs": {"compile": "none"}, "compiled too": {"compile": "inductor"},
        "two reward views": {"reward_views": 2},
        "full decoder": {"reward_decoder": ""}, "negative off": {"negative": False},
        "gradients made again, two pictures at a time": {"network_batch": 2},
    }.items():  # fmt: skip
        record_property(f"{what}, it/s", round(1 / paced("mvdream", "late", **changes), 2))


def test_where_a_reward_is_asked_contrast_is_known(record_property) -> None:
    """The statistic of `pair/contrast`, on random weights at guidance 50: a number, whatever they predict."""
    preset = phase("mvdream", "early", steps=12, judges=[], negative=False)
    memory.release_memory()
    steps = [event for event in run(preset, random_models(preset, cuda(), torch.float16)) if isinstance(event, Stepped)]
    found = [step.metrics["pair/contrast"] for step in steps if "pair/contrast" in step.metrics]
    assert found and all(0 < value < float("inf") for value in found)
    record_property("contrast, median", round(statistics.median(found), 3))
    record_property("contrast, least and most", f"{min(found):.3f} {max(found):.3f}")


def test_the_scenes_optimiser_is_one_kernel_and_resumes(record_property) -> None:
    """Fused Adam on a GPU, whose state comes back from a checkpoint as it was."""
    preset = phase("mvdream", "early", steps=4, judges=[], negative=False)
    models = random_models(preset, cuda(), torch.float16, tiny=True)
    whole = State.create(preset, models)
    assert whole.optimiser.param_groups[0]["fused"]
    for value in parameters_by_name(whole.optimiser).values():
        value.grad = torch.ones_like(value)
    whole.optimiser.step()
    again = State.create(preset, models)
    load_optimiser(again.optimiser, {name: value.cpu() for name, value in optimiser_state(whole.optimiser).items()})
    for name, value in optimiser_state(whole.optimiser).items():
        assert torch.equal(optimiser_state(again.optimiser)[name], value), name


def test_the_bench_command_measures_mvdream(capsys: pytest.CaptureFixture[str], record_property) -> None:
    """`python -m psd bench --preset mvdream --random-weights --memory-gb 20.49`, with the preset's own prompts."""
    memory.release_memory()
    gib = CAPS["mvdream"] * 1e9 / 2**30
    try:
        told = bench.main(Preset.load("mvdream"), 6, full=False, as_json=True, random_weights="exact", memory_gb=gib)
        assert told == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    found = json.loads(capsys.readouterr().out)
    assert found["card"] and found["whole_s"] > found["run_s"] > 0 and found["targets"]
    record_property("it/s, of a young scene", round(1 / found["step_s"], 2))
    for bar in found["targets"]:
        record_property(f"bar, {bar['asked']}", f"{bar['found']}, {'met' if bar['met'] else 'MISSED'}")
