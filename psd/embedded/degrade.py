"""What spoils pictures of an object, in graded strengths: for rewards, judges and the "low quality" caption.

Strength 0 changes nothing, strength 1 is gross.  Axes: v view, c channel, h w image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from psd.embedded.captions.grammar import Caption, find_neighbours

Images = Float[Tensor, "v 3 h w"]
Masks = Float[Tensor, "v h w"]


def blur(images: Images, mask: Masks, background: Tensor, strength: float, generator: torch.Generator) -> Images:
    """Gaussian blur, standard deviation up to 4.5 % of the image's width."""
    return _smooth_images(images, 0.045 * strength * images.shape[-1])


def noise(images: Images, mask: Masks, background: Tensor, strength: float, generator: torch.Generator) -> Images:
    """Gaussian noise on every pixel, standard deviation up to 0.25."""
    return images + 0.25 * strength * torch.randn(images.shape, generator=generator)


def holes(images: Images, mask: Masks, background: Tensor, strength: float, generator: torch.Generator) -> Images:
    """Round patches of the object erased to the background: five a view, radius up to 13 % of the image's width."""
    size = images.shape[-1]
    for i, view in enumerate(mask):
        inside = torch.nonzero(view > 0.5)
        if len(inside) == 0:
            continue
        centres = inside[torch.randint(len(inside), (5,), generator=generator)]
        radii = strength * size * (0.04 + 0.09 * torch.rand(5, generator=generator))
        erased = _draw_discs(centres, radii, size).amax(0)
        images = _replace_view(images, i, torch.lerp(images[i], background[:, None, None].expand_as(images[i]), erased))
    return images


def floaters(images: Images, mask: Masks, background: Tensor, strength: float, generator: torch.Generator) -> Images:
    """Up to fourteen blobs of random colours a view, beside the object and on it, radius up to 6 % of the width."""
    size, count = images.shape[-1], math.ceil(14 * strength)
    for i in range(len(images)):
        centres = torch.randint(size, (count, 2), generator=generator)
        radii = size * (0.012 + 0.048 * strength * torch.rand(count, generator=generator))
        colours = torch.rand(count, 3, generator=generator)
        for disc, colour in zip(_draw_discs(centres, radii, size), colours, strict=True):
            images = _replace_view(images, i, torch.lerp(images[i], colour[:, None, None].expand_as(images[i]), disc))
    return images


def warp(images: Images, mask: Masks, background: Tensor, strength: float, generator: torch.Generator) -> Images:
    """A smooth random displacement of up to about 12 % of the width, another one in every view."""
    v, _, size, _ = images.shape
    coarse = 0.2 * strength * torch.randn(v, 2, 5, 5, generator=generator)
    shift = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True).movedim(1, -1)
    straight = F.affine_grid(torch.eye(2, 3).expand(v, 2, 3), [v, 3, size, size], align_corners=False)
    return F.grid_sample(images, straight + shift, padding_mode="border", align_corners=False)


def washed_out(images: Images, mask: Masks, background: Tensor, strength: float, generator: torch.Generator) -> Images:
    """Less saturation (down to a fifth) and less contrast around a light grey (down to two fifths)."""
    grey = images.mean(1, keepdim=True).expand_as(images)
    return torch.lerp(torch.lerp(images, grey, 0.8 * strength), torch.full_like(images, 0.6), 0.6 * strength)


def fog(images: Images, mask: Masks, background: Tensor, strength: float, generator: torch.Generator) -> Images:
    """Cloudy haze around and over the object, up to 75 % opaque: the typical artefact of score distillation."""
    v, _, size, _ = images.shape
    near = _smooth_images(mask[:, None], 0.14 * size)
    near = near / near.amax((-1, -2), keepdim=True).clamp(min=1e-6)
    cloud = F.interpolate(torch.rand(v, 1, 6, 6, generator=generator), (size, size), mode="bicubic", align_corners=True)
    opacity = strength * (near * (0.35 + 0.8 * cloud)).clamp(0, 0.75)
    tint = 0.25 + 0.5 * torch.rand(1, generator=generator) + 0.16 * (torch.rand(3, generator=generator) - 0.5)
    return torch.lerp(images, tint[:, None, None].expand_as(images), opacity)


def dark(images: Images, mask: Masks, background: Tensor, strength: float, generator: torch.Generator) -> Images:
    """The object as if lit too weakly, down to a quarter: what score distillation makes of bright colours."""
    return torch.lerp(images, images * (1 - 0.75 * strength), mask[:, None])


def oversaturated(
    images: Images, mask: Masks, background: Tensor, strength: float, generator: torch.Generator
) -> Images:
    """Up to three times the object's saturation and twice its contrast: what guidance makes of colours."""
    inside = mask[:, None]
    centre = (images * inside).sum((-1, -2), keepdim=True) / inside.sum((-1, -2), keepdim=True).clamp(min=1e-6)
    grey = images.mean(1, keepdim=True)
    vivid = torch.lerp(grey.expand_as(images), images, 1 + 2 * strength)
    return torch.lerp(images, torch.lerp(centre.mean(1, keepdim=True), vivid, 1 + strength).clamp(0, 1), inside)


def stained(images: Images, mask: Masks, background: Tensor, strength: float, generator: torch.Generator) -> Images:
    """Soft stains of random colours on the object, other ones in every view: a reward that is climbed by paint."""
    v, _, size, _ = images.shape
    coarse = torch.randn(v, 3, 6, 6, generator=generator)
    stains = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    return images + 0.4 * strength * stains * mask[:, None]


_FAULTS: dict[str, Callable[[Images, Masks, Tensor, float, torch.Generator], Images]] = {
    fault.__name__: fault
    for fault in (blur, noise, holes, floaters, warp, washed_out, fog, dark, oversaturated, stained)
}
IMAGE_KINDS = tuple(_FAULTS)
CAPTION_KINDS = ("wrong_colour", "wrong_part")
KINDS = (*IMAGE_KINDS, *CAPTION_KINDS)


def degrade_views(
    kind: str,
    strength: float,
    images: Images,
    mask: Masks,
    background: Float[Tensor, " 3"],
    generator: torch.Generator,
    *,
    mistaken: Images | None = None,
) -> Images:
    """``images`` in [0, 1] spoilt by ``kind``; for the kinds in CAPTION_KINDS ``mistaken`` is needed.

    ``mistaken`` holds the views of ``mistake(kind, caption, generator)`` by the same cameras, light and background (and
    proportions, from a generator with the same seed); the strength is its share in the mixture.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength} is outside [0, 1]")
    if kind in CAPTION_KINDS:
        if mistaken is None:
            raise ValueError(
                f"{kind} mixes in the views of another caption: render mistake({kind!r}, ...) as `mistaken`"
            )
        return torch.lerp(images, mistaken, strength)
    if kind not in _FAULTS:
        raise ValueError(f"unknown degradation {kind!r}; known are {', '.join(KINDS)}")
    return _FAULTS[kind](images, mask, background, strength, generator).clamp(0, 1)


def make_mistake(kind: str, caption: Caption, generator: torch.Generator) -> Caption | None:
    """``caption`` with a wrong colour or part (swapped in half of the pairs); None if it has no colour to change."""
    slots = ("colour", "other_colour") if kind == "wrong_colour" else ("kind", "other_kind")
    changed = [near for near in find_neighbours(caption) if _differs_only_in(near, caption, slots)]
    if not changed:
        return None
    swapped = [near for near in changed if all(getattr(near, slot) != getattr(caption, slot) for slot in slots)]
    if caption.relation and torch.rand((), generator=generator) < 0.5:
        changed = swapped or changed
    return changed[int(torch.randint(len(changed), (), generator=generator))]


def _differs_only_in(one: Caption, two: Caption, slots: tuple[str, ...]) -> bool:
    return all(getattr(one, name) == getattr(two, name) for name in vars(one) if name not in slots)


def _smooth_images(images: Float[Tensor, "v c h w"], deviation: float) -> Float[Tensor, "v c h w"]:
    if deviation < 1e-3:
        return images
    reach = math.ceil(3 * deviation)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    across = F.conv2d(padded, kernel, groups=images.shape[1])
    return F.conv2d(across, kernel.mT, groups=images.shape[1])


def _draw_discs(centres: Num[Tensor, "n 2"], radii: Float[Tensor, " n"], size: int) -> Float[Tensor, "n h w"]:
    """Coverage by discs of the given centres (row, column) and radii in pixels, soft over one pixel."""
    rows = torch.arange(size, dtype=torch.float32)
    offset = rows - centres[..., None]  # n 2 size
    distance = torch.hypot(offset[:, 0, :, None], offset[:, 1, None, :])
    return (radii[:, None, None] - distance).clamp(0, 1)


def _replace_view(images: Images, view: int, image: Float[Tensor, "3 h w"]) -> Images:
    return torch.cat([images[:view], image[None], images[view + 1 :]])
