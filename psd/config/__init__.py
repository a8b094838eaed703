"""The preset of a run, read strictly, with errors that name value, bound and cure."""

from typing import TYPE_CHECKING

from psd import lazy_names

if TYPE_CHECKING:
    from psd.config.errors import MissingError, PresetError
    from psd.config.preset import Preset, list_presets

__all__ = ["MissingError", "Preset", "PresetError", "list_presets"]
__getattr__ = lazy_names(__name__, {"errors": ["MissingError", "PresetError"], "preset": ["Preset", "list_presets"]})
