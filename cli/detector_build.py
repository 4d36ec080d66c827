"""`good-rt detector build`: score and calibration of a classifier, as one detector.onnx."""

from __future__ import annotations

from pathlib import Path

import click

from good_rt.cli.options import (
    device_option,
    emit_json,
    generated_option,
    id_option,
    json_option,
    out_option,
)
from good_rt.cli.settings import image_limit_options, takes
from good_rt.config.settings import DetectorConfig
from good_rt.models import ModelSpec, check_classifier_path
from good_rt.progress import shown_progress

EPILOG = """\b
Examples:
  good-rt detector build --generated ood/           for the demo's classifier
  good-rt detector build --classifier trained/classifier --generated ood/
  good-rt detector build --classifier timm:FOLDER --id photos/      without generated images
  good-rt detector build --discrepancy knn_distance --k 5 --alpha 0.01 -o strict.onnx
"""


@click.command(epilog=EPILOG)
@generated_option(required=False)
@takes(ModelSpec, "models", without=("diffusion", "gradient_decoder", "image_size"))
@id_option
@image_limit_options
@takes(DetectorConfig, "config")
@device_option
@out_option("detector.onnx", "The file to write.")
@json_option
def build(
    generated: tuple[Path, ...],
    models: ModelSpec,
    id_data: Path,
    config: DetectorConfig,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Build detector.onnx from a classifier.

    The file takes images and gives logits, discrepancies, unified score, p-value and decision. The
    discrepancies are fitted on training images, the score on held-out ID images, and the p-value is
    calibrated on other held-out ID images. Without class labels, the classes of ID images are those
    that the classifier predicts. The file is compared with PyTorch before it is written.
    """
    check_classifier_path(models.classifier_path)
    from good_rt.environment import use_device
    from good_rt.workflow import detector as step

    with shown_progress(quiet=as_json) as progress:
        path, used_device = models.classifier_path, use_device(device)
        classifier = step.open_classifier(path, generated, used_device)
        built = step.build_detector(
            classifier,
            id_data,
            out,
            generated,
            config,
            training=step.training_of(path),
            progress=progress,
        )
    unified, parity = built.module.unified, built.parity
    if as_json:
        emit_json(
            {
                "detector": str(out),
                "bytes": out.stat().st_size,
                "unified": unified.to_json(),
                "parity": parity.to_json(),
            }
        )
        return
    parts = ", ".join(
        f"{name} {weight:.2f}"
        for name, weight in zip(unified.names, unified.combination.weights, strict=True)
    )
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB, score: {unified.kind} of {parts}")
    click.echo(
        f"compared with PyTorch on {parity.images} images: largest relative difference of the "
        f"score {parity.max_relative['score']:.1e}, "
        f"{parity.class_disagreements + parity.ood_disagreements} labels differ"
    )
