"""The page: Gradio blocks, tabs, and the API that scripts use."""

from typing import TYPE_CHECKING

from psd import lazy_names

if TYPE_CHECKING:
    from psd.ui.api import register_endpoints
    from psd.ui.build import build_blocks, launch_options

__all__ = ["build_blocks", "launch_options", "register_endpoints"]
__getattr__ = lazy_names(__name__, {"build": ["build_blocks", "launch_options"], "api": ["register_endpoints"]})
