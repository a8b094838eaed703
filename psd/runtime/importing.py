"""Import libraries without a search for garbage among what they bring, all of which stays until the process ends."""

from __future__ import annotations

import gc
import sys
from importlib import import_module


def import_for_good(*modules: str) -> None:
    """Import ``modules`` with Python's search for cycles held still, and exempt all objects that are there from later
    ones; nothing where they are imported already.

    Python searches after every 700 new objects.  torch and diffusers make 700,000 that stay: 1,200 searches took 1 s to
    2 s of the 8 s of CPU time of their import.  What is garbage already is collected first, for it would stay as well.
    A collector that is off stays off.
    """
    if all(name in sys.modules for name in modules):
        return
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for name in modules:
            import_module(name)
    finally:
        if was_on:
            gc.freeze()
            gc.enable()
