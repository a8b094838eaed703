"""What is optimised: radiance fields and whatever else can be rendered and turned into a mesh."""

from typing import TYPE_CHECKING

from psd import lazy_names

if TYPE_CHECKING:
    from psd.scenes.choose import make_scene
    from psd.scenes.interfaces import Render, Scene

__all__ = ["Render", "Scene", "make_scene"]
__getattr__ = lazy_names(__name__, {"interfaces": ["Render", "Scene"], "choose": ["make_scene"]})
