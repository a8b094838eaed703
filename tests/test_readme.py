"""README.md and docs/ say what is there: the commands, files, functions, values, links and figures they name exist."""

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import yaml

from psd.__main__ import make_parser
from psd.config.assignments import parse_assignments
from psd.config.preset import MethodName, Preset, list_presets
from psd.config.reference import parameter_table
from psd.distillation.events import Failed, Previewed, Stepped
from psd.embedded.captions.grammar import RELATIONS
from psd.embedded.captions.kinds import COLOURS, NAMING, PRIMITIVES, list_known, list_objects
from psd.runs.store.archive import list_runs, replay_events

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
DOCS = ["method", "evidence", "parameters", "presets", "large-models", "server", "embedded", "development"]
PINS = dict(
    line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if re.match(r"[\w-]+==", line)
)
_, FRONT, BODY = README.split("---\n", 2)
SPACE = yaml.safe_load(FRONT)
COMMAND = re.compile(r"python -m psd(?: [^`\n&]*)?")


def without_code(text: str) -> str:
    """A page without fenced and indented code, in which brackets are no links and # is no heading."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Anchors that GitHub gives a page's headings: lower case, without punctuation, spaces as hyphens."""
    titles = re.findall(r"^#+ +(.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text: str) -> list[str]:
    """Every `python -m psd ...` of a page, with `<run>` filled in, its lines joined, without comments
    and the dots of an ellipsis."""
    found = [command.partition("#")[0].strip() for command in COMMAND.findall(re.sub(r"\\\n\s*", "", text))]
    return [command.replace("<run>", "some-run").removesuffix("...").rstrip(" .,;:") for command in found]


# ------------------------------------------------------------------------------------------------------ size and place


def test_the_readme_fits_one_page_and_leads_to_every_other() -> None:
    assert len(README.splitlines()) <= 200
    assert {f"docs/{name}.md" for name in DOCS} <= PAGES.keys()
    assert not [page for page in PAGES if page != "README.md" and f"]({page})" not in README]


def test_the_spaces_front_matter_agrees_with_the_repository() -> None:
    assert SPACE["sdk"] == "gradio" and SPACE["sdk_version"] == PINS["gradio"]
    assert SPACE["python_version"] in ("3.11", "3.12")
    assert (ROOT / SPACE["app_file"]).is_file()
    assert len(SPACE["short_description"]) <= 60  # longer ones are refused
    assert SPACE["license"] == "apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text()


# --------------------------------------------------------------------------------------------------------------- links


def test_anchors_are_those_of_github() -> None:
    text = "# A b\n## Options, with `code` and (more)\n```\n# no heading\n```\n### Large-scale use\n"
    assert anchors(text) == {"a-b", "options-with-code-and-more", "large-scale-use"}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(PAGES[page])) + re.findall(r'src="([^"]+)"', PAGES[page])
    broken = []
    for target in targets:
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    named = re.findall(r"`((?:psd|assets|presets|tests|docs)/[\w./-]*|[\w-]+\.(?:txt|toml))`", PAGES[page])
    assert not [name for name in named if not (ROOT / name).exists()]


def test_functions_in_the_table_of_equations_exist() -> None:
    rows = re.findall(r"`(psd/[\w/]+\.py)`: `(\w+)`", PAGES["docs/method.md"])
    assert len(rows) > 10
    for path, name in rows:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(?:def|class) {name}\b", source, re.MULTILINE), f"{path} has no {name}"


# ------------------------------------------------------------------------------------------------------------ commands


def test_commands_are_found_in_a_page() -> None:
    page = 'See `python -m psd bench`.\n    python -m psd run "a x" --seed 7  # why\n`python -m psd resume <run> ...`'
    page += "\npython -m psd doctor && \\\n    python -m psd presets"
    assert commands(page) == [
        "python -m psd bench",
        'python -m psd run "a x" --seed 7',
        "python -m psd resume some-run",
        "python -m psd doctor",
        "python -m psd presets",
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(PAGES[page]):
        arguments = shlex.split(command)[3:]
        try:
            make_parser().parse_args(arguments)
        except SystemExit as end:
            assert end.code == 0, f"{command}: {capsys.readouterr().err}"


def test_the_pages_name_every_command() -> None:
    known = {command.split()[3] for text in PAGES.values() for command in commands(text) if len(command.split()) > 3}
    (choices,) = [action.choices for action in make_parser()._actions if action.dest == "command"]
    assert choices and set(choices) <= known


def test_make_knows_its_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {name for text in PAGES.values() for name in re.findall(r"(?:`|^ {4}|^)make ([a-z][\w-]*)", text, re.M)}
    assert targets >= {"app", "test", "docs"}
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_arguments_and_variables_of_the_app_exist() -> None:
    app = (ROOT / "psd/ui/options.py").read_text(encoding="utf-8")
    table = PAGES["docs/server.md"]
    named = set(re.findall(r"`(--[\w-]+)", table)) | set(re.findall(r"\b(PSD_\w+)", table))
    assert len(named) > 10
    elsewhere = (ROOT / "psd").rglob("*.py")  # PSD_RUNS is read with the default folder of runs
    source = app + "".join(path.read_text(encoding="utf-8") for path in elsewhere)
    assert not [name for name in named if f'"{name}"' not in source]
    flags = re.findall(r'add_argument\(\s*"(--[\w-]+)"', app)
    assert len(flags) > 10 and not [flag for flag in flags if flag not in named]


# -------------------------------------------------------------------------------------------------------------- values


def test_the_parameters_are_those_of_the_preset() -> None:
    written = re.search(
        r"<!-- parameters.*?-->\n(.*)<!-- end of parameters -->", PAGES["docs/parameters.md"], re.DOTALL
    )
    assert written and written[1] == parameter_table(), "stale: run `make docs`"


def test_every_preset_and_method_is_explained() -> None:
    assert all(f"`{name}`" in BODY for name in (*list_presets(), *get_args(MethodName)))
    assert all(f"`{name}`" in PAGES["docs/presets.md"] for name in list_presets())
    assert all(f"| `{name}` |" in PAGES["docs/method.md"] for name in get_args(MethodName))


def test_colours_primitives_and_relations_are_listed_and_kinds_counted() -> None:
    text = " ".join(BODY.split())
    assert not [word for word in (*COLOURS, *PRIMITIVES, *RELATIONS) if not re.search(rf"\b{word}\b", text)]
    assert f"{len(list_objects()) + 1} kinds of low-poly objects" in text  # the star is one, and a primitive
    assert f"{len(list_known())} kinds (with the primitives) come out well enough" in text


def test_values_set_in_examples_are_accepted() -> None:
    """Those of one command together: keys of a scene need its kind."""
    examples = [
        [word for word in shlex.split(command.partition("--set")[2]) if "=" in word]
        for text in PAGES.values()
        for command in commands(text)
    ]
    assert any(len(settings) > 1 for settings in examples)
    for settings in examples:
        Preset.make(parse_assignments(settings))


def test_presets_in_examples_load(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGES["docs/presets.md"], re.DOTALL)
    assert len(examples) >= 2
    for example in examples:
        path = tmp_path / "mine.yaml"
        path.write_text(example)
        Preset.load(str(path))


def test_the_example_of_a_reward_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", BODY, re.DOTALL) if "black_boxes" in code]
    assert '"steps": 60' in example
    monkeypatch.setenv("PSD_RUNS", str(tmp_path))
    short = '"steps": 2, "preference_t_max": 1.0'  # the first steps are above the level where the reward is asked
    exec(example.replace('"steps": 60', short), {})  # noqa: S102  (the project's own text)
    (found,) = list_runs(tmp_path)
    events = list(replay_events(found.folder, images=False))
    assert not [event for event in events if isinstance(event, Failed)]
    steps = [event.metrics["pair/gap"] for event in events if isinstance(event, Stepped)]
    scores = [event.rewards["reward/darkness"] for event in events if isinstance(event, Previewed)]
    assert found.status.state == "finished" and len(steps) == 2 and all(steps)
    assert all(-1 < score < 0 for views in scores for score in views)


@pytest.mark.parametrize("package", ["torch", "gradio"])
def test_pins_named_in_the_text_are_the_pins(package: str) -> None:
    named = {pin for text in PAGES.values() for pin in re.findall(rf"\b{package}(?:\[\w+\])?==([\d.]+\d)", text)}
    assert named == {PINS[package]}


# ------------------------------------------------------------------------------------------------------------- results


def test_the_figures_of_the_models_are_those_that_were_recorded() -> None:
    named = json.loads(NAMING.read_text(encoding="utf-8"))
    share = f"{named['curve'][-1]['share']:.0%}".replace("%", " %")
    assert share in BODY[BODY.index("## Result") : BODY.index("## Methods")] and share in PAGES["docs/embedded.md"]
