"""What a run says when it cannot go on: the first tensor that was not finite, what made it so, and a cure."""

import ast
import re
from pathlib import Path

import pytest

from psd.config.preset import Preset, list_settings
from psd.config.settings import SCENES
from psd.distillation.recovery import ANY_CAUSE, CAUSES, preview_not_finite, step_not_finite, step_out_of_memory
from psd.runtime.deferred import NonFiniteError

ROOT = Path(__file__).resolve().parents[2]


def find_checked_names() -> set[str]:
    """First arguments of `check_finite` and `require_finite` in a step; the changing part of a name is an x."""
    names = set()
    for file in ("run.py", "step.py", "negative.py"):
        for node in ast.walk(ast.parse((ROOT / "psd/distillation" / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("check_finite", "require_finite")):
                names.add(re.sub(r"\{.*\}", "x", ast.unparse(node.args[0]).removeprefix("f").strip("'\"")))
    return names


def test_every_tensor_that_a_step_checks_has_a_cause_of_its_own() -> None:
    names = find_checked_names()
    assert len(names) >= 9
    for name in names:
        failed = step_not_finite(NonFiniteError(name), 4, 700, Preset().scene)
        assert failed.message.startswith(f"step 5, t = 700: {name} is not finite: ")
        assert ANY_CAUSE[0] not in failed.message, name
    assert {start for start in CAUSES if not any(name.startswith(start) for name in names)} == set()


@pytest.mark.parametrize(
    ("tensor", "cure"),
    [("score", "steer_radius"), ("reward assets/reward", "precision=float32"), ("reward gradient", "precision=float32"),
     ("gradient of the negative embedding", "negative_lr"),
     ("gradient of the scene (grid)", "scene.density_lr or scene.colour_lr")],
)  # fmt: skip
def test_the_cure_is_of_the_first_tensor_at_fault(tensor: str, cure: str) -> None:
    failed = step_not_finite(NonFiniteError(tensor), 0, 1, Preset().scene)
    assert cure in failed.cure and "the checkpoint holds the last good state" in failed.cure


@pytest.mark.parametrize("kind", SCENES)
def test_a_cure_names_keys_of_the_scene_that_there_is(kind: str) -> None:
    preset = Preset.make({"scene": {"kind": kind}})
    error = NonFiniteError("render")
    for failed in (
        step_not_finite(error, 0, 1, preset.scene), preview_not_finite(error, 0, "of step 1", preset.scene),
        step_out_of_memory(preset, 0),
    ):  # fmt: skip
        named = {word.strip(",;") for word in failed.cure.split() if word.startswith("scene.")}
        assert named and named <= {f"scene.{key}" for key in type(preset.scene).model_fields} <= set(list_settings())
