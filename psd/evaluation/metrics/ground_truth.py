"""What an object is worth against its caption's ground truth: shape, colour, front, texture, and what judges say.

Everything is seen from eight sides on white; rewards and judges see four of them before `GREY`.  The truth is any of
the kind's objects, varies in proportions and, where the object looks the same from several sides, in azimuth; a pair
side by side may stand either way round (`Caption.meaning`).  That truth counts which the silhouettes agree with best,
and for colours that which the colours do: parts of other proportions lie elsewhere.
A judge's score is over the truth's own, in spreads, and clipped: see `judge_against_truth`.  What needs an object
(depth, normals, texture, front, binding) is None where there is none; everything else is a number then too.
Axes: v view, h w image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, normalize

from psd.distillation.preview import image_statistics
from psd.embedded.captions import grammar, lists
from psd.embedded.objects.assemble import count_choices
from psd.embedded.objects.collection import open_collection
from psd.embedded.objects.picture import SAMPLES, Pictures
from psd.embedded.objects.truth import render_truth
from psd.geometry.cameras import turntable_cameras
from psd.geometry.mesh_picture import rasterise_mesh
from psd.models.rewards.text_image import ImageTextReward, score_prompts

if TYPE_CHECKING:
    from psd.geometry.mesh import Mesh

SIZE = 64  # px
SIDES = 8  # views, 45 degrees apart, the first from the front
BACK = (2, 3, 4, 5, 6)  # of which these, 90 to 270 degrees, should not see the front
JUDGED = slice(None, None, 2)  # of which these are shown to rewards and judges: four, as in training
# Behind the object there: no colour of the captions.  Of 24 truths of white objects (evaluation list) the evidence
# judge prefers 8 on white to the same darkened by 30 %, and all before this; of 24 others 22 and 21.
GREY = 0.5
PROPORTIONS = 8  # draws besides the canonical ones
SEED = 987_654_321  # of the truths' proportions: no data set has it
SAME = 0.97, 0.01  # least IoU and largest mean colour difference of sides that look the same
# Mean colour difference between the front of an object and a side that is not its front.  Below it a few pixels
# differ, and what a small model makes of them is noise.
FRONT = 0.05
TEXTURE_FLOOR = 1e-3  # of the energy of fine texture, a deviation of .007: below it surfaces are smooth
# dB: a deviation of .056, the same colour to the eye.  Nothing counts as better, or one plain capsule whose blue is met
# to the last digit outweighs a dozen captions; judges' scores are clipped for the same reason.
BEST_PSNR = 25.0
PIECE = 0.3  # opacity from which a piece of the field is seen as one
COMPARED = ("saturation", "contrast", "edge_density", "colour_entropy")  # image statistics that the truth has too
SPREAD_LIST = "tuning"  # captions whose truths tell a judge's spread: never those that methods are compared on


@dataclass(frozen=True)
class EightViews:
    """An object from all around, on white."""

    rgb: Float[Tensor, "v 3 h w"]
    cover: Float[Tensor, "v h w"]  # 0 to 1
    depth: Float[Tensor, "v h w"]  # along the ray, world units; anything outside the mask
    normal: Float[Tensor, "v 3 h w"]  # world frame

    @property
    def mask(self) -> Bool[Tensor, "v h w"]:
        return self.cover >= 0.5

    @property
    def shown(self) -> Float[Tensor, "u 3 h w"]:
        """What rewards and judges see: the `JUDGED` views, before `GREY`."""
        return (self.rgb - (1 - self.cover[:, None]) * (1 - GREY))[JUDGED]

    def turn(self, places: int) -> EightViews:
        """The object turned by ``places`` x 45 degrees about the vertical: view v shows what v - places showed."""
        angle = math.tau * places / SIDES
        c, s = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
        rgb, cover, depth, normal = (x.roll(places, 0) for x in (self.rgb, self.cover, self.depth, self.normal))
        return EightViews(rgb, cover, depth, torch.einsum("ij,vjhw->vihw", turn, normal))


def mesh_sides(mesh: Mesh) -> EightViews:
    """As many samples a pixel as the truth has, else thin parts count for less.

    Colours as they are: the field was made to look like lit pictures, light is in them.
    """
    seen = rasterise_mesh(mesh, turntable_cameras(SIDES), SAMPLES * SIZE, lit=False)
    cover = average_pool(torch.from_numpy(seen.mask[0]).float()[..., None])
    total = cover.clamp(min=1 / SAMPLES**2)
    images = (seen.rgb[0], seen.depth[0][..., None], seen.normal[0])
    rgb, depth, normal = (average_pool(torch.from_numpy(image)) for image in images)
    unit = normalize(normal, dim=1)
    return EightViews(rgb, cover[:, 0], (depth / total)[:, 0], unit)


def average_pool(images: Float[Tensor, "v hs ws c"]) -> Float[Tensor, "v c h w"]:
    """Means over a pixel's samples."""
    return avg_pool2d(rearrange(images, "v h w c -> v c h w"), SAMPLES)


def empty_sides() -> EightViews:
    """Nothing: what there is to see of a run that has no mesh."""
    nothing = torch.zeros(SIDES, SIZE, SIZE)
    return EightViews(torch.ones(SIDES, 3, SIZE, SIZE), nothing, nothing, torch.zeros(SIDES, 3, SIZE, SIZE))


def true_views(caption: grammar.Caption, seed: int | None = None, choice: int = 0) -> Pictures:
    """The caption's object lit from the camera, of a kind with several meshes that of number ``choice``; with
    proportions drawn from ``seed``, or the canonical ones.

    Raises MissingError where the collection of objects is not here.
    """
    cameras = turntable_cameras(SIDES)
    generator = None if seed is None else torch.Generator().manual_seed(SEED + seed)
    return render_truth(
        [caption], cameras, SIZE, collection=open_collection(), generator=generator, choice=choice,
        light=cameras.c2w[..., :3, 2], background=torch.ones(1, 3),
    )  # fmt: skip


@lru_cache(maxsize=256)  # small: 1 MB each
def true_sides(caption: grammar.Caption, seed: int | None = None, choice: int = 0) -> EightViews:
    """`true_views` from all around."""
    views = true_views(caption, seed, choice)
    return EightViews(views.rgb[0], views.mask[0], views.depth[0], views.normals[0])


@lru_cache(maxsize=4)  # a caption's runs are measured one after the other
def true_arrangements(caption: grammar.Caption) -> tuple[tuple[EightViews, ...], ...]:
    """Each of the kind's objects, then others in their proportions, all in every azimuth that looks the same.

    For a pair side by side a second time, the other way round: turned by half, which shows its primitives, and thus
    the mirrored arrangement, as they are.
    """
    count = count_choices(caption, open_collection())
    drawn = [(choice, None) for choice in range(count)] + [(seed % count, seed) for seed in range(PROPORTIONS)]
    places = [find_symmetries(true_sides(caption, None, choice)) for choice in range(count)]
    return tuple(
        tuple(
            true_sides(caption, seed, choice).turn(place + half) for choice, seed in drawn for place in places[choice]
        )
        for half in ((0, SIDES // 2) if caption.relation == "next to" else (0,))
    )


def closest_truth(found: EightViews, caption: grammar.Caption) -> EightViews:
    """The truth that the object's silhouettes agree with best; of equal ones that whose colours do.

    Which way round a pair stands its colours tell, of whole pictures: two of one shape have one outline either way.
    """

    def agreement(option: EightViews) -> tuple[float, float]:
        return round(silhouette_iou(found, option), 3), -float((found.rgb - option.rgb).abs().mean())

    return max(match_arrangement(found, caption), key=agreement)


def match_arrangement(found: EightViews, caption: grammar.Caption) -> tuple[EightViews, ...]:
    """The truths with a pair's parts as the object has them."""

    def difference(way: tuple[EightViews, ...]) -> float:
        return min(float((found.rgb - true.rgb).abs().mean()) for true in way)

    return min(true_arrangements(caption), key=difference)


def colour_psnr(found: EightViews, true: EightViews) -> float:
    """dB inside the truth's silhouette, at most `BEST_PSNR`; missing parts count as white."""
    squared = (found.rgb - true.rgb).square().mean(1)[erode_mask(true.mask, 1)].mean()
    return min(BEST_PSNR, -10 * math.log10(max(float(squared), 1e-12)))


def find_symmetries(sides: EightViews) -> list[int]:
    """By how many eighths of a turn the object looks as before; 0 always."""
    least, most = SAME
    return [
        places for places in range(SIDES)
        if silhouette_iou(turned := sides.turn(places), sides) >= least
        and all(colour_difference(turned, v, sides, v) <= most for v in range(SIDES))
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ ground truth


def silhouette_iou(one: EightViews, other: EightViews) -> float:
    """Intersection over union of the silhouettes, mean over views."""
    both, either = (one.mask & other.mask).sum((1, 2)), (one.mask | other.mask).sum((1, 2))
    return float((both / either.clamp(min=1)).mean())


def colour_difference(one: EightViews, v: int, other: EightViews, w: int) -> float:
    """Mean absolute colour difference of two views where either shows the object."""
    area = one.mask[v] | other.mask[w]
    return float((one.rgb[v] - other.rgb[w]).abs().mean(0)[area].mean()) if area.any() else 0.0


def erode_mask(mask: Bool[Tensor, "v h w"], pixels: int) -> Bool[Tensor, "v h w"]:
    """The mask without a rim of ``pixels``: outlines are blended with the background."""
    return max_pool2d((~mask).float(), 2 * pixels + 1, 1, pixels) == 0


def texture_energy(sides: EightViews) -> float:
    """Energy of fine texture: mean square of the colours' Laplacian inside the object."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(3, 1, 3, 3)
    energy = conv2d(sides.rgb, kernel, padding=1, groups=3).square().mean(1)
    area = erode_mask(sides.mask, 2)
    return float(energy[area].mean()) if area.any() else 0.0


def against_truth(found: EightViews, caption: grammar.Caption) -> dict[str, Any]:
    """Shape, colour, texture and front of an object against its `closest_truth`.

    ``iou``; ``colour_psnr`` (dB), against the truth whose colours agree best; ``depth_error`` (world units) and
    ``normal_error_deg`` where both are, None where nowhere; ``texture`` over the truth's own; ``janus`` and
    ``front_elsewhere`` (0 or 1), None for captions without a front.  Of nothing the last three are None too.
    """
    true = closest_truth(found, caption)
    inside = erode_mask(true.mask, 1)
    both = inside & found.mask
    angle = torch.rad2deg(torch.acos((found.normal * true.normal).sum(1)[both].clamp(-1, 1)))
    depth = (found.depth - true.depth)[both].abs()
    there = bool(found.mask.any())
    janus, elsewhere = compare_fronts(found, true) if there and has_front(caption) else (None, None)
    return {
        "iou": silhouette_iou(found, true),
        "colour_psnr": max(colour_psnr(found, option) for option in match_arrangement(found, caption)),
        "depth_error": float(depth.mean()) if both.any() else None,
        "normal_error_deg": float(angle.mean()) if both.any() else None,
        "texture": (texture_energy(found) + TEXTURE_FLOOR) / (texture_energy(true) + TEXTURE_FLOOR) if there else None,
        "janus": janus,
        "front_elsewhere": elsewhere,
    }


@lru_cache(maxsize=256)
def has_front(caption: grammar.Caption) -> bool:
    """Whether each of the kind's objects looks different from the front and from behind; pairs have no front."""
    if caption.relation:
        return False
    drawn = [true_sides(caption, None, choice) for choice in range(count_choices(caption, open_collection()))]
    return all(colour_difference(sides, 0, sides, SIDES // 2) > FRONT for sides in drawn)


def compare_fronts(found: EightViews, true: EightViews) -> tuple[float, float]:
    """Whether the front shows at the front and on another side too (Janus), and whether it shows there instead.

    A side shows the front if it is closer to the truth's front than to what the truth shows there, which is another
    picture (`FRONT`); the front itself, if it is closer to the truth's front than to its back.
    """
    opposite = SIDES // 2
    at_front = colour_difference(found, 0, true, 0) < colour_difference(found, 0, true, opposite)
    beside = any(
        colour_difference(found, v, true, 0) < colour_difference(found, v, true, v)
        for v in BACK if colour_difference(true, v, true, 0) > FRONT
    )  # fmt: skip
    return float(at_front and beside), float(beside and not at_front)


# ------------------------------------------------------------------------------------------------- the field's preview


def dilate_mask(mask: Bool[Tensor, "v h w"]) -> Bool[Tensor, "v h w"]:
    """The mask and a rim of a pixel."""
    return max_pool2d(mask.float(), 3, 1, 1) > 0


def fog_share(opacity: Float[Tensor, "v h w"], sides: EightViews) -> float:
    """Share (0 to 1) of the field's opacity in the `JUDGED` views that lies beside the mesh's silhouettes."""
    return float(opacity[~dilate_mask(sides.mask[JUDGED])].sum() / opacity.sum().clamp_min(1e-6))


def floater_share(opacity: Float[Tensor, "v h w"], true: EightViews) -> float:
    """Share (0 to 1) of the field's opacity in the `JUDGED` views in pieces that belong to nothing.

    A piece is a connected part of the silhouette (opacity `PIECE`, 8 neighbours).  Of the field and not of the mesh,
    whose making drops small components.  It floats if it is not its view's largest and wholly beside the truth's
    silhouette: a pair's second part, and what a stick too thin to be seen holds up, are pieces too.
    """
    loose = 0.0
    for view, body in zip(opacity.numpy(), dilate_mask(true.mask[JUDGED]).numpy(), strict=True):
        pieces: Any = ndimage.label(view >= PIECE, np.ones((3, 3)))
        label, count = pieces
        if count:
            largest = np.bincount(label.ravel())[1:].argmax() + 1
            loose += float(view[~np.isin(label, np.append(label[body], [0, largest]))].sum())
    return loose / max(float(opacity.sum()), 1e-6)


def statistics_over_truth(
    rgb: Float[Tensor, "v 3 h w"], opacity: Float[Tensor, "v h w"], caption: grammar.Caption
) -> dict[str, float | None]:
    """``image/<name>_over_truth``: a run's image statistics in the `JUDGED` views over the canonical truth's own.

    Both at `SIZE`, as edges depend on the resolution, and not on a preview's; None where the truth has 0 (colourless).
    """
    views = true_views(caption)
    own = image_statistics(views.rgb[0, JUDGED], views.mask[0, JUDGED, None])
    found = image_statistics(rgb, opacity[:, None])
    names = [f"image/{name}" for name in COMPARED]
    return {f"{name}_over_truth": found[name] / own[name] if own[name] > 1e-3 else None for name in names}


# ------------------------------------------------------------------------------------------------------------ judges


def score_captions(
    judge: ImageTextReward, images: Float[Tensor, "v 3 h w"], asked: Sequence[grammar.Caption]
) -> Float[Tensor, " m"]:
    """The judge's score of the images, mean over views, for each caption."""
    return score_prompts(judge, images[None], [caption.text for caption in asked])[0].mean(0)


@lru_cache(maxsize=8)
@torch.no_grad()
def judge_spread(judge: ImageTextReward) -> float:
    """Standard deviation of the judge's score over the canonical truths of the tuning captions, once a process."""
    asked = [grammar.parse(text) for text in lists.load_list(SPREAD_LIST)]
    return stdev(float(score_captions(judge, true_sides(caption).shown, [caption])[0]) for caption in asked)


@torch.no_grad()
def judge_against_truth(
    judge: ImageTextReward,
    found: EightViews,
    caption: grammar.Caption,
    others: Sequence[grammar.Caption],
) -> dict[str, Any]:
    """A judge's scores of the object and of the canonical truth in its place.

    ``raw``: its score over the truth's own, unbounded.  ``score``: the same in units of `judge_spread`, clipped to
    [-1, 1].  0 is as good as the truth; in spreads judges are commensurable; and as some truths displease a judge, so
    that everything else beats them by far, the bounds keep one caption from deciding a mean.
    ``named`` (0 or 1): first among the caption and ``others``, never of nothing; ``truth_named``: whether the truth is,
    the judge's own ceiling.  ``misbound`` (0 or 1): a caption with the same words bound otherwise (colours, parts or
    both exchanged, or the relation) is preferred; None of nothing, and where there is nothing to exchange.
    """
    swapped, there = grammar.find_swaps(caption), bool(found.mask.any())
    scores = score_captions(judge, found.shown, [caption, *swapped, *others])
    own, bound, rest = scores[0], scores[1 : 1 + len(swapped)], scores[1 + len(swapped) :]
    true = score_captions(judge, true_sides(caption).shown, [caption, *others])
    raw = float(own - true[0])
    return {
        "score": max(-1.0, min(1.0, raw / judge_spread(judge))),
        "raw": raw,
        "named": float(there and (own > rest).all()),
        "truth_named": float((true[0] > true[1:]).all()),
        "misbound": float((bound > own).any()) if there and swapped else None,
    }
