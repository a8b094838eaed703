"""PSD Studio: wiring only.  ``python app.py --help`` names the arguments; a Space sets the environment instead."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: idle OpenMP threads that spin would take the cores from the page that shows the run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from psd import ui
from psd.archive import default_root
from psd.events import Checkpointed, Event
from psd.preset import Preset, available
from psd.tiny import grammar
from psd.worker import Controls, Worker


def make_events(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
    """The engine; imported by the worker's thread, so that the page is there before torch is."""
    from psd.models import load_models
    from psd.run import run

    return run(preset, load_models(preset), control=control, resume=resume)


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
    worker = Worker(make_events, given.runs)
    blocks = ui.build(worker, root=given.runs, preset=given.preset, vocabularies={"assets/prior": grammar})
    try:
        blocks.launch(server_name=given.host, server_port=given.port, share=given.share, **ui.appearance())
    finally:
        worker.shutdown()


if __name__ == "__main__":
    main()
