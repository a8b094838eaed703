"""What a machine lacks, in words: for `doctor`, and for whoever wanted it.  Needs no package until it is asked."""

from __future__ import annotations

import shutil


def first_line(error: BaseException) -> str:
    """Of what an error says; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def no_package(error: ModuleNotFoundError) -> str:
    """Which package is missing, and the cure; the error itself for a module of this program."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "psd"):
        raise error
    return f"the package {package} is not installed: pip install -r requirements.txt"


def no_gpu() -> tuple[str, str]:
    """Why there is no GPU for torch, and the cure; call it only where there is none."""
    import torch

    if shutil.which("nvidia-smi") is None:
        return "none that torch can use, and no NVIDIA driver: the embedded presets run on the CPU", ""
    if torch.version.cuda is None:
        return (
            f"there is an NVIDIA driver, but torch {torch.__version__} is a build for CPUs",
            "install the build for NVIDIA GPUs: `make clean app TORCH=cuda`",
        )
    return (
        f"there is an NVIDIA driver, but torch {torch.__version__} cannot use it",
        f"update the driver to one for CUDA {torch.version.cuda}, or restart after an update of it",
    )


def no_room(error: BaseException, device: str) -> str:
    """What to do when the models themselves do not fit."""
    import torch

    held = ""
    if torch.cuda.is_initialized():
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
        held = f" ({free:.1f} of {total:.1f} GiB are free)"
    return (
        f"the models do not fit in the memory of {device}{held}: {str(error).splitlines()[0]}; close other programs,"
        " name fewer judges, set network_batch=1, or take preset mvdream-12gb or mvdream-8gb"
    )
