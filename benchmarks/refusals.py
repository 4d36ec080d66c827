"""How many ID images a calibrated detector refuses, over many calibration splits.

    python benchmarks/refusals.py

The classifier is the demo's original one, the score the default. Each split divides ID images at
random: one part standardises the score, another one calibrates the p-value, the rest is tested. The
discrepancies are fitted on the same training images every time. The images are divided in two ways:

- "held-out": the held-out images are divided into both halves, and the test images are always the
  same 8,000. This is what a user does who builds the detector again with another seed.
- "pooled": held-out and test images are put together and divided. Only here are the splits'
  test images new as well, so that the refusals of all splits follow the beta-binomial distribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from record import Bar, write_result
from scipy.stats import betabinom

from good_rt.classifier import Classifier, load_classifier
from good_rt.config.settings import DetectorConfig
from good_rt.data.batches import id_batches, id_features
from good_rt.data.id_data import IdData
from good_rt.demo import assets
from good_rt.detector.module import measure
from good_rt.method.conformal import conformal_p_value
from good_rt.method.discrepancy import fit_discrepancy
from good_rt.method.measurements import Measurements
from good_rt.method.unified import fit_unified

ALPHAS = (0.01, 0.05, 0.1)
LEVEL = 0.95
LEAST_INSIDE = 0.9
"""Share of splits whose refusals lie in the interval of `LEVEL`."""
CONFIG = DetectorConfig()
Array = NDArray[np.float64]


def refusal_interval(
    alpha: float, calibration_size: int, test_size: int, level: float = LEVEL
) -> tuple[float, float]:
    """The shares (low, high) of ID test images that a calibrated detector refuses by chance at α.

    The threshold comes from the calibration images at hand, so the refusals of n test images are
    beta-binomial with k = ⌊α(n_cal+1)⌋ and n_cal+1−k: wider than a binomial of probability α (Bates
    et al., arXiv 2104.08279, Sec. 2).

    Args:
        alpha: Largest share of ID inputs that may be refused.
        calibration_size: n_cal.
        test_size: n.
        level: Probability of the interval.
    """
    refusing = int(np.floor(alpha * (calibration_size + 1)))
    low, high = betabinom(test_size, refusing, calibration_size + 1 - refusing).interval(level)
    return float(low) / test_size, float(high) / test_size


def measured_parts(
    classifier: Classifier, id_data: IdData, parts: tuple[str, ...]
) -> dict[str, Measurements]:
    """What the default score's discrepancies measure, by part of the ID data."""
    features = id_features(id_data, classifier, CONFIG.bank_size)
    fitted = [fit_discrepancy(name, features) for name in CONFIG.discrepancies]
    return {
        part: measure(classifier, fitted, id_batches(id_data, part, classifier)) for part in parts
    }


def p_values(known: Measurements, calibration: Measurements, test: Measurements) -> Array:
    """p-values (N,) of test images, by a detector that is built with the other two.

    Args:
        known: Images that the score is fitted on.
        calibration: Images that calibrate it.
        test: N images.
    """
    score = fit_unified(CONFIG.discrepancies, known, CONFIG.combination)
    return conformal_p_value(score.of(calibration), score.of(test))


def divided(
    parts: dict[str, Measurements], pooled: bool, splits: int
) -> Iterator[tuple[Measurements, Measurements, Measurements]]:
    """(known, calibration, test) of each split."""
    held_out, test = parts["held_out"], parts["test"]
    everything = joined(held_out, test) if pooled else held_out
    half, rng = len(held_out.logits) // 2, np.random.default_rng(0)
    for _ in range(splits):
        shuffled = everything.take(rng.permutation(len(everything.logits)))
        rest = shuffled.take(slice(2 * half, None)) if pooled else test
        yield shuffled.take(slice(half)), shuffled.take(slice(half, 2 * half)), rest


def joined(first: Measurements, second: Measurements) -> Measurements:
    """Both, one after the other."""
    return Measurements(
        np.concatenate([first.logits, second.logits]),
        {
            name: np.concatenate([values, second.discrepancies[name]])
            for name, values in first.discrepancies.items()
        },
    )


def refusals(parts: dict[str, Measurements], pooled: bool, splits: int) -> dict[str, Any]:
    """Refused shares of all splits at each α, against what chance allows."""
    of_splits = [p_values(*split) for split in divided(parts, pooled, splits)]
    sizes = len(parts["held_out"].logits) // 2, len(of_splits[0])
    figures = {}
    for alpha in ALPHAS:
        shares = np.array([(values <= alpha).mean() for values in of_splits])
        low, high = refusal_interval(alpha, *sizes)
        figures[str(alpha)] = {
            "mean": float(shares.mean()),
            "smallest": float(shares.min()),
            "largest": float(shares.max()),
            "expected": float(np.floor(alpha * (sizes[0] + 1)) / (sizes[0] + 1)),
            "interval": [low, high],
            "inside": float(((low <= shares) & (shares <= high)).mean()),
        }
    return {"calibration_images": sizes[0], "test_images": sizes[1], "alphas": figures}


def bars_of(ways: dict[str, Any]) -> list[Bar]:
    """Most splits lie in the interval; with test images divided as well, their mean is α's."""
    bars = []
    for way, figures in ways.items():
        for alpha, row in figures["alphas"].items():
            name = f"{way} images divided, α = {alpha}"
            bars.append(Bar(f"{name}: splits in the interval", row["inside"], ">=", LEAST_INSIDE))
            bars.append(Bar(f"{name}: mean refusal", row["mean"], "<=", row["interval"][1]))
    return bars


@click.command()
@click.option("--splits", default=200, show_default=True, help="Of each way to divide.")
def main(splits: int) -> None:
    """Measures both ways, and writes results/refusals.json."""
    classifier = load_classifier(assets.CLASSIFIER)
    parts = measured_parts(classifier, IdData.of("demo"), ("held_out", "test"))
    ways = {
        "held-out": refusals(parts, pooled=False, splits=splits),
        "pooled": refusals(parts, pooled=True, splits=splits),
    }
    score = {"discrepancies": CONFIG.discrepancies, "combination": CONFIG.combination}
    write_result("refusals", {"splits": splits, "score": score, "ways": ways}, bars_of(ways))


if __name__ == "__main__":
    main()
