"""How much memory a run holds, and what running out of it looks like; torch is looked at only where it is loaded."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from dataclasses import dataclass
from pathlib import Path


def resident_bytes() -> int:
    """Memory of this process; 0 where the system has no /proc to ask."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def process_peak_bytes() -> int:
    """The most that this process has held in main memory; 0 where the system does not say (Windows)."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_bytes() -> int:
    """The most of an NVIDIA GPU that this process has reserved since `reset_peak`; without one, of main memory."""
    peak = Peak.now()
    return peak.process if peak.reserved is None else peak.reserved


@dataclass(frozen=True)
class Peak:
    """The most that was held since `reset_peak`, in bytes."""

    process: int  # in main memory; 0: not known
    allocated: int | None = None  # of an NVIDIA GPU, by tensors; None without one
    reserved: int | None = None  # of it in all: tensors, what torch keeps for later, the pools of CUDA graphs

    @classmethod
    def now(cls) -> Peak:
        """Of ``allocated`` a CUDA graph's inner values are no part, once it is recorded; they stay in its pool."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return cls(process_peak_bytes())
        return cls(process_peak_bytes(), torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())

    def __or__(self, other: Peak) -> Peak:
        """Of two spans of time together."""

        def largest_known(*values: int | None) -> int | None:
            return max((value for value in values if value is not None), default=None)

        return Peak(
            max(self.process, other.process),
            largest_known(self.allocated, other.allocated),
            largest_known(self.reserved, other.reserved),
        )


def reset_peak() -> None:
    """Count the peaks anew, a GPU's and on Linux the process's: a run is not to be charged with the one before it.

    Nor with what torch keeps of that for later, which counts as reserved: it is given back.
    """
    with contextlib.suppress(OSError):  # no /proc here, or a read-only one: then the peak stays the process's
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# Of torch on a CPU; of the driver, of CUDA's libraries, which allocate on their own (cuDNN says that no algorithm is
# left for its workspace), and of Triton.  All plain RuntimeErrors.
SIGNS = (
    "can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED", "NOT_ENOUGH_WORKSPACE",
    "unable to find an engine to execute", "Unable to find a valid cuDNN algorithm", "[CUDA]: out of memory",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, torch's for a GPU, and what only its text tells."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS))


def release_memory() -> None:
    """Give back what nobody uses any more: networks, which are cycles of references, and what torch keeps of a GPU for
    later, in pieces that may not fit what comes next."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
