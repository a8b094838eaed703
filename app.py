"""PSD Studio: wiring only.  ``python app.py --help`` names the arguments; a Space sets the environment instead."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psd.runtime.diagnosis import advise_large_preset, refuse_old_python

refuse_old_python()

from psd.config.errors import MissingError, PresetError
from psd.config.preset import Preset
from psd.embedded.captions import grammar, kinds, wording
from psd.runs import engine
from psd.runs.jobs import admission
from psd.runs.jobs.drive import MakeEvents
from psd.runs.jobs.worker import Limits, Worker
from psd.runs.store.files import StoreError, expand_path
from psd.runtime.console import forgiving_output
from psd.runtime.importing import import_for_good
from psd.ui.inputs.vocabulary import OfferedKind, Vocabulary
from psd.ui.options import Options, read_options, require_free_port

if TYPE_CHECKING:
    from psd.ui.tabs.mesh import Remesh

# Before torch is imported: idle OpenMP threads that spin would take the cores from the page that shows the run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Gradio's own counts of visits, which cost a table of them with every call.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1000")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")

LARGEST_UPLOAD = "1mb"  # a preset is a few kB
EXAMPLES = (
    "a red mushroom", "a taxi", "a burger", "a pirate ship", "a pineapple", "a green cube on top of a yellow cylinder",
)  # fmt: skip
HINT = (
    'Many take a colour ("a blue mushroom"), some go in pairs ("a burger next to a taxi", "a taxi on top of a cake").'
)
MOST_EVENTS = 128  # of all pages and scripts at once; streams of events hold a place each (`psd.ui.api.STREAMS`)


def choose_engine() -> MakeEvents:
    """The engine as this machine needs it: on a Space with ZeroGPU in chunks, in a process that has the GPU."""
    if not os.environ.get("SPACES_ZERO_GPU"):
        return engine.make_events
    import spaces  # pyright: ignore[reportMissingImports] - on the Space only

    from psd.runs.jobs.executors.chunked import split_into_chunks

    return split_into_chunks(engine.make_events, spaces.GPU)


@cache
def make_remesher() -> Remesh:
    """Meshes scenes again; imported when a page first asks for it."""
    from psd.runs.remesh import Remesher

    return Remesher()


def remake_mesh(folder: Path, scene: str | None, threshold: float | None) -> None:
    from psd.runs.remesh import rewrite_mesh

    rewrite_mesh(folder, scene, threshold)


@cache
def read_vocabulary() -> Vocabulary:
    """What the embedded prior knows, for the page and the API: of its world, what it draws well is offered."""
    names: dict[str, list[str]] = {}
    for name, noun in wording.list_names().items():
        names.setdefault(noun, []).append(name)
    captions = [caption for caption in grammar.all_captions(pairs=False) if caption.kind in kinds.list_known()]
    offered = []
    for noun in kinds.list_known():
        (left, top), caption = kinds.locate_picture(noun), wording.reword_text(noun)
        place = left // kinds.TILE, top // kinds.TILE
        offered.append(OfferedKind(caption, noun, kinds.read_kinds()[noun].category, tuple(names[noun]), place))
    return Vocabulary(
        wording.read_prompt, tuple(offered), tuple(caption.text for caption in captions), grammar.RELATIONS, EXAMPLES,
        HINT, kinds.GALLERY, kinds.COLUMNS, advise_large_preset, kinds.find_true_scores,
    )  # fmt: skip


def make_admission(options: Options) -> Callable[[Preset], None]:
    """What a preset must pass before it runs."""
    checks: list[Callable[[Preset], None]] = []
    if options.prompt_filter != "off":
        words = expand_path(options.prompt_filter) if options.prompt_filter else admission.WORDS
        checks.append(admission.PromptFilter(words))
    if not options.any_model:
        checks.append(admission.require_known_models)
    if options.is_public:
        checks.append(admission.RunLimits(options.max_memory_bytes, options.max_run_s))

    def admit_preset(preset: Preset) -> None:
        for check in checks:
            check(preset)

    return admit_preset


def prepare_first(worker: Worker, preset: Preset) -> None:
    """Load the models while somebody thinks of a prompt, and measure how long a run of them takes."""
    if engine.load_ahead(preset):
        worker.estimate(preset)


def raise_interrupt(*_: object) -> None:
    """The machine goes down: end as with Ctrl-C, so that runs stop, and keep and mesh what they have."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code: 2 for what cannot work, 4 for what is missing here."""
    try:
        with forgiving_output():  # a server does not end with the reader of its log
            serve_page(read_options(arguments))
    except (PresetError, StoreError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 4 if isinstance(error, MissingError | StoreError) else 2
    return 0


def serve_page(options: Options) -> None:
    """Serve the page and its API; everything that can be refused is refused before a run's folder is touched."""
    if options.port is not None:
        require_free_port(options.host, options.port)
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # `protection.ForwardedHeaders` decides; uvicorn would believe this machine
    # gradio reads variables when it is imported, and `read_options` has just checked them.
    import_for_good("psd.ui.api", "psd.ui.build")
    from psd.ui import api, build, protection, sessions

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    first = Preset.load(options.preset)
    screen = admission.load_image_filter(options.image_filter) if options.image_filter else None
    admit = make_admission(options)
    make_events = choose_engine()
    if not options.is_public:
        limits = admission.RunLimits(options.max_memory_bytes, options.max_run_s)
        make_events = admission.warn_of_cost(make_events, limits)
    worker = Worker(
        make_events, options.runs, limits=Limits(options.keep_runs, options.keep_bytes, options.pause_s),
        admit=admit, screen=screen,
    )  # fmt: skip

    def score_pictures(images: Sequence[Any], prompt: str, judge: str) -> dict[str, Any]:
        from psd.models.scoring import score_images

        return score_images(first, images, prompt, judge)

    vocabularies = {"assets/prior": read_vocabulary()}
    blocks = build.build_blocks(worker, preset=options.preset, vocabularies=vocabularies, remesher=make_remesher)
    api.register_endpoints(blocks, worker, score=score_pictures, remake=remake_mesh, vocabularies=vocabularies)
    frameable = bool(os.environ.get("SPACE_ID"))  # the hub shows a Space in a frame
    library = worker.library
    layers = protection.protect(
        library.find_folder, library.find_zip, page_files=[kinds.GALLERY], proxies=options.proxies, frameable=frameable
    )  # fmt: skip
    signal.signal(signal.SIGTERM, raise_interrupt)  # Gradio knows Ctrl-C only
    try:
        server, _, _ = blocks.launch(
            server_name=options.host, server_port=options.port, share=options.share, prevent_thread_lock=True,
            auth=protection.make_login_check(options.logins), max_file_size=LARGEST_UPLOAD, max_threads=MOST_EVENTS,
            app_kwargs={"middleware": layers}, run_history=False, enable_monitoring=False, **build.launch_options(),
        )  # fmt: skip
        sessions.keep_few_sessions(server, blocks)
        # Not before the page is there: importing torch holds the interpreter for seconds, and the page would wait.
        threading.Thread(target=prepare_first, args=[worker, first], name="load-ahead", daemon=True).start()
        blocks.block_thread()
    except OSError as error:
        raise PresetError(f"nothing can be served on {options.host}: {error}") from error
    finally:
        worker.shutdown()


if __name__ == "__main__":
    sys.exit(main())
