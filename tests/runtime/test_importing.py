"""What a run of the embedded models imports, and how: `psd.runtime.importing`."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

from psd.runtime.importing import import_for_good

ROOT = Path(__file__).resolve().parents[2]
PREPARE = """
import gc, json, sys
from psd.config.preset import Preset
from psd.runs import engine

engine.prepare_events(Preset.load("tiny"))
loaded = [name for name in sys.argv[1:] if name in sys.modules]
print(json.dumps([loaded, gc.isenabled(), gc.get_freeze_count(), gc.get_stats()[0]["collections"]]))
"""
# Not needed before the first step, or never: the page, the mesh, films, charts, experiments, and the large rewards.
HEAVY = [
    "gradio", "fastapi", "trimesh", "networkx", "skimage", "xatlas", "imageio", "matplotlib", "pandas", "torchvision",
    "transformers.models.blip.modeling_blip", "psd.evaluation", "psd.embedded.training", "psd.models.random_weights",
]  # fmt: skip


def test_a_tiny_run_begins_with_few_imports() -> None:
    told = subprocess.run(
        [sys.executable, "-c", PREPARE, *HEAVY], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    loaded, is_on, frozen, searches = json.loads(told.splitlines()[-1])
    assert not loaded, "import these where they are needed"
    assert is_on
    assert frozen > 300_000, "the libraries' objects are searched for garbage again and again"
    assert searches < 400, "garbage was searched for while the libraries were imported"


def test_what_is_there_already_is_not_frozen() -> None:
    before = gc.get_freeze_count()
    import_for_good("json", "gc")
    assert gc.get_freeze_count() == before
    assert gc.isenabled()


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_is_left_as_it_was(was_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_broken_module.py").write_text("import gc\nassert gc.isenabled()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (gc.enable if was_on else gc.disable)()
    try:
        with pytest.raises(AssertionError):
            import_for_good("a_broken_module")
        assert gc.isenabled() == was_on
    finally:
        gc.enable()
        gc.unfreeze()
