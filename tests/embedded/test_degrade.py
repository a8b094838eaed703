"""What spoils pictures grows with its strength, stays where it belongs, and says what it cannot do."""

from __future__ import annotations

import pytest
import torch

from psd.embedded import degrade
from psd.embedded.captions.grammar import parse
from psd.embedded.objects.collection import Collection
from psd.embedded.objects.picture import Pictures
from psd.embedded.objects.truth import render_truth
from psd.geometry.cameras import turntable_cameras


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def mushroom(collection: Collection) -> Pictures:
    return render_truth([parse("a red mushroom")], turntable_cameras(4), 48, collection=collection, generator=seeded(1))


@pytest.mark.parametrize("kind", degrade.IMAGE_KINDS)
def test_degradations_grow_with_their_strength_from_nothing(kind, mushroom):
    images, mask, background = mushroom.rgb[0], mushroom.mask[0], mushroom.background[0]

    def spoilt(strength: float) -> torch.Tensor:
        return degrade.degrade_views(kind, strength, images, mask, background, seeded(4))

    assert torch.allclose(spoilt(0.0), images, atol=1e-5)
    errors = [float((spoilt(strength) - images).abs().mean()) for strength in (0.25, 0.5, 1.0)]
    assert 0.0003 < errors[0] < errors[1] < errors[2]
    assert spoilt(1.0).min() >= 0 and spoilt(1.0).max() <= 1
    assert torch.equal(spoilt(0.7), spoilt(0.7))


def test_holes_show_the_background_and_are_in_the_object_of_every_view(mushroom):
    images, mask, background = mushroom.rgb[0], mushroom.mask[0], mushroom.background[0]
    for seed in range(8):
        after = degrade.degrade_views("holes", 0.6, images, mask, background, seeded(seed))
        erased = (after - background[:, None, None]).abs().amax(1) < 0.02
        assert (erased & (mask > 0.99)).flatten(1).any(1).all()
        outside = (mask == 0)[:, None].expand_as(after)
        assert torch.allclose(after[outside], images[outside])


def test_fog_gathers_around_the_object(mushroom):
    images, mask, background = mushroom.rgb[0], mushroom.mask[0], mushroom.background[0]
    after = degrade.degrade_views("fog", 1.0, images, mask, background, seeded(2))
    changed = (after - images).abs().amax(1)
    near = torch.nn.functional.max_pool2d(mask, 7, 1, 3)
    assert changed[(near > 0.5) & (mask == 0)].mean() > 3 * changed[:, 0, :].mean()


@pytest.mark.parametrize("kind", ["dark", "oversaturated", "stained"])
def test_faults_of_the_paint_leave_the_background_alone(kind, mushroom):
    images, mask, background = mushroom.rgb[0], mushroom.mask[0], mushroom.background[0]
    after = degrade.degrade_views(kind, 1.0, images, mask, background, seeded(5))
    outside = (mask == 0)[:, None].expand_as(after)
    assert torch.equal(after[outside], images[outside])
    inside = (mask > 0.99)[:, None].expand_as(after)
    if kind == "dark":
        assert torch.allclose(after[inside], images[inside] / 4, atol=0.01)
    if kind == "oversaturated":
        before, now = ((x.amax(1) - x.amin(1))[mask > 0.99].mean() for x in (images, after))
        assert now > before


def test_mistakes_change_what_they_say():
    for text in ("a red cube on top of a blue cylinder", "a red barrel", "a green tree"):
        caption = parse(text)
        for seed in range(6):
            recoloured = degrade.make_mistake("wrong_colour", caption, seeded(seed))
            rebuilt = degrade.make_mistake("wrong_part", caption, seeded(seed))
            assert recoloured and rebuilt
            assert (recoloured.kind, recoloured.other_kind) == (caption.kind, caption.other_kind)
            assert (rebuilt.colour, rebuilt.other_colour) == (caption.colour, caption.other_colour)
            assert recoloured.meaning != caption.meaning and rebuilt.meaning != caption.meaning
    assert degrade.make_mistake("wrong_colour", parse("a burger"), seeded()) is None


def test_degradations_refuse_what_they_cannot_do(mushroom):
    arguments = (mushroom.rgb[0], mushroom.mask[0], mushroom.background[0], seeded())
    with pytest.raises(ValueError, match="outside"):
        degrade.degrade_views("blur", 1.5, *arguments)
    with pytest.raises(ValueError, match="known are blur"):
        degrade.degrade_views("smudge", 0.5, *arguments)
    with pytest.raises(ValueError, match="mistake"):
        degrade.degrade_views("wrong_part", 0.5, *arguments)
    half = degrade.degrade_views("wrong_part", 0.5, *arguments, mistaken=torch.ones_like(mushroom.rgb[0]))
    assert torch.allclose(half, (mushroom.rgb[0] + 1) / 2)
