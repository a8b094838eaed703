"""Batched sphere tracing: objects to images, masks, depth and normals, anti-aliased without supersampling.

Each part is traced on its own, for the rays that meet its bounding ball, and all parts of one solid at once over a
whole batch of objects: a "march" below is one (ray, part) couple, n of them.  The smallest distance along a march, in
pixel footprints, gives the share of the pixel that the part covers; a pixel's parts are then laid over each other by
depth.

Axes: b object, v view, h w image, n marches, r = b v h w rays flattened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd.embedded.captions.grammar import Caption
from psd.embedded.objects.assemble import Shape, build_shape
from psd.embedded.objects.solids import SOLIDS
from psd.embedded.surroundings import sample_background, sample_light
from psd.geometry.cameras import Cameras, camera_rays

MARCH_STEPS = 40
DEEP = 0.45  # pixels below the surface where a march may stop: its pixel counts as covered
AMBIENT, DIFFUSE = 0.66, 0.36  # mostly ambient, so that shading is no part of the colour
WRAP = 0.35  # light reaches this far (a cosine) round to the dark side, so that it keeps some relief
SHININESS = 24
LAYERS = 4  # parts laid over each other in one pixel


@dataclass(frozen=True)
class RenderedViews:
    """What the cameras see of ``b`` objects."""

    rgb: Float[Tensor, "b v 3 h w"]  # sRGB in [0, 1], over the background
    mask: Float[Tensor, "b v h w"]  # share of the pixel that is covered
    depth: Float[Tensor, "b v h w"]  # distance from the camera along the ray, inf where nothing is hit
    normals: Float[Tensor, "b v 3 h w"]  # unit, world frame, outwards; 0 where nothing is hit
    background: Float[Tensor, "b 3"]


def ground_truth(
    captions: Sequence[Caption],
    cameras: Cameras,
    size: int,
    *,
    generator: torch.Generator | None = None,
    light: Float[Tensor, "b v 3"] | None = None,
    background: Float[Tensor, "b 3"] | None = None,
) -> RenderedViews:
    """The true views of each caption's object: varied by ``generator``, or without one the canonical object, lit from
    the camera on a background that contrasts."""
    shapes = [build_shape(caption, generator) for caption in captions]
    if light is None:
        light = sample_light(cameras, generator)
    if background is None:
        background = torch.stack([sample_background(main_colours(shape), generator) for shape in shapes])
    return render_shapes(shapes, cameras, size, light=light, background=background)


def main_colours(shape: Shape) -> Float[Tensor, "k 3"]:
    """Those of the larger parts: small ones (eyes, stripes) may come close to the background."""
    large = shape.bound_radius > 0.35 * shape.bound_radius.max()
    return torch.cat([shape.colour[large], shape.band_colour[large]])


def render_shapes(
    shapes: Sequence[Shape],
    cameras: Cameras,
    size: int,
    *,
    light: Float[Tensor, "b v 3"],
    background: Float[Tensor, "b 3"],
) -> RenderedViews:
    """Images of ``size`` x ``size`` pixels of each shape by its group of cameras."""
    origins, directions = camera_rays(cameras, size)
    b, v = cameras.fovy_deg.shape
    pixel = (2 * torch.tan(torch.deg2rad(cameras.fovy_deg) / 2) / size)[..., None, None].expand(b, v, size, size)
    scene = _Rays(origins.reshape(-1, 3).T.contiguous(), directions.reshape(-1, 3).T.contiguous(), pixel.reshape(-1))
    per_ray_light = light[:, :, None, None].expand(b, v, size, size, 3).reshape(-1, 3)

    marches = [_march_solid(solid, shapes, scene, rays_per_object=v * size * size) for solid in SOLIDS]
    ray = torch.cat([march.ray for march in marches])
    depth = torch.cat([march.depth for march in marches])
    cover = torch.cat([march.cover for march in marches])
    normal = torch.cat([march.normal for march in marches])
    colour = torch.cat([march.colour for march in marches])
    gloss = torch.cat([march.gloss for march in marches])
    shaded = _shade_points(colour, gloss, normal, per_ray_light[ray], -scene.directions[:, ray].T)

    rgb, mask, nearest = _lay_over(ray, depth, cover, shaded, rays_in_all=b * v * size * size)
    behind = background[:, None].expand(b, v * size * size, 3).reshape(-1, 3)
    rgb = rgb * mask[:, None] + behind * (1 - mask[:, None])
    hit = nearest >= 0
    seen_depth = torch.where(hit, depth[nearest], torch.inf)
    seen_normal = torch.where(hit[:, None], normal[nearest], 0.0)
    return RenderedViews(
        rgb=rgb.reshape(b, v, size, size, 3).movedim(-1, 2).contiguous(),
        mask=mask.reshape(b, v, size, size),
        depth=seen_depth.reshape(b, v, size, size),
        normals=seen_normal.reshape(b, v, size, size, 3).movedim(-1, 2).contiguous(),
        background=background,
    )


@dataclass(frozen=True)
class _Rays:
    origins: Float[Tensor, "3 r"]
    directions: Float[Tensor, "3 r"]  # unit
    pixel: Float[Tensor, " r"]  # width of a pixel at distance 1


@dataclass(frozen=True)
class _Marches:
    """Where n marches came closest to their parts."""

    ray: Int[Tensor, " n"]
    depth: Float[Tensor, " n"]
    cover: Float[Tensor, " n"]
    normal: Float[Tensor, "n 3"]
    colour: Float[Tensor, "n 3"]
    gloss: Float[Tensor, " n"]


def _march_solid(solid: str, shapes: Sequence[Shape], scene: _Rays, *, rays_per_object: int) -> _Marches:
    """Trace every part of one kind of solid; marches that miss by more than half a pixel are dropped."""
    parts = _gather_parts(solid, shapes)
    ray, part, enter, leave, origin, direction = _couple_rays(parts, scene, rays_per_object)
    size, shrink, pixel = parts.size[part].T.contiguous(), parts.shrink[part], scene.pixel[ray]
    gap, t = _trace_marches(SOLIDS[solid], origin, direction, size, shrink, pixel, enter, leave)

    near = torch.nonzero(gap < 0.5)[:, 0]
    ray, part, t, gap, pixel, size = ray[near], part[near], t[near], gap[near], pixel[near] * t[near], size[:, near]
    gradient = _distance_gradient(
        solid, origin[:, near] + t * direction[:, near], size, shrink[near], parts.inverse[part], pixel
    )
    slope = gradient.norm(dim=-1).clamp(min=0.3)
    normal = gradient / slope[:, None]
    # A lower bound grows slower than the distance; dividing by its slope makes it right to first order.
    distance = gap * pixel / slope
    cover = ((0.5 - distance / pixel) / (0.5 + DEEP)).clamp(0, 1)
    facing = -(normal * scene.directions[:, ray].T).sum(-1)
    depth = t + distance.clamp(max=0) / facing.clamp(min=0.3)  # back to the surface from half a pixel inside
    point = scene.origins[:, ray].T + depth[:, None] * scene.directions[:, ray].T
    return _Marches(ray, depth, cover, normal, _paint_points(parts, part, point, pixel), parts.gloss[part])


@dataclass(frozen=True)
class _Parts:
    """All parts of one kind of solid in a batch of shapes, p of them."""

    owner: list[int]  # which object of the batch
    centre: Float[Tensor, "p 3"]
    inverse: Float[Tensor, "p 3 3"]  # world -> solid frame
    shrink: Float[Tensor, " p"]  # smallest stretch of the linear map: local distance -> lower bound in the world
    size: Float[Tensor, "p 4"]
    colour: Float[Tensor, "p 3"]
    band_colour: Float[Tensor, "p 3"]
    band: Float[Tensor, "p 3"]
    gloss: Float[Tensor, " p"]
    bound_centre: Float[Tensor, "p 3"]
    bound_radius: Float[Tensor, " p"]


def _gather_parts(solid: str, shapes: Sequence[Shape]) -> _Parts:
    chosen = [torch.tensor([name == solid for name in shape.solid]) for shape in shapes]

    def gather_field(field: str) -> Tensor:
        return torch.cat([getattr(shape, field)[rows] for shape, rows in zip(shapes, chosen, strict=True)])

    linear = gather_field("linear")
    return _Parts(
        owner=[i for i, rows in enumerate(chosen) for _ in range(int(rows.sum()))],
        inverse=torch.linalg.inv(linear),
        shrink=torch.linalg.matrix_norm(linear, ord=-2),
        **{name: gather_field(name) for name in ("centre", "size", "colour", "band_colour", "band", "gloss")},
        bound_centre=gather_field("bound_centre"),
        bound_radius=gather_field("bound_radius"),
    )


def _couple_rays(parts: _Parts, scene: _Rays, rays_per_object: int) -> tuple[Tensor, ...]:
    """The marches: ray and part, where the ray enters and leaves the part's bounding ball, and the ray in its frame."""
    found: list[tuple[Tensor, ...]] = []
    for i, owner in enumerate(parts.owner):
        span = slice(owner * rays_per_object, (owner + 1) * rays_per_object)
        origins, directions = scene.origins[:, span], scene.directions[:, span]
        to_centre = parts.bound_centre[i, :, None] - origins
        along = (to_centre * directions).sum(0)
        off_axis2 = (to_centre * to_centre).sum(0) - along * along
        reach = parts.bound_radius[i] + scene.pixel[span] * along
        chord2 = reach * reach - off_axis2
        rows = torch.nonzero(chord2 > 0)[:, 0]
        along, half = along[rows], chord2[rows].sqrt()
        origin = parts.inverse[i] @ (origins[:, rows] - parts.centre[i, :, None])
        direction = parts.inverse[i] @ directions[:, rows]
        found.append((rows + span.start, torch.full_like(rows, i), along - half, along + half, origin, direction))
    if not found:
        none = torch.zeros(0, dtype=torch.long)
        return none, none, torch.zeros(0), torch.zeros(0), torch.zeros(3, 0), torch.zeros(3, 0)
    return tuple(torch.cat(column, dim=-1) for column in zip(*found, strict=True))


def _trace_marches(
    distance: Callable[[Tensor, Tensor], Tensor],
    origin: Float[Tensor, "3 n"],
    direction: Float[Tensor, "3 n"],
    size: Float[Tensor, "4 n"],
    shrink: Float[Tensor, " n"],
    pixel: Float[Tensor, " n"],
    t: Float[Tensor, " n"],
    leave: Float[Tensor, " n"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The smallest distance along each march, in pixels, and where it was.

    It stops half a pixel inside the solid: how deep a ray dives there tells how much of the pixel is covered.
    """
    least, where = torch.full_like(t, torch.inf), t.clone()
    alive = torch.arange(len(t))
    gap_alive, where_alive = least, where
    for step in range(MARCH_STEPS):
        width = pixel * t
        gap = distance(origin + t * direction, size) * shrink / width
        closer = gap < gap_alive
        gap_alive, where_alive = torch.where(closer, gap, gap_alive), torch.where(closer, t, where_alive)
        ahead = t + (gap + 0.5) * width
        if step % 3 == 2 or step == MARCH_STEPS - 1:  # dropping the finished marches costs about one step
            least[alive], where[alive] = gap_alive, where_alive
            rows = torch.nonzero((gap > -DEEP) & (ahead < leave))[:, 0]
            if len(rows) == 0:
                break
            alive, origin, direction, size = alive[rows], origin[:, rows], direction[:, rows], size[:, rows]
            shrink, pixel, leave, ahead = shrink[rows], pixel[rows], leave[rows], ahead[rows]
            gap_alive, where_alive = gap_alive[rows], where_alive[rows]
        t = ahead
    return least, where


def _distance_gradient(
    solid: str,
    point: Float[Tensor, "3 n"],
    size: Float[Tensor, "4 n"],
    shrink: Float[Tensor, " n"],
    inverse: Float[Tensor, "n 3 3"],
    pixel: Float[Tensor, " n"],
) -> Float[Tensor, "n 3"]:
    """World gradient of the distance by four differences a third of a pixel away, which also smooths edges."""
    step = 0.35 * pixel
    gradient = torch.zeros(len(pixel), 3)
    for corner in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)):
        towards = torch.tensor(corner) * 3**-0.5
        value = SOLIDS[solid](point + (inverse @ towards).T * step, size)
        gradient += (value * shrink / step)[:, None] * towards
    return 0.75 * gradient


def _paint_points(
    parts: _Parts, part: Int[Tensor, " n"], point: Float[Tensor, "n 3"], pixel: Float[Tensor, " n"]
) -> Float[Tensor, "n 3"]:
    """The parts' own colour at surface points, its stripes softened over a pixel."""
    band = parts.band[part]
    phase = (point * band).sum(-1)
    into_stripe = 0.22 - (phase - phase.floor() - 0.5).abs()
    width = (band.norm(dim=-1) * pixel).clamp(min=1e-6)
    share = (0.5 + into_stripe / width).clamp(0, 1)[:, None]
    return parts.colour[part] + share * (parts.band_colour[part] - parts.colour[part])


def _shade_points(
    colour: Float[Tensor, "n 3"],
    gloss: Float[Tensor, " n"],
    normal: Float[Tensor, "n 3"],
    light: Float[Tensor, "n 3"],
    to_camera: Float[Tensor, "n 3"],
) -> Float[Tensor, "n 3"]:
    """Ambient and diffuse light on the colour, and a Blinn-Phong highlight on glossy parts."""
    diffuse = ((normal * light).sum(-1) + WRAP).clamp(min=0) / (1 + WRAP)
    halfway = torch.nn.functional.normalize(light + to_camera, dim=-1)
    highlight = gloss * (normal * halfway).sum(-1).clamp(min=0) ** SHININESS
    return (colour * (AMBIENT + DIFFUSE * diffuse)[:, None] + highlight[:, None]).clamp(0, 1)


def _lay_over(
    ray: Int[Tensor, " n"],
    depth: Float[Tensor, " n"],
    cover: Float[Tensor, " n"],
    colour: Float[Tensor, "n 3"],
    *,
    rays_in_all: int,
) -> tuple[Float[Tensor, "r 3"], Float[Tensor, " r"], Int[Tensor, " r"]]:
    """Each ray's colour (front part over back part), its coverage, and the march seen most (-1: none).

    The coverage is that of the best covering part, not of the layers together: the outlines of a union's parts mostly
    coincide (icing on its donut), where laying them over each other would thicken the silhouette.
    """
    order = depth.argsort()
    order = order[ray[order].argsort(stable=True)]
    ray, cover, colour = ray[order], cover[order], colour[order]
    first = torch.cat([torch.ones(1, dtype=torch.bool), ray[1:] != ray[:-1]]) if len(ray) else ray.bool()
    place = torch.arange(len(ray))
    rank = place - torch.where(first, place, 0).cummax(0).values if len(ray) else place

    rgb, light_left = torch.zeros(rays_in_all, 3), torch.ones(rays_in_all)
    mask, most = torch.zeros(rays_in_all), torch.zeros(rays_in_all)
    nearest = torch.full((rays_in_all,), -1)
    for layer in range(LAYERS):
        rows = torch.nonzero(rank == layer)[:, 0]
        to = ray[rows]
        weight = light_left[to] * cover[rows]
        rgb[to] += weight[:, None] * colour[rows]
        light_left[to] -= weight
        mask[to] = torch.maximum(mask[to], cover[rows])
        nearest[to] = torch.where(weight > most[to], order[rows], nearest[to])
        most[to] = torch.maximum(weight, most[to])
    return rgb / (1 - light_left).clamp(min=1e-6)[:, None], mask, nearest
