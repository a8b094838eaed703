"""Preference Score Distillation (PSD) for text-to-3D.

The algorithm is `psd.distillation.run`; the ten rooms are listed in README.md and docs/development.md.
Axes in every signature: k candidate (noise), b group (one orbit of cameras), v view, c channel, h w image, l token,
d feature, n rays or points, s samples along a ray.
Frames: world right-handed, +z up, object in the unit ball, front facing +x; cameras OpenGL; exports say their own.
Ranges: images float [0, 1] sRGB; angles in degrees only with the suffix ``_deg``; ``t`` is the integer diffusion step.

Importing this package pulls in no heavy library: `Preset` and `run` are fetched when they are first asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


def lazy_names(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a room's face: a public name is imported from its module when first asked for.

    ``modules`` maps a module of the package to the public names that it defines.  So a room's face costs nothing until
    it is used, and torch stays out of a process that only reads presets or run folders.
    """
    origins = {name: f"{package}.{module}" for module, names in modules.items() for name in names}

    def get_public_name(name: str) -> Any:
        if name not in origins:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(origins[name]), name)

    return get_public_name


if TYPE_CHECKING:
    from psd.config.preset import Preset
    from psd.distillation.run import run

__all__ = ["Preset", "run"]
__getattr__ = lazy_names(__name__, {"config.preset": ["Preset"], "distillation.run": ["run"]})
