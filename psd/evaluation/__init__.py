"""Is it better, and how fast: experiments, metrics, reports, benchmarks."""

from typing import TYPE_CHECKING

from psd import lazy_names

if TYPE_CHECKING:
    from psd.evaluation.experiments.suite import Suite

__all__ = ["Suite"]
__getattr__ = lazy_names(__name__, {"experiments.suite": ["Suite"]})
