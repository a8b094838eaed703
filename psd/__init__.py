"""Preference Score Distillation (PSD) for text-to-3D.

Axes in every signature: k candidate (noise), b group (one orbit of cameras), v view, c channel, h w image, l token,
d feature, n rays or points, s samples along a ray.
Frames: world right-handed, +z up, object in the unit ball, front facing +x; cameras OpenGL; exports glTF (+y up).
Ranges: images float [0, 1] sRGB; angles in degrees only with the suffix ``_deg``; ``t`` is the integer diffusion step.

Importing this package pulls in no heavy library: `psd.run.run` is the algorithm, `psd.preset.Preset` its parameters.
"""

from psd.preset import Preset, PresetError

__all__ = ["Preset", "PresetError"]
__version__ = "0.1.0"
