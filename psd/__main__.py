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
from typing import TYPE_CHECKING

from psd.runtime.diagnosis import missing_package, refuse_old_python

refuse_old_python()
try:
    from psd import doctor
    from psd.config.assignments import parse_assignments
    from psd.config.errors import MissingError, PresetError
    from psd.config.preset import DEFAULT_PRESET, PRESETS, Preset, list_presets
    from psd.config.reference import parameter_table
    from psd.config.settings import require_start
    from psd.distillation.events import Event, Failed, Finished
    from psd.evaluation import command as evaluation_command
    from psd.evaluation.speed import bench
    from psd.geometry.export import (
        FORMATS,
        LARGEST_MM,
        PRINT_SIZE_MM,
        SMALLEST_MM,
        SPLAT_FORMATS,
        encode_mesh,
        list_formats,
    )
    from psd.runs.engine import prepare_events
    from psd.runs.jobs.controls import Controls
    from psd.runs.jobs.drive import MakeEvents, drive_run, require_checkpoint
    from psd.runs.store.archive import default_root, find_run, read_preset, read_provenance, read_status
    from psd.runs.store.files import StoreError, expand_path, explain_os_errors, replace_file
    from psd.runs.store.folder import RunFolder
    from psd.runs.store.schema import is_run_folder
    from psd.runs.terminal import Progress
    from psd.runtime.console import forgiving_output
except ModuleNotFoundError as error:
    print(f"psd: {missing_package(error)}", file=sys.stderr)
    sys.exit(4)  # MISSING

if TYPE_CHECKING:
    from psd.geometry.mesh import Mesh

OK, BAD_INPUT, FAILED, MISSING, INTERRUPTED, TERMINATED = 0, 2, 3, 4, 130, 143
EXIT_CODES = """exit codes:
  0    done
  2    bad input: arguments, preset or prompt
  3    the run failed; its folder holds what it reached, and log.txt says why
  4    something is missing on this machine before it can begin: models, packages, disk space, permission
  130  interrupted; the run's folder holds everything up to there
  143  the same, by SIGTERM or SIGHUP

Ctrl-C ends a run after its step and keeps everything, mesh included; a second one leaves at once.  SIGTERM and SIGHUP
do the same.  Output that nobody reads ends nothing.
"""

Prepare = Callable[..., MakeEvents]  # of a preset, and of what it starts from


def main(argv: list[str] | None = None, *, prepare: Prepare = prepare_events) -> int:
    """Run one command and return its exit code, whether or not anybody reads what it prints."""
    with forgiving_output():
        return run_command(argv, prepare)


def run_command(argv: list[str] | None, prepare: Prepare) -> int:
    """Parses the arguments, runs the command and returns its exit code; a known error becomes a line on stderr."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads are slow on a busy machine
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    arguments = make_parser().parse_args(argv)
    if getattr(arguments, "offline", False):
        os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it
    try:
        match arguments.command:
            case "run":
                return start_run(arguments, prepare)
            case "resume":
                return resume_run(arguments, prepare)
            case "export":
                return export_run(arguments)
            case "presets":
                return print_presets(arguments)
            case "compare":
                return evaluation_command.main(arguments)
            case "embedded":
                from psd.evaluation.shipped import command as shipped_command

                return shipped_command.main(arguments.rest)
            case "doctor":
                return doctor.print_report()
            case _:
                return bench.main(
                    resolve_preset(arguments), arguments.steps, full=arguments.full, as_json=arguments.json,
                    random_weights=arguments.random_weights, memory_gb=arguments.memory_gb,
                    on_paper=arguments.on_paper,
                )  # fmt: skip
    except (MissingError, StoreError) as error:
        return print_error(error, MISSING)
    except ModuleNotFoundError as error:
        return print_error(missing_package(error), MISSING)
    except PresetError as error:
        return print_error(error, BAD_INPUT)
    except KeyboardInterrupt:
        return print_error("interrupted", INTERRUPTED)


def print_error(error: object, code: int) -> int:
    print(f"psd: {error}", file=sys.stderr)
    return code


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of all commands; `embedded` and `compare` bring their own options."""
    root = argparse.ArgumentParser(
        prog="python -m psd",
        description="Preference Score Distillation: from a prompt to a mesh.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="command")

    def add_command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=help, description=help, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def add_set_option(sub: argparse.ArgumentParser, help: str) -> None:
        sub.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=help)

    def add_preset_options(sub: argparse.ArgumentParser) -> None:
        named = f"a name of `presets`, or a YAML file (default: {DEFAULT_PRESET})"
        sub.add_argument("--preset", default=DEFAULT_PRESET, help=named)
        add_set_option(sub, "change parameters; may be repeated")
        sub.add_argument("--seed", type=int)
        add_offline_option(sub)

    def add_offline_option(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--offline", action="store_true", help="never connect: use only models that are here")

    run = add_command("run", "make an object from a prompt")
    run.add_argument("prompt", nargs="?", help="what to make, before --set (default: the preset's)")
    add_preset_options(run)
    run.add_argument("--steps", type=int)
    run.add_argument(
        "--from", dest="start", metavar="RUN|FILE",
        help="start from a run's object, or from a closed mesh (glb, obj, ply, stl); needs a surface or Gaussians",
    )  # fmt: skip
    run.add_argument("--out", type=expand_path, help="where run folders go (default: PSD_RUNS, or ./runs)")

    again = add_command("resume", "go on with a run from its newest checkpoint")
    again.add_argument("folder", help="a run's folder, or its name below the runs' root")
    again.add_argument("--more", type=int, default=0, metavar="N", help="N steps more, as its last ones were")
    again.add_argument("--from-start", action="store_true", help="begin anew where every checkpoint is lost")
    add_set_option(again, "move parameters that are live, from the next step on; may be repeated")
    add_offline_option(again)

    mesh = add_command("export", "write a run's mesh again, from its newest checkpoint")
    mesh.add_argument("folder", help="a run's folder, or its name below the runs' root")
    mesh.add_argument(
        "--format", help="any of glb,obj,ply,stl, and of Gaussians splat.ply,splat (default: all that there are)"
    )
    mesh.add_argument(
        "--size-mm", type=float, default=PRINT_SIZE_MM, metavar="MM",
        help=f"longest side of the STL (default: {PRINT_SIZE_MM:g}, from {SMALLEST_MM:g} to {LARGEST_MM:g})",
    )  # fmt: skip
    mesh.add_argument("--scene", choices=("best", "last"), help="by the selector judge (default: the preset's export)")
    mesh.add_argument("--texture", action="store_true", help="bake a texture instead of vertex colours")
    mesh.add_argument("--threshold", type=float, help="density of the surface (default: the one that fits the renders)")
    mesh.add_argument(
        "--out", type=expand_path, help="where they go (default: the run's folder, which gets every format)"
    )

    listing = add_command("presets", "list presets, show one, or print the table of all parameters")
    listing.add_argument("what", nargs="?", choices=("list", "show", "table"), default="list")
    listing.add_argument("name", nargs="?", default=DEFAULT_PRESET)

    evaluation_command.add_arguments(
        add_command("compare", "run a suite of methods against ground truth, and write its report")
    )

    embedded = add_command("embedded", "make, train and measure the models that ship (embedded --help)")
    embedded.add_argument("rest", nargs=argparse.REMAINDER, help="captions, data, train, evaluate or ship, and theirs")

    add_command("doctor", "say what this machine can run, what is missing and the cure")

    measure = add_command("bench", "measure where a step's time goes")
    add_preset_options(measure)
    measure.add_argument("--steps", type=int, default=30, help="measured steps of each stage, after a warm-up (30)")
    measure.add_argument("--full", action="store_true", help="also time a whole run, from start to mesh")
    measure.add_argument(
        "--random-weights", nargs="?", const="exact", choices=("exact", "tiny"),
        help="random weights in the large models' shapes (or shrunk ones), so that nothing is downloaded",
    )  # fmt: skip
    measure.add_argument("--memory-gb", type=float, metavar="N", help="use no more of the GPU's memory than N GiB")
    measure.add_argument("--on-paper", action="store_true", help="only count what a large preset's step takes")
    measure.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return root


def resolve_preset(arguments: argparse.Namespace) -> Preset:
    """Preset, then --set, then the arguments of their own; a prompt to the embedded models in their own wording."""
    values = parse_assignments(arguments.set)
    own = {name: getattr(arguments, name, None) for name in ("prompt", "seed")}
    if arguments.command == "run":
        own["steps"] = arguments.steps
    given = {**values, **{key: value for key, value in own.items() if value is not None}}
    preset = Preset.load(arguments.preset, given)
    if start := getattr(arguments, "start", None):
        require_start(preset.scene_preset(0).scene.kind)
        preset = preset.with_values({"scene.start": start})
    embedded = Preset.model_fields["prior"].default in preset.priors
    return preset.with_values({"prompt": read_embedded_prompt(preset.prompt)}) if embedded else preset


def read_embedded_prompt(prompt: str) -> str:
    """The caption that the embedded models make of a prompt; what was read otherwise is said on stderr.

    Raises PresetError where it names nothing that they know.
    """
    from psd.config.errors import PresetError
    from psd.embedded.captions.unknown import UnknownCaption
    from psd.embedded.captions.wording import read_prompt, reword_text

    try:
        caption = reword_text(prompt)
    except UnknownCaption as error:
        raise PresetError(str(error)) from None
    for note in read_prompt(prompt).notes:
        print(f"prompt: {note}", file=sys.stderr)
    return caption


def start_run(arguments: argparse.Namespace, prepare: Prepare) -> int:
    preset = resolve_preset(arguments)
    make_events = prepare_or_raise(prepare, preset, starts=True)
    with RunFolder.create(preset, arguments.out) as folder:
        return follow_run(drive_run(make_events, folder, control := Controls(preset)), folder, control)


def resume_run(arguments: argparse.Namespace, prepare: Prepare) -> int:
    """Everything is read, and the models are loaded, before the folder is touched."""
    if arguments.more < 0:
        raise PresetError(f"--more={arguments.more} is below 0: say how many steps to add")
    path = find_run_folder(arguments.folder)
    preset, status = read_preset(path, to_resume=True), read_status(path)
    checkpoint, notes = require_checkpoint(path, from_start=arguments.from_start)
    preset = preset.with_values({"extra_steps": preset.extra_steps + arguments.more})
    reached = checkpoint.step if checkpoint else 0
    if reached == preset.total_steps and status.state == "finished":
        raise PresetError(f"the run has done all of its {reached} steps: add some with --more N")
    control = Controls(preset)
    control.change(parse_assignments(arguments.set))
    make_events = prepare_or_raise(prepare, preset, starts=checkpoint is None)
    with RunFolder.open(path, preset) as folder:
        folder.notes += notes
        return follow_run(drive_run(make_events, folder, control, checkpoint), folder, control)


def prepare_or_raise(prepare: Prepare, preset: Preset, *, starts: bool) -> MakeEvents:
    """The run to be, or `MissingError` for what this machine lacks; ``starts``: nothing of it is here yet."""
    start = None
    if starts and preset.scene_preset(0).scene.start:
        from psd.runs.start import read_start

        start = read_start(preset.scene_preset(0).scene.start, find_run_folder)
    print("loading the models ...", file=sys.stderr)
    try:
        return prepare(preset, start=start) if start else prepare(preset)
    except (ImportError, OSError) as error:  # packages; weights on the disk or the hub
        raise MissingError(f"{error} (`python -m psd doctor` says what is missing)") from error


def follow_run(events: Iterator[Event], folder: RunFolder, control: Controls) -> int:
    """Show a run until its end; its folder goes to stdout."""
    progress, last = Progress(sys.stderr), None
    received: list[int] = []
    try:
        with stop_on_signals(control, received):
            for last in events:
                progress.show(last)
    except KeyboardInterrupt:
        if signal.SIGINT in received:
            raise
        return TERMINATED
    finally:
        progress.close()
        print(folder.path)
    if isinstance(last, Failed):
        return FAILED
    if isinstance(last, Finished) and last.reason == "stopped":
        return INTERRUPTED if signal.SIGINT in received or not received else TERMINATED
    return OK


@contextmanager
def stop_on_signals(control: Controls, received: list[int]) -> Iterator[None]:
    """The first Ctrl-C, SIGTERM or SIGHUP asks the run to end and keep its results; the second is a KeyboardInterrupt.

    Each is added to ``received``.  A signal that was ignored before (``nohup``) stays so.
    """

    def handle_signal(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if control.stopping():
            raise KeyboardInterrupt
        control.stop()
        print("\nstopping after this step, keeping everything; Ctrl-C again leaves at once", file=sys.stderr)

    caught = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.getsignal(number) for number in caught}
    for number in caught:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handle_signal)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


def find_run_folder(name: str) -> Path:
    """A run by its path or by its name."""
    path = expand_path(name)
    if is_run_folder(path):
        return path
    try:
        return find_run(path.name, path.parent if path.parent.name else default_root())
    except StoreError as error:
        raise PresetError(str(error)) from None


def export_run(arguments: argparse.Namespace) -> int:
    """Makes the mesh of a run again, in ``--out`` or among the run's own exports, and prints the paths of its files."""
    formats = [name.strip().lower() for name in arguments.format.split(",")] if arguments.format is not None else []
    if strange := [name for name in formats if name not in FORMATS | SPLAT_FORMATS]:
        raise PresetError(f"no format {strange[0]!r}; there are: {', '.join(FORMATS | SPLAT_FORMATS)}")
    if not SMALLEST_MM <= arguments.size_mm <= LARGEST_MM:
        raise PresetError(f"--size-mm {arguments.size_mm:g} must lie in [{SMALLEST_MM:g}, {LARGEST_MM:g}] millimetres")
    path = find_run_folder(arguments.folder)

    from psd.runs.remesh import remesh_run, rewrite_mesh

    how = {"scene": arguments.scene, "threshold": arguments.threshold, "texture": arguments.texture or None}
    if arguments.out is None:
        out, mesh = path / "public" / "exports", rewrite_mesh(path, **how, size_mm=arguments.size_mm)
    else:
        out, (mesh, step) = arguments.out, remesh_run(path, **how)
        formats = choose_formats(formats, mesh)
        with explain_os_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        for name in formats:
            files = encode_mesh(mesh, f"mesh.{name}", provenance=read_provenance(path, step), size_mm=arguments.size_mm)
            for file, data in files.items():
                replace_file(out / file, data)
    for note in mesh.notes:
        print(note, file=sys.stderr)
    for name in choose_formats(formats, mesh):
        print(out / f"mesh.{name}")
    return OK


def choose_formats(asked: list[str], mesh: Mesh) -> list[str]:
    """Those that are asked for, or all that ``mesh`` has; raises `PresetError` for splats where it has none."""
    known = list_formats(mesh)
    if absent := [name for name in asked if name not in known]:
        raise PresetError(f"no {absent[0]}: the scene of this run has no Gaussians; there are: {', '.join(known)}")
    return asked or known


def print_presets(arguments: argparse.Namespace) -> int:
    """Prints the shipped presets, the text of one, or the table of all parameters."""
    if arguments.what == "table":
        print(parameter_table(), end="")
    elif arguments.what == "show":
        Preset.load(arguments.name)
        path = expand_path(arguments.name)
        path = path if path.suffix in (".yaml", ".yml") else PRESETS / f"{arguments.name}.yaml"
        print(path.read_text(encoding="utf-8"), end="")
    else:
        for name in list_presets():
            first = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
            print(f"{name:12} {first.lstrip('# ')}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
