"""Cameras and meshes; nothing here learns."""

from typing import TYPE_CHECKING

from psd import lazy_names

if TYPE_CHECKING:
    from psd.geometry.cameras import Cameras, camera_rays, orbit_cameras
    from psd.geometry.mesh import Mesh

__all__ = ["Cameras", "Mesh", "camera_rays", "orbit_cameras"]
__getattr__ = lazy_names(
    __name__,
    {
        "Cameras": "psd.geometry.cameras",
        "Mesh": "psd.geometry.mesh",
        "orbit_cameras": "psd.geometry.cameras",
        "camera_rays": "psd.geometry.cameras",
    },
)
