"""What a machine lacks is said by the run and by the doctor alike, with the cure."""

import errno
import socket
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from psd import doctor
from psd.config.errors import MissingError
from psd.config.preset import Preset
from psd.models import hub, load
from psd.runtime import devices, diagnosis, lanes, memory
from tests.support.toy import make_models, make_preset, run


def with_driver(monkeypatch: pytest.MonkeyPatch, cuda: str | None) -> None:
    """A machine with an NVIDIA driver, and a torch for that version of CUDA (None: for CPUs) that finds no GPU."""
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("torch.version.cuda", cuda)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)


@pytest.mark.parametrize(("cuda", "cure"), [("13.0", "update the driver to one for CUDA 13.0"), (None, "TORCH=cuda")])
def test_a_driver_of_no_use_is_explained_by_doctor_and_run(
    cuda: str | None, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_driver(monkeypatch, cuda)
    (finding,) = [finding for finding in doctor.check_accelerators() if finding.what == "gpu"]
    assert finding.state == doctor.NOTE and cure in finding.cure
    with pytest.raises(MissingError, match=cure):
        devices.choose_device("cuda")
    device, why = devices.choose_device("auto")
    assert device.type == "cpu" and cure in why  # a run on the CPU says why it is one


def test_without_a_driver_the_cpu_needs_no_excuse(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, "13.0")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert diagnosis.missing_gpu()[1] == ""
    assert devices.choose_device("auto")[1] == "device cpu: the fastest found"
    with pytest.raises(MissingError, match="use device=auto"):
        devices.choose_device("cuda")


def with_card(monkeypatch: pytest.MonkeyPatch, card: tuple[int, int], built: str) -> None:
    """A machine with one GPU of that capability, and a torch that is built for those architectures."""
    about = SimpleNamespace(name="GPU", total_memory=2**35)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: about)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: card)
    monkeypatch.setattr("torch.cuda.get_arch_list", built.split)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)


@pytest.mark.parametrize(
    ("card", "built", "cure"),
    [
        ((8, 0), "sm_75 sm_80 sm_90", ""),
        ((8, 9), "sm_75 sm_86 sm_90", ""),  # a later minor version
        ((12, 0), "sm_80 sm_90 compute_90", ""),  # PTX, compiled by the driver
        ((9, 0), "gfx90a", ""),  # ROCm's names say nothing here
        ((9, 0), "sm_80 sm_90a", ""),
        ((10, 3), "sm_90 sm_100f", ""),
        ((6, 1), "sm_75 sm_80 sm_90 compute_90", "an older CUDA than 13.0"),
        ((12, 0), "sm_80 sm_90", "a newer CUDA than 13.0"),
        ((8, 0), "sm_75 sm_86 sm_90", "a newer CUDA than 13.0"),
        ((10, 3), "sm_90a compute_100a", "a newer CUDA than 13.0"),
        ((12, 0), "compute_100f", "a newer CUDA than 13.0"),
    ],
)
def test_a_card_that_torch_has_no_kernels_for_is_explained_by_doctor_and_run(
    card: tuple[int, int], built: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_card(monkeypatch, card, built)
    findings = list(doctor.check_accelerators())
    (finding,) = [finding for finding in findings if finding.what == "cuda:0"]
    assert any(finding.what == "hash grid" for finding in findings) == (not cure)
    device, why = devices.choose_device("auto")
    if not cure:
        assert finding.state == doctor.OK and device.type == devices.choose_device("cuda")[0].type == "cuda"
        return
    assert finding.state == doctor.NOTE and finding.cure in why and cure in finding.cure
    assert device.type == "cpu" and f"sm_{card[0]}{card[1]}" in why
    with pytest.raises(MissingError, match=cure):
        devices.choose_device("cuda")


def test_models_that_do_not_fit_are_explained_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.2 GiB\nand more")

    monkeypatch.setattr(load.components, "load_components", full)
    load.load_prior.cache_clear()
    with pytest.raises(MissingError, match=r"do not fit.*1\.2 GiB; .*network_batch=1.*mvdream-8gb") as caught:
        load.load_models(Preset.load("tiny", {"device": "cpu", "prior": "assets/prior"}))
    assert caught.value.__context__ is None  # nothing holds what was loaded

    def broken(*args, **keywords):
        raise RuntimeError("other")

    monkeypatch.setattr(load.components, "load_components", broken)
    with pytest.raises(RuntimeError, match="other"):
        load.load_models(Preset.load("tiny", {"device": "cpu"}))


def test_a_gpu_holds_the_models_of_one_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = []
    monkeypatch.setattr(load, "unload_all", lambda: gone.append(1))
    monkeypatch.setattr(load, "_held", {})
    gpu, half = torch.device("cuda"), torch.float16
    for change, lost in [
        ({}, 0), ({"prompt": "a chair", "seed": 3, "steps": 9}, 0), ({"rewards": {"assets/reward": 0.5}}, 0),
        ({"network_batch": 1}, 1), ({"network_batch": 1, "judges": []}, 2), ({}, 3),
    ]:  # fmt: skip
        load.evict_other_models(Preset.load("tiny", change), gpu, half)
        assert len(gone) == lost, change
    load.evict_other_models(Preset.load("tiny", {"judges": []}), torch.device("cpu"), half)
    assert len(gone) == 3  # main memory is larger


def test_models_that_nobody_holds_are_freed() -> None:
    preset = Preset.load("tiny", {"device": "cpu"})
    held = weakref.ref(load.load_models(preset).prior)
    load.unload_all()
    assert held() is None  # a network and what calls it are a cycle: no count of references ends it


def test_networks_that_had_to_take_fewer_images_take_all_in_the_next_run() -> None:
    preset = Preset.load("tiny", {"device": "cpu"})
    loaded = load.load_models(preset)
    loaded.fewer()
    networks: list = [loaded.prior, *loaded.rewards.values(), *loaded.judges.values()]
    assert [network.batch for network in networks] == [loaded.prior.views] * 3
    load.load_models(preset)
    assert [network.batch for network in networks] == [0] * 3


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("could not create a primitive"), True),  # oneDNN, of a kernel for which there is no room
        (RuntimeError("could not create a primitive descriptor for a convolution"), False),  # no such kernel
        (RuntimeError("unable to mmap 240000080 bytes from file <a>: Cannot allocate memory (12)"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (type("PanicException", (BaseException,), {})("called unwrap() on an Err value: MemoryError"), True),
        (type("PanicException", (BaseException,), {})("index out of bounds"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_short_memory_is_told_from_other_failures(error: BaseException, short: bool) -> None:
    assert memory.is_out_of_memory(error) == short


def test_doctor_tries_the_hub_unless_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_connection().detail.startswith("offline, as asked")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        refused = doctor.check_connection()
        server.listen()
        reached = doctor.check_connection()
    assert refused.state == doctor.NOTE and "check the connection" in refused.cure
    assert reached.state == doctor.OK and "without a token" in reached.detail


def test_doctor_says_that_a_download_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = "ashawkey/mvdream-sd2.1-diffusers"
    assert not hub.is_partial(source) and "begun" not in doctor.check_preset("mvdream").detail
    cache = tmp_path / "models--ashawkey--mvdream-sd2.1-diffusers"
    (cache / "snapshots" / "abc").mkdir(parents=True)  # as the first file of several leaves it
    (cache / "snapshots" / "abc" / "model_index.json").write_text("{}")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    assert hub.is_partial(source) and not hub.is_partial("assets/prior")
    assert f"begun, and gone on with: {source}" in doctor.check_preset("mvdream").detail


def test_threads_of_one_run_do_not_stay_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = lanes._cores
    monkeypatch.setattr(lanes, "_cores", 3)
    try:
        found = [
            (lanes.share_cores(threads, small=small), torch.get_num_threads(), lanes.count_lanes())
            for threads, small in ((4, True), (0, False), (0, True), (2, False))
        ]
    finally:
        lanes.limit_cores(cores)
    assert found == [
        ("4 CPU threads", 4, 1), ("3 CPU threads", 3, 1), ("3 lanes of one CPU thread", 1, 3), ("2 CPU threads", 2, 1)
    ]  # fmt: skip
    models = load.load_models(Preset.load("tiny", {"device": "cpu"}))
    assert f"{cores} lanes of one CPU thread" in models.notes


def test_the_peak_remembers_what_was_given_back() -> None:
    held = np.ones(2**26, np.uint8)
    during = memory.resident_bytes()  # 0 where there is no /proc
    assert held[-1] == 1
    del held
    assert memory.peak_bytes() >= during - 2**22  # the kernel counts in batches of pages


def test_a_run_counts_the_peak_of_a_gpu_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = [9_000]
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: peaks[-1] - 1)
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda: peaks[-1])
    kept = [9_000]  # by torch for later, of what the run before held; until it is given back the peak cannot be less
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: kept.append(100))
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: peaks.append(kept[-1]))
    next(run(make_preset(), make_models()))
    assert memory.peak_bytes() == 100
