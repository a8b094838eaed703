"""The command line: ``python -m psd run "a red mushroom"`` and what goes with it.

stdout carries results (the run's folder, tables), stderr progress and complaints.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from psd.machine import no_package

try:
    from psd import bench, compare_command, doctor
    from psd.archive import default_root, find_run, latest_checkpoint, provenance, read_preset, read_status
    from psd.drive import Controls, MakeEvents, drive
    from psd.events import Event, Failed, Finished
    from psd.export import FRAMES, LARGEST_MM, PRINT_SIZE_MM, SMALLEST_MM, encode_mesh
    from psd.files import StoreError, explaining, replace_file
    from psd.parameters import assignments, parameter_table
    from psd.preset import PRESETS, MissingError, Preset, PresetError, available
    from psd.progress import Progress
    from psd.store import RunFolder
except ModuleNotFoundError as error:
    print(f"psd: {no_package(error)}", file=sys.stderr)
    sys.exit(4)  # MISSING

OK, BAD_INPUT, FAILED, MISSING, INTERRUPTED = 0, 2, 3, 4, 130
EXIT_CODES = """exit codes:
  0    done
  2    bad input: arguments, preset or prompt
  3    the run failed; its folder holds what it reached, and log.txt says why
  4    something is missing on this machine before it can begin: models, packages, disk space, permission
  130  interrupted; the run's folder holds everything up to there

Ctrl-C ends a run after its step and keeps everything, mesh included; a second one leaves at once.
"""

Prepare = Callable[[Preset], MakeEvents]


def prepare(preset: Preset) -> MakeEvents:
    """Load the models, so that unknown words and missing weights are refused before a folder is made."""
    from psd import methods
    from psd.models import load_models
    from psd.run import run

    models = load_models(preset)
    methods.check(preset, models)
    return lambda preset, control, resume: run(preset, models, control=control, resume=resume)


def main(argv: list[str] | None = None, *, prepare: Prepare = prepare) -> int:
    """Run one command and return its exit code."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads are slow on a busy machine
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    arguments = parser().parse_args(argv)
    if getattr(arguments, "offline", False):
        os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it
    try:
        match arguments.command:
            case "run":
                return start(arguments, prepare)
            case "resume":
                return resume(arguments, prepare)
            case "export":
                return export(arguments)
            case "presets":
                return presets(arguments)
            case "compare":
                return compare_command.main(arguments)
            case "doctor":
                return doctor.report()
            case _:
                return bench.main(
                    chosen_preset(arguments), arguments.steps, full=arguments.full, as_json=arguments.json,
                    random_weights=arguments.random_weights, memory_gb=arguments.memory_gb,
                    on_paper=arguments.on_paper,
                )  # fmt: skip
    except (MissingError, StoreError) as error:
        return complain(error, MISSING)
    except ModuleNotFoundError as error:
        return complain(no_package(error), MISSING)
    except PresetError as error:
        return complain(error, BAD_INPUT)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)


def complain(error: object, code: int) -> int:
    print(f"psd: {error}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="python -m psd",
        description="Preference Score Distillation: from a prompt to a mesh.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=help, description=help, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def takes_values(sub: argparse.ArgumentParser, help: str) -> None:
        sub.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=help)

    def takes_preset(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--preset", default="tiny", help="a name of `presets`, or a YAML file (default: tiny)")
        takes_values(sub, "change parameters; may be repeated")
        sub.add_argument("--seed", type=int)
        is_offline(sub)

    def is_offline(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--offline", action="store_true", help="never connect: use only models that are here")

    run = command("run", "make an object from a prompt")
    run.add_argument("prompt", nargs="?", help="what to make, before --set (default: the preset's)")
    takes_preset(run)
    run.add_argument("--steps", type=int)
    run.add_argument("--out", type=Path, help="where run folders go (default: PSD_RUNS, or ./runs)")

    again = command("resume", "go on with a run from its newest checkpoint")
    again.add_argument("folder", help="a run's folder, or its name below the runs' root")
    again.add_argument("--more", type=int, default=0, metavar="N", help="N steps more, as its last ones were")
    takes_values(again, "move parameters that are live, from the next step on; may be repeated")
    is_offline(again)

    mesh = command("export", "write a run's mesh again, from its newest checkpoint")
    mesh.add_argument("folder", help="a run's folder, or its name below the runs' root")
    mesh.add_argument("--format", default=",".join(FRAMES), help="any of glb,obj,ply,stl (default: all)")
    mesh.add_argument(
        "--size-mm", type=float, default=PRINT_SIZE_MM, metavar="MM",
        help=f"longest side of the STL (default: {PRINT_SIZE_MM:g}, from {SMALLEST_MM:g} to {LARGEST_MM:g})",
    )  # fmt: skip
    mesh.add_argument("--scene", choices=("best", "last"), help="by the selector judge (default: the preset's export)")
    mesh.add_argument("--texture", action="store_true", help="bake a texture instead of vertex colours")
    mesh.add_argument("--threshold", type=float, help="density of the surface (default: the one that fits the renders)")
    mesh.add_argument("--out", type=Path, help="where they go (default: the run's folder, which gets every format)")

    listing = command("presets", "list presets, show one, or print the table of all parameters")
    listing.add_argument("what", nargs="?", choices=("list", "show", "table"), default="list")
    listing.add_argument("name", nargs="?", default="tiny")

    compare_command.add_arguments(
        command("compare", "run a suite of methods against ground truth, and write its report")
    )

    command("doctor", "say what this machine can run, what is missing and the cure")

    measure = command("bench", "measure where a step's time goes")
    takes_preset(measure)
    measure.add_argument("--steps", type=int, default=30, help="measured steps of each half, after a warm-up (30)")
    measure.add_argument("--full", action="store_true", help="also time a whole run, from start to mesh")
    measure.add_argument(
        "--random-weights", nargs="?", const="exact", choices=("exact", "tiny"),
        help="random weights in the large models' shapes (or shrunk ones), so that nothing is downloaded",
    )  # fmt: skip
    measure.add_argument("--memory-gb", type=float, metavar="N", help="use no more of the GPU's memory than N GiB")
    measure.add_argument("--on-paper", action="store_true", help="only count what a large preset's step takes")
    measure.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return root


def chosen_preset(arguments: argparse.Namespace) -> Preset:
    """Preset, then --set, then the arguments of their own; a caption of the embedded world in that world's wording."""
    from psd.tiny.grammar import worded

    values = assignments(arguments.set)
    own = {name: getattr(arguments, name, None) for name in ("prompt", "seed")}
    if arguments.command == "run":
        own["steps"] = arguments.steps
    given = {**values, **{key: value for key, value in own.items() if value is not None}}
    preset = Preset.load(arguments.preset, given)
    embedded = preset.prior == Preset.model_fields["prior"].default
    return preset.changed({"prompt": worded(preset.prompt)}) if embedded else preset


def start(arguments: argparse.Namespace, prepare: Prepare) -> int:
    preset = chosen_preset(arguments)
    make_events = ready(prepare, preset)
    with RunFolder.create(preset, arguments.out) as folder:
        return follow(drive(make_events, folder, control := Controls(preset)), folder, control)


def resume(arguments: argparse.Namespace, prepare: Prepare) -> int:
    if arguments.more < 0:
        raise PresetError(f"--more={arguments.more} is below 0: say how many steps to add")
    path = run_folder(arguments.folder)
    preset, status, checkpoint = read_preset(path, to_resume=True), read_status(path), latest_checkpoint(path)
    preset = preset.changed({"extra_steps": preset.extra_steps + arguments.more})
    reached = checkpoint.step if checkpoint else 0
    if reached == preset.total_steps and status.state == "finished":
        raise PresetError(f"the run has done all of its {reached} steps: add some with --more N")
    control = Controls(preset)
    control.change(assignments(arguments.set))
    make_events = ready(prepare, preset)
    with RunFolder.open(path, preset) as folder:
        return follow(drive(make_events, folder, control, checkpoint), folder, control)


def ready(prepare: Prepare, preset: Preset) -> MakeEvents:
    """The run to be, or `MissingError` for what this machine lacks."""
    print("loading the models ...", file=sys.stderr)
    try:
        return prepare(preset)
    except (ImportError, OSError) as error:  # packages; weights on the disk or the hub
        raise MissingError(f"{error} (`python -m psd doctor` says what is missing)") from error


def follow(events: Iterator[Event], folder: RunFolder, control: Controls) -> int:
    """Show a run until its end; its folder goes to stdout."""
    progress, last = Progress(sys.stderr), None
    try:
        with first_interrupt_stops(control):
            for last in events:
                progress.show(last)
    finally:
        progress.close()
        print(folder.path)
    if isinstance(last, Failed):
        return FAILED
    return INTERRUPTED if isinstance(last, Finished) and last.reason == "stopped" else OK


@contextmanager
def first_interrupt_stops(control: Controls) -> Iterator[None]:
    """The first Ctrl-C asks the run to end and keep its results; the second is a KeyboardInterrupt."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if control.stopping():
            raise KeyboardInterrupt
        control.stop()
        print("\nstopping after this step, keeping everything; Ctrl-C again leaves at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_folder(name: str) -> Path:
    """A run by its path or by its name."""
    path = Path(name)
    if (path / "status.json").is_file():
        return path
    try:
        return find_run(path.name, path.parent if path.parent.name else default_root())
    except StoreError as error:
        raise PresetError(str(error)) from None


def export(arguments: argparse.Namespace) -> int:
    formats = [name.strip().lower() for name in arguments.format.split(",")]
    if strange := [name for name in formats if name not in FRAMES]:
        raise PresetError(f"no format {strange[0]!r}; there are: {', '.join(FRAMES)}")
    if not SMALLEST_MM <= arguments.size_mm <= LARGEST_MM:
        raise PresetError(f"--size-mm {arguments.size_mm:g} must lie in [{SMALLEST_MM:g}, {LARGEST_MM:g}] millimetres")
    path = run_folder(arguments.folder)

    from psd.remesh import remake, remesh

    how = {"scene": arguments.scene, "threshold": arguments.threshold, "texture": arguments.texture or None}
    if arguments.out is None:
        out, mesh = path / "public" / "exports", remake(path, **how, size_mm=arguments.size_mm)
    else:
        out, (mesh, step) = arguments.out, remesh(path, **how)
        with explaining(out):
            out.mkdir(parents=True, exist_ok=True)
        for name in formats:
            files = encode_mesh(mesh, f"mesh.{name}", provenance=provenance(path, step), size_mm=arguments.size_mm)
            for file, data in files.items():
                replace_file(out / file, data)
    for note in mesh.notes:
        print(note, file=sys.stderr)
    for name in formats:
        print(out / f"mesh.{name}")
    return OK


def presets(arguments: argparse.Namespace) -> int:
    if arguments.what == "table":
        print(parameter_table(), end="")
    elif arguments.what == "show":
        Preset.load(arguments.name)
        path = Path(arguments.name)
        path = path if path.suffix in (".yaml", ".yml") else PRESETS / f"{arguments.name}.yaml"
        print(path.read_text(encoding="utf-8"), end="")
    else:
        for name in available():
            first = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
            print(f"{name:12} {first.lstrip('# ')}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
