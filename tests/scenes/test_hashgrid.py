"""The hash grid's kernels against the plain grid in float64: interpreted on a CPU, compiled for GPUs, run on one."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from psd import doctor
from psd.scenes.fields import hash_backends
from psd.scenes.fields.hash import HashField
from psd.scenes.fields.hash_backends import hash_backend, make_hash_encoding, triton_problem
from psd.scenes.fields.hash_encoding import HashEncoding

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed here; it comes with torch for CUDA"
)


def compared(device: str, count: int, axes: tuple[int | None, ...] = (None, 0, 1, 2)) -> dict[str, float]:
    """Largest differences between kernels and plain grid in float64, values and gradients, over their largest value.

    Places on the finest of 16 levels are good to 2e-4 of a cell in float32, hence so are weights.
    """
    from psd.scenes.fields.hash_triton import TritonHashEncoding

    generator = torch.Generator().manual_seed(0)
    kernels, plain = TritonHashEncoding(generator).to(device), HashEncoding(generator).to(device).double()
    points = torch.rand(count, 3, generator=generator)
    points[:3] = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0, 1, 0.5]])
    points = points.to(device)
    found = {}
    with torch.no_grad():
        kernels.params.mul_(1e4)
        plain.params.copy_(kernels.params.double())
    for axis in axes:
        ours, theirs = kernels.gather(points, axis), plain.gather(points.double(), axis)
        pull = torch.randn(ours.shape, generator=generator).to(device)
        (gradient,) = torch.autograd.grad(ours, kernels.params, pull)
        (wanted,) = torch.autograd.grad(theirs, plain.params, pull.double())
        for what, one, other in (("value", ours, theirs), ("gradient", gradient, wanted)):
            # a slope jumps from cell to cell, and points on the border of two are rare
            off = (one.double() - other).abs().flatten() / other.abs().max()
            found[f"{what} {axis}"] = off.max().item() if axis is None else off.quantile(0.999).item()
    nothing = kernels.gather(points[:0])
    assert nothing.shape == (0, 32)
    return found


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kernels_agree_with_the_plain_grid_in_the_interpreter() -> None:
    """Triton reads the variable when it is imported, so in a process of its own."""
    code = "from tests.scenes.test_hashgrid import compared; print(max(compared('cpu', 130, (None, 1)).values()))"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert float(ran.stdout) < 1e-3
    code = "import torch; from psd.scenes.fields.hash_triton import try_kernels; try_kernels(torch.device('cpu'))"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize("capability", [75, 80, 90])
@pytest.mark.parametrize("axis", [-1, 2])
def test_kernels_compile_for_gpus_that_are_not_here(
    capability: int, axis: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to machine code, by the assembler that Triton brings; a vertex's pair in one transfer, and no division."""
    import triton  # pyright: ignore[reportMissingImports]
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports]

    from psd.scenes.fields import hash_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    fixed = {"AXIS": axis, "WIDTH": 32, "P1": HashEncoding.PRIMES[1], "P2": HashEncoding.PRIMES[2],
             "BLOCK": hash_triton.BLOCK}  # fmt: skip
    for kernel in (hash_triton._gather_kernel, hash_triton._scatter_kernel):
        kernel: Any
        kinds = dict(zip(kernel.arg_names, ["*fp32"] * 3 + ["i32", "*fp32", "*i32"]))
        signature = {name: kinds.get(name, "constexpr") for name in kernel.arg_names}
        aligned = {(at,): [["tt.divisibility", 16]] for at, kind in enumerate(kinds.values()) if kind[0] == "*"}
        source = ASTSource(kernel, signature, constexprs=fixed, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert len(compiled.asm["cubin"]) > 1000
        code = compiled.asm["ptx"]
        assert "ld.global.v2" in code and "rem.u32" not in code
        assert ("add.v2.f32" in code) == (kernel is hash_triton._scatter_kernel and capability >= 90)


def test_slopes_are_the_derivatives_of_the_features() -> None:
    encoding = HashEncoding(torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        encoding.params.mul_(1e4)
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-7
    for axis in range(3):
        moved = torch.zeros(3, dtype=torch.float64)
        moved[axis] = step
        wanted = (encoding(points + moved) - encoding(points - moved)) / (2 * step)
        torch.testing.assert_close(encoding.feature_slopes(points)[..., axis], wanted, rtol=1e-5, atol=1e-4)


def lumpy_field() -> HashField:
    field = HashField(10.0, seed=0, device="cpu").double()
    with torch.no_grad():
        field.encoding.params.mul_(3e3)
    return field


def test_normals_point_against_the_slope_of_the_density_and_learn() -> None:
    field = lumpy_field()
    points = (torch.rand(30, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5) * 0.8
    normal = field.sample(points, normals=True).normal
    assert normal is not None
    moves = 1e-9 * torch.eye(3, dtype=torch.float64)  # short of the next kink of the network
    slope = torch.stack([field.sample(points + m).density - field.sample(points - m).density for m in moves], dim=-1)
    torch.testing.assert_close(normal, -torch.nn.functional.normalize(slope, dim=-1), rtol=1e-4, atol=1e-4)
    pull = torch.randn(normal.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parameters = [field.encoding.params, field.density_network[0].weight, field.density_network[2].weight]
    gradients = torch.autograd.grad((normal * pull).sum(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):  # against differences along the gradient
        step = 1e-6 * gradient / gradient.norm()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step)
            moved = field.sample(points, normals=True).normal
            assert moved is not None
            ends.append((moved * pull).sum().item())
            with torch.no_grad():
                parameter.sub_(sign * step)
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(gradient.norm().item(), rel=1e-3)


def test_a_field_in_pieces_is_the_whole_field(monkeypatch: pytest.MonkeyPatch) -> None:
    field = lumpy_field()
    points = (torch.rand(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5) * 0.8
    results = []
    for piece in (1000, 100):  # with normals a quarter of it, so two pieces
        monkeypatch.setattr("psd.scenes.fields.hash.CHUNK", piece)
        found = field.sample(points, normals=True)
        assert found.normal is not None
        total = found.density.sum() + found.colour.square().sum() + found.normal[:, 0].sum()
        gradients = torch.autograd.grad(total, tuple(field.parameters()))
        results.append([found.density, found.colour, found.normal, *gradients])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)
    for piece, keeps in ((1000, True), (20, False)):
        monkeypatch.setattr("psd.scenes.fields.hash.CHUNK", piece)
        density, features = field.look_ahead(points)
        torch.testing.assert_close(density, results[0][0], rtol=1e-12, atol=0)
        assert (features is not None) == keeps


def test_features_of_a_look_are_not_gathered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    field, sums = lumpy_field(), []
    points = (torch.rand(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5) * 0.8
    _, features = field.look_ahead(points)
    plain, results = torch.nn.functional.embedding_bag, []
    monkeypatch.setattr(
        "psd.scenes.fields.interpolation.F.embedding_bag", lambda *a, **k: sums.append(1) or plain(*a, **k)
    )
    for known in (None, features):
        sums.clear()
        found = field.sample(points, known=known)
        assert len(sums) == (HashEncoding.LEVELS if known is None else 0)
        results.append([found.density, found.colour, *torch.autograd.grad(
            found.density.sum() + found.colour.square().sum(), tuple(field.parameters())
        )])  # fmt: skip
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@needs_triton
def test_both_kernels_are_tried_at_lengths_of_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that fails on the way back, or at a length that 16 does not divide, must be known before a run."""
    from psd.scenes.fields import hash_triton

    launched = []
    monkeypatch.setattr(
        hash_triton, "_launch_kernel", lambda kernel, points, *_: launched.append((kernel, len(points)))
    )
    hash_triton.try_kernels(torch.device("cpu"))
    kernels = {hash_triton._gather_kernel, hash_triton._scatter_kernel}
    assert {kernel for kernel, count in launched if count % 16 == 0} == kernels
    assert {kernel for kernel, count in launched if count % 16} == kernels


def test_without_an_nvidia_gpu_the_grid_is_plain_and_says_so() -> None:
    assert hash_backend(torch.device("cpu")) == ("plain", "plain torch: kernels are for NVIDIA GPUs, this is cpu")
    assert type(lumpy_field().encoding) is HashEncoding


@pytest.mark.parametrize("error", ["NameError('no _C')", "RuntimeError('no _C')", "EnvironmentError('no _C')"])
def test_a_tinycudann_of_another_machine_is_passed_over_and_named(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tinycudann.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    name, why = hash_backend(torch.device("cuda"))
    assert name != "tinycudann" and why.endswith("; tinycudann cannot be used here (no _C)")
    finding = doctor.check_optional("tinycudann", "a faster hash grid")
    assert finding.state == doctor.NOTE and "(no _C)" in finding.detail


@pytest.mark.parametrize("reason", ["", "no gcc"])
def test_beside_tinycudann_slopes_are_the_kernels_where_these_work(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tinycudann and Triton stand in by classes that count the points; their own values are compared on a GPU."""

    class Kernels(HashEncoding):
        def gather(self, points: torch.Tensor, axis: int | None = None) -> torch.Tensor:
            asked.append(axis)
            return super().gather(points, axis)

    class Fused(torch.nn.Module):
        def forward(self, points: torch.Tensor) -> torch.Tensor:
            asked.append("fused")
            return torch.zeros(len(points), 32)

    asked: list[int | str | None] = []
    tinycudann = SimpleNamespace(Encoding=lambda *_, **__: Fused(), __spec__=ModuleSpec("tinycudann", None))
    monkeypatch.setitem(sys.modules, "tinycudann", tinycudann)
    monkeypatch.setitem(sys.modules, "psd.scenes.fields.hash_triton", SimpleNamespace(TritonHashEncoding=Kernels))
    monkeypatch.setattr(hash_backends, "triton_problem", lambda device: reason)
    monkeypatch.setattr(HashEncoding, "to", lambda self, device: self)
    name, why = hash_backend(torch.device("cuda"))
    assert name == "tinycudann" and reason in why and ("slopes in plain torch" in why) == bool(reason)
    encoding = make_hash_encoding(torch.Generator().manual_seed(0), torch.device("cuda"))
    assert encoding.fused[0].params is encoding.params and list(encoding.state_dict()) == ["params"]
    encoding(torch.rand(3, 3))
    encoding.feature_slopes(torch.rand(3, 3))
    assert asked == ["fused", *([] if reason else [0, 1, 2])]


@pytest.fixture
def gpu_without_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """A GPU and a Triton whose first launch fails as it does without gcc, or without Python.h; and what was tried."""
    tried = []

    def try_out(device: torch.device) -> None:
        tried.append(device)
        raise subprocess.CalledProcessError(1, ["gcc", "main.c"])

    (tmp_path / "triton.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    monkeypatch.setitem(sys.modules, "psd.scenes.fields.hash_triton", SimpleNamespace(try_kernels=try_out))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    triton_problem.cache_clear()
    yield tried
    triton_problem.cache_clear()


def test_without_a_c_compiler_the_grid_is_plain_and_names_the_cure(gpu_without_compiler: list[torch.device]) -> None:
    device = torch.device("cuda")
    for _ in range(2):
        name, why = hash_backend(device)
        assert name == "plain" and "exit status 1" in why and "install gcc and python3-dev" in why
    (finding,) = doctor.check_hash_grid()
    assert finding.state == doctor.NOTE and finding.detail == why
    assert hash_backend(torch.device("cpu"))[0] == "plain"
    assert gpu_without_compiler == [device]  # once a process, and for a GPU only


# --------------------------------------------------------------------------------------------------------------- a GPU


@pytest.mark.gpu
@needs_triton
def test_kernels_agree_with_the_plain_grid_on_a_gpu(record_property) -> None:
    worst = max(compared("cuda", 100_000).values())
    record_property("largest difference", f"{worst:.1e}")
    assert worst < 2e-3


@pytest.mark.gpu
def test_tiny_cuda_nn_agrees_with_the_plain_grid(record_property) -> None:
    device = torch.device("cuda")
    if hash_backend(device)[0] != "tinycudann":
        pytest.skip("tinycudann is not installed (requirements-cuda.txt says how)")
    generator = torch.Generator().manual_seed(0)
    fast, plain = make_hash_encoding(generator, device), HashEncoding(generator).to(device)
    with torch.no_grad():
        fast.params.mul_(1e4)
        plain.params.copy_(fast.params)
    points = torch.rand(100_000, 3, generator=generator).to(device)
    pull = torch.randn(100_000, 32, generator=generator).to(device)
    worst = 0.0
    ours, theirs = fast(points), plain(points)
    (gradient,), (wanted,) = (
        torch.autograd.grad(x, p.params, pull) for x, p in ((ours, fast), (theirs, plain))
    )  # fmt: skip
    for one, other in ((ours, theirs), (gradient, wanted)):
        worst = max(worst, ((one - other).abs().max() / other.abs().max()).item())
    record_property("largest difference", f"{worst:.1e}")
    assert worst < 5e-3


@pytest.mark.gpu
def test_the_kernels_are_fast_enough_to_be_the_default(record_property) -> None:
    """Four million points there and back: an early step of `mvdream`, or a late one of 256 px behind its surface."""
    encoding = make_hash_encoding(torch.Generator().manual_seed(0), torch.device("cuda"))
    points = torch.rand(2**22, 3, device="cuda")
    pull = torch.randn(2**22, 32, device="cuda")
    times = []
    for _ in range(4):
        begin, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        begin.record()
        features = encoding(points)
        middle.record()
        torch.autograd.grad(features, encoding.params, pull)
        end.record()
        torch.cuda.synchronize()
        times.append((begin.elapsed_time(middle), middle.elapsed_time(end)))
    forward, backward = min(times, key=sum)
    record_property("backend", hash_backend(torch.device("cuda"))[0])
    record_property("forward ms", round(forward, 2))
    record_property("backward ms", round(backward, 2))
    assert forward + backward < 60
