"""The true views of captions: what a perfect prior would show.  They need the collection of objects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from psd.embedded.captions.grammar import Caption
from psd.embedded.objects.assemble import assemble_object
from psd.embedded.objects.collection import Collection
from psd.embedded.objects.picture import Pictures, main_colours, render_bodies
from psd.embedded.objects.surroundings import sample_background, sample_light
from psd.geometry.cameras import Cameras


def render_truth(
    captions: Sequence[Caption],
    cameras: Cameras,
    size: int,
    *,
    collection: Collection,
    generator: torch.Generator | None = None,
    choice: int | None = None,
    light: Float[Tensor, "b v 3"] | None = None,
    background: Float[Tensor, "b 3"] | None = None,
) -> Pictures:
    """Each caption's object, varied by ``generator``; without one the canonical object, lit from the camera on the
    background that contrasts most.  ``choice``: which of a kind's meshes (`assemble_object`)."""
    bodies = [assemble_object(caption, collection, generator, choice=choice) for caption in captions]
    if light is None:
        light = sample_light(cameras, generator)
    if background is None:
        background = torch.stack([sample_background(main_colours(body), generator) for body in bodies])
    return render_bodies(bodies, cameras, size, light=light, background=background)
