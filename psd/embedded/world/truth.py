"""The true views of captions: what a perfect prior would show.  They need the collection of objects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from psd.embedded.surroundings import sample_background, sample_light
from psd.embedded.world.assemble import assemble_object
from psd.embedded.world.collection import Collection
from psd.embedded.world.grammar import Caption
from psd.embedded.world.picture import Pictures, main_colours, render_bodies
from psd.geometry.cameras import Cameras


def render_truth(
    captions: Sequence[Caption],
    cameras: Cameras,
    size: int,
    *,
    collection: Collection,
    generator: torch.Generator | None = None,
    light: Float[Tensor, "b v 3"] | None = None,
    background: Float[Tensor, "b 3"] | None = None,
) -> Pictures:
    """Each caption's object, varied by ``generator``; without one the canonical object, lit from the camera on the
    background that contrasts most."""
    bodies = [assemble_object(caption, collection, generator) for caption in captions]
    if light is None:
        light = sample_light(cameras, generator)
    if background is None:
        background = torch.stack([sample_background(main_colours(body), generator) for body in bodies])
    return render_bodies(bodies, cameras, size, light=light, background=background)
