"""The training set: every object from its seed and index, shards whole, resumed and loaded."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from psd.embedded.captions import grammar, lists
from psd.embedded.captions.grammar import parse
from psd.embedded.objects.collection import Collection
from psd.embedded.training import data
from psd.geometry.cameras import orbit_cameras


def test_an_object_depends_on_the_seed_and_its_index_alone(collection):
    chosen = lists.sample_training_captions(6, seed=9)
    together = data.render_samples(collection, chosen, range(6), 16, seed=9)
    alone = data.render_samples(collection, chosen[4:5], [4], 16, seed=9)[0]
    assert (together[4].rgb.int() - alone.rgb.int()).abs().max() <= 1  # vectorised rounding may differ by one level
    assert torch.equal(together[4].camera, alone.camera) and together[4].text == alone.text
    other = data.render_samples(collection, chosen, range(6), 16, seed=10)
    assert not torch.equal(together[4].camera, other[4].camera)


def test_a_data_set_is_written_whole_resumed_and_loaded(tmp_path, collection):
    settings = {"shard_objects": 10, "size": 16, "seed": 2, "held_out": False}
    for number in (0, 1):
        data.write_shard(tmp_path, number, collection, **settings)
    loaded = data.load_shards(tmp_path)
    assert loaded.rgb.shape == (20, 4, 16, 16, 3) and loaded.mask.shape == (20, 4, 16, 16)
    assert loaded.camera.shape == (20, 4, 16) and loaded.background.shape == (20, 3)
    assert loaded.rgb.dtype == loaded.mask.dtype == torch.uint8
    records = [
        json.loads(line)
        for number in (0, 1)
        for line in data._shard_path(tmp_path, number).with_suffix(".jsonl").open()
    ]
    assert [record["caption"] for record in records] == loaded.captions
    assert [record["meant"] for record in records] == [c.text for c in lists.sample_training_captions(20, seed=2)]
    assert not list(tmp_path.glob("*.draft"))

    before = data._shard_path(tmp_path, 1).read_bytes()
    data._shard_path(tmp_path, 1).unlink()
    data.write_shard(tmp_path, 1, collection, **settings)
    assert data._shard_path(tmp_path, 1).read_bytes() == before
    second = data.load_shards(tmp_path, [1], fields=("camera",))
    assert torch.equal(second.camera, loaded.camera[10:]) and second.rgb.numel() == 0


def test_a_data_set_with_other_settings_is_not_added_to(tmp_path):
    settings = {"shard_objects": 25, "size": 32, "seed": 0, "held_out": False}
    (tmp_path / "dataset.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match="another --out"):
        data.build_dataset(tmp_path, tmp_path, objects=25, size=16, seed=0, processes=1, shard_objects=25)


def test_the_loader_says_how_to_make_missing_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m psd embedded data"):
        data.load_shards(tmp_path)


def test_low_quality_objects_are_spoilt_and_called_so(monkeypatch, collection):
    chosen = lists.sample_training_captions(4, seed=9)
    clean = data.render_samples(collection, chosen, range(4), 16, seed=9)
    monkeypatch.setattr(data, "DEGRADED_SHARE", 1.1)
    spoilt = data.render_samples(collection, chosen, range(4), 16, seed=9)
    for before, after in zip(clean, spoilt):
        assert after.text == grammar.LOW_QUALITY and after.fault in data.LOW_QUALITY_KINDS
        assert before.fault is None and not torch.equal(before.rgb, after.rgb)
        assert torch.equal(before.mask, after.mask)


def test_the_cameras_of_a_data_set_are_orbits_in_the_project_s_frame(tmp_path):
    sample = data.render_samples(Collection(tmp_path), [parse("a red cube")], [0], 16, seed=0)[0]
    c2w = sample.camera.reshape(4, 4, 4)
    azimuth = torch.rad2deg(torch.atan2(c2w[:, 1, 3], c2w[:, 0, 3]))
    elevation = torch.rad2deg(torch.asin(c2w[:, 2, 3]))
    again = orbit_cameras(azimuth[None], elevation[None], torch.ones(1, 4), torch.full((1, 4), 40.0))
    assert torch.allclose(again.c2w[0], c2w, atol=1e-5)
    assert ((azimuth.roll(-1) - azimuth) % 360 - 90).abs().max() < 1e-3


def test_batches_change_nothing(tmp_path):
    captions = [parse(text) for text in ("a red cube", "a blue torus on top of a green prism", "a pink cone")]
    render = partial(data.render_samples, Collection(tmp_path))  # primitives need no file
    together = render(captions, [4, 5, 6], 24, seed=1)
    apart = [render([caption], [index], 24, seed=1)[0] for caption, index in zip(captions, (4, 5, 6), strict=True)]
    for one, two in zip(together, apart, strict=True):
        assert one.text == two.text and torch.equal(one.rgb, two.rgb) and torch.equal(one.camera, two.camera)
    assert not torch.equal(together[0].rgb, render(captions[:1], [4], 24, seed=2)[0].rgb)
