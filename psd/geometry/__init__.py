"""Cameras and meshes; nothing here learns."""

from typing import TYPE_CHECKING

from psd import lazy_names

if TYPE_CHECKING:
    from psd.geometry.cameras import Cameras, orbit, rays
    from psd.geometry.mesh import Mesh

__all__ = ["Cameras", "Mesh", "orbit", "rays"]
__getattr__ = lazy_names(
    __name__,
    {
        "Cameras": "psd.geometry.cameras",
        "Mesh": "psd.geometry.mesh",
        "orbit": "psd.geometry.cameras",
        "rays": "psd.geometry.cameras",
    },
)
