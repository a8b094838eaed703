"""Splatting once more, in float64 and plain loops: one pixel, one Gaussian at a time, without tiles."""

from __future__ import annotations

import math

import numpy as np

from psd.geometry.splat import Gaussians


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """v -> q v q*, column by column, by Rodrigues' formula."""
    angle, axis = 2 * math.acos(np.clip(quaternion[0], -1, 1)), quaternion[1:]
    if not np.linalg.norm(axis):
        return np.eye(3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def covariance(size: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    turned = rotation_matrix(quaternion)
    return turned @ np.diag(size**2) @ turned.T


def splat(
    gaussians: Gaussians, c2w: np.ndarray, fovy_deg: float, pixels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One view: colour times opacity (h w 3), opacity (h w), mean distance (h w)."""
    position, size, rotation = (value.numpy() for value in (gaussians.position, gaussians.size, gaussians.rotation))
    opacity, colour = gaussians.opacity.numpy(), gaussians.colour.numpy()
    focal = pixels / 2 / math.tan(math.radians(fovy_deg) / 2)
    order = sorted(range(len(position)), key=lambda n: float(np.linalg.norm(position[n] - c2w[:3, 3])))
    shown, solid, far = np.zeros((pixels, pixels, 3)), np.zeros((pixels, pixels)), np.zeros((pixels, pixels))
    passing = np.ones((pixels, pixels))
    for n in order:
        x, y, back = c2w[:3, :3].T @ (position[n] - c2w[:3, 3])
        if -back <= 0.05:
            continue
        middle = np.array([pixels / 2 + focal * x / -back, pixels / 2 - focal * y / -back])
        slope = np.array([[focal / -back, 0, focal * x / back**2], [0, -focal / -back, -focal * y / back**2]])
        onto = slope @ c2w[:3, :3].T
        plain = onto @ covariance(size[n], rotation[n]) @ onto.T
        blurred = plain + 0.3 * np.eye(2)
        kept = math.sqrt(max(np.linalg.det(plain) / np.linalg.det(blurred), 1e-4))
        inverse = np.linalg.inv(blurred)
        for row in range(pixels):
            for column in range(pixels):
                d = np.array([column + 0.5, row + 0.5]) - middle
                alpha = min(0.99, opacity[n] * kept * math.exp(-0.5 * d @ inverse @ d))
                if alpha < 1 / 255:
                    continue
                weight = passing[row, column] * alpha
                shown[row, column] += weight * colour[n]
                solid[row, column] += weight
                far[row, column] += weight * np.linalg.norm(position[n] - c2w[:3, 3])
                passing[row, column] *= 1 - alpha
    return shown, solid, far / np.maximum(solid, 1 / 255)
