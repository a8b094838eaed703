"""A caption's object: meshes painted, posed, arranged in pairs and fitted into a ball, ready to be rendered."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd.embedded.captions.grammar import Caption
from psd.embedded.captions.kinds import COLOURS
from psd.embedded.objects.collection import Collection, Model
from psd.embedded.objects.draws import draw_between, draw_index
from psd.embedded.objects.forms import FORMS

RADIUS, LEAST_RADIUS = 0.9, 0.82  # the ball around the origin into which every object fits, its outline touching
YAW_DEG, STRETCH = 10.0, 0.07  # the pose and proportions vary by at most this
HUE, SATURATION, BRIGHTNESS = 0.02, 0.1, 0.06  # so do the colours: turns of the circle, shares, shares
SINK = 0.05  # how deep the upper object of a pair stands in the lower one, so that the two are joined
BARE = {"star": "yellow"}  # the colour of a primitive that comes without a colour word


@dataclass(frozen=True, eq=False)
class Body:
    """A mesh with one colour a face; world units, both sides visible."""

    vertices: Float[Tensor, "n 3"]
    faces: Int[Tensor, "m 3"]
    face_palette: Int[Tensor, " m"]  # row of ``palette``
    palette: Float[Tensor, "p 3"]  # sRGB in [0, 1]


def assemble_object(
    caption: Caption, collection: Collection, generator: torch.Generator | None = None, *, choice: int | None = None
) -> Body:
    """The object of ``caption``, +z up, front to +x, centred, in the ball of radius 0.9.

    The mesh (where a kind has several), pose, proportions, size and hue vary with ``generator``; without one it is
    the kind's first object as its author left it.  ``choice`` names the mesh: 0 the first, after the last the first
    again.
    """
    body = _make_part(caption.kind, caption.colour, collection, generator, choice)
    if caption.relation:
        other = _make_part(str(caption.other_kind), caption.other_colour, collection, generator, choice)
        body = _arrange_pair(body, other, caption.relation, generator)
    return fit_into_ball(body, RADIUS if generator is None else draw_between(LEAST_RADIUS, RADIUS, generator))


def count_choices(caption: Caption, collection: Collection) -> int:
    """How many meshes the thing has that has most."""
    nouns = [caption.kind, *([caption.other_kind] if caption.other_kind else [])]
    return max(len(_read_meshes(noun, collection)) + (noun in FORMS) for noun in nouns)


def _read_meshes(noun: str, collection: Collection) -> list[Model]:
    return [] if noun in FORMS and noun not in BARE else collection.read_models(noun)


def _make_part(
    noun: str, colour: str | None, collection: Collection, generator: torch.Generator | None, choice: int | None
) -> Body:
    """One thing in a ball of radius 1, painted and posed."""
    models = _read_meshes(noun, collection)
    count = len(models) + (noun in FORMS)
    chosen = draw_index(count, generator) if choice is None else choice % count
    if chosen < len(models):
        model = models[chosen]
        body = Body(model.vertices, model.faces, model.face_palette, paint_palette(model, colour))
    else:
        vertices, faces = FORMS[noun](generator)
        palette = torch.tensor([COLOURS[colour or BARE[noun]]])
        body = Body(vertices, faces, torch.zeros(len(faces), dtype=torch.long), palette)
    if generator is not None:
        body = _vary_pose(_vary_colours(body, generator), generator)
    return fit_into_ball(body, 1.0)


def paint_palette(model: Model, colour: str | None) -> Float[Tensor, "p 3"]:
    """The palette with its painted rows in ``colour``; each keeps its share of brightness."""
    if colour is None or not model.paint.any():
        return model.palette
    mean = model.palette.mean(1)
    share = 0.6 + 0.4 * mean / mean[model.paint].max().clamp(min=1e-6)
    painted = torch.tensor(COLOURS[colour]) * share[:, None]
    return torch.where(model.paint[:, None], painted, model.palette)


def _vary_colours(body: Body, generator: torch.Generator) -> Body:
    """All colours turned and scaled alike."""
    turn = draw_between(-HUE, HUE, generator)
    saturation = draw_between(1 - SATURATION, 1 + SATURATION, generator)
    brightness = draw_between(1 - BRIGHTNESS, 1 + BRIGHTNESS, generator)
    varied = []
    for colour in body.palette.tolist():
        hue, share, value = colorsys.rgb_to_hsv(*colour)
        varied.append(colorsys.hsv_to_rgb((hue + turn) % 1, min(1, share * saturation), min(1, value * brightness)))
    return replace(body, palette=torch.tensor(varied, dtype=torch.float32))


def _vary_pose(body: Body, generator: torch.Generator) -> Body:
    angle = math.radians(draw_between(-YAW_DEG, YAW_DEG, generator))
    stretch = torch.diag(torch.tensor([draw_between(1 - STRETCH, 1 + STRETCH, generator) for _ in range(3)]))
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    return replace(body, vertices=body.vertices @ stretch @ turn.T)


def fit_into_ball(body: Body, radius: float) -> Body:
    """Centred by its bounding box and scaled so that its farthest vertex is at ``radius``."""
    low, high = body.vertices.amin(0), body.vertices.amax(0)
    centred = body.vertices - (low + high) / 2
    return replace(body, vertices=centred * (radius / centred.norm(dim=-1).max()))


def _arrange_pair(first: Body, second: Body, relation: str, generator: torch.Generator | None) -> Body:
    """``first`` on top of ``second``, or at its side at world -y: on the left as the front camera sees it."""
    on_top = relation == "on top of"
    bounds = (0.7, 0.95) if on_top else (0.9, 1.1)
    a, b = first.vertices * draw_between(*bounds, generator), second.vertices
    gap = draw_between(0.04, 0.16, generator)
    move = torch.zeros(3)
    if on_top:
        # It stands on what lies beneath its middle: a chest's lid, not the highest leaf beside it.
        under = b[b[:, :2].norm(dim=-1) < 0.5 * a[:, :2].norm(dim=-1).max()]
        floor = under[:, 2].max() if len(under) and under[:, 2].max() > 0 else b[:, 2].max()
        move[2] = floor - a[:, 2].min() - SINK
    else:
        move[1] = b[:, 1].min() - a[:, 1].max() - gap
        move[2] = b[:, 2].min() - a[:, 2].min()  # both stand on one floor
    return Body(
        torch.cat([a + move, b]),
        torch.cat([first.faces, second.faces + len(a)]),
        torch.cat([first.face_palette, second.face_palette + len(first.palette)]),
        torch.cat([first.palette, second.palette]),
    )
