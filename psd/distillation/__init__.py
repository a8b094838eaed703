"""The algorithm: `psd.distillation.run` is the method on a page; `psd.run` is its function."""

from typing import TYPE_CHECKING

from psd import lazy_names

if TYPE_CHECKING:
    from psd.distillation.interfaces import Control, NoControl
    from psd.distillation.methods.choose import METHODS

__all__ = ["Control", "METHODS", "NoControl"]
__getattr__ = lazy_names(__name__, {"interfaces": ["Control", "NoControl"], "methods.choose": ["METHODS"]})
