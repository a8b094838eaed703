"""PSD Studio: wiring only.  ``python app.py --help`` names the arguments; a Space sets the environment instead."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psd.config.errors import PresetError
from psd.config.preset import Preset, list_presets
from psd.distillation.events import Checkpointed, Event, Finished, Warned
from psd.embedded.captions import grammar
from psd.runs.jobs import admission as jobs_admission
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import MakeEvents
from psd.runs.jobs.worker import Limits, Worker
from psd.runs.store.archive import default_root
from psd.runtime.console import forgiving_output
from psd.ui import api, build
from psd.ui.inputs.vocabulary import Vocabulary
from psd.ui.tabs.mesh import Remesh

if TYPE_CHECKING:
    from psd.models.interfaces import Models

# Before torch is imported: idle OpenMP threads that spin would take the cores from the page that shows the run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

LOADING = threading.Lock()  # a run that starts early waits for the models instead of loading them twice
LARGEST_UPLOAD = "1mb"  # a preset is a few kB


def make_events(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
    """The engine; imported by the worker's thread, so that the page is there before torch is.

    Downloads come first, as `Warned` events: size and licence before anything is fetched.
    """
    from psd.distillation.run import run
    from psd.models.hub import LeftError
    from psd.models.load import download_models

    step, time_s = (resume.step, resume.time_s) if resume else (0, 0.0)
    try:
        for text in download_models(preset, leave=control.stopping):
            yield Warned(step=step, time_s=time_s, message=text)
    except LeftError:
        yield Finished(step=step, time_s=time_s, reason="stopped")
        return
    yield from run(preset, load_models_once(preset), control=control, resume=resume)


def load_models_once(preset: Preset) -> Models:
    from psd.models.load import load_models

    with LOADING:
        return load_models(preset)


def choose_engine() -> MakeEvents:
    """The engine as this machine needs it: on a Space with ZeroGPU in chunks, in a process that has the GPU."""
    if not os.environ.get("SPACES_ZERO_GPU"):
        return make_events
    import spaces  # pyright: ignore[reportMissingImports] - on the Space only

    from psd.runs.jobs.executors.chunked import split_into_chunks

    return split_into_chunks(make_events, spaces.GPU)


@cache
def make_remesher() -> Remesh:
    """Meshes scenes again; imported when a page first asks for it."""
    from psd.runs.remesh import Remesher

    return Remesher()


def remake_mesh(folder: Path, scene: str | None, threshold: float | None) -> None:
    from psd.runs.remesh import rewrite_mesh

    rewrite_mesh(folder, scene, threshold)


def load_ahead(preset: Preset) -> None:
    """Load the models while somebody thinks of a prompt; what is missing is said now and again by the run."""
    from psd.models.load import download_models

    try:
        if download := next(download_models(preset), None):
            print(f"The first run of this preset begins by {download}", file=sys.stderr)
        else:
            load_models_once(preset)
    except (PresetError, OSError) as error:
        print(f"Cannot load the models of this preset yet: {error}", file=sys.stderr)


def make_admission(words: str, *, any_model: bool) -> Callable[[Preset], None]:
    """What a preset must pass before it runs."""
    checks: list[Callable[[Preset], None]] = []
    if words != "off":
        checks.append(jobs_admission.PromptFilter(Path(words) if words else jobs_admission.WORDS))
    if not any_model:
        checks.append(jobs_admission.require_known_models)

    def admit_preset(preset: Preset) -> None:
        for check in checks:
            check(preset)

    return admit_preset


def parse_logins(text: str) -> list[tuple[str, str]] | None:
    """``name:password,name:password``"""
    pairs = [pair.partition(":") for pair in text.split(",") if pair]
    if wrong := [name for name, _, password in pairs if not (name and password)]:
        raise PresetError(f"--auth: {wrong[0]!r} has no password: write name:password")
    return [(name, password) for name, _, password in pairs] or None


def build_parser() -> argparse.ArgumentParser:
    def read_setting(name: str, default: str = "") -> str:
        return os.environ.get(name, default)

    parser = argparse.ArgumentParser(description="PSD Studio: text to 3D in the browser.")
    parser.add_argument("--host", default=read_setting("GRADIO_SERVER_NAME", "127.0.0.1"), help="address to serve on")
    parser.add_argument(
        "--port",
        type=int,
        default=read_setting("GRADIO_SERVER_PORT") or None,
        help="default: the first free one from 7860",
    )
    parser.add_argument("--share", action="store_true", help="ask Gradio for a public link (off by default)")
    parser.add_argument("--offline", action="store_true", help="never connect: use only models that are here")
    parser.add_argument("--auth", default=read_setting("PSD_AUTH"), help="name:password, or several with commas")
    parser.add_argument(
        "--preset", default=read_setting("PSD_PRESET", "tiny"), choices=list_presets(), help="the preset to start from"
    )
    parser.add_argument("--runs", type=Path, default=default_root(), help="where runs are kept (or PSD_RUNS)")
    parser.add_argument(
        "--keep-runs",
        type=int,
        default=read_setting("PSD_KEEP_RUNS", "500"),
        help="then the oldest go, but no pinned one",
    )
    parser.add_argument(
        "--keep-gb", type=float, default=read_setting("PSD_KEEP_GB", "20"), help="the same for their size on the disk"
    )
    parser.add_argument(
        "--pause-minutes", type=float, default=read_setting("PSD_PAUSE_MINUTES", "15"),
        help="after that a paused run stops, keeping what it has, when others wait",
    )  # fmt: skip
    parser.add_argument(
        "--prompt-filter", default=read_setting("PSD_PROMPT_FILTER"), metavar="FILE",
        help="another list of words that prompts may not hold, or: off",
    )  # fmt: skip
    parser.add_argument(
        "--image-filter", default=read_setting("PSD_IMAGE_FILTER"), metavar="MODULE:FUNCTION",
        help="says what is wrong with the pictures of a preview (uint8, views x height x width x 3), or ''",
    )  # fmt: skip
    parser.add_argument(
        "--any-model", action="store_true", default=bool(read_setting("PSD_ANY_MODEL")),
        help="let users name any model, not only those of the shipped presets: for your own machine",
    )  # fmt: skip
    return parser


def raise_interrupt(*_: object) -> None:
    """The machine goes down: end as with Ctrl-C, so that runs stop, and keep and mesh what they have."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    with forgiving_output():  # a server does not end with whoever read its log
        serve(arguments)


def serve(arguments: Sequence[str] | None) -> None:
    given = build_parser().parse_args(arguments)
    if given.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    first = Preset.load(given.preset)
    worker = Worker(
        choose_engine(),
        given.runs,
        limits=Limits(given.keep_runs, given.keep_gb * 2**30, given.pause_minutes * 60),
        admit=make_admission(given.prompt_filter, any_model=given.any_model),
        screen=jobs_admission.load_image_filter(given.image_filter) if given.image_filter else None,
    )
    threading.Thread(target=load_ahead, args=[first], name="load-ahead", daemon=True).start()

    def score(images: Sequence[Any], prompt: str, judge: str) -> dict[str, Any]:
        with LOADING:
            from psd.models.scoring import score_images
        return score_images(first, images, prompt, judge)

    vocabularies: dict[str, Vocabulary] = {"assets/prior": grammar}
    blocks = build.build_blocks(worker, preset=given.preset, vocabularies=vocabularies, remesher=make_remesher)
    api.register_endpoints(blocks, worker, score=score, remake=remake_mesh, vocabularies=vocabularies)
    signal.signal(signal.SIGTERM, raise_interrupt)  # Gradio knows Ctrl-C only
    try:
        blocks.launch(
            server_name=given.host, server_port=given.port, share=given.share, auth=parse_logins(given.auth),
            max_file_size=LARGEST_UPLOAD, **build.launch_options(),
        )  # fmt: skip
    finally:
        worker.shutdown()


if __name__ == "__main__":
    try:
        main()
    except PresetError as error:
        sys.exit(f"app.py: {error}")
