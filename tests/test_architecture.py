"""Who may import whom, held over the source: the layers of the program cannot grow together unnoticed."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [*sorted((ROOT / "psd").rglob("*.py")), *ROOT.glob("app.py")]
}

# Heavy library -> the modules that may import it; "psd.tiny" covers the package.
HEAVY = {
    "gradio": {"psd.ui", "app"},
    "spaces": {"app"},
    "diffusers": {
        "psd.prior",
        "psd.components",
        "psd.randomised",
        "psd.checkpoints",
        "psd.multiview",
        "psd.rewards",
        "psd.tiny",
    },
    "transformers": {
        "psd.prior",
        "psd.components",
        "psd.randomised",
        "psd.checkpoints",
        "psd.multiview",
        "psd.rewards",
        "psd.tiny",
    },
    "nerfacc": {"psd.volrend", "psd.scene"},
    "tinycudann": {"psd.hashfield"},
    "triton": {"psd.hashgrid"},
    "trimesh": {"psd.mesh", "psd.texture"},
}
# Module -> the modules of this package that it may never reach, not even through others.
NEVER = {
    "psd.preset": {"psd"},
    "psd.plain_yaml": {"psd"},
    "psd.events": {"psd.ui", "psd.worker", "psd.store", "psd.run", "psd.models"},
    "psd.store": {"psd.ui", "psd.worker", "psd.run", "psd.models"},
    "psd.worker": {"psd.ui", "psd.run", "psd.models"},
    "psd.ui": {"psd.run", "psd.models", "psd.methods", "psd.prior", "psd.rewards", "psd.scene", "psd.tiny.train"},
    "psd.cameras": {"psd"},
    "psd.score": {"psd.methods", "psd.run", "psd.prior", "psd.scene", "psd.models"},
    "psd.run": {"psd.ui", "psd.worker", "psd.store", "psd.models", "psd.prior", "psd.rewards", "psd.scene"},
    "psd.methods": {"psd.run", "psd.models", "psd.prior", "psd.rewards", "psd.scene"},
    "psd.negative": {"psd.run", "psd.models", "psd.prior", "psd.rewards", "psd.scene"},
    "psd.prior": {"psd.run", "psd.methods", "psd.tiny", "psd.ui", "psd.worker", "psd.store"},
    "psd.rewards": {"psd.run", "psd.methods", "psd.tiny", "psd.ui", "psd.worker", "psd.store"},
    "psd.scene": {"psd.run", "psd.methods", "psd.prior", "psd.tiny", "psd.ui", "psd.worker", "psd.store"},
    "psd.paired": {"psd"},
    "psd.charts": {"psd"},
    "psd.suite": {"psd.tables", "psd.bars", "psd.evidence", "psd.compare", "psd.run", "psd.models", "psd.tiny"},
    "psd.tables": {"psd.bars", "psd.evidence", "psd.compare", "psd.run", "psd.models", "psd.tiny", "psd.ui"},
    "psd.bars": {"psd.evidence", "psd.compare", "psd.run", "psd.models", "psd.tiny", "psd.ui"},
    "psd.mesh": {"psd.run", "psd.methods", "psd.prior", "psd.tiny", "psd.ui", "psd.worker", "psd.store"},
}
LEAVES = {"psd.plain_yaml", "psd.complaints"}  # reach nothing of this package but each other: anything may reach them
TORCH_FREE = ["psd.ui", "psd.worker", "psd.store", "psd.events", "psd.preset"]


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


def parts(module: str) -> list[str]:
    """The module, or all of a package; a rule about something that is gone fails, so that its line goes too."""
    found = [name for name in MODULES if allowed(name, {module})]
    assert found, f"{module} is not in the package: remove or rename its line in this test"
    return found


def allowed(module: str, owners: set[str]) -> bool:
    """Is the module one of ``owners``, or inside one that is a package?"""
    return any(module == owner or module.startswith(f"{owner}.") for owner in owners)


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


@pytest.mark.parametrize("library", HEAVY)
def test_heavy_libraries_stay_behind_their_adapters(library: str) -> None:
    strangers = [
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == library for name in imports(path)) and not allowed(module, HEAVY[library])
    ]
    assert not strangers, f"{library} belongs in {sorted(HEAVY[library])}, not in {strangers}"


@pytest.mark.parametrize("module", NEVER)
def test_arrows_point_one_way(module: str) -> None:
    wrong = {
        name: via
        for part in parts(module)
        for name, via in reachable(part).items()
        if name not in {"psd"} | LEAVES and not allowed(name, {module}) and allowed(name, NEVER[module])
    }
    assert not wrong, f"{module} must not reach {wrong} (reached: imported by)"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_presentation_knows_no_torch(module: str) -> None:
    """Not in its own code, and not by being loaded; the store may fetch the mesh writer when there is a mesh."""
    loaded = {name: via for part in parts(module) for name, via in reachable(part, "loading").items() if name != "psd"}
    guilty = {
        name: loaded.get(name, "itself")
        for name in [*parts(module), *loaded]
        if any(imported.split(".")[0] == "torch" for imported in imports(MODULES[name], "running"))
    }
    assert not guilty, f"{module} pulls in torch through {guilty} (module: imported by)"


def test_only_app_and_the_command_line_join_models_to_the_run() -> None:
    """An adapter (models) and the method (run) meet at the edge only, so either can be replaced alone."""
    joined = [module for module, path in MODULES.items() if {"psd.run", "psd.models"} <= imports(path)]
    edges = {"app", "psd.__main__", "psd.bench", "psd.compare", "psd.doctor", "psd.tiny"}
    assert not [module for module in joined if not allowed(module, edges)]


def test_nothing_that_runs_depends_on_training() -> None:
    """`psd.tiny` and `psd.embedded` make and measure the embedded models; a run reads their folders like any others."""
    edges = {"app", "psd.__main__", "psd.ui", "psd.compare", "psd.evidence"}  # the last two measure
    guilty = [
        module
        for module, path in MODULES.items()
        if any(name.startswith("psd.tiny") for name in imports(path))
        and not allowed(module, edges | {"psd.tiny", "psd.embedded"})
    ]
    assert not guilty


def test_importing_the_package_is_light() -> None:
    code = "import sys, psd; print(sorted(set(sys.argv[1:]) & set(sys.modules)))"
    heavy = ["torch", *HEAVY]
    result = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_modules_stay_readable() -> None:
    sizes = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert not {module: size for module, size in sizes.items() if size > 400}


def test_no_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "base", "common", "helpers", "misc", "registry"}
    assert not [module for module in MODULES if drawers & set(module.split("."))]


def test_the_top_level_stays_small() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in listed.splitlines()}
    assert top <= {
        "app.py", "psd", "presets", "assets", "tests", "requirements.txt", "README.md",
        "requirements-test.txt", "requirements-cuda.txt", "packages.txt", "pyproject.toml", "Makefile", "LICENSE",
        ".ci", ".gitignore", "docs",
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
