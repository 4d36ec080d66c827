"""The demo's trainings at three learning rates: by what the default was chosen, and what came of it
on test images.

    python benchmarks/learning_rate.py --work build/demo-benchmark

Trains with the images that benchmarks/demo.py has generated there. The choice is by held-out images
and the validation set alone; what stands under "test" is for the reader. An interrupted run
resumes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from demo import KINDS
from record import Bar, kept, write_result

from good_rt.classifier import load_classifier
from good_rt.config.settings import TrainConfig
from good_rt.data.id_data import IdData
from good_rt.demo import assets
from good_rt.evaluation.metrics import detection_metrics
from good_rt.files import read_json
from good_rt.method.training import has_bfloat16
from good_rt.models import ModelSpec
from good_rt.workflow.detector import detector_for
from good_rt.workflow.evaluate import all_scores, measure_images, measure_part
from good_rt.workflow.job_file import Job
from good_rt.workflow.train import train, training_images

RATES = (1e-3, 1.5e-3, 2e-3)


def measure_rate(folder: Path, seed: int, rate: float) -> dict[str, Any]:
    """Both trainings of one seed at one rate, and the unified score of each."""
    generated = folder / "generated"
    config = replace(Job.read(assets.JOB).training, lr=rate, seed=seed, bfloat16=has_bfloat16())
    models, id_data = ModelSpec(assets.CLASSIFIER, assets.MODEL).load(), IdData(assets.DATA)
    ood, unguided = [generated / "img"], [generated / "none"]
    images = training_images(models, id_data, ood, unguided)
    out = folder / "rates" / f"{rate:g}"
    train(models, id_data, out / "control", config=config, images=images.control)
    train(models, id_data, out / "trained", ood, unguided, config, images)
    return {
        name: measure_classifier(out / name, [generated / kind for kind in KINDS])
        for name in ("control", "trained")
    }


def measure_classifier(folder: Path, guided: list[Path]) -> dict[str, float]:
    """FPR at 95 % ID recall of the unified score: on validation with held-out ID images, on near
    with those of test."""
    classifier, id_data = load_classifier(folder / "classifier"), IdData(assets.DATA)
    detector = detector_for(classifier, id_data, guided)
    of_test, labels = measure_part(detector, id_data, "test")

    def unified(name: str) -> Any:
        return all_scores(detector, measure_images(detector, assets.load_images(name).images))[
            "Unified"
        ]

    return {
        "held_out_accuracy": read_json(folder / "training.json")["held_out_accuracy"],
        "validation_fpr95": detection_metrics(
            detector.calibration.numpy(), unified(assets.VALIDATION_SET)
        ).fpr95,
        "test_accuracy": float((of_test.logits.argmax(axis=1) == labels).mean()),
        "test_near_fpr95": detection_metrics(
            all_scores(detector, of_test)["Unified"], unified("near")
        ).fpr95,
    }


@click.command()
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("build/demo-benchmark"),
    show_default=True,
)
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds of the runs.")
def main(work: Path, seeds: str) -> None:
    """Measures, and writes results/learning_rate.json."""
    runs = {
        f"{rate:g}": {
            str(seed): kept(
                work / f"seed-{seed}" / "rates" / f"{rate:g}.json",
                lambda seed=seed, rate=rate: measure_rate(work / f"seed-{seed}", seed, rate),  # type: ignore[misc]
            )
            for seed in map(int, seeds.split(","))
        }
        for rate in RATES
    }
    validation = {
        rate: float(np.mean([seed["trained"]["validation_fpr95"] for seed in found.values()]))
        for rate, found in runs.items()
    }
    best = min(validation, key=lambda rate: validation[rate])
    bars = [
        Bar(
            "the default is the learning rate with the lowest FPR95 on validation",
            float(best),
            "==",
            TrainConfig.lr,
        )
    ]
    write_result("learning_rate", {"validation_fpr95": validation, "rates": runs}, bars)


if __name__ == "__main__":
    main()
