"""Which discrepancies and which combination make the best score: every choice on validation sets,
and what each gives on the test sets, which the choice does not see.

    python benchmarks/unified_score.py --run good-rt-demo

The runs are those of `good-rt demo`, one for each seed: their original classifier, control and
trained one. Validation sets, none of which any test set resembles: clip art, and of held-out ID
images those whose patches are shuffled, those whose pixels are inverted, and those whose lower half
is of another class. Generated images are measured, but decide nothing: guidance climbed energy and
k-NN distance to make them, which favours these two. The rule: the lowest FPR95, averaged over the
validation sets, the classifiers "before" and "trained", and the runs; of choices within `TIE` of it
the one with the fewest discrepancies, then one without a feature bank, then the simplest
combination, then the lowest FPR95.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from record import write_result

from good_rt.classifier import Classifier, load_classifier
from good_rt.config.settings import DetectorConfig
from good_rt.data.batches import half_rows, id_batches, id_features, id_part
from good_rt.data.generated_split import generated_parts
from good_rt.data.id_data import IdData
from good_rt.data.labelled import LabelledImages
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.detector.module import measure
from good_rt.evaluation.metrics import detection_metrics
from good_rt.method.combination import COMBINATIONS
from good_rt.method.discrepancy import DISCREPANCIES, DiscrepancyConfig, fit_discrepancy
from good_rt.method.discrepancy.energy import Energy
from good_rt.method.discrepancy.knn import KnnDistance
from good_rt.method.measurements import Measurements
from good_rt.method.unified import fit_unified

KINDS = ("img", "feat", "both")
VALIDATION_SETS = ("clip art", "shuffled patches", "inverted", "swapped halves")
TEST_SETS = ("near", "mnist", "emoji", "photos", "textures")
SIMPLEST = ("sum", "max", "logistic", "kl", "gate", "fisher", "min_p")
"""Combinations from the simplest to the least simple."""
PATCH = 8
IMAGES = 1000
TIE = 0.005
Sets = dict[str, NDArray[np.uint8]]


def shuffled_patches(images: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """Images (N, H, W, C) whose patches of `PATCH` pixels have changed places."""
    count, height, width, channels = images.shape
    rows, columns = height // PATCH, width // PATCH
    patches = images.reshape(count, rows, PATCH, columns, PATCH, channels).swapaxes(2, 3)
    patches = patches.reshape(count, rows * columns, PATCH, PATCH, channels)
    order = np.random.default_rng(seed).permuted(
        np.tile(np.arange(rows * columns), (count, 1)), axis=1
    )
    patches = np.take_along_axis(patches, order[:, :, None, None, None], axis=1)
    patches = patches.reshape(count, rows, columns, PATCH, PATCH, channels).swapaxes(2, 3)
    return patches.reshape(images.shape)


def swapped_halves(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images (N, H, W, C) with the lower half of the next image of another class."""
    count, half = len(images), images.shape[1] // 2
    swapped = images.copy()
    for place in range(count):
        others = (other % count for other in range(place + 1, place + count))
        other = next(other for other in others if labels[other] != labels[place])
        swapped[place, half:] = images[other, half:]
    return swapped


def validation_sets(held_out: LabelledImages) -> Sets:
    """The validation sets, of held-out ID images that no combination is fitted on."""
    held_out = held_out.take(slice(IMAGES))
    assert held_out.labels is not None
    return {
        "clip art": assets.load_images("validation").images,
        "shuffled patches": shuffled_patches(held_out.images),
        "inverted": 255 - held_out.images,
        "swapped halves": swapped_halves(held_out.images, held_out.labels),
    }


def measured_sets(classifier: Classifier, run: Path) -> dict[str, Measurements]:
    """Every discrepancy of the ID parts and of all OOD sets."""
    data = IdData.of(run if (run / "splits.json").exists() else assets.DATA)
    features = id_features(data, classifier, DetectorConfig().bank_size)
    parameters = DiscrepancyConfig()
    every = [fit_discrepancy(name, features, parameters) for name in DISCREPANCIES]
    known, others = half_rows(data, "held_out")
    generated = [generated_parts([run / "generated" / kind], classifier)[1] for kind in KINDS]
    sets: dict[str, Any] = {
        "fit": id_batches(data, "held_out", classifier, rows=known),
        "validation ID": id_batches(data, "held_out", classifier, rows=others),
        "test ID": from_uint8(assets.load_images("test").images),
        "generated": torch.cat(generated),
    }
    for name, images in validation_sets(id_part(data, "held_out", classifier, rows=others)).items():
        sets[name] = from_uint8(images)
    for name in TEST_SETS:
        sets[name] = from_uint8(assets.load_images(name).images)
    return {name: measure(classifier, every, images) for name, images in sets.items()}


def choices() -> list[tuple[tuple[str, ...], str]]:
    """Discrepancies and combination of every score that is compared."""
    found: list[tuple[tuple[str, ...], str]] = []
    for size in range(1, len(DISCREPANCIES) + 1):
        for names in combinations(DISCREPANCIES, size):
            kinds = SIMPLEST if size > 1 else SIMPLEST[:1]
            # kl weighs energy against the others
            found += [(names, kind) for kind in kinds if kind != "kl" or Energy.name in names]
    return found


def fpr95(
    measured: Mapping[str, Measurements], names: tuple[str, ...], kind: str
) -> dict[str, dict[str, float]]:
    """FPR95 and AUROC by set of one score; the combination sees the set "fit" and half of the
    generated images, the other half is the validation set "generated"."""
    generated = measured["generated"]
    score = fit_unified(names, measured["fit"], kind, generated.take(slice(0, None, 2)))

    def scores(name: str) -> NDArray[np.float64]:
        held_out = generated.take(slice(1, None, 2))
        return score.of(held_out if name == "generated" else measured[name])

    by_set = {}
    for name in measured:
        if name in ("fit", "validation ID", "test ID"):
            continue
        known = scores("test ID" if name in TEST_SETS else "validation ID")
        metrics = detection_metrics(known, scores(name))
        by_set[name] = {"fpr95": metrics.fpr95, "auroc": metrics.auroc}
    return by_set


@click.command()
@click.option(
    "--run", "runs", type=click.Path(path_type=Path, exists=True), multiple=True, required=True,
    help="Folder of `good-rt demo`; repeat it for several seeds.",
)  # fmt: skip
def main(runs: tuple[Path, ...]) -> None:
    """Measures every choice and writes results/unified_score.json."""
    assert set(SIMPLEST) == set(COMBINATIONS)
    figures: dict[str, dict[str, Any]] = defaultdict(dict)
    for run in runs:
        classifiers = {
            "before": assets.CLASSIFIER,
            "control": run / "control" / "classifier",
            "trained": run / "trained" / "classifier",
        }
        for model, path in classifiers.items():
            measured = measured_sets(load_classifier(path), run)
            for names, kind in choices():
                key = f"{kind} of {' + '.join(names)}"
                figures[key].setdefault(model, []).append(fpr95(measured, names, kind))
            click.echo(f"{run} {model}: measured")

    def mean(key: str, model: str, sets: tuple[str, ...]) -> float:
        return float(np.mean([by[name]["fpr95"] for by in figures[key][model] for name in sets]))

    ranked = sorted(
        (float(np.mean([mean(key, m, VALIDATION_SETS) for m in ("before", "trained")])), key)
        for key in figures
    )

    def simplicity(key: str) -> tuple[int, bool, int]:
        kind, _, names = key.partition(" of ")
        return names.count("+"), KnnDistance.name in names, SIMPLEST.index(kind)

    tied = [key for value, key in ranked if value <= ranked[0][0] + TIE]
    chosen = min(tied, key=simplicity)
    for value, key in ranked:
        tests = " ".join(
            f"{model} {100 * mean(key, model, ('near',)):.1f}/"
            f"{100 * mean(key, model, TEST_SETS[1:]):.1f}"
            for model in ("before", "control", "trained")
        )
        click.echo(f"{100 * value:5.1f} {key}{' <- chosen' if key == chosen else ''}: {tests}")
    context = {
        "validation_sets": VALIDATION_SETS,
        "test_sets": TEST_SETS,
        "rule": (__doc__ or "").partition("The rule:")[2].strip(),
        "chosen": chosen,
        "validation_fpr95": {key: value for value, key in ranked},
        "scores": figures,
    }
    write_result("unified_score", context, [])


if __name__ == "__main__":
    main()
