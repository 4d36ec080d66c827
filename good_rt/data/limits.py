"""The limits of image files that hold at the moment, which importing needs neither Pillow nor
numpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from good_rt.config.settings import ImageLimits

_limits = ImageLimits()


def limits_now() -> ImageLimits:
    """The limits that hold."""
    return _limits


@contextmanager
def image_limits(limits: ImageLimits) -> Iterator[None]:
    """Within the block, images are read up to other limits.

    Args:
        limits: The limits.
    """
    global _limits
    before, _limits = _limits, limits
    try:
        yield
    finally:
        _limits = before
