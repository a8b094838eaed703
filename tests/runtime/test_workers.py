"""Work in processes: every job is answered, and one that was killed is told."""

import math
import os

import pytest

from psd.config.errors import MissingError
from psd.runtime.process_pool import map_unordered


def test_every_job_is_answered_and_an_exception_is_raised_here() -> None:
    assert list(map_unordered(abs, [], 2)) == []
    assert sorted(map_unordered(abs, [-3, 2, -1], 2)) == [1, 2, 3]
    with pytest.raises(ValueError, match="math domain error|nonnegative"):
        list(map_unordered(math.sqrt, [-1.0], 1))


def test_a_killed_process_is_told_not_waited_for() -> None:
    with pytest.raises(MissingError, match="was killed, most likely for want of memory"):
        list(map_unordered(os._exit, [9, 9], 1))
