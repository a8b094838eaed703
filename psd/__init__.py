"""Preference Score Distillation (PSD) for text-to-3D.

Axes in every signature: k candidate (noise), b group (one orbit of cameras), v view, c channel, h w image, l token,
d feature, n rays or points, s samples along a ray.
Frames: world right-handed, +z up, object in the unit ball, front facing +x; cameras OpenGL; exports glTF (+y up).
Ranges: images float [0, 1] sRGB; angles in degrees only with the suffix ``_deg``; ``t`` is the integer diffusion step.

Importing this package pulls in no heavy library: `psd.run.run` is the algorithm, `psd.preset.Preset` its parameters.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psd.preset import Preset, PresetError

__all__ = ["Preset", "PresetError"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The two on demand, so that ``python -m psd`` can say in words that a package of theirs is missing."""
    if name not in __all__:
        raise AttributeError(f"module 'psd' has no attribute {name!r}")
    from psd import preset

    return getattr(preset, name)
