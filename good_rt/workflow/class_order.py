"""Whether the classifier agrees with the classes of the data where no names say which output is
which: looked at on held-out images, since a wrong order is wrong in silence everywhere else."""

from __future__ import annotations

import math

import numpy as np

from good_rt.classifier import Classifier, predict
from good_rt.classifier.class_names import NAMING_REMEDY, are_placeholders, match_by_name
from good_rt.data.batches import half_rows, id_part
from good_rt.data.id_data import IdData, thinned
from good_rt.data.pixels import from_uint8
from good_rt.errors import GoodRtError

IMAGES = 512
"""Held-out images that are looked at."""
LEAST_COMPARED = 8
DEVIATIONS = 2.0
"""Standard deviations of chance up to which an accuracy is near it."""


def check_class_order(id_data: IdData, classifier: Classifier) -> None:
    """Checks on held-out images that outputs without names are the classes that they are taken for.

    Args:
        id_data: In-distribution images.
        classifier: The classifier, for images of its own shape.

    Raises:
        GoodRtError: the accuracy is near chance, or another order of the classes agrees better.
    """
    names, expected_names = id_data.source.classes, classifier.config.classes
    if not id_data.labelled or (names is None and not are_placeholders(expected_names)):
        return
    if names is not None and len(match_by_name(names, expected_names)) == len(expected_names):
        return
    rows = thinned(half_rows(id_data, "held_out")[0], IMAGES)
    part = id_part(id_data, "held_out", classifier, rows=rows)
    assert part.labels is not None
    if len(part.labels) < LEAST_COMPARED:
        return
    predicted = predict(classifier, from_uint8(part.images))[0].argmax(dim=1)
    name_of = {
        output: str(label) if names is None else names[label]
        for label, output in id_data.labels(expected_names).items()
    }
    counts = np.zeros((len(expected_names), len(expected_names)))
    np.add.at(counts, (part.labels, predicted.numpy()), 1)
    _check_counts(counts, [name_of.get(i, str(i)) for i in range(len(counts))], id_data)


def _check_counts(counts: np.ndarray, names: list[str], id_data: IdData) -> None:
    """Counts of images by class of the data (rows) and predicted output (columns)."""
    total = counts.sum()
    accuracy = np.trace(counts) / total
    # of predictions that have nothing to do with the classes
    chance = float(counts.sum(axis=0) @ counts.sum(axis=1)) / total**2
    where = f"{id_data.source.path}: neither the data nor the classifier says which output is which"
    if accuracy <= chance + DEVIATIONS * math.sqrt(chance * (1 - chance) / total):
        raise GoodRtError(
            f"{where}, and in the order that was taken the accuracy on {total:.0f} held-out images "
            f"is {accuracy:.0%}, near chance ({chance:.0%}); {NAMING_REMEDY}"
        )
    mostly = counts.argmax(axis=1)
    moved = np.flatnonzero(mostly != np.arange(len(counts)))
    if len(set(mostly)) < len(mostly) or not len(moved):
        return
    gained, lost = counts[moved, mostly[moved]].sum(), counts[moved, moved].sum()
    if gained - lost > DEVIATIONS * math.sqrt(gained + lost):
        first = int(moved[0])
        raise GoodRtError(
            f"{where}, and in another order they agree better: {counts[first, mostly[first]]:.0f} "
            f"of {counts[first].sum():.0f} held-out images of {names[first]!r} get output "
            f"{mostly[first]}, {counts[first, first]:.0f} get output {first}; {NAMING_REMEDY}"
        )
