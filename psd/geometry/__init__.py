"""Cameras and meshes; nothing here learns."""

from typing import TYPE_CHECKING

from psd import lazy_names

if TYPE_CHECKING:
    from psd.geometry.cameras import Cameras, camera_rays, orbit_cameras
    from psd.geometry.mesh import Mesh

__all__ = ["Cameras", "Mesh", "camera_rays", "orbit_cameras"]
__getattr__ = lazy_names(__name__, {"cameras": ["Cameras", "orbit_cameras", "camera_rays"], "mesh": ["Mesh"]})
