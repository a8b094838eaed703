"""Training of the embedded models: resumed equals uninterrupted, warm starts keep count, the yardsticks measure."""

import argparse
import copy
import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import nn

from psd.embedded.captions import grammar, kinds
from psd.embedded.objects.collection import Collection
from psd.embedded.objects.picture import Pictures
from psd.embedded.objects.truth import render_truth
from psd.embedded.training import prior
from psd.embedded.training.data import write_shard
from psd.embedded.training.loop import (
    NAMES,
    attend_by_products,
    batch_generator,
    fit_task,
    learning_rate,
    make_task,
    read_record,
)
from psd.embedded.training.rewards import sibling_keys
from psd.evaluation.metrics.view_consistency import find_foreground, project_points, reprojection_error
from psd.evaluation.shipped.model_cards import card_text
from psd.geometry.cameras import turntable_cameras
from psd.models.hub import ROOT


class Line:
    """A task small enough for a test: fit a line to noisy points."""

    name, batch, captions_seen = "line", 4, "numbers"

    def __init__(self, start: float = 0.0) -> None:
        self.model: Any = nn.Linear(1, 1)
        nn.init.constant_(self.model.weight, start)
        nn.init.constant_(self.model.bias, start)

    def loss(self, iteration, objects, generator):
        x = torch.rand(objects, 1, generator=generator)
        return (self.model(x) - 3 * x - 1).square().mean(), {}

    def ship(self, ema, folder):
        (folder / "weights.json").write_text(json.dumps([v for p in ema.parameters() for v in p.flatten().tolist()]))

    def sheet(self, ema, path):
        path.write_text("")


def arguments(work, iterations, **changes):
    defaults = {
        "work": str(work), "out": None, "iterations": iterations, "device": "cpu", "lr": 0.05, "ema": 0.9, "seed": 3,
        "warmup": 2, "warm_start": None, "save_s": 1e9, "keep": (), "log_every": 1000, "processes": 1, "compile": False,
        "started_by": os.getppid(), "bf16": False, "sheet_every": 0,
        "stop_after_s": None, "decoder_only": False,
    }  # fmt: skip
    return argparse.Namespace(**{**defaults, **changes})


def weights(folder):
    return json.loads((folder / "line" / "shipped" / "weights.json").read_text())


def test_resumed_training_is_the_uninterrupted_one(tmp_path):
    fit_task(Line(), arguments(tmp_path / "whole", 40, keep=(20,)))
    # the schedule is set by the total, which an interrupted training has from the start: stop in the middle by error
    broken = Line()
    plain = broken.loss

    def failing(iteration, objects, generator):
        if iteration == 25:
            raise KeyboardInterrupt
        return plain(iteration, objects, generator)

    broken.loss = failing
    with pytest.raises(KeyboardInterrupt):
        fit_task(broken, arguments(tmp_path / "parts", 40, keep=(20,)))
    fit_task(Line(start=9.0), arguments(tmp_path / "parts", 40, keep=(20,)))
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_warm_start_goes_on_counting(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "training.json").write_text('{"iterations": 100, "seconds": 50, "history": "Older."}')
    fit_task(Line(), arguments(tmp_path, 110, warm_start=str(tmp_path / "from"), history=" Newer."))
    record = json.loads((tmp_path / "line" / "shipped" / "training.json").read_text())
    assert record["iterations"] == 110 and record["objects_seen"] == 440
    assert record["seconds"] >= 50 and record["history"] == "Older. Newer."


def test_a_gradient_that_is_no_number_stops_the_training(tmp_path):
    task = Line()
    task.loss = lambda iteration, objects, generator: (task.model.weight.sum() * float("nan"), {})
    with pytest.raises(FloatingPointError, match="line.*iteration 0"):
        fit_task(task, arguments(tmp_path, 2))


def test_a_folder_takes_one_training_at_a_time(tmp_path):
    (tmp_path / "line").mkdir()
    with FileLock(tmp_path / "line" / "lock"), pytest.raises(SystemExit, match="another training writes .*--work"):
        fit_task(Line(), arguments(tmp_path, 4))
    assert not (tmp_path / "line" / "checkpoint.pt").exists()
    fit_task(Line(), arguments(tmp_path, 4))


def test_a_worker_ends_when_the_process_that_started_it_has(tmp_path):
    """An orphan would go on writing into the log and the checkpoint of the next training."""
    with pytest.raises(SystemExit, match="the process that started this one has ended"):
        fit_task(Line(), arguments(tmp_path, 4, processes=2, started_by=-1), rank=0, world=2)
    assert not (tmp_path / "line" / "checkpoint.pt").exists()


# ------------------------------------------------------------------------------------------------- what really trains


@pytest.fixture(scope="module")
def shard(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shard(folder, 0, collection, shard_objects=40, size=64, seed=0, held_out=False)
    return folder


def shipped_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("name", NAMES)
def test_each_model_trains_resumes_ships_and_is_trained_on(
    name: str, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three iterations at a stretch, or broken off in the third and resumed; then one more from what shipped."""
    # The sheet's, which were most of the time.
    monkeypatch.setattr(prior, "sample_views", partial(prior.sample_views, steps=1))
    monkeypatch.setattr(prior.lists, "load_list", lambda name, whole=prior.lists.load_list: list(whole(name))[:2])
    given = {
        "model": name, "data": str(shard), "vae": str(ROOT / "assets/prior/vae"), "batch": 4, "lr": 1e-3, "save_s": 0.0,
        "history": "",
    }  # fmt: skip

    def train(folder: str, iterations: int, stop: int | None = None, **changes: Any) -> Path:
        asked = arguments(tmp_path / folder, iterations, **given, **changes)
        torch.manual_seed(asked.seed)
        task = make_task(asked, 0, 1)
        plain = task.loss

        def loss(iteration: int, objects: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
            if iteration == stop:
                raise KeyboardInterrupt
            return plain(iteration, objects, generator)

        monkeypatch.setattr(task, "loss", loss)
        fit_task(task, asked)
        return tmp_path / folder / name

    whole = train("whole", 3)
    with pytest.raises(KeyboardInterrupt):
        train("parts", 3, stop=2)
    parts = train("parts", 3)
    assert shipped_bytes(parts / "shipped") == shipped_bytes(whole / "shipped") != {}
    assert (whole / "sheet-000003.png").stat().st_size > 1000
    further = train("further", 4, warm_start=str(whole / "shipped"))
    record = read_record(name, further / "shipped")
    assert record["iterations"] == 4 and record["objects_seen"] == 16
    configurations = list((further / "shipped").rglob("config.json"))
    assert configurations and not [path for path in configurations if str(tmp_path) in path.read_text("utf-8")]
    with pytest.raises(SystemExit, match="has 3 already"):
        train("none", 3, warm_start=str(whole / "shipped"))


def note_dtype(found: list[torch.dtype], _: nn.Module, inputs: Any, output: torch.Tensor) -> None:
    found.append(output.dtype)


def test_training_in_bfloat16_on_a_cpu_follows_that_in_float32(tmp_path, shard):
    losses = []
    for bf16 in (False, True):
        options = arguments(tmp_path, 1, bf16=bf16, batch=2, data=str(shard), vae=str(ROOT / "assets/prior/vae"))
        options.warm_start = str(ROOT / "assets/prior")
        task = prior.DenoiserTask(options, 0, 1)
        dtypes: list[torch.dtype] = []
        for module in task.model["unet"].modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_hook(partial(note_dtype, dtypes))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), attend_by_products(options):
            loss, _ = task.loss(0, 2, batch_generator(0, 0, 0))
        loss.backward()
        assert set(dtypes) == {torch.float32}  # bfloat16 there takes eight times as long
        losses.append((loss.item(), task.model["unet"].conv_in.weight.grad.flatten()))
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.02)
    assert torch.cosine_similarity(losses[0][1], losses[1][1], dim=0) > 0.98


def test_learning_rate_warms_up_stays_and_cools_down():
    rates = [learning_rate(i, 1000, 1.0, warmup=100) for i in range(1001)]
    assert rates[0] == pytest.approx(0.01) and rates[99] == 1.0 and rates[749] == 1.0
    assert all(a >= b for a, b in zip(rates[750:], rates[751:], strict=False)) and rates[1000] == pytest.approx(0.02)


def test_a_training_stops_in_time_and_goes_on(tmp_path):
    fit_task(Line(), arguments(tmp_path / "whole", 6))
    for _ in range(6):  # one iteration each
        fit_task(Line(), arguments(tmp_path / "parts", 6, stop_after_s=0.0))
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    fit_task(Line(), arguments(tmp_path / "first", 6, stop_after_s=0.0))
    assert read_record("line", tmp_path / "first" / "line" / "shipped")["iterations"] == 1


def test_a_decoder_learns_alone(shard):
    asked = arguments("", 9000, data=str(shard), batch=2, warm_start=str(ROOT / "assets/prior"), decoder_only=True,
                      model="vae")  # fmt: skip
    task = make_task(asked, 0, 1)
    loss, _ = task.loss(0, 2, torch.Generator().manual_seed(0))
    loss.backward()
    assert not any(p.requires_grad for p in task.model.encoder.parameters())
    assert all(p.grad is not None for p in task.model.decoder.parameters())


def test_batches_depend_on_seed_iteration_and_rank():
    draws = {
        tuple(torch.rand(3, generator=batch_generator(*key)).tolist())
        for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    }
    assert len(draws) == 4
    assert torch.equal(
        torch.rand(3, generator=batch_generator(5, 6, 1)), torch.rand(3, generator=batch_generator(5, 6, 1))
    )


def test_sibling_keys_join_captions_that_differ_in_colours_or_in_shapes_only():
    one, recoloured, reshaped, other = (
        sibling_keys(grammar.parse(text))
        for text in ("a red cube", "a blue cube", "a red cone", "a blue cone")
    )  # fmt: skip
    assert one[0] == recoloured[0] and one[1] != recoloured[1]
    assert one[1] == reshaped[1] and one[0] != reshaped[0]
    assert not set(one) & set(other)


@pytest.fixture
def truth(collection: Collection) -> Callable[..., Pictures]:
    def render(text: str, background: torch.Tensor | None = None) -> Pictures:
        captions = [grammar.parse(text)]
        return render_truth(captions, turntable_cameras(4), 64, collection=collection, background=background)

    return render


def test_projection_puts_points_where_the_rays_go():
    from psd.geometry.cameras import camera_rays

    cameras = turntable_cameras(3, elevation_deg=25)
    origins, directions = camera_rays(cameras, 16)
    points = (origins + 2.5 * directions)[0, 1].reshape(-1, 3)
    pixel, _ = project_points(points, cameras, 16)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    expected = torch.stack([x, y], dim=-1).reshape(-1, 2).float()
    torch.testing.assert_close(pixel[1], expected, atol=1e-3, rtol=0)


def test_foreground_is_the_truths_mask(truth):
    views = truth("a red cube")
    mask, true = find_foreground(views.rgb[0]), views.mask[0] > 0.5
    assert (mask & true).sum() / (mask | true).sum() > 0.9


@pytest.mark.parametrize("text", ["a red cube", "a blue torus", "a fox"])
def test_views_of_one_object_agree_better_than_views_of_two(truth, text):
    views = truth(text)
    stranger = truth("a green frog", background=views.background)
    mixed = views.rgb[0].clone()
    mixed[1] = stranger.rgb[0, 1]
    assert reprojection_error(mixed, turntable_cameras(4)) > 1.4 * reprojection_error(
        views.rgb[0], turntable_cameras(4)
    )


def test_the_card_holds_the_weights_sums(tmp_path):
    (tmp_path / "training.json").write_text('{"model": "reward", "iterations": 7}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    text = card_text("reward", tmp_path)
    assert "iterations: 7" in text
    assert f"{hashlib.sha256(b'weights').hexdigest()}  model.safetensors" in text


class Channels(Line):
    """A convolution whose weights lie in memory as channels-last convolutions like them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(4, 6, 3))
        self.model.to(memory_format=torch.channels_last)

    def loss(self, iteration, objects, generator):
        return self.model(torch.rand(2, 4, 5, 5, generator=generator)).square().mean(), {}


def test_equal_gradients_of_two_processes_average_to_one_processes_training(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "psd.embedded.training.loop.dist.all_reduce", lambda flat: flat.mul_(2)
    )  # the other rank says the same
    for world in (1, 2):
        fit_task(Channels(), arguments(tmp_path / str(world), 6), world=world)
    one, two = ((tmp_path / str(world) / "line" / "shipped" / "weights.json").read_text() for world in (1, 2))
    assert json.loads(one) == pytest.approx(json.loads(two), abs=1e-6)


def test_a_new_vocabulary_keeps_what_old_words_mean():
    words = grammar.vocabulary()
    earlier, tokenizer = prior.build_tokenizer(words[::2]), prior.build_tokenizer(words)
    torch.manual_seed(0)
    encoder: Any = prior.build_small_text_encoder(len(earlier))
    unchanged = copy.deepcopy(encoder)
    prior.replace_vocabulary(encoder, earlier, tokenizer)

    def encode(network: Any, of: Any, text: str) -> torch.Tensor:
        ids = of([text], padding="max_length", max_length=16, return_tensors="pt").input_ids
        return network(ids).last_hidden_state

    for text in (" ".join(words[:10:2]), words[-1 if len(words) % 2 else -2], ""):
        assert torch.equal(encode(encoder, tokenizer, text), encode(unchanged, earlier, text))
    new = [row for word, row in tokenizer.get_vocab().items() if word not in earlier.get_vocab()]
    table = encoder.get_input_embeddings().weight.detach()
    assert len(new) > 150 and encoder.config.vocab_size == len(table) == len(tokenizer)
    old = unchanged.get_input_embeddings().weight.detach()
    assert float(table[new].std()) == pytest.approx(float(old.std()), rel=0.05)


def test_no_caption_is_longer_than_the_text_encoder():
    tokenizer = prior.build_tokenizer(grammar.vocabulary())
    longest = max((caption.text for caption in grammar.all_captions(pairs=False)), key=lambda text: len(text.split()))
    placed = [kind.noun for kind in kinds.read_kinds().values() if kind.is_placed or kind.is_carrier]
    pair = f"{longest} on top of {max((f'an orange {noun}' for noun in placed), key=lambda text: len(text.split()))}"
    assert len(tokenizer(pair).input_ids) <= prior.TOKENS
    assert tokenizer.unk_token_id not in tokenizer(pair).input_ids
