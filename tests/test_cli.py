"""The command line: arguments, exit codes, Ctrl-C, progress, doctor and bench, without trained models."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from psd import doctor
from psd.__main__ import BAD_INPUT, FAILED, INTERRUPTED, MISSING, OK, main
from psd.config.errors import MissingError, PresetError
from psd.config.preset import Preset, list_presets
from psd.config.reference import parameter_table
from psd.distillation.events import Checkpointed, Event, Finished, LiveChanged, Meshed, Started, Stepped, Warned
from psd.evaluation.speed import bench
from psd.evaluation.speed.profile import profile_run
from psd.evaluation.speed.recorder import Call
from psd.evaluation.speed.throughput import StageShare
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import MakeEvents
from psd.runs.store.archive import latest_checkpoint, list_runs, read_preset, read_status, replay_events
from psd.runs.store.folder import RunFolder
from psd.runs.terminal import PLAIN_EVERY, Progress, format_duration
from psd.runtime import diagnosis
from psd.runtime.console import ForgivingStream
from psd.scenes.choose import make_scene
from tests.support.fake_run import fake_run
from tests.support.toy import make_models, make_preset

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PSD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    return tmp_path / "runs"


def fake(preset: Preset) -> MakeEvents:
    return fake_run


def the_run(root: Path) -> Path:
    (run,) = list_runs(root)
    return run.folder


@pytest.mark.parametrize(
    ("typed", "kept"),
    [("Red mushroom!", "a red mushroom"), ("a red, mushroom", "a red mushroom"), ("an t-rex?", "a tyrannosaurus")],
)
def test_a_prompt_is_run_in_the_wording_that_the_prior_learned(root: Path, typed: str, kept: str) -> None:
    assert main(["run", typed, "--steps", "2"], prepare=fake) == OK
    assert read_preset(the_run(root)).prompt == kept


def test_what_is_read_otherwise_is_said_and_what_names_nothing_known_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "two cute foxes", "--steps", "2"], prepare=fake) == OK
    assert "prompt: cute: dropped\nprompt: two foxes: one fox\n" in capsys.readouterr().err
    assert main(["run", "a dragon", "--steps", "2"], prepare=fake) == BAD_INPUT
    assert "'a dragon' is not a caption" in (said := capsys.readouterr().err) and "a tyrannosaurus" in said
    assert main(["run", "a dragon", "--steps", "2", "--set", "prior=elsewhere"], prepare=fake) == OK  # reads anything


@pytest.mark.parametrize(("version", "told"), [((3, 10), True), ((3, 11), False), ((3, 12), False), ((3, 14), True)])
def test_another_python_is_told_which_ones_will_do(version: tuple[int, int], told: bool) -> None:
    words = diagnosis.python_problem(version)
    assert bool(words) == told and (not told or ("3.11 and 3.12" in words and f"{version[0]}.{version[1]}" in words))


def test_run_leaves_a_finished_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["run", "a blue cube", "--steps", "4", "--seed", "9", "--set", "guidance_scale=7.5"], prepare=fake) == OK
    )
    out, err = capsys.readouterr()
    folder = the_run(root)
    assert out == f"{folder}\n"
    assert read_status(folder).state == "finished"
    preset = read_preset(folder)
    assert (preset.prompt, preset.steps, preset.seed, preset.guidance_scale) == ("a blue cube", 4, 9, 7.5)
    assert "completed after 4 steps" in err and "nothing chosen" in err and "this is a fake" in err


def test_prompt_and_preset_have_defaults(root: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("prompt: a red cube\nsteps: 2\n")
    assert main(["run", "--preset", str(own), "--out", str(tmp_path / "elsewhere")], prepare=fake) == OK
    assert not root.exists()
    assert read_preset(the_run(tmp_path / "elsewhere")).prompt == "a red cube"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "x", "--steps", "0"], "steps=0"),
        (["run", "x", "--set", "guidanc_scale=1"], "did you mean 'guidance_scale'"),
        (["run", "x", "--set", "seed"], "is not key=value"),
        (["run", "--set", "seed=3", "a red cube"], "'a red cube' is not key=value (a prompt goes before --set)"),
        (["run", "x", "--preset", "nowhere"], "no preset 'nowhere'"),
        (["resume", "nowhere"], "no run 'nowhere'"),
        (["export", "nowhere", "--format", "usdz"], "no format 'usdz'"),
        (["export", "nowhere", "--size-mm", "0"], "--size-mm 0 must lie in [1, 10000] millimetres"),
        (["export", "nowhere", "--size-mm", "nan"], "--size-mm nan must lie in"),
        (["presets", "show", "nowhere"], "no preset 'nowhere'"),
    ],
)
def test_bad_input(root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert main(arguments, prepare=fake) == BAD_INPUT
    assert words in capsys.readouterr().err
    assert list_runs(root) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PresetError("unknown word 'zebra'"), BAD_INPUT),
        (MissingError("no weights"), MISSING),
        (ImportError("No module named 'torch'"), MISSING),
        (OSError("no such model on the hub"), MISSING),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
)
def test_what_loading_the_models_can_say(
    root: Path, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def prepare(preset: Preset) -> MakeEvents:
        raise error

    assert main(["run", "a fox"], prepare=prepare) == code
    assert str(error) in capsys.readouterr().err
    assert list_runs(root) == []


def test_full_disk_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root.write_text("a file where the folder should be")
    assert main(["run", "a fox"], prepare=fake) == MISSING
    assert "PSD_RUNS" in capsys.readouterr().err


def test_failed_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        yield from [*fake_run(preset, control)][:4]
        raise ArithmeticError("density is not finite")

    assert main(["run", "a fox"], prepare=lambda preset: failing) == FAILED
    out, err = capsys.readouterr()
    assert "density is not finite" in err and "log.txt" in err and "Traceback" not in err
    assert out.strip() == str(the_run(root))


def interrupting(times: int) -> MakeEvents:
    """A run in which the user presses Ctrl-C at step 3."""

    def events(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        for event in fake_run(preset, control, resume):
            yield event
            if isinstance(event, Stepped) and event.step == 3:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)

    return events


def test_first_interrupt_keeps_everything(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "a fox", "--steps", "6"], prepare=lambda preset: interrupting(1)) == INTERRUPTED
    folder = the_run(root)
    assert read_status(folder).state == "stopped"
    events = list(replay_events(folder))
    assert isinstance(events[-1], Finished) and isinstance(events[-2], Meshed) and events[-1].step == 3
    assert "Ctrl-C again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_interrupt_leaves_at_once(root: Path) -> None:
    assert main(["run", "a fox", "--steps", "6"], prepare=lambda preset: interrupting(2)) == INTERRUPTED
    folder = the_run(root)
    assert read_status(folder).state == "interrupted"
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None and checkpoint.step == 2


def test_resume_goes_on_where_it_stopped(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "a fox", "--steps", "6"], prepare=lambda preset: interrupting(2))
    folder = the_run(root)
    assert main(["resume", folder.name], prepare=fake) == OK
    told = [event for event in replay_events(folder) if isinstance(event, Stepped)]
    assert told == [event for event in fake_run(read_preset(folder), Controls(Preset())) if isinstance(event, Stepped)]
    assert main(["resume", str(folder)], prepare=fake) == BAD_INPUT
    assert "add some with --more N" in capsys.readouterr().err


def test_set_takes_several_values_and_may_be_repeated(root: Path) -> None:
    given = ["--set", "kappa=2", "guidance_scale=7.5", "--steps", "2", "--set", "rescale=0"]
    assert main(["run", "a fox", *given], prepare=fake) == OK
    preset = read_preset(the_run(root))
    assert (preset.prompt, preset.kappa, preset.guidance_scale, preset.rescale, preset.steps) == ("a fox", 2, 7.5, 0, 2)


def test_resume_moves_what_is_live_before_its_first_step(root: Path) -> None:
    """What makes the cure of a value that is not finite one that can be followed; over a change of the first run."""

    def fails(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        control.change({"guidance_scale": 9.0})
        for event in fake_run(preset, control, resume):
            yield event
            if event.step == 3:
                raise ArithmeticError("the noise prediction is not finite")

    main(["run", "a fox", "--steps", "6"], prepare=lambda preset: fails)
    folder = the_run(root)
    again = ["resume", str(folder), "--set", "guidance_scale=2", "preference_weight=0.5"]
    assert main(again, prepare=fake) == OK
    told = list(replay_events(folder))
    changed = [event for event in told if isinstance(event, LiveChanged)]
    assert [(event.step, event.values) for event in changed] == [
        (0, {"guidance_scale": 9.0}), (2, {"guidance_scale": 2.0, "preference_weight": 0.5}),
    ]  # fmt: skip
    assert isinstance(told[-1], Finished)


@pytest.mark.parametrize(
    ("value", "words"), [("scene.grid_size=8", "scene.grid_size cannot change"), ("kappa", "not key=value")]
)
def test_resume_refuses_what_cannot_move(
    root: Path, capsys: pytest.CaptureFixture[str], value: str, words: str
) -> None:
    def loads(preset: Preset) -> MakeEvents:
        raise AssertionError("refused before models are loaded")

    main(["run", "a fox", "--steps", "6"], prepare=lambda preset: interrupting(2))
    assert main(["resume", str(the_run(root)), "--set", value], prepare=loads) == BAD_INPUT
    assert words in capsys.readouterr().err


def test_resume_with_more_steps(root: Path) -> None:
    main(["run", "a fox", "--steps", "6"], prepare=fake)
    folder = the_run(root)
    for total in (9, 12):
        assert main(["resume", str(folder), "--more", "3"], prepare=fake) == OK
        assert read_preset(folder).total_steps == total == read_status(folder).step == read_status(folder).total
    assert read_preset(folder).steps == 6, "the schedule stays"


def test_resume_with_fewer_steps(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "a fox", "--steps", "6"], prepare=fake)
    main(["resume", str(the_run(root)), "--more", "3"], prepare=fake)
    assert main(["resume", str(the_run(root)), "--more", "-1"], prepare=fake) == BAD_INPUT
    assert "--more=-1 is below 0" in capsys.readouterr().err
    assert read_preset(the_run(root)).total_steps == 9


def test_resume_of_a_run_that_is_being_written(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder.create(Preset(steps=6), root) as folder:
        assert main(["resume", str(folder.path)], prepare=fake) == MISSING
    assert "another process" in capsys.readouterr().err


def blob(root: Path) -> Path:
    """The folder of a run whose scene is its initial blob."""
    preset = Preset.make({"scene.grid_size": 16, "mesh_resolution": 24, "mesh_faces": 300, "steps": 1})
    state = {f"scene/{name}": tensor.numpy() for name, tensor in make_scene(preset).state().items()}
    with RunFolder.create(preset, root) as folder:
        folder.write(Started(step=0, preset={}, total_steps=1, views=4, environment={"torch": "x"}))
        folder.write(Checkpointed(step=1, tensors={**state, "generator": np.zeros(3, np.uint8)}, values={}))
    return folder.path


def test_export_makes_the_mesh_again(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = blob(root)
    assert main(["export", str(folder), "--format", "glb,ply"]) == OK
    files = [folder / "public/exports/mesh.glb", folder / "public/exports/mesh.ply"]
    assert capsys.readouterr().out == "".join(f"{path}\n" for path in files)
    assert files[0].read_bytes()[:4] == b"glTF" and folder.name.encode() in files[0].read_bytes()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_size_of_a_print_is_chosen(root: Path, tmp_path: Path, elsewhere: bool) -> None:
    folder = blob(root)
    out = tmp_path / "out" if elsewhere else folder / "public/exports"
    arguments = ["export", str(folder), "--format", "stl", "--size-mm", "42.5"]
    assert main(arguments + (["--out", str(out)] if elsewhere else [])) == OK
    assert (out / "mesh.stl").read_bytes().startswith(b"PSD Studio 42.5 mm, +z up")


def test_export_into_a_run_is_told_by_it(root: Path) -> None:
    folder = blob(root)
    exports = folder / "public/exports"
    (exports / "mesh.mtl").write_text("of an earlier texture")
    assert main(["export", str(folder), "--format", "glb", "--threshold", "3"]) == OK
    names = {path.name for path in exports.iterdir()}
    films = {"turntable.mp4", "turntable.webp"}
    assert names == {"mesh.glb", "mesh.obj", "mesh.ply", "mesh.stl", "statistics.json", *films}
    *_, last = replay_events(folder)
    assert isinstance(last, Meshed) and last.statistics["threshold"] == 3.0
    assert json.loads((exports / "statistics.json").read_text()) == last.statistics


def test_export_leaves_a_run_alone_that_goes_on(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with RunFolder.open(blob(root)) as folder:
        assert main(["export", str(folder.path)]) == MISSING
        assert "still going" in capsys.readouterr().err
        assert main(["export", str(folder.path), "--format", "stl", "--out", str(tmp_path)]) == OK
    assert list((folder.path / "public/exports").iterdir()) == []


def test_export_elsewhere_with_a_threshold(root: Path, tmp_path: Path) -> None:
    folder, sizes = blob(root), []
    for threshold in ("3", "6"):
        out = tmp_path / threshold
        assert main(["export", str(folder), "--format", "ply", "--threshold", threshold, "--out", str(out)]) == OK
        sizes.append((out / "mesh.ply").stat().st_size)
    assert sizes[0] != sizes[1]
    assert list((folder / "public/exports").iterdir()) == []


@pytest.mark.parametrize("threshold", ["-1", "1e9"])
def test_export_without_a_surface(root: Path, capsys: pytest.CaptureFixture[str], threshold: str) -> None:
    assert main(["export", str(blob(root)), "--threshold", threshold]) == BAD_INPUT
    assert "threshold" in capsys.readouterr().err


def test_export_without_a_checkpoint(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder.create(Preset(), root) as folder:
        pass
    assert main(["export", str(folder.path)]) == BAD_INPUT
    assert "no whole checkpoint" in capsys.readouterr().err


def test_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_presets() and all(len(line.split()) > 3 for line in lines)
    assert main(["presets", "show", "tiny"]) == OK
    assert "prompt: a red mushroom" in capsys.readouterr().out
    assert main(["presets", "table"]) == OK
    assert capsys.readouterr().out == parameter_table()


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in ((["--help"], OK), (["run", "--help"], OK), (["fly"], BAD_INPUT)):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == code
        told = capsys.readouterr()
        assert code or ("exit codes:" in told.out and "130" in told.out)


def test_the_process_ends_with_the_code() -> None:
    bad = subprocess.run(
        [sys.executable, "-m", "psd", "run", "x", "--steps", "-1"], capture_output=True, text=True, check=False
    )
    assert bad.returncode == BAD_INPUT and bad.stdout == "" and "steps=-1" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_bad_input_is_refused_before_torch_is_imported() -> None:
    code = (
        "import sys; from psd.__main__ import main; main(['run', 'x', '--steps', '-1']); print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


def test_waiting_threads_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY")
    main(["presets"])
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


# progress ----------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps(progress: Progress, count: int, *, total: int, seconds: float) -> None:
    progress.show(Started(step=0, preset={}, total_steps=total, views=4, environment={}))
    for step in range(1, count + 1):
        metrics = {"reward/assets/reward": 0.25, "judge/assets/selector": step / 10, "time/step": seconds}
        progress.show(Stepped(step=step, t=1, metrics=metrics, time_s=seconds * step))


def test_progress_names_the_stage() -> None:
    progress = Progress(io.StringIO())
    progress.show(Started(step=0, preset={"stages": [{}, {}]}, total_steps=9, views=4, environment={}))
    progress.show(Stepped(step=5, t=1, stage=1))
    assert "5/9  stage 2 of 2" in progress.text()


def test_progress_tells_speed_and_time_left() -> None:
    progress = Progress(Terminal())
    steps(progress, 30, total=120, seconds=0.5)
    text = progress.text()
    assert text.startswith("[######..................]   30/120  2.00 it/s  0:45 left")
    assert text.endswith("reward 0.250  judge selector 3.000")


def test_progress_speed_follows_the_last_steps() -> None:
    progress = Progress(Terminal())
    steps(progress, 30, total=120, seconds=0.5)
    for step in range(31, 61):
        progress.show(Stepped(step=step, t=1, time_s=15 + 2 * (step - 30)))
    assert "0.50 it/s  2:00 left" in progress.text()


def test_a_resumed_run_counts_its_own_steps() -> None:
    progress = Progress(Terminal())
    progress.show(Started(step=100, preset={}, total_steps=120, views=4, environment={}, time_s=70.0))
    progress.show(Stepped(step=101, t=1, time_s=71.0))
    assert "101/120  1.00 it/s  0:19 left" in progress.text()


def test_terminal_redraws_one_line() -> None:
    terminal = Terminal()
    progress = Progress(terminal)
    steps(progress, 3, total=120, seconds=0.5)
    assert terminal.getvalue().count("\r") == 3 and "\n" not in terminal.getvalue()
    progress.show(Warned(step=3, message="careful"))
    assert terminal.getvalue().endswith("\rwarning: careful\n")
    steps(progress, 1, total=120, seconds=0.5)
    progress.close()
    assert terminal.getvalue().endswith("\n")


def test_log_gets_a_line_now_and_then() -> None:
    log = io.StringIO()
    progress = Progress(log)
    steps(progress, 25, total=25, seconds=0.5)
    progress.show(LiveChanged(step=25, values={"guidance_scale": 3}))
    lines = log.getvalue().splitlines()
    assert len(lines) == 25 // PLAIN_EVERY + 2 and "\r" not in log.getvalue()
    assert lines[-1] == "guidance_scale is now 3"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3723, "1:02:03")])
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


# output that nobody reads ------------------------------------------------------------------------------------------


class Unread(io.StringIO):
    """A stream whose reader has gone, after ``left`` more writes."""

    def __init__(self, error: Exception, left: int = 0) -> None:
        super().__init__()
        self.error, self.left = error, left

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)

    def flush(self) -> None:
        if self.left < 0:
            raise self.error


@pytest.mark.parametrize("left", [0, 3])
@pytest.mark.parametrize(
    "error", [BrokenPipeError(errno.EPIPE, "gone"), OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "no terminal")]
)
def test_a_run_goes_on_when_nobody_reads_its_output(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, left: int
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Unread(error, left))
    assert main(["run", "a red cube", "--steps", "6"], prepare=fake) == OK
    assert read_status(the_run(root)).state == "finished"


@pytest.mark.parametrize("gone", ["closed", "none"])
def test_a_run_goes_on_without_any_output(root: Path, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    for name in ("stdout", "stderr"):
        stream = io.StringIO()
        stream.close()
        monkeypatch.setattr(sys, name, stream if gone == "closed" else None)
    assert main(["run", "a red cube", "--steps", "6"], prepare=fake) == OK
    assert read_status(the_run(root)).state == "finished"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_that_an_encoding_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert main(["presets", "table"]) == OK
    assert b"| `steps` |" in written.getvalue()
    stream = ForgivingStream(io.TextIOWrapper(written, encoding=encoding))
    stream.write("\u4e2d\n")
    stream.flush()
    assert written.getvalue().endswith(b"\\u4e2d\n")


def test_a_pager_that_is_left_changes_no_exit_code() -> None:
    """What is buffered meets the broken pipe at the end of the process, where Python itself would exit with 120."""
    command = [sys.executable, "-m", "psd", "presets", "table"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0


# doctor ------------------------------------------------------------------------------------------------------------


def test_doctor_ends_as_its_findings_say(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor"])
    out = capsys.readouterr().out
    assert code == (MISSING if doctor.BAD in out else OK)
    for what in ("python", "torch", "cpu", "memory", "runs", *(f"preset {name}" for name in list_presets())):
        assert f"\n{what} " in f"\n{out}"


@pytest.mark.parametrize(
    ("card", "state"),
    [("{sum}  unet/a.safetensors", "ok"), ("| `{sum}` | `unet/a.safetensors` |", "ok"), ("no sums", "note"),
     ("{wrong}  unet/a.safetensors", "MISSING"), ("{sum}  unet/a.safetensors\n{sum}  gone.safetensors", "MISSING")],
)  # fmt: skip
def test_doctor_checks_the_sums(tmp_path: Path, card: str, state: str) -> None:
    weights = tmp_path / "prior/unet/a.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    (tmp_path / "pictures").mkdir()
    digest = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "prior/README.md").write_text(card.format(sum=digest, wrong=digest[::-1]))
    assert [(finding.what, finding.state) for finding in doctor.check_weights(tmp_path)] == [("assets/prior", state)]


def test_doctor_names_a_package_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements.txt").write_text("# comment\nno-such-thing==1.0\nnumpy==0.1\nno-luxury==2.0\n")
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setitem(doctor.OPTIONAL, "no-luxury", "a luxury")
    found = {finding.what: finding.state for finding in doctor.check_packages()}
    assert found == {"no-such-thing": doctor.BAD, "numpy": doctor.NOTE}


def test_doctor_finds_an_optional_package_by_its_module() -> None:
    assert doctor.check_optional("imageio-ffmpeg", "films").state == doctor.OK


def test_doctor_of_torchvision_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements.txt").write_text("torch==2.0\n")
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name == "torchvision" or None)

    def version(name: str) -> str:
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert [(finding.what, finding.state) for finding in doctor.check_packages()] == [("torch", doctor.BAD)]


def test_doctor_works_without_the_hubs_client(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    main(["doctor"])
    out = capsys.readouterr().out
    assert "\nhub " not in out and "preset mvdream" in out and "preset tiny             ok" in out


def test_doctor_tells_each_finding_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def findings() -> Iterator[doctor.Finding]:
        yield doctor.Finding("first", doctor.BAD, "gone", "bring it")
        assert capsys.readouterr().out.split() == ["first", "MISSING", "gone", "->", "bring", "it"]

    monkeypatch.setattr(doctor, "examine_machine", findings)
    assert doctor.print_report() == MISSING


@pytest.mark.parametrize("package", ["pydantic", "yaml", "numpy"])
def test_a_package_that_is_missing_at_the_start_is_said_in_a_line(package: str) -> None:
    code = f"import sys, runpy; sys.modules[{package!r}] = None; sys.argv[1:] = ['doctor']; "
    code += "runpy.run_module('psd', run_name='__main__')"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == MISSING and told.stdout == ""
    assert told.stderr == f"psd: the package {package} is not installed: pip install -r requirements.txt\n"


def test_a_package_that_is_missing_later_is_said_too(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = blob(root)
    monkeypatch.delitem(sys.modules, "psd.runs.remesh", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["export", str(folder)]) == MISSING
    assert "the package torch is not installed" in capsys.readouterr().err


def test_doctor_sees_runs_that_cannot_be_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    (found,) = [finding for finding in doctor.check_memory_and_disk() if finding.what == "runs"]
    assert found.state == doctor.BAD and "PSD_RUNS" in found.cure


# bench -------------------------------------------------------------------------------------------------------------


def test_bench_accounts_for_every_call(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench.measure_steps(make_preset(), make_models(), 4)
    assert found.steps == 4
    assert {"render", "encode", "unet", "backward", "negative", "other"} <= set(found.parts)
    assert sum(part["share"] for part in found.parts.values()) == pytest.approx(1)
    assert found.parts["negative"]["steps"] == 1 and found.parts["render"]["steps"] == 4
    kinds = {key.split()[0]: call["calls_per_step"] for key, call in found.bare.items()}
    assert kinds["render"] == pytest.approx(1) and {"render", "unet", "encode", "reward"} <= set(kinds)
    assert any(key.startswith("render") and key.endswith("and backward") for key in found.bare)
    assert "overhead" in found.format_table() and json.dumps(found.full) == "null"
    assert found.run_s == pytest.approx(make_preset().total_steps * found.step_s)


def test_bench_warms_each_half_up_and_measures_updates_in_both() -> None:
    """A late orbit of two: its calls come as often as its half does in the run, not in the bench."""
    preset = make_preset(steps=100, stages=[{"share": 0.8}, {"share": 0.2, "groups": 2}], negative_t_max=0.0)
    found = bench.measure_steps(preset, make_models(), 3)
    assert found.steps == 6 and found.parts["negative"]["steps"] == 2
    calls = {key: call["calls_per_step"] for key, call in found.bare.items() if key.startswith("encode")}
    assert sorted(calls.values()) == pytest.approx([0.2, 0.8])
    assert found.parts["negative"]["share"] == 0  # t never falls that low


def test_bench_leaves_the_run_as_it_was() -> None:
    """Timing calls between the steps moves neither the draws nor the scene."""
    from tests.support.toy import run

    def metrics(events: Iterator[Event]) -> list[dict[str, float]]:
        stepped = list(
            islice((event for event in events if isinstance(event, Stepped)), 5)
        )  # the mesh is not asked for
        return [{k: v for k, v in event.metrics.items() if not k.startswith("time/")} for event in stepped]

    preset = make_preset(preview_every=100)
    bare = bench.ModelCallTimes(lambda: None)

    def timed() -> Iterator[Event]:
        models, _ = bench.record_models(make_models(), bare)
        for event in run(preset, models):
            if isinstance(event, Stepped):
                bare.finish_step(measure=True)
            yield event

    assert metrics(timed()) == metrics(run(preset, make_models()))
    assert len(bare.steps) == 5


def test_bench_arithmetic() -> None:
    bare = bench.ModelCallTimes(lambda: None)
    bare.seconds = {"unet (2,)": [0.2, 0.1, 0.9], "render 64": [0.1]}
    bare.steps = [bench.Counter({"unet (2,)": 2, "render 64": 1}), bench.Counter({"unet (2,)": 1, "render 64": 1})]
    laps = [{"unet": 0.5, "other": 0.1, "step": 0.6}, {"unet": 0.3, "negative": 0.1, "other": 0.1, "step": 0.5}]
    weights = bench.step_shares(laps, [StageShare("early", 1.0, updates=0.2)])
    assert weights == [0.8, 0.2]
    found = bench.summarise_steps(laps, bare, weights, 1000)
    assert found.step_s == pytest.approx(0.8 * 0.6 + 0.2 * 0.5) and found.run_s == pytest.approx(580)
    assert found.overhead_s == pytest.approx((0.1 + 0.2) / 2)  # 0.6 - 2 * 0.2 - 0.1 and 0.5 - 0.2 - 0.1
    assert found.overhead_share == pytest.approx((0.1 / 0.6 + 0.2 / 0.5) / 2)
    assert found.bare["unet (2,)"]["calls_per_step"] == pytest.approx(0.8 * 2 + 0.2 * 1)
    assert found.render_over_network == pytest.approx(0.1 / 0.36)
    assert found.parts["negative"] == {"median_s": 0.1, "share": pytest.approx(0.02 / 0.58), "steps": 1}
    assert list(found.parts)[-1] == "other"


def test_bench_times_the_backward_too() -> None:
    class Slow(torch.autograd.Function):
        backwards = 0

        @staticmethod
        def forward(ctx, x):  # noqa: ANN001
            return x * 2

        @staticmethod
        def backward(ctx, gradient):  # noqa: ANN001
            Slow.backwards += 1
            return gradient * 2

    x = torch.ones(3, requires_grad=True)
    bench.time_alone(Call("unet", "unet", Slow.apply, (x,), {}, grad=True), lambda: None)
    assert Slow.backwards == 1 and x.grad is None
    bench.time_alone(Call("unet", "unet", Slow.apply, (x,), {}, grad=False), lambda: None)
    assert Slow.backwards == 1


def test_bench_times_a_whole_run() -> None:
    found = profile_run(Preset(steps=4), fake_run)
    marks = found.milestones
    assert list(marks) == ["models_ready", "first_preview", "mesh", "finished"]
    assert sorted(marks.values()) == list(marks.values())
    parts = ("start-up", "models", "steps", "previews and judges", "checkpoints", "mesh", "files of previews")
    assert set(parts) < set(found.parts) and all(found.parts[part].wall_s > 0 for part in parts)
    assert found.whole.wall_s <= marks["finished"] + 0.1
    table = "\n".join(found.format_lines())
    assert "files of checkpoints" in table and "were at work" in table


def test_bench_refuses_too_few_steps() -> None:
    with pytest.raises(PresetError, match="must lie in"):
        bench.measure_steps(make_preset(), make_models(), 1)
