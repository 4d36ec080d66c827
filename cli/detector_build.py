"""`good-rt detector build`: bank, gate and calibration of a classifier, written as one
detector.onnx."""

from __future__ import annotations

from pathlib import Path

import click

from good_rt.cli.options import (
    classifier_option,
    device_option,
    emit_json,
    generated_option,
    id_option,
    json_option,
    out_option,
)

EPILOG = """\b
Examples:
  good-rt detector build --ood ood/                                     for the demo's classifier
  good-rt detector build --classifier trained/classifier --ood ood/     for the one that was trained with them
  good-rt detector build --classifier timm:FOLDER --id photos/          without generated images
  good-rt detector build --ood ood/ --alpha 0.01 --k 5 -o strict.onnx
"""


@click.command(epilog=EPILOG)
@generated_option(required=False)
@classifier_option
@id_option
@click.option(
    "--k",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Neighbour of the k-NN distance.",
)
@click.option(
    "--alpha",
    type=float,
    default=0.05,
    show_default=True,
    help="Share of ID inputs that may be refused.",
)
@click.option(
    "--bank-size",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Features in the bank.",
)
@device_option
@out_option("detector.onnx", "The file to write.")
@json_option
def build(
    generated: tuple[Path, ...],
    classifier: Path,
    id_data: Path,
    k: int,
    alpha: float,
    bank_size: int,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Build detector.onnx: image in; logits, energy, k-NN distance, unified score, p-value and
    decision out.

    The gate is fitted on held-out ID images against generated ones, the p-value calibrated on other
    held-out images. Without --ood the gate weighs energy and k-NN distance alike. ID images need no
    classes here. The file is compared with PyTorch before it gets its name.
    """
    from good_rt.detector.module import DetectorConfig
    from good_rt.environment import use_device
    from good_rt.workflow.steps import run_build

    config = DetectorConfig(k=k, alpha=alpha)
    detector, parity = run_build(
        classifier, id_data, generated, out, config, bank_size, use_device(device)
    )
    unified = detector.unified
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
    click.echo(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, gate π = {unified.pi:.3f}, c = {unified.c:.3f}"
    )
    click.echo(
        f"file against PyTorch on {parity.images} images: largest relative difference of the score "
        f"{parity.max_relative['score']:.1e}, "
        f"{parity.class_disagreements + parity.ood_disagreements} labels differ"
    )
