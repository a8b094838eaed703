"""A caption's object: parts arranged, modified and fitted into a ball, ready to be measured or rendered."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from psd.embedded.captions.grammar import COLOURS, Caption
from psd.embedded.objects.artefacts import ARTEFACTS
from psd.embedded.objects.nature import NATURE
from psd.embedded.objects.parts import RGB, Draw, Part, contrasting_colour
from psd.embedded.objects.primitives import PRIMITIVES
from psd.embedded.objects.solids import OUTLINES, SOLIDS

BUILDERS = PRIMITIVES | NATURE | ARTEFACTS
RADIUS, TINY_RADIUS = 0.9, 0.55  # the ball around the origin into which every object fits, its outline touching
TALL = 1.6  # vertical stretch
SINK = 0.07  # how deep the upper object of a pair stands in the lower one, so that the two are joined
BANDS = 3.5  # stripes over the main part's height


@dataclass(frozen=True)
class Shape:
    """A union of p solids: each one's frame (linear map and place), sizes, colour and finish; world units."""

    solid: tuple[str, ...]
    linear: Float[Tensor, "p 3 3"]  # solid frame -> world
    centre: Float[Tensor, "p 3"]
    size: Float[Tensor, "p 4"]
    colour: Float[Tensor, "p 3"]  # sRGB
    band_colour: Float[Tensor, "p 3"]  # of the second of every two stripes; equal to colour where unstriped
    band: Float[Tensor, "p 3"]  # across the stripes, one unit of length for each pair of stripes
    gloss: Float[Tensor, " p"]  # strength of the highlight
    bound_centre: Float[Tensor, "p 3"]  # of a ball around each part
    bound_radius: Float[Tensor, " p"]

    def distance(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Signed distance to the union, a lower bound of the true one outside; the renderer's ground truth."""
        return self.distances(points).amin(0)

    def distances(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "p n"]:
        """Signed distances to each part."""
        inverse, shrink = torch.linalg.inv(self.linear), torch.linalg.matrix_norm(self.linear, ord=-2)
        per_part = []
        for i, solid in enumerate(self.solid):
            local = inverse[i] @ (points - self.centre[i]).T
            per_part.append(SOLIDS[solid](local, self.size[i, :, None].expand(-1, len(points))) * shrink[i])
        return torch.stack(per_part)


def build_shape(caption: Caption, generator: torch.Generator | None, *, canonical: bool = False) -> Shape:
    """The object of ``caption`` in its canonical pose (+z up, front to +x), centred, in the ball of radius 0.9
    (tiny: 0.55).

    Proportions vary with ``generator``; ``canonical=True`` (or no generator) gives the one reference object.
    """
    draw = Draw(None if canonical else generator)
    main = COLOURS[caption.main_colour or "white"]
    parts = _fit_ball(
        _stack_parts(BUILDERS[caption.kind](main, draw), main, striped=caption.modifier == "striped"), 1.0
    )
    if caption.relation:
        other_main = COLOURS[str(caption.other_colour)]
        other = _fit_ball(
            _stack_parts(BUILDERS[str(caption.other_kind)](other_main, draw), other_main), draw.between(0.9, 1.1)
        )
        parts = _join_stacks(_arrange_pair(parts, other, caption.relation, draw.between(0.04, 0.16)), other)
    if caption.modifier == "tall":
        stretch = torch.diag(torch.tensor([1.0, 1.0, TALL]))
        parts = _Stack(parts.parts, stretch @ parts.linear, parts.centre @ stretch, parts.band @ stretch.inverse())
    parts = _fit_ball(parts, TINY_RADIUS if caption.modifier == "tiny" else RADIUS)
    return _make_shape(parts, gloss=0.75 if caption.modifier == "glossy" else 0.0)


@dataclass(frozen=True)
class _Stack:
    """Parts with their frames as tensors, while they are moved and scaled together."""

    parts: tuple[tuple[Part, RGB], ...]  # each part and the colour of its second stripes
    linear: Float[Tensor, "p 3 3"]
    centre: Float[Tensor, "p 3"]
    band: Float[Tensor, "p 3"]

    def outline(self) -> list[Float[Tensor, "n 3"]]:
        """For each part, world points whose convex hull contains it."""
        return [
            OUTLINES[part.solid](part.size) @ self.linear[i].T + self.centre[i]
            for i, (part, _) in enumerate(self.parts)
        ]


def _stack_parts(parts: list[Part], main: RGB, *, striped: bool = False) -> _Stack:
    linear = torch.tensor([part.linear() for part in parts])
    centre = torch.tensor([part.at for part in parts], dtype=torch.float32)
    band = torch.zeros(len(parts), 3)
    second = contrasting_colour(main, COLOURS["white"], COLOURS["black"])
    stack = _Stack(tuple((part, part.colour) for part in parts), linear, centre, band)
    if not striped:
        return stack
    is_main = torch.tensor([part.colour == main for part in parts])
    outline = torch.cat([points for points, chosen in zip(stack.outline(), is_main, strict=True) if chosen])
    extent = outline.amax(0) - outline.amin(0)
    # Level stripes; flat things (torus, icing) get upright ones, or they would show only one.
    axis = 2 if extent[2] > 0.62 * extent[1] else 1
    band[is_main, axis] = BANDS / extent[axis]
    painted = tuple((part, second if part.colour == main else part.colour) for part in parts)
    return replace(stack, parts=painted, band=band)


def _fit_ball(stack: _Stack, radius: float) -> _Stack:
    """Centred by its bounding box and scaled so that its outline touches the sphere of ``radius``."""
    outline = torch.cat(stack.outline())
    middle = (outline.amax(0) + outline.amin(0)) / 2
    scale = radius / (outline - middle).norm(dim=-1).max()
    return _Stack(stack.parts, stack.linear * scale, (stack.centre - middle) * scale, stack.band / scale)


def _arrange_pair(first: _Stack, second: _Stack, relation: str, gap: float) -> _Stack:
    """``first`` moved onto ``second``, or to its side at world -y: on the left as the front camera sees it."""
    a, b = torch.cat(first.outline()), torch.cat(second.outline())
    move = torch.zeros(3)
    if relation == "on top of":
        move[2] = b[:, 2].max() - a[:, 2].min() - SINK
    else:
        move[1] = b[:, 1].min() - a[:, 1].max() - gap
        move[2] = b[:, 2].min() - a[:, 2].min()  # both stand on one floor
    return replace(first, centre=first.centre + move)


def _join_stacks(first: _Stack, second: _Stack) -> _Stack:
    return _Stack(
        first.parts + second.parts,
        torch.cat([first.linear, second.linear]),
        torch.cat([first.centre, second.centre]),
        torch.cat([first.band, second.band]),
    )


def _make_shape(stack: _Stack, *, gloss: float) -> Shape:
    outline = stack.outline()
    middle = torch.stack([(points.amax(0) + points.amin(0)) / 2 for points in outline])
    radius = torch.stack([(points - m).norm(dim=-1).max() for points, m in zip(outline, middle, strict=True)])
    parts = [part for part, _ in stack.parts]
    return Shape(
        solid=tuple(part.solid for part in parts),
        linear=stack.linear,
        centre=stack.centre,
        size=torch.tensor([part.size for part in parts], dtype=torch.float32),
        colour=torch.tensor([part.colour for part in parts]),
        band_colour=torch.tensor([second for _, second in stack.parts]),
        band=stack.band,
        gloss=torch.full((len(parts),), gloss),
        bound_centre=middle,
        bound_radius=radius,
    )
