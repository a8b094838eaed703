"""What a run is asked to do: the preset, read strictly, with errors that name value, bound and cure."""

from typing import TYPE_CHECKING

from psd import lazy_names

if TYPE_CHECKING:
    from psd.config.errors import MissingError, PresetError
    from psd.config.preset import Preset, list_presets

__all__ = ["MissingError", "Preset", "PresetError", "list_presets"]
__getattr__ = lazy_names(
    __name__,
    {
        "MissingError": "psd.config.errors",
        "Preset": "psd.config.preset",
        "PresetError": "psd.config.errors",
        "list_presets": "psd.config.preset",
    },
)
