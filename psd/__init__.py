"""Preference Score Distillation (PSD) for text-to-3D.

Axes in every signature: k candidate (noise), b group (one orbit of cameras), v view, c channel, h w image, l token,
d feature, n rays or points, s samples along a ray.
Frames: world right-handed, +z up, object in the unit ball, front facing +x; cameras OpenGL; exports glTF (+y up).
Ranges: images float [0, 1] sRGB; angles in degrees only with the suffix ``_deg``; ``t`` is the integer diffusion step.

Importing this package pulls in no heavy library: `psd.distillation.run.run` is the algorithm,
`psd.config.preset.Preset` its parameters.
"""

import sys
from typing import Any

__all__ = ["Preset", "PresetError"]
__version__ = "0.1.0"


def version_complaint(version: tuple[int, int]) -> str:
    """What to say of a Python that this was never tried with; empty for one that it was."""
    if (3, 11) <= version <= (3, 12):
        return ""
    return f"PSD Studio runs on Python 3.11 and 3.12; this is {version[0]}.{version[1]}: use one of those"


if (complaint := version_complaint(sys.version_info[:2])) and sys.version_info < (3, 11):
    sys.exit(complaint)  # before an import fails on what that Python lacks
elif complaint:
    print(complaint, file=sys.stderr)


def __getattr__(name: str) -> Any:
    """The two on demand, so that ``python -m psd`` can say in words that a package of theirs is missing."""
    if name not in __all__:
        raise AttributeError(f"module 'psd' has no attribute {name!r}")
    from psd.config import preset

    return getattr(preset, name)
