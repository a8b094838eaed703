"""The three functions of gsplat 1.5.3 that the program calls, by their documentation, in plain torch.

They stand in for CUDA kernels where there is no GPU: other sizes, orders or types than gsplat's are refused.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_ALPHA, LEAST_ALPHA, LEAST_LIGHT = 0.999, 1 / 255, 1e-4


def isect_tiles(
    means2d: Tensor, radii: Tensor, depths: Tensor, tile_size: int, tile_width: int, tile_height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """How many tiles each meets; keys of image, tile and depth, sorted; the ellipses in that order."""
    images, count, _ = means2d.shape
    assert radii.shape == means2d.shape and radii.dtype == torch.int32 and depths.shape == (images, count)
    bits = (tile_width * tile_height).bit_length()
    found, met = [], torch.zeros(images, count, dtype=torch.int32)
    for image in range(images):
        for row in range(count):
            (x, y), (wide, high) = means2d[image, row].tolist(), radii[image, row].tolist()
            if wide <= 0 or high <= 0:
                continue
            box = (x, wide, tile_width), (y, high, tile_height)
            left, top = (min(max(math.floor((at - far) / tile_size), 0), most) for at, far, most in box)
            right, bottom = (min(max(math.ceil((at + far) / tile_size), 0), most) for at, far, most in box)
            tiles = [line * tile_width + column for line in range(top, bottom) for column in range(left, right)]
            met[image, row] = len(tiles)
            depth = int(depths[image, row].float().view(torch.int32))
            found += [(image << (32 + bits) | tile << 32 | depth, image * count + row) for tile in tiles]
    found.sort()
    keys, order = (
        torch.tensor([pair[i] for pair in found], dtype=kind) for i, kind in enumerate((torch.long, torch.int))
    )
    return met, keys, order


def isect_offset_encode(isect_ids: Tensor, n_images: int, tile_width: int, tile_height: int) -> Tensor:
    """Where each tile of each image begins among the keys."""
    tiles = tile_width * tile_height
    bits = tiles.bit_length()
    place = (isect_ids >> (32 + bits)) * tiles + ((isect_ids >> 32) & ((1 << bits) - 1))
    counts = torch.bincount(place, minlength=n_images * tiles)
    return (counts.cumsum(0) - counts).int().view(n_images, tile_height, tile_width)


def rasterize_to_pixels(
    means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, image_width: int, image_height: int,
    tile_size: int, isect_offsets: Tensor, flatten_ids: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Colours and alphas (i h w c), pixel by pixel, front to back until next to no light passes."""
    images, count, channels = colors.shape
    assert means2d.shape == (images, count, 2) and conics.shape == (images, count, 3)
    assert opacities.shape == (images, count) and channels <= 5
    height, width = isect_offsets.shape[1:]
    assert height * tile_size >= image_height and width * tile_size >= image_width
    flat = [value.flatten(0, 1) for value in (means2d, conics, colors, opacities)]
    ends = [*isect_offsets.flatten().tolist(), len(flatten_ids)]
    pixels = []
    for image in range(images):
        for y in range(image_height):
            for x in range(image_width):
                tile = (image * height + y // tile_size) * width + x // tile_size
                light, colour = torch.ones(()).to(colors), torch.zeros(channels).to(colors)
                for row in flatten_ids[ends[tile] : ends[tile + 1]].tolist():
                    centre, conic, value, opacity = (part[row] for part in flat)
                    dx, dy = centre[0] - (x + 0.5), centre[1] - (y + 0.5)
                    exponent = (conic[0] * dx * dx + conic[2] * dy * dy) / 2 + conic[1] * dx * dy
                    alpha = (opacity * torch.exp(-exponent)).clamp_max(LARGEST_ALPHA)
                    if exponent < 0 or alpha < LEAST_ALPHA:
                        continue
                    if light * (1 - alpha) <= LEAST_LIGHT:
                        break
                    colour, light = colour + light * alpha * value, light * (1 - alpha)
                pixels.append(torch.cat([colour, (1 - light)[None]]))
    picture = torch.stack(pixels).view(images, image_height, image_width, channels + 1)
    return picture[..., :-1], picture[..., -1:]
