"""How much memory a run holds, and what running out of it looks like; torch is looked at only where it is loaded."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def resident_bytes() -> int:
    """Memory of this process; 0 where the system has no /proc to ask."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def peak_bytes() -> int:
    """The most that an NVIDIA GPU has held of this process; without one, what the process holds now."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resident_bytes()


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, torch's for a GPU, and torch's for a CPU, which is a plain RuntimeError."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
