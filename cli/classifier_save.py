"""`good-rt classifier save`: any classifier as a folder of its own, with the settings that its
source does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from good_rt.cli.classifier_show import open_spec, print_summary, settings_options
from good_rt.cli.options import emit_json, json_option, out_option

EPILOG = """\b
Examples:
  good-rt classifier save clf.onnx --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 -o clf/
  good-rt classifier save own.nets:make@weights.safetensors --size 64 --classes names.txt -o clf/
  good-rt classifier save timm:vgg11@vgg.safetensors --features head.fc -o clf/
"""


@click.command(epilog=EPILOG)
@settings_options
@out_option("classifier", "Folder to write.")
@json_option
def save(spec: str, classes: Path | None, out: Path, as_json: bool, **values: Any) -> None:
    """Save a classifier as a folder that every command accepts.

    The folder holds the weights, preprocessing, features and classes. It never names code: open a
    folder that was saved from MODULE:ATTR as MODULE:ATTR@FOLDER.
    """
    classifier = open_spec(spec, classes, **values)
    from good_rt.classifier import save_classifier
    from good_rt.classifier.summary import summarise

    save_classifier(classifier, out)
    summary = summarise(classifier)
    if as_json:
        emit_json({"folder": str(out), **summary.to_json()})
        return
    print_summary(summary)
    click.echo(f"{'saved in':<14} {out}")
