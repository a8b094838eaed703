"""Who lays ellipses over one another: gsplat's kernels, or plain torch, with the reason."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

from psd import doctor
from psd.config.preset import Preset
from psd.geometry import splat_backends
from psd.geometry.cameras import turntable_cameras
from psd.geometry.splat import Composite, Gaussians, composite_ellipses, splat_gaussians
from psd.geometry.splat_backends import composite_with_gsplat, gsplat_problem, splat_backend
from psd.scenes.gaussians import GaussianScene
from tests.geometry.test_splat import channels, random_gaussians
from tests.support import reference_gsplat

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def ask_anew():
    gsplat_problem.cache_clear()
    yield
    gsplat_problem.cache_clear()


def picture_and_gradients(gaussians: Gaussians, composite: Composite, size: int) -> tuple[Tensor, list[Tensor]]:
    leaves = [getattr(gaussians, field.name).detach().clone().requires_grad_() for field in fields(Gaussians)]
    picture = channels(splat_gaussians(Gaussians(*leaves), turntable_cameras(2, elevation_deg=25), size, composite))
    weights = torch.randn(picture.shape, generator=torch.Generator().manual_seed(1)).to(picture)
    return picture.detach(), list(torch.autograd.grad((picture * weights).sum(), leaves))


def test_gsplat_is_asked_for_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some stand behind a camera, some beside the picture, which is no whole number of tiles wide."""
    monkeypatch.setitem(sys.modules, "gsplat", reference_gsplat)
    gaussians = random_gaussians(12, size=0.15)
    gaussians.opacity.mul_(0.6)
    gaussians.position[:2] *= 8
    ours, theirs = (picture_and_gradients(gaussians, way, 18) for way in (composite_ellipses, composite_with_gsplat))
    assert 0.5 < ours[0][:, :, 3].max() < 0.99
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-9)


def test_gsplat_shows_nothing_where_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsplat", reference_gsplat)
    faint = random_gaussians(3)
    faint.opacity.mul_(1e-3)
    for some in (faint, faint.at(slice(0, 0))):
        assert not channels(splat_gaussians(some, turntable_cameras(1), 5, composite_with_gsplat)).any()


def test_kernels_that_work_are_taken_and_others_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gsplat", reference_gsplat)
    assert gsplat_problem(CPU) == ""
    monkeypatch.setattr(reference_gsplat, "rasterize_to_pixels", lambda *given: (torch.zeros(1, 8, 8, 1), None))
    gsplat_problem.cache_clear()
    assert gsplat_problem(CPU) == "its kernels show nothing"
    monkeypatch.delitem(sys.modules, "gsplat")
    (tmp_path / "gsplat.py").write_text("raise OSError('no libcuda')\n")
    monkeypatch.syspath_prepend(tmp_path)
    gsplat_problem.cache_clear()
    assert gsplat_problem(CPU) == "no libcuda; its kernels need CUDA's nvcc and ninja"
    finding = doctor.check_optional("gsplat", "faster splatting")
    assert finding.state == doctor.NOTE and "(no libcuda)" in finding.detail


def test_what_was_chosen_is_said_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert splat_backend(CPU) == (composite_ellipses, "plain torch: kernels are for NVIDIA GPUs, this is cpu")
    way, why = splat_backend(CUDA)
    assert way is composite_ellipses and why == "plain torch: gsplat is not installed (requirements-cuda.txt has it)"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(splat_backends, "gsplat_problem", lambda device: "no nvcc")
    assert splat_backend(CUDA) == (composite_ellipses, "plain torch: gsplat cannot be used here (no nvcc)")
    (finding,) = doctor.check_splatting()
    assert finding.state == doctor.NOTE and "no nvcc" in finding.detail
    monkeypatch.setattr(splat_backends, "gsplat_problem", lambda device: "")
    assert splat_backend(CUDA) == (composite_with_gsplat, "gsplat, which is installed and compiled")


def test_a_scene_renders_with_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = Preset.load("tiny-gaussians", {"scene": {"gaussians": 100}})
    plain = GaussianScene(preset)
    assert plain.composite is composite_ellipses and plain.notes == ()
    monkeypatch.setattr("psd.scenes.gaussians.splat_backend", lambda device: (lambda *given: composite(*given), "so"))
    asked = []

    def composite(*given) -> Tensor:
        asked.append(given[-1])
        return composite_ellipses(*given)

    GaussianScene(preset).render(turntable_cameras(1), 9, background=torch.ones(1, 3))
    assert asked == [9]


# --------------------------------------------------------------------------------------------------------------- a GPU


@pytest.mark.gpu
def test_gsplat_agrees_with_plain_torch_on_a_gpu(record_property) -> None:
    """Values and gradients, where no alpha is above 0.99; and how much faster 20,000 of them are at 128 px."""
    pytest.importorskip("gsplat")
    from torch.utils.cpp_extension import _get_build_directory

    if not any(Path(_get_build_directory("gsplat_cuda", verbose=False)).glob("*.so")):
        pytest.skip("gsplat is not compiled: python -c 'import gsplat.cuda._backend'")
    assert splat_backend(CUDA)[0] is composite_with_gsplat, splat_backend(CUDA)[1]

    def make(count: int, size: float) -> Gaussians:
        some = random_gaussians(count, size=size, dtype=torch.float32)
        some.opacity.mul_(0.6)
        return Gaussians(**{name: value.cuda() for name, value in vars(some).items()})

    ours, theirs = (
        picture_and_gradients(make(200, 0.08), way, 60) for way in (composite_ellipses, composite_with_gsplat)
    )
    record_property("largest difference", f"{(ours[0] - theirs[0]).abs().max().item():.1e}")
    assert torch.allclose(ours[0], theirs[0], atol=1e-3)
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999
    many = make(20_000, 0.02)
    for name, way in (("plain torch", composite_ellipses), ("gsplat", composite_with_gsplat)):
        spent = []
        for _ in range(6):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            picture_and_gradients(many, way, 128)
            torch.cuda.synchronize()
            spent.append(time.perf_counter() - begun)
        record_property(f"{name}, ms forward and backward", round(statistics.median(spent[1:]) * 1e3, 2))
