"""Readable reasons why this machine cannot run something, each with a fix.  Needs no package until it is asked."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from functools import cache

from psd.config.errors import first_line

LARGE_PRESETS = {"mvdream": 24, "mvdream-12gb": 12, "mvdream-8gb": 8}  # GB of the GPU that each is planned for
USABLE = 0.85  # of a GPU's nominal memory at least: error correction and the driver keep some


def python_problem(version: tuple[int, int]) -> str:
    """Why this Python may not do; "" for one that the project was tried with."""
    if (3, 11) <= version <= (3, 12):
        return ""
    return f"PSD Studio runs on Python 3.11 and 3.12; this is {version[0]}.{version[1]}: use one of those"


def refuse_old_python() -> None:
    """End the process on a Python that lacks what the program needs; warn on one that it was never tried with."""
    version = sys.version_info[:2]
    if problem := python_problem(version):
        if version < (3, 11):
            sys.exit(problem)
        print(problem, file=sys.stderr)


def missing_package(error: ModuleNotFoundError) -> str:
    """Which package is missing, and the cure; the error itself for a module of this program."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "psd"):
        raise error
    return f"the package {package} is not installed: pip install -r requirements.txt"


def import_error(module: str) -> str:
    """Why an installed package cannot be imported here; "" where it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - compiled for another GPU, driver or torch, it may raise anything
        return first_line(error)
    return ""


def missing_gpu() -> tuple[str, str]:
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


def unsupported_gpu(card: int = 0) -> tuple[str, str] | None:
    """Why this torch cannot compute on a GPU that it finds, and the cure; None where it can, or does not say.

    Otherwise the first computation dies of "no kernel image is available".
    """
    import torch

    built = [name for name in torch.cuda.get_arch_list() if name.startswith(("sm_", "compute_"))]
    major, minor = torch.cuda.get_device_capability(card)
    if not built or any(_is_code_for(name, (major, minor)) for name in built):
        return None
    kind = "an older" if all(_parse_capability(name) > (major, minor) for name in built) else "a newer"
    return (
        f"torch {torch.__version__} is built for {', '.join(built)}, not for this GPU (sm_{major}{minor})",
        f"install a torch for {kind} CUDA than {torch.version.cuda}, or {kind} torch (pytorch.org lists them)",
    )


def _parse_capability(built: str) -> tuple[int, int]:
    digits = re.sub(r"\D", "", built)
    return int(digits[:-1]), int(digits[-1])


def _is_code_for(built: str, card: tuple[int, int]) -> bool:
    """Machine code (sm_) serves later minor versions too, PTX (compute_) all later cards; an a or f at the end narrows
    it to one card or one major version."""
    needed = _parse_capability(built)
    if built.endswith("a"):
        return needed == card
    any_later = built.startswith("compute_") and not built.endswith("f")
    return needed <= card and (any_later or needed[0] == card[0])


@cache
def advise_large_preset() -> str:
    """Which presets make what the embedded models do not know, what they need, and whether this machine has it."""
    *others, least = (f"{name} ({memory} GB)" for name, memory in LARGE_PRESETS.items())
    return (
        f"Other objects need a preset with large models and an NVIDIA GPU: {', '.join(others)} or {least}; "
        f"the first run downloads about 10 GB. {_judge_gpu()}"
    )


def _judge_gpu() -> str:
    import torch

    if not torch.cuda.is_available() or unsupported_gpu() is not None:
        return "This machine has no GPU that can be used."
    card = torch.cuda.get_device_properties(0)
    has = f"This machine's GPU ({card.name}, {card.total_memory / 2**30:.0f} GB)"
    for name, memory in LARGE_PRESETS.items():
        if card.total_memory >= USABLE * memory * 2**30:
            return f"{has} is enough for {name}."
    return f"{has} is too small."


def out_of_memory_help(error: BaseException, device: str) -> str:
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
