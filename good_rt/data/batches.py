"""ID data through the classifier, batch by batch, so that no image stays where only its features
are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from good_rt.classifier import Classifier, IdFeatures
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
    """A part of the ID data in batches of images (n, C, H, W) float32 in [-1, 1].

    Args:
        id_data: In-distribution images.
        name: The part: train, held_out or test.
        classifier: Decides the shape; classes that the images have must be the classifier's.
        limit: At most so many images, evenly spaced.
        rows: Only these rows of the source, of the part.

    Raises:
        GoodRtError: classes or images do not fit the classifier.
    """
    for images, _ in _labelled_batches(id_data, name, classifier, limit, rows):
        yield images


def id_features(id_data: IdData, classifier: Classifier, limit: int | None = None) -> IdFeatures:
    """Features and classes of training images.

    Args:
        id_data: In-distribution images; where they have no labels, the classifier's predictions are
            their classes.
        classifier: Gives the features.
        limit: At most so many images, evenly spaced.

    Raises:
        GoodRtError: classes or images do not fit the classifier.
    """
    return IdFeatures.of(classifier, _labelled_batches(id_data, "train", classifier, limit))


def _labelled_batches(
    id_data: IdData,
    name: str,
    classifier: Classifier,
    limit: int | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """As `id_batches`, each batch with its labels (n,), or None for images without classes."""
    config = classifier.config
    classes = config.classes if id_data.labelled else None
    for batch in id_data.batches(name, classes, config.channels, config.image_size, limit, rows):
        labels = None if batch.labels is None else torch.from_numpy(batch.labels)
        yield from_uint8(batch.images), labels


def half_rows(id_data: IdData, name: str) -> tuple[list[int], list[int]]:
    """The rows of two disjoint halves of a part, every other image: the first validates training
    and fits the score, the second calibrates.

    Args:
        id_data: In-distribution images.
        name: The part: train, held_out or test.
    """
    rows = id_data.rows(name)
    return rows[::2], rows[1::2]


def id_part(
    id_data: IdData,
    name: str,
    classifier: Classifier,
    limit: int | None = None,
    rows: Sequence[int] | None = None,
) -> LabelledImages:
    """One part of the ID data as the classifier takes it: (N, H, W, C) uint8 with labels (N,).

    Args:
        id_data: In-distribution images.
        name: The part: train, held_out or test.
        classifier: Decides shape and classes.
        limit: At most so many images, evenly spaced.
        rows: Only these rows of the source, of the part.

    Raises:
        GoodRtError: classes or images do not fit the classifier.
    """
    config = classifier.config
    return id_data.part(name, config.classes, config.channels, config.image_size, limit, rows)
