"""`good-rt export`: UNet, VAE and classifier to ONNX engines, checked against PyTorch."""

from __future__ import annotations

from pathlib import Path

import click

from good_rt.cli.options import (
    classifier_option,
    emit_json,
    id_option,
    json_option,
    model_option,
    out_option,
    progress,
)

EPILOG = """\b
Examples:
  good-rt export                                            the demo's models to ./good-rt-engines
  good-rt export --model sd/ --classifier clf/ -o engines/
  good-rt export --relative 1e-4 --absolute 1e-5 --force    with tighter tolerances
"""


@click.command(epilog=EPILOG)
@model_option
@classifier_option
@id_option
@out_option("good-rt-engines", "Folder of the engines; replaced as a whole.")
@click.option("--opset", type=click.IntRange(18, 23), default=20, show_default=True, help="ONNX operator set.")
@click.option("--relative", type=click.FloatRange(0), default=1e-3, show_default=True, help="Relative tolerance.")
@click.option("--absolute", type=click.FloatRange(0), default=1e-4, show_default=True, help="Absolute tolerance.")
@click.option("--force", is_flag=True, help="Export again even where nothing changed.")
@json_option
def export(
    model: Path, classifier: Path, id_data: Path, out: Path, opset: int, relative: float, absolute: float, force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Export UNet, VAE encoder and decoder, and classifier to ONNX, with a dynamic batch.

    Every graph is run in ONNX Runtime against PyTorch on real and random inputs at several batch sizes. When one is off
    by more than the tolerance, nothing is written and the exit code is 2. An unchanged model is not exported again.
    """
    from good_rt.cli.tables import print_parity
    from good_rt.cli.workflow import run_export

    with progress(quiet=as_json) as bars:
        manifest, done = run_export(
            model, classifier, id_data, out, bars, opset=opset, relative=relative, absolute=absolute, force=force
        )
    if as_json:
        emit_json({"exported": done, "folder": str(out), **manifest.to_json()})
        return
    print_parity(manifest)
    click.echo(f"{'exported to' if done else 'unchanged, nothing to do:'} {out}")
