"""Files of runs by the run's id: what is public is served under the prompt's name, and no address names a folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from psd.config.preset import Preset
from psd.distillation.events import Finished
from psd.runs.jobs.worker import Worker
from psd.ui import build
from psd.ui.markup.html import EXPORTS, file_url, name_download
from psd.ui.protection import RunFiles, protect
from tests.support.fake_run import fake_run

RUN = "20261128-144018_a-duck_s0_0f3cbb01"


def layers(worker: Worker) -> dict[str, Any]:
    return {"middleware": protect(worker.library.find_folder, worker.library.find_zip)}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(fake_run, tmp_path_factory.mktemp("a root with spaces #%41"))
    yield worker
    assert worker.shutdown()


@pytest.fixture(scope="module")
def run(worker: Worker) -> str:
    """A run that is over, with a file of each kind that a person takes away."""
    run = worker.submit(Preset.make({"steps": 2, "prompt": "A taxi!"}))
    events = []
    while not any(isinstance(event, Finished) for event in events):
        events += worker.wait(run, len(events), timeout_s=5)
    for name in ("mesh.glb", "mesh.obj.zip", "turntable.mp4", "statistics.json"):
        (worker.library.find_folder(run) / EXPORTS / name).write_bytes(b"0123456789")
    return run


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("mesh.glb", "a-duck.glb"), ("mesh.obj.zip", "a-duck.zip"), ("turntable.mp4", "a-duck.mp4"),
        ("statistics.json", "a-duck.json"), ("000005.jpg", "000005.jpg"), (f"{RUN}.zip", f"{RUN}.zip"),
    ],
)  # fmt: skip
def test_a_download_carries_the_prompts_name(file: str, name: str) -> None:
    assert name_download(RUN, file) == name


def test_an_address_holds_the_runs_id_and_the_version_only(worker: Worker, run: str) -> None:
    address = file_url(run, f"{EXPORTS}/mesh.glb", 7)
    assert address == f"gradio_api/file=runs/{run}/exports/mesh.glb?v=7"
    assert file_url("<x>", "a b", None) == "gradio_api/file=runs/%3Cx%3E/a%20b"


def test_a_zip_is_found_once_it_was_asked_for(worker: Worker, run: str) -> None:
    library = worker.library
    files = RunFiles(lambda *_: None, library.find_folder, library.find_zip)  # pyright: ignore[reportArgumentType]
    assert files._find_file(run, f"{run}.zip") is None
    path = library.zip_run(run)
    assert files._find_file(run, f"{run}.zip") == path == library.find_zip(run)
    for name in (f"../{run}.zip", "other.zip", f"public/{run}.zip"):
        assert files._find_file(run, name) is None


def test_a_file_is_served_by_its_runs_id_under_the_prompts_name_also_in_parts(worker: Worker, run: str) -> None:
    blocks = build.build_blocks(worker)
    _, address, _ = blocks.launch(
        prevent_thread_lock=True,
        quiet=True,
        server_name="127.0.0.1",
        app_kwargs=layers(worker),
        **build.launch_options(),
    )
    try:
        mesh = address + file_url(run, f"{EXPORTS}/mesh.glb", 1)
        whole = httpx.get(mesh, timeout=60)
        assert (whole.status_code, whole.content) == (200, b"0123456789")
        assert whole.headers["content-disposition"] == 'inline; filename="a-taxi.glb"'
        part = httpx.get(mesh, headers={"range": "bytes=2-4"}, timeout=60)
        assert (part.status_code, part.content) == (206, b"234")
        assert httpx.get(address + file_url(run, f"{EXPORTS}/mesh.obj.zip"), timeout=60).headers[
            "content-disposition"] == 'attachment; filename="a-taxi.zip"'  # fmt: skip
        for file in ("status.json", "public/exports/none.glb"):
            refused = httpx.get(address + file_url(run, file), timeout=60)
            assert refused.status_code in (403, 404)
            assert str(worker.library.find_folder(run).parent) not in refused.text, (
                "the answer names a folder of the server"
            )
    finally:
        blocks.close(verbose=False)


def test_a_password_shuts_the_files_of_runs_too(worker: Worker, run: str) -> None:
    blocks = build.build_blocks(worker)
    _, address, _ = blocks.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", auth=[("ada", "lace")],
        app_kwargs=layers(worker), **build.launch_options(),
    )  # fmt: skip
    try:
        assert httpx.get(address + file_url(run, f"{EXPORTS}/mesh.glb"), timeout=60).status_code == 401
    finally:
        blocks.close(verbose=False)


def test_no_pane_of_the_page_names_the_folder_of_the_runs(worker: Worker, run: str, tmp_path: Path) -> None:
    blocks = build.build_blocks(worker)
    listener = next(fn for fn in blocks.fns.values() if fn.name == "refresh")
    assert listener.fn is not None
    looks = [("Make", tab, "Colour") for tab in ("Curves", "Negative", "Mesh", "Log")]
    looks += [("Make", "Curves", show) for show in ("Mesh", "Wireframe", "Turntable", "Timelapse", "Depth")]
    for place, tab, show in [*looks, ("Runs", "Curves", "Colour"), ("Compare", "Curves", "Colour")]:
        updates = listener.fn(run, "", [], None, place, tab, show, True, 0, [30, 15, 0], [run], 0, False, "", "Newest")
        shown = "".join(str(getattr(update, "value", update)) for update in updates)
        assert len(updates) > 20 and run in shown, (place, tab, show)
        assert str(worker.library.find_folder(run).parent) not in shown, (place, tab, show)
