"""What every test gets: one thread, no hub, no telemetry, checked shapes, the same examples on every run."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch

from tests.support import signatures
from tests.support.gpu_table import LATE

if TYPE_CHECKING:
    from psd.embedded.objects.collection import Collection

# Before torch, transformers and gradio are imported, and inherited by the processes that tests start.
os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    GRADIO_ANALYTICS_ENABLED="False",
)

# Not in the page, where Gradio asks which functions are generators; nor in kernels, whose source Triton reads.
if os.environ.get("PSD_TEST_SHAPES", "1") != "0":  # measurements of speed go without: `make test-gpu`
    signatures.check_imports(
        Path(__file__).resolve().parent.parent / "psd", but_not=("psd.ui.", "psd.scenes.fields.hash_triton")
    )
torch.set_num_threads(1)

# No deadline: the machine's load is not the code's fault.  The database would make one run depend on the last.
hypothesis.settings.register_profile("psd", deadline=None, derandomize=True, database=None, max_examples=60)
hypothesis.settings.load_profile("psd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The browser's files are few tests of many seconds: begun last, one process would work on them alone for minutes.
    items.sort(key=lambda item: item.get_closest_marker("browser") is None)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


BEGUN = time.monotonic()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what comes too late for a GPU that may be there for minutes only (`make test-gpu`); no other test."""
    limit = float(os.environ.get("PSD_TEST_SECONDS", "inf"))
    if item.get_closest_marker("gpu") and time.monotonic() - BEGUN > limit:
        pytest.skip(f"{LATE} {limit:.0f} s")


@pytest.fixture(autouse=True, scope="session")
def small_films() -> Iterator[None]:
    """Of six small frames: whole ones take seconds each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psd.runs.store.films.FRAMES", 6)
        patch.setattr("psd.runs.store.films.SIZE", 64)
        yield


class Figures:
    """Tells what a test recorded as soon as it is over, so that a command that is cut off has told what it found."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None and report.when == "call" and report.user_properties:
            found = ", ".join(f"{name} {value}" for name, value in report.user_properties)
            terminal.write_line(f"\n{report.nodeid} {report.outcome}, {report.duration:.0f} s: {found}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Figures(config), "figures")


@pytest.fixture(scope="session")
def collection() -> "Collection":
    """The real objects; where no folder is named their tests are skipped, in continuous integration they fail."""
    from psd.embedded.objects.collection import VARIABLE, open_collection

    if VARIABLE not in os.environ and "CI" not in os.environ:
        pytest.skip(f"{VARIABLE} names no folder of objects (docs/embedded.md)")
    return open_collection()
