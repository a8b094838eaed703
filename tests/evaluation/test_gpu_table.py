"""`make test-gpu` without a GPU: what it collects, with which interpreter, and the record that it writes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import gpu_table

ROOT = Path(__file__).resolve().parents[2]
REPORT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" errors="0" failures="1" skipped="1" tests="3" time="75.5">
<testcase classname="tests.test_gpu" name="test_a_step[mvdream]" time="60.25"><properties>
<property name="run it/s" value="17.31"/>
<property name="bar, at least 17 it/s" value="17.31 it/s, met"/>
</properties></testcase>
<testcase classname="tests.test_gpu" name="test_b" time="15.25">
<failure message="assert 1 | 2 == 4&#10;more">...</failure></testcase>
<testcase classname="tests.test_hashgrid" name="test_c" time="0.0"><skipped message="no tinycudann"/></testcase>
<testcase classname="tests.test_hashgrid" name="test_d" time="0.0"><error message="no setup"/></testcase>
</testsuite></testsuites>
"""
WHERE = {
    "card": "NVIDIA H100 80GB HBM3",
    "driver": "580.1",
    "torch": "2.13.0+cu130",
    "commit": "abc",
    "date": "2026-11-20",
}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "gpu.xml"
    path.write_text(REPORT, encoding="utf-8")
    return path


def test_the_record_says_what_was_found_where(report: Path, tmp_path: Path) -> None:
    found = gpu_table.rows(report)
    assert [row.outcome for row in found] == ["passed", "failure", "skipped", "error"]
    json_file, page_file = gpu_table.record(found, WHERE, tmp_path)
    assert (json_file.name, page_file.name) == ("gpu-h100-80gb-hbm3.json", "gpu-h100-80gb-hbm3.md")
    written = json.loads(json_file.read_text(encoding="utf-8"))
    assert written["machine"] == WHERE
    assert written["tests"][0] == {
        "test": "test_a_step[mvdream]", "outcome": "passed", "seconds": 60.25, "why": "",
        "figures": {"run it/s": "17.31", "bar, at least 17 it/s": "17.31 it/s, met"},
    }  # fmt: skip
    assert (written["tests"][1]["why"], written["tests"][2]["why"]) == ("assert 1 | 2 == 4", "no tinycudann")
    page = page_file.read_text(encoding="utf-8").splitlines()
    assert page[0] == "# NVIDIA H100 80GB HBM3" and page[2].endswith("1 passed, 1 failure, 1 skipped, 1 error, 76 s.")
    assert "| driver | 580.1 |" in page and "| commit | abc |" in page
    step = "| test_a_step[mvdream] | passed | run it/s: 17.31<br>bar, at least 17 it/s: 17.31 it/s, met |"
    assert step in page and r"| test_b | failure | assert 1 \| 2 == 4 |" in page
    gpu_table.record(found[:1], WHERE, tmp_path)  # the next call on such a card
    assert len(json.loads(json_file.read_text(encoding="utf-8"))["tests"]) == 1


def test_nothing_is_recorded_without_a_gpu_or_a_test(report: Path, tmp_path: Path) -> None:
    found, folder = gpu_table.rows(report), tmp_path / "results"
    folder.mkdir()
    assert gpu_table.record(found, {**WHERE, "card": ""}, folder) == []
    assert gpu_table.record(found[2:], WHERE, folder) == gpu_table.record([], WHERE, folder) == []
    assert not list(folder.iterdir())


def test_the_command_prints_the_table_and_knows_this_machine(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Paper 9000")
    gpu_table.main([str(report), "--record", str(tmp_path), "--commit", "abc"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"NVIDIA Paper 9000, torch {torch.__version__}\n") and "\n76 s\n" in printed
    assert re.search(r"^passed +test_a_step\[mvdream\] +run it/s 17.31, bar", printed, re.MULTILINE)
    assert re.search(r"^failure +test_b +assert 1 \| 2 == 4$", printed, re.MULTILINE)
    found = json.loads((tmp_path / "gpu-paper-9000.json").read_text(encoding="utf-8"))["machine"]
    assert found["commit"] == "abc" and found["torch"] == torch.__version__
    assert re.fullmatch(r"[\d.]+", found["diffusers"]) and re.fullmatch(r"[\d.]+", found["transformers"])
    assert {"driver", "CUDA", "triton", "python", "date"} <= set(found) and all(found.values())


def test_the_commit_is_gits_own_or_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def run(command: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        if command[0] == "nvidia-smi":
            raise FileNotFoundError("no such program")
        return subprocess.CompletedProcess(command, 0, stdout="0123abc, and changes\n")

    monkeypatch.setattr(gpu_table.subprocess, "run", run)
    found = gpu_table.machine()
    assert found["commit"] == "0123abc, and changes" and found["driver"] == "not known"
    assert any(command[:2] == ("git", "describe") and "--dirty=, and changes" in command for command in asked)


def asked(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Of a make that knows nothing of the one that may have started these tests, which hands its variables down."""
    theirs = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "TESTS", "PYTEST", "COMMIT")
    env = {name: value for name, value in os.environ.items() if name not in theirs}
    command = ["make", "--no-print-directory", "-n", "test-gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)


def commands(*arguments: str) -> str:
    """What make would do, in one line a command."""
    done = asked(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", " ")


def test_make_takes_an_interpreter_as_it_is_and_collects_gpu_tests_only() -> None:
    """Nothing is installed, and files that need what only other tests do (a browser, ...) are not imported."""
    told = commands("PYTEST=python3 -m pytest", "COMMIT=abc")
    assert ".venv" not in told and "pip" not in told
    assert re.search(r"\bpython3 -m pytest .*-m gpu\b", told)
    assert re.search(r"\bpython3 -m tests.support.gpu_table \S+ +--record assets/results --commit \"abc\"", told)
    paths = [path for path in ROOT.glob("tests/**/test_*.py") if re.search(r"mark\.gpu\b", path.read_text("utf-8"))]
    marked = {path.relative_to(ROOT).as_posix() for path in paths} - {"tests/evaluation/test_gpu_table.py"}
    assert set(re.findall(r"tests/[\w/]*test_\w+\.py", told)) == marked
    assert "tests/test_gpu.py" in marked
    limits = re.search(r"PSD_TEST_SECONDS=(\d+) .*--timeout (\d+) .*tests/test_gpu.py; status", told)
    assert limits and sum(map(int, limits.groups())) == 600  # the measurements last, all within ten minutes


def test_what_comes_too_late_is_skipped_and_replaces_no_record(report: Path, tmp_path: Path) -> None:
    (tmp_path / "a_gpu.py").write_text("import torch\ntorch.cuda.is_available = lambda: True\n")
    (tmp_path / "test_two.py").write_text(
        "import time, pytest\n@pytest.mark.gpu\ndef test_first(): time.sleep(1.5)\n"
        "@pytest.mark.gpu\ndef test_second(): pass\ndef test_of_no_gpu(): pass\n"
    )
    given = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest", "-p", "a_gpu"]
    given += ["--rootdir", tmp_path]
    paths = os.pathsep.join(map(str, (ROOT, tmp_path)))
    env = {**os.environ, "PYTHONPATH": paths, "PSD_TEST_SHAPES": "0", "PSD_TEST_SECONDS": "1"}
    cut = tmp_path / "cut.xml"
    done = subprocess.run([*given, f"--junit-xml={cut}", tmp_path / "test_two.py"], capture_output=True, env=env)
    assert done.returncode == 0, done.stdout
    late = gpu_table.rows(cut)
    assert [row.outcome for row in late] == ["passed", "skipped", "passed"] and late[1].why == "not begun within 1 s"
    whole = gpu_table.record(gpu_table.rows(report), WHERE, tmp_path)
    text = whole[0].read_text(encoding="utf-8")
    beside = gpu_table.record(late, WHERE, tmp_path)
    assert [path.name for path in beside] == ["gpu-h100-80gb-hbm3-part.json", "gpu-h100-80gb-hbm3-part.md"]
    assert "not begun within 1 s" in beside[1].read_text(encoding="utf-8")
    assert whole[0].read_text(encoding="utf-8") == text
    gpu_table.record(gpu_table.rows(report), WHERE, tmp_path)
    assert not any(path.exists() for path in beside)  # the next whole one tells more


def test_figures_are_told_when_their_test_is_over(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(
        "def test_first(record_property):\n    record_property('it/s', 17.5)\n    record_property('GB', 15)\n"
        "def test_second(record_property):\n    record_property('ms', 3)\n    import os; os._exit(9)\n"
    )
    given = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.conftest",
        "--rootdir",
        tmp_path,
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PSD_TEST_SHAPES": "0"}
    done = subprocess.run([*given, tmp_path / "test_two.py"], capture_output=True, text=True, env=env)
    assert done.returncode == 9
    assert re.search(r"test_two.py::test_first passed, \d+ s: it/s 17.5, GB 15\n", done.stdout)


def test_what_it_collects_needs_no_package_that_only_other_tests_do() -> None:
    """An import that fails ends the whole collection; twins and the page are looked for inside of tests."""
    files = re.findall(r"tests/([\w/]*test_\w+)\.py", commands("PYTEST=python3 -m pytest"))
    modules = [f"tests.{file.replace('/', '.')}" for file in files]
    absent = "gradio", "imageio", "playwright", "skimage", "tinycudann", "xatlas"
    program = f"import sys; sys.modules.update(dict.fromkeys({absent})); import "
    done = subprocess.run(
        [sys.executable, "-c", program + ", ".join(["tests.conftest", *modules])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PSD_TEST_SHAPES": "0"},  # as `make test-gpu` starts them
    )
    assert done.returncode == 0 and len(files) >= 4, done.stderr


def test_make_records_whole_results_only() -> None:
    told = commands("PYTEST=python3 -m pytest", "TESTS=tests/test_gpu.py -k step")
    assert "tests/test_gpu.py -k step" in told and "--record" not in told and "test_hashgrid" not in told


def test_make_refuses_what_it_cannot_take_an_interpreter_from() -> None:
    done = asked("PYTEST=pytest")
    assert done.returncode != 0 and "-m pytest" in done.stderr
