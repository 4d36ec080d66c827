"""ID data through the classifier, batch by batch, so that no image stays where only its features
are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from good_rt.classifier import Classifier
from good_rt.data.id_data import IdData
from good_rt.data.labelled import LabelledImages
from good_rt.data.pixels import from_uint8


def id_batches(
    id_data: IdData,
    name: str,
    classifier: Classifier,
    limit: int | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """A part of the ID data, or its ``rows``, in batches of images (n, C, H, W) in [-1, 1].

    Classes that the images have must be the classifier's.
    """
    config = classifier.config
    classes = config.classes if id_data.labelled else None
    for batch in id_data.batches(name, classes, config.channels, config.image_size, limit, rows):
        yield from_uint8(batch.images)


def half_rows(id_data: IdData, name: str) -> tuple[list[int], list[int]]:
    """The rows of two disjoint halves of a part, as `good_rt.data.id_data.halves` divides the
    part's images."""
    rows = id_data.rows(name)
    return rows[::2], rows[1::2]


def id_part(
    id_data: IdData, name: str, classifier: Classifier, limit: int | None = None
) -> LabelledImages:
    """One part of the ID data as the classifier takes it; at most ``limit`` images, evenly
    spaced."""
    config = classifier.config
    return id_data.part(name, config.classes, config.channels, config.image_size, limit)
