"""README.md says what is there: the parameters, presets, methods, commands, files and pins that it names exist."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from psd.archive import list_runs, replay
from psd.events import Previewed, Stepped
from psd.parameters import assignments, parameter_table
from psd.preset import Method, PairKind, Preset, available

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PINS = dict(
    line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if re.match(r"[\w-]+==", line)
)
_, FRONT, BODY = README.split("---\n", 2)
SPACE = yaml.safe_load(FRONT)


def test_the_parameters_are_those_of_the_preset() -> None:
    written = re.search(r"<!-- parameters.*?-->\n(.*)<!-- end of parameters -->", README, re.DOTALL)
    assert written and written[1] == parameter_table(), "stale: run `make readme`"


def test_every_preset_method_and_pair_is_explained() -> None:
    assert all(f"`{name}`" in BODY for name in (*available(), *get_args(Method)))
    assert all(f"- **{pair}**" in BODY for pair in get_args(PairKind))


def test_the_spaces_front_matter_agrees_with_the_repository() -> None:
    assert SPACE["sdk"] == "gradio" and SPACE["sdk_version"] == PINS["gradio"]
    assert SPACE["python_version"] in ("3.11", "3.12")
    assert (ROOT / SPACE["app_file"]).is_file()
    assert len(SPACE["short_description"]) <= 60  # longer ones are refused
    assert SPACE["license"] == "apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text()


def test_links_and_pictures_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", BODY) if "://" not in target]
    named = re.findall(r"`((?:psd|assets|presets|tests)/[\w./-]*|[\w-]+\.(?:txt|toml|py))`", BODY)
    assert named
    missing = [target for target in targets + named if not (ROOT / target.split("#")[0]).exists()]
    assert not missing


def test_make_knows_its_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z][\w-]*)", BODY))
    assert targets >= {"app", "test"}
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_the_command_line_knows_its_commands() -> None:
    commands = set(re.findall(r"python -m psd ([a-z]+)", BODY))
    assert commands
    help = subprocess.run(
        [sys.executable, "-m", "psd", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert not [command for command in commands if not re.search(rf"^ +{command}\b", help, re.MULTILINE)]


def test_values_set_in_examples_are_accepted() -> None:
    examples = re.findall(r"--set ([^\s=]+=\S+)", BODY)
    assert examples
    for example in examples:
        Preset.make(assignments([example]))


def test_the_example_of_a_reward_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", BODY, re.DOTALL) if "black_boxes" in code]
    assert '"steps": 120' in example
    monkeypatch.setenv("PSD_RUNS", str(tmp_path))
    exec(example.replace('"steps": 120', '"steps": 2'), {})  # noqa: S102  (the project's own text)
    (found,) = list_runs(tmp_path)
    events = list(replay(found.folder, images=False))
    steps = [event.metrics["pair/gap"] for event in events if isinstance(event, Stepped)]
    seen = [event.rewards["reward/dark"] for event in events if isinstance(event, Previewed)]
    assert found.status.state == "finished" and len(steps) == 2 and all(steps)
    assert all(-1 < score < 0 for scores in seen for score in scores)


@pytest.mark.parametrize("package", ["torch"])
def test_pins_named_in_the_text_are_the_pins(package: str) -> None:
    assert set(re.findall(rf"{package}==([\d.]+\d)", BODY)) == {PINS[package]}
