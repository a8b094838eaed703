"""Operations on paper: what must double doubles, and the exact networks cost what is known of them."""

import pytest
import torch

from psd import arithmetic
from psd.preset import Preset


@pytest.mark.slow
def test_parts_grow_with_what_they_depend_on() -> None:
    preset = Preset.load("mvdream")
    models = arithmetic.on_meta(preset, tiny=True)
    assert models.prior.device == torch.device("meta")  # nothing is computed

    def parts(**changes) -> dict[str, float]:
        return arithmetic.cost(preset.changed(changes), models, updates=0.25).parts

    one, two = parts(groups=1), parts(groups=2)
    assert two == pytest.approx({name: 2 * value for name, value in one.items()}, rel=0.01)
    assert one["base"] == pytest.approx(2 * one["steered twin"], rel=0.01)  # with and without the negative
    rare = arithmetic.cost(preset.changed({"groups": 1}), models, updates=0.05).parts
    assert rare["negative"] == pytest.approx(one["negative"] / 5)
    half = parts(groups=1, reward_views=2)
    for name in ("reward's direction", "ranking"):
        assert half[name] == pytest.approx(one[name] / 2, rel=0.01)
    estimated = parts(groups=1, steer_by="scores", steer_perturbations=3)  # six looks without a backward, not one with
    assert estimated["reward's direction"] == pytest.approx(3 * one["ranking"], rel=0.01)
    smooth = parts(groups=1, reward_copies=3)["reward's direction"]  # one decode, three readings
    assert one["reward's direction"] < smooth < 3 * one["reward's direction"]
    encoded = parts(groups=1, steer_through="encoder")["reward's direction"]  # no backward through the decoder
    assert one["ranking"] / 2 < encoded < one["reward's direction"]
    assert parts(groups=1, steer_conditional=False)["steered twin"] == pytest.approx(2 * one["steered twin"], rel=0.01)
    assert set(parts(method="sds")) == {"encoder", "base"}
    assert parts(method="best_of_n", candidates=2)["base"] == pytest.approx(4 * one["base"], rel=0.01)


@pytest.mark.slow
def test_what_few_pictures_at_a_time_make_again_counts_again() -> None:
    """Of a forward pass and one back to its input, a picture alone adds the former once more; four together nothing."""
    parts = {}
    preset = Preset.load("mvdream-8gb")
    models = arithmetic.on_meta(preset, tiny=True)
    for batch in (0, 1, 4):
        parts[batch] = arithmetic.cost(preset.changed({"network_batch": batch}), models, updates=0.25).parts
    assert parts[4] == parts[0]  # an orbit of four, of which the rewards look at two
    for name, more in (("encoder", 1.5), ("reward's direction", 1.5), ("ranking", 1.0), ("base", 1.0)):
        assert parts[1][name] == pytest.approx(more * parts[0][name], rel=0.01)
    assert parts[1]["negative"] > parts[0]["negative"]


@pytest.mark.slow
def test_mvdreams_step_costs_what_its_networks_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Twelve rows of a U-Net of .82 TFLOP for four, as counted from its released shapes: 12 TFLOP a late step.

    The negative embedding is updated below .4 T only: almost never early, in 15 % of the late steps.
    """
    from psd.__main__ import main

    assert main(["bench", "--preset", "mvdream", "--on-paper"]) == 0
    lines = {line[:20].strip(): line[20:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines["base"] == ["3.26", "1.63"] and lines["steered twin"] == ["1.63", "0.82"]
    assert lines["negative"] == ["0.01", "1.41"]
    assert float(lines["total"][1]) == pytest.approx(12.0, abs=0.1)
    assert "made again" not in lines  # all pictures pass the networks at once
