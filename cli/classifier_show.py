"""`good-rt classifier show`: what a classifier is, what it does to an image, and where its features
come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from good_rt.cli.options import Existing, PathText, emit_json, json_option
from good_rt.cli.settings import Numbers
from good_rt.models import check_classifier_path

if TYPE_CHECKING:
    from good_rt.classifier import Classifier
    from good_rt.classifier.summary import Summary

EPILOG = """\b
Examples:
  good-rt classifier show timm:resnet18                       pretrained weights from the hub
  good-rt classifier show timm:resnet18@weights.safetensors   your weights, any number of classes
  good-rt classifier show transformers:./vit --json
  good-rt classifier show clf.pt2 --features fc --mean 0.5 --std 0.5
"""


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """The settings that a user may give for a classifier that is not a folder."""
    for option in reversed(
        (
            click.argument("spec", type=PathText()),
            click.option(
                "--features",
                metavar="NAME",
                help="Name of the module whose input is the feature vector.",
            ),
            click.option(
                "--size",
                type=click.IntRange(1),
                help="Height and width of the network's input, in pixels.",
            ),
            click.option(
                "--channels", type=click.IntRange(1), help="Channels of the network's input."
            ),
            click.option(
                "--mean",
                type=Numbers(),
                help="Mean of images in [0, 1]: one number per channel, or one for all.",
            ),
            click.option(
                "--std",
                type=Numbers(),
                help="Standard deviation of images in [0, 1]: one number per channel, or one for "
                "all.",
            ),
            click.option(
                "--interpolation",
                help="How images are resized: bilinear, bicubic, nearest, lanczos, box or hamming.",
            ),
            click.option(
                "--classes",
                type=Existing("does not exist; give a text file of class names, one per line"),
                help="Text file of class names, one per line.",
            ),
        )
    ):
        command = option(command)
    return command


def open_spec(spec: str, classes: Path | None, **values: Any) -> Classifier:
    """The classifier of a spec, with the options' settings."""
    check_classifier_path(Path(spec))
    from good_rt.classifier import Settings, load_classifier
    from good_rt.errors import GoodRtError
    from good_rt.files import read_text

    names = None
    if classes is not None:
        try:
            names = tuple(line.strip() for line in read_text(classes).split("\n") if line.strip())
        except GoodRtError as error:
            raise GoodRtError(f"{error}; give a text file of class names, one per line") from None
    return load_classifier(spec, Settings(classes=names, **values))


def print_summary(summary: Summary) -> None:
    """One fact a line."""
    resize = summary.resize
    steps = []
    if resize is not None:
        crop = f", then center-cropped to {resize.crop}" if resize.crop != resize.size else ""
        steps.append(
            f"other sizes are resized to {resize.size} pixels ({resize.interpolation}){crop}"
        )
    if summary.mean is None or summary.std is None:
        steps.append("none: pixels in [-1, 1]")
    else:
        mean, std = (
            ", ".join(f"{value:.4g}" for value in values) for values in (summary.mean, summary.std)
        )
        steps.append(f"pixels in [0, 1] minus mean {mean}, divided by std {std}")
    names = ", ".join([*summary.classes[:5], *(["…"] if len(summary.classes) > 5 else [])])
    rows = {
        "source": summary.source,
        "parameters": f"{summary.parameters:,}",
        "classes": f"{len(summary.classes)}: {names}",
        "images": f"{summary.channels} x {summary.size} x {summary.size}",
        "preprocessing": "; ".join(steps),
        "features": f"{summary.features}, {summary.feature_dimension} values",
        "training": "yes" if summary.trainable else "no: the detector is built without fine-tuning",
        "gradient": "yes" if summary.gradient else "no: it cannot guide a diffusion model",
    }
    for name, text in [*rows.items(), *(("note", note) for note in summary.notes)]:
        click.echo(f"{name:<14} {text}")


@click.command(epilog=EPILOG)
@settings_options
@json_option
def show(spec: str, classes: Path | None, as_json: bool, **values: Any) -> None:
    """Show a classifier's classes, preprocessing and features.

    Also shows whether it can be fine-tuned and whether it can guide a diffusion model. SPEC is a
    folder, timm:NAME, torchvision:NAME or MODULE:ATTR with @FILE.safetensors,
    transformers:FOLDER_OR_NAME, or a .pt2, .pt or .onnx file.
    """
    classifier = open_spec(spec, classes, **values)
    from good_rt.classifier.summary import summarise

    summary = summarise(classifier)
    if as_json:
        emit_json(summary.to_json())
    else:
        print_summary(summary)
