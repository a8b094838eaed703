"""Frozen networks: diffusion priors and rewards, from a folder or the hub."""

from typing import TYPE_CHECKING

from psd import lazy_names

if TYPE_CHECKING:
    from psd.models.interfaces import Models, Prior, Reward
    from psd.models.load import load_models
    from psd.models.scoring import score_images

__all__ = ["Models", "Prior", "Reward", "load_models", "score_images"]
__getattr__ = lazy_names(
    __name__, {"interfaces": ["Models", "Prior", "Reward"], "load": ["load_models"], "scoring": ["score_images"]}
)
