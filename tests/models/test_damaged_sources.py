"""Two hundred damaged model folders: each is refused in words, or computes what the sound one does."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from psd.config.errors import PresetError
from psd.geometry.cameras import turntable_cameras
from psd.models.load import load_prior
from psd.models.rewards.critic_networks import TwoTowerCritic, save_critic
from psd.models.rewards.load import load_reward
from tests.models.test_prior import (
    CPU,
    folder,  # noqa: F401 - a fixture
    reward_folder,  # noqa: F401 - a fixture
)

PROMPT = "a red cube"
RECORDS = ("special_tokens_map.json", "training.json", "generation_config.json")
DESCRIPTIVE = ("model_index.json", "config.json", "scheduler_config.json", "tokenizer_config.json")


@torch.no_grad()
def run_prior(source: Path) -> Tensor:
    """Numbers that depend on every part of a prior."""
    load_prior.cache_clear()
    prior = load_prior(str(source), CPU)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, prior.views, 3, 32, 32, generator=generator)
    latents = prior.encode(images)
    text = prior.embed_prompt(PROMPT)
    noise = prior.predict_noise(latents, 400, text[None], turntable_cameras(prior.views))
    return torch.cat([value.flatten() for value in (latents, text, noise, prior.decode(latents))])


@torch.no_grad()
def run_reward(source: Path) -> Tensor:
    images = torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return load_reward(str(source), device=CPU)(images, PROMPT)


def choose_file(root: Path, ending: str, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in root.rglob(f"*{ending}") if path.name not in RECORDS))


def damage_bytes(root: Path, rng: random.Random) -> None:
    """A file cut, emptied, removed, replaced by another text, or begun with a byte order mark."""
    path = rng.choice(sorted(path for path in root.rglob("*") if path.is_file() and path.name not in RECORDS))
    data = path.read_bytes()
    match rng.randrange(6):
        case 0:
            path.write_bytes(data[: rng.randrange(len(data))])
        case 1:
            path.write_bytes(b"")
        case 2:
            path.unlink()
        case 3:
            path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
        case 4:
            path.write_bytes(b"\xef\xbb\xbf" + data)
        case 5:
            path.unlink()
            path.mkdir()


def damage_tensors(root: Path, rng: random.Random) -> None:
    """One tensor or all of a file dropped, renamed, recast, cut, turned to nan."""
    path = choose_file(root, ".safetensors", rng)
    state = load_file(path)
    name = rng.choice(sorted(state))
    value = state[name]
    match rng.randrange(7):
        case 0:
            del state[name]
        case 1:
            state[f"{name}_"] = state.pop(name)
        case 2:
            state = {f"module.{key}": it for key, it in state.items()}
        case 3:
            state[name] = value.to(rng.choice([torch.int8, torch.int64, torch.bool]))
        case 4:
            state[name] = value.flatten()[:-1].clone() if value.numel() > 1 else torch.zeros(2)
        case 5:
            state[name] = torch.full_like(value, rng.choice([float("nan"), float("inf")]))
        case 6:
            state[name] = value[None].contiguous()
    save_file(state, path, {"format": "pt"})


def damage_keys(root: Path, rng: random.Random) -> None:
    """A key of a configuration dropped or given a value of another kind."""
    path = rng.choice(sorted(path for path in root.rglob("*.json") if path.name in DESCRIPTIVE))
    found = json.loads(path.read_text())
    if not found:
        path.write_text("[]")
        return
    holder: dict[str, Any] = found
    key = rng.choice(sorted(holder))
    while isinstance(holder[key], dict) and holder[key]:
        holder, key = holder[key], rng.choice(sorted(holder[key]))
    if rng.random() < 0.4:
        del holder[key]
    else:
        holder[key] = rng.choice([None, -1, 0, 3, 10**9, 0.5, "odd", [], {}, True, [1, 2]])
    path.write_text(json.dumps(found))


def damage_text(root: Path, rng: random.Random) -> None:
    """Characters of a JSON file exchanged."""
    path = choose_file(root, ".json", rng)
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(len(data))] = rng.choice(b'{}[],:"0aZ\\\x00\xff')
    path.write_bytes(data)


@pytest.fixture(scope="module")
def critic_folder(tmp_path_factory: pytest.TempPathFactory, reward_folder: Path) -> Path:  # noqa: F811
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("critic")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reward_folder / name, root)
    vocabulary = len(json.loads((root / "tokenizer.json").read_text())["model"]["vocab"])
    save_critic(TwoTowerCritic(vocabulary, width=8).eval(), root)
    return root


Damage = Callable[[Path, random.Random], None]
STRUCTURAL: tuple[Damage, ...] = (damage_bytes, damage_tensors)  # after which nothing may be computed otherwise
VALUES: tuple[Damage, ...] = (damage_keys, damage_text)  # a value may be one that makes another, sound model


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_damaged_source_is_refused_in_words_or_computes_what_the_sound_one_does(
    part: int, folder: Path, reward_folder: Path, critic_folder: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    """0 tracebacks, 0 silently other results; 20 damages each."""
    kinds = {"prior": (folder, run_prior), "clip": (reward_folder, run_reward), "critic": (critic_folder, run_reward)}
    wanted = {name: run(root) for name, (root, run) in kinds.items()}
    rng = random.Random(part)
    refused = 0
    for number in range(20):
        name = rng.choice(["prior", "prior", "clip", "critic"])
        root, run = kinds[name]
        there = Path(shutil.copytree(root, tmp_path / f"{name}{number}"))
        damage = rng.choice([*STRUCTURAL, *STRUCTURAL, *VALUES])
        damage(there, rng)
        what = f"part {part}, number {number}: {damage.__name__} of a {name}"
        try:
            found = run(there)
        except PresetError as error:
            refused += 1
            assert str(there) in str(error) or there.name in str(error), f"{what}: {error}"
            assert "\n" not in str(error), what
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        else:
            assert damage in VALUES or torch.equal(found, wanted[name]), f"{what}: another result, and not a word"
        shutil.rmtree(there)
    assert refused >= 8
