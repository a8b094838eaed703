"""A small shelf for tests: one scripted run, slimmed as those that ship are."""

from pathlib import Path

from psd.config.preset import Preset
from psd.evaluation.shipped.showcase import slim_run
from tests.support.browsing import store_run

PROMPT, STEPS = "a red mushroom", 6


def make_shelf(folder: Path) -> Path:
    """A folder of runs that ship, with one run in it."""
    run = store_run(folder / "work", Preset.load("tiny", {"prompt": PROMPT, "steps": STEPS}))
    return slim_run(folder / "work" / run, folder / "shipped").parent
