"""PSD Studio: wiring only.  ``python app.py --help`` names the arguments; a Space sets the environment instead."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Before torch is imported: idle OpenMP threads that spin would take the cores from the page that shows the run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from psd import ui
from psd.archive import default_root
from psd.drive import Controls
from psd.events import Checkpointed, Event
from psd.preset import Preset, PresetError, available
from psd.tiny import grammar
from psd.ui.mesh import Remesh
from psd.worker import Worker

LOADING = threading.Lock()  # a run that starts early waits for the models instead of loading them twice


def make_events(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
    """The engine; imported by the worker's thread, so that the page is there before torch is."""
    with LOADING:
        from psd.models import load_models
        from psd.run import run

        models = load_models(preset)
    return run(preset, models, control=control, resume=resume)


@cache
def remesher() -> Remesh:
    """Meshes scenes again; imported when a page first asks for it."""
    from psd.remesh import Remesher

    return Remesher()


def load_ahead(preset: Preset) -> None:
    """Load the models while somebody thinks of a prompt; what is missing is said now and again by the run."""
    try:
        make_events(preset, Controls(preset), None)
    except (PresetError, OSError) as error:
        print(f"Cannot load the models of this preset yet: {error}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description="PSD Studio: text to 3D in the browser.")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="address to serve on")
    parser.add_argument(
        "--port", type=int, default=os.environ.get("GRADIO_SERVER_PORT"), help="default: the first free one from 7860"
    )
    parser.add_argument("--share", action="store_true", help="ask Gradio for a public link (off by default)")
    parser.add_argument("--preset", default="tiny", choices=available(), help="the preset to start from")
    parser.add_argument("--runs", type=Path, default=default_root(), help="where runs are kept (or PSD_RUNS)")
    given = parser.parse_args()
    threading.Thread(target=load_ahead, args=[Preset.load(given.preset)], name="load-ahead", daemon=True).start()
    worker = Worker(make_events, given.runs)
    blocks = ui.build(worker, preset=given.preset, vocabularies={"assets/prior": grammar}, remesher=remesher)
    try:
        blocks.launch(server_name=given.host, server_port=given.port, share=given.share, **ui.appearance())
    finally:
        worker.shutdown()


if __name__ == "__main__":
    main()
