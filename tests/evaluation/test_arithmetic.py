"""Operations on paper: what must double doubles, and the exact networks cost what is known of them."""

from typing import Any

import pytest
import torch

from psd.config.preset import Preset
from psd.evaluation.speed import cost


@pytest.mark.slow
def test_parts_grow_with_what_they_depend_on() -> None:
    preset = Preset.load("mvdream")
    models = cost.make_meta_models(preset, tiny=True)
    assert models.prior.device == torch.device("meta")  # nothing is computed

    def parts(**changes) -> dict[str, float]:
        return cost.step_cost(preset.with_values(changes), models, updates=0.25).parts

    one, two = parts(groups=1), parts(groups=2)
    assert two == pytest.approx({name: 2 * value for name, value in one.items()}, rel=0.01)
    assert one["base"] == pytest.approx(2 * one["steered twin"], rel=0.01)  # with and without the negative
    rare = cost.step_cost(preset.with_values({"groups": 1}), models, updates=0.05).parts
    assert rare["negative"] == pytest.approx(one["negative"] / 5)
    half = parts(groups=1, reward_views=2)
    for name in ("reward's direction", "ranking"):
        assert half[name] == pytest.approx(one[name] / 2, rel=0.01)
    estimated = parts(groups=1, steer_by="scores")  # sixteen looks without a backward, not one with
    assert estimated["reward's direction"] == pytest.approx(8 * one["ranking"], rel=0.01)
    assert set(parts(method="sds")) == {"encoder", "base"}
    assert parts(method="best_of_n", candidates=2)["base"] == pytest.approx(4 * one["base"], rel=0.01)


@pytest.mark.slow
def test_what_few_pictures_at_a_time_make_again_counts_again() -> None:
    """Of a forward pass and one back to its input, a picture alone adds the former once more; four together nothing."""
    parts = {}
    preset = Preset.load("mvdream-8gb")
    models = cost.make_meta_models(preset, tiny=True)
    for batch in (0, 1, 4):
        parts[batch] = cost.step_cost(preset.with_values({"network_batch": batch}), models, updates=0.25).parts
    assert parts[4] == parts[0]  # an orbit of four, of which the rewards look at two
    for name, more in (("encoder", 1.5), ("reward's direction", 1.5), ("ranking", 1.0), ("base", 1.0)):
        assert parts[1][name] == pytest.approx(more * parts[0][name], rel=0.01)
    assert parts[1]["negative"] > parts[0]["negative"]


@pytest.mark.slow
def test_memory_grows_with_what_is_kept() -> None:
    """By what each part adds to the encoder's, whose inner values stay until its way back, before the negative's."""
    preset = Preset.load("mvdream", {"groups": 1})
    models = cost.make_meta_models(preset, tiny=True)

    def peaks(**changes) -> dict[str, float]:
        found = cost.step_cost(preset.with_values(changes), models, updates=0.25).peaks
        kept, after = found.pop("encoder"), found.pop("negative")
        return {"encoder": kept, "negative": after, **{name: value - kept for name, value in found.items()}}

    one, two, few = peaks(), peaks(groups=2), peaks(network_batch=1)
    assert two == pytest.approx({name: 2 * value for name, value in one.items()}, rel=0.25)
    assert one["reward's direction"] > one["ranking"]  # a gradient keeps what a look at two pictures gives up
    for name in ("encoder", "reward's direction", "ranking"):
        assert few[name] < 0.5 * one[name]
    assert peaks(reward_views=2)["reward's direction"] == pytest.approx(one["reward's direction"] / 2, rel=0.1)
    alone, waiting = preset.with_values({"judges": []}), preset.with_values({"network_batch": 4})
    made = [(it, cost.make_meta_models(it, tiny=True)) for it in (preset, alone, waiting)]
    judged, without, away = (cost.resident_memory(*it) for it in made)
    assert away < without < judged  # judges wait elsewhere then, and what only reads texts
    here, _, coming = (cost.preview_memory(*it) for it in made)
    judges: list[Any] = list(made[2][1].judges.values())
    sizes = [sum(map(cost.tensor_bytes, cost.parameters_and_buffers(judge.network))) / 1e9 for judge in judges]
    assert coming - here == pytest.approx(max(sizes), rel=0.1)  # the largest comes whole


def test_what_lives_is_counted_once_and_until_nobody_holds_it() -> None:
    before = torch.zeros(1000)
    with cost.LiveMemoryMode() as living:
        first = before + 1  # 4000 bytes
        views = [first.view(10, 100), first.add_(1), before.view(10, 100), before.add_(1)]
        assert living.now == 4000
        second = first.half()
        assert living.now == 6000
        del first
        assert living.now == 6000, "its views hold it"
        del views
        assert (living.now, living.most) == (2000, 6000)
        del second
        assert living.now == 0
        leaf = torch.ones(500, requires_grad=True)
        made = (leaf.exp() * 2).sum()
        assert living.now == 2000 + 2000 + 4  # the leaf, what exp keeps of itself, the sum
        made.backward()
        assert leaf.grad is not None and living.now == 2000 + 2000 + 4  # the leaf, its gradient, the sum


def test_attention_on_paper_keeps_no_product_of_all_with_all() -> None:
    row, mask = torch.empty(1, 2, 512, 64, device="meta", requires_grad=True), torch.zeros(512, 512, device="meta")
    sizes = []
    for attention in (cost.flash_attention_meta, cost.written_out):
        with cost.LiveMemoryMode() as living:
            found = attention(row, row, row)
            assert found.shape == row.shape
            sizes.append(living.now)
            found.sum().backward()
    assert sizes[0] < 2 * row.numel() * 4 < 2 * 512 * 512 * 4 < sizes[1]
    assert cost.flash_attention_meta(row, row, row, attn_mask=mask).shape == row.shape


@pytest.mark.slow
def test_mvdreams_step_costs_what_its_networks_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Twelve rows of a U-Net of .82 TFLOP for four, as counted from its released shapes: 12 TFLOP a late step.

    The negative embedding is updated below .4 T only: almost never early, in 15 % of the late steps.
    """
    from psd.__main__ import main

    assert main(["bench", "--preset", "mvdream", "--on-paper"]) == 0
    operations, _, memory = (
        {line[:20].strip(): line[20:].split() for line in part.splitlines()}
        for part in capsys.readouterr().out.split("\n\n")
    )
    lines = operations
    assert lines["base"] == ["3.26", "1.63"] and lines["steered twin"] == ["1.63", "0.82"]
    assert lines["negative"] == ["0.01", "1.43"]
    assert float(lines["total"][1]) == pytest.approx(12.0, abs=0.1)
    assert "made again" not in lines  # all pictures pass the networks at once
    numbers = {"U-Net": 867_572_164, "VAE": 83_653_863, "text": 340_387_840, "TAESD": 2_445_063, "BLIP": 447_000_000}
    vit_h = 986_109_441  # of which two are there, HPSv2.1 and PickScore
    assert float(memory["networks"][0]) == pytest.approx(2e-9 * (sum(numbers.values()) + 2 * vit_h), abs=0.02)
    assert float(memory["networks and most"][0]) < 16  # of 22, which leaves 6 to scene, rendering and graphs
