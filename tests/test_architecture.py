"""Who may import whom, held over the source: the layers of the program cannot grow together unnoticed."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [*sorted((ROOT / "psd").rglob("*.py")), *ROOT.glob("app.py")]
}

# Heavy library -> the modules that may import it; "psd.embedded" covers the package.
HEAVY = {
    "gradio": {"psd.ui.build", "app"},
    "spaces": {"app"},
    "diffusers": {
        "psd.models.prior.diffusers_prior",
        "psd.models.prior.components",
        "psd.models.random_weights",
        "psd.models.checkpoints.read",
        "psd.models.prior.joint_attention",
        "psd.models.rewards.text_image",
        "psd.embedded",
    },
    "transformers": {
        "psd.models.prior.diffusers_prior",
        "psd.models.prior.components",
        "psd.models.random_weights",
        "psd.models.checkpoints.read",
        "psd.models.prior.joint_attention",
        "psd.models.rewards.text_image",
        "psd.embedded",
    },
    "nerfacc": {"psd.scenes.volume_rendering"},
    "tinycudann": {"psd.scenes.fields.hash"},
    "triton": {"psd.scenes.fields.hash_triton"},
    "trimesh": {"psd.geometry.export", "psd.geometry.cleanup", "psd.scenes.extract"},
}
# Module -> the modules of this package that it may never reach, not even through others.
NEVER = {
    "psd.config.preset": {"psd"},
    "psd.config.strict_yaml": {"psd"},
    "psd.distillation.events": {
        "psd.ui.build",
        "psd.runs.jobs.worker",
        "psd.runs.store.folder",
        "psd.distillation.run",
        "psd.models.load",
    },
    "psd.runs.store.folder": {"psd.ui.build", "psd.runs.jobs.worker", "psd.distillation.run", "psd.models.load"},
    "psd.runs.jobs.worker": {"psd.ui.build", "psd.distillation.run", "psd.models.load"},
    "psd.ui.build": {
        "psd.distillation.run",
        "psd.models.load",
        "psd.distillation.methods.preference",
        "psd.models.prior.diffusers_prior",
        "psd.models.rewards.text_image",
        "psd.scenes.radiance",
        "psd.embedded.training.loop",
    },
    "psd.geometry.cameras": {"psd"},
    "psd.distillation.formulas": {
        "psd.distillation.methods.preference",
        "psd.distillation.run",
        "psd.models.prior.diffusers_prior",
        "psd.scenes.radiance",
        "psd.models.load",
    },
    "psd.distillation.run": {
        "psd.ui.build",
        "psd.runs.jobs.worker",
        "psd.runs.store.folder",
        "psd.models.load",
        "psd.models.prior.diffusers_prior",
        "psd.models.rewards.text_image",
        "psd.scenes.radiance",
    },
    "psd.distillation.methods.preference": {
        "psd.distillation.run",
        "psd.models.load",
        "psd.models.prior.diffusers_prior",
        "psd.models.rewards.text_image",
        "psd.scenes.radiance",
    },
    "psd.distillation.negative": {
        "psd.distillation.run",
        "psd.models.load",
        "psd.models.prior.diffusers_prior",
        "psd.models.rewards.text_image",
        "psd.scenes.radiance",
    },
    "psd.models.prior.diffusers_prior": {
        "psd.distillation.run",
        "psd.distillation.methods.preference",
        "psd.embedded",
        "psd.ui.build",
        "psd.runs.jobs.worker",
        "psd.runs.store.folder",
    },
    "psd.models.rewards.text_image": {
        "psd.distillation.run",
        "psd.distillation.methods.preference",
        "psd.embedded",
        "psd.ui.build",
        "psd.runs.jobs.worker",
        "psd.runs.store.folder",
    },
    "psd.scenes.radiance": {
        "psd.distillation.run",
        "psd.distillation.methods.preference",
        "psd.models.prior.diffusers_prior",
        "psd.embedded",
        "psd.ui.build",
        "psd.runs.jobs.worker",
        "psd.runs.store.folder",
    },
    "psd.evaluation.report.statistics": {"psd"},
    "psd.evaluation.report.charts": {"psd"},
    "psd.evaluation.experiments.suite": {
        "psd.evaluation.report.tables",
        "psd.evaluation.report.criteria",
        "psd.evaluation.report.write",
        "psd.evaluation.experiments.run",
        "psd.evaluation.command",
        "psd.distillation.run",
        "psd.models.load",
        "psd.embedded",
    },
    "psd.evaluation.experiments.run": {
        "psd.evaluation.report.tables",
        "psd.evaluation.report.criteria",
        "psd.evaluation.report.write",
        "psd.evaluation.command",
        "psd.evaluation.shipped.models",
    },
    "psd.evaluation.experiments.record": {
        "psd.evaluation.report.tables",
        "psd.evaluation.report.criteria",
        "psd.evaluation.report.write",
        "psd.evaluation.command",
        "psd.evaluation.shipped.models",
    },
    "psd.evaluation.experiments.measure": {
        "psd.evaluation.report.tables",
        "psd.evaluation.report.criteria",
        "psd.evaluation.report.write",
        "psd.evaluation.command",
        "psd.evaluation.shipped.models",
    },
    "psd.evaluation.report.tables": {
        "psd.evaluation.report.criteria",
        "psd.evaluation.report.write",
        "psd.evaluation.experiments.run",
        "psd.distillation.run",
        "psd.models.load",
        "psd.embedded",
        "psd.ui.build",
    },
    "psd.evaluation.report.criteria": {
        "psd.evaluation.report.write",
        "psd.evaluation.experiments.run",
        "psd.distillation.run",
        "psd.models.load",
        "psd.embedded",
        "psd.ui.build",
    },
    "psd.scenes.extract": {
        "psd.distillation.run",
        "psd.distillation.methods.preference",
        "psd.models.prior.diffusers_prior",
        "psd.embedded",
        "psd.ui.build",
        "psd.runs.jobs.worker",
        "psd.runs.store.folder",
    },
}
LEAVES = {
    "psd.config.strict_yaml",
    "psd.config.errors",
}  # reach nothing of this package but each other: anything may reach them
TORCH_FREE = [
    "psd.ui.build",
    "psd.runs.jobs.worker",
    "psd.runs.store.folder",
    "psd.distillation.events",
    "psd.config.preset",
]


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


# Pinned and imported by no file of ours -> what brings it into a run.
THROUGH_ANOTHER = {
    "accelerate": "diffusers loads large checkpoints with it in half the memory",
    "imageio-ffmpeg": "imageio writes films with it",
    "pandas": "gradio's tables",
}
# Imported where it is there, by the one module that says so; `doctor` tells what it is good for.
OPTIONAL = {"spaces", "tinycudann", "triton"}


def test_requirements_are_what_a_run_imports() -> None:
    """Nothing that is pinned is unused, and nothing that is used is left to another package's requirements."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if line and not line.startswith("#")}
    used = {name.split(".")[0] for path in MODULES.values() for name in imports(path)} - set(sys.stdlib_module_names)
    packages = packages_distributions()
    needed = {packages.get(name, [name])[0].lower().replace("_", "-") for name in used - OPTIONAL - {"psd", "app"}}
    assert needed - pinned == set(), "pin what is imported"
    assert pinned - needed - THROUGH_ANOTHER.keys() == set(), "nothing imports this: take it out, or say who does"


def test_only_app_and_the_command_line_join_models_to_the_run() -> None:
    """An adapter (models) and the method (run) meet at the edge only, so either can be replaced alone."""
    joined = [
        module for module, path in MODULES.items() if {"psd.distillation.run", "psd.models.load"} <= imports(path)
    ]
    edges = {"app", "psd.__main__", "psd.evaluation.speed.bench", "psd.evaluation.experiments.record", "psd.doctor"}
    assert not [module for module in joined if not allowed(module, edges)]


def test_nothing_that_runs_depends_on_training() -> None:
    """`psd.embedded` makes and measures the embedded models; a run reads their folders like any others."""
    edges = {
        "app",
        "psd.__main__",
        "psd.ui.build",
        "psd.evaluation.experiments.run",
        "psd.evaluation.experiments.record",
        "psd.evaluation.report.write",
    }  # the last three measure
    guilty = [
        module
        for module, path in MODULES.items()
        if any(name.startswith("psd.embedded") for name in imports(path))
        and not allowed(module, edges | {"psd.embedded"})
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
        "app.py", "psd", "presets", "assets", "tests", "docs", "requirements.txt", "README.md",
        "requirements-test.txt", "requirements-cuda.txt", "packages.txt", "pyproject.toml", "Makefile", "LICENSE",
        ".ci", ".gitignore",
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
