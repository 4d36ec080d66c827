"""`good-rt classifier show`: what a classifier is, what it does to an image, and where its features
come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from good_rt.cli.options import Existing, emit_json, json_option
from good_rt.cli.settings import Numbers
from good_rt.models import check_classifier_path

if TYPE_CHECKING:
    from good_rt.classifier import Classifier
    from good_rt.classifier.summary import Summary

EPILOG = """\b
Examples:
  good-rt classifier show timm:resnet18                            pretrained, from the hub or its cache
  good-rt classifier show timm:resnet18@weights.safetensors        yours, with any number of classes
  good-rt classifier show transformers:./vit --json
  good-rt classifier show clf.pt2 --features fc --mean 0.5 --std 0.5
"""


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """The settings that a user may give for a classifier that is not a folder."""
    for option in reversed(
        (
            click.argument("spec"),
            click.option("--features", metavar="NAME", help="Module whose input the features are."),
            click.option(
                "--size", type=click.IntRange(1), help="Pixels a side of the network's images."
            ),
            click.option(
                "--channels", type=click.IntRange(1), help="Channels of the network's images."
            ),
            click.option(
                "--mean", type=Numbers(), help="Of images in [0, 1], one a channel or one for all."
            ),
            click.option(
                "--std", type=Numbers(), help="Of images in [0, 1], one a channel or one for all."
            ),
            click.option(
                "--interpolation", help="bilinear, bicubic, nearest, lanczos, box or hamming."
            ),
            click.option(
                "--classes",
                type=Existing("does not exist; give a text file with a name a line"),
                help="Text file of the classes' names, one a line.",
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

    names = None
    if classes is not None:
        try:
            names = tuple(line.strip() for line in classes.read_text().splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise GoodRtError(
                f"{classes} cannot be read ({error}); give a text file, one class a line"
            ) from None
    return load_classifier(spec, Settings(classes=names, **values))


def print_summary(summary: Summary) -> None:
    """One fact a line."""
    resize = summary.resize
    steps = []
    if resize is not None:
        crop = f", then the middle {resize.crop}" if resize.crop != resize.size else ""
        steps.append(
            f"images of another size: to {resize.size} pixels ({resize.interpolation}){crop}"
        )
    if summary.mean is None or summary.std is None:
        steps.append("[-1, 1] as it is")
    else:
        mean, std = (
            ", ".join(f"{value:.4g}" for value in values) for values in (summary.mean, summary.std)
        )
        steps.append(f"of [0, 1] minus mean {mean}, over std {std}")
    names = ", ".join([*summary.classes[:5], *(["…"] if len(summary.classes) > 5 else [])])
    rows = {
        "source": summary.source,
        "parameters": f"{summary.parameters:,}",
        "classes": f"{len(summary.classes)}: {names}",
        "images": f"{summary.channels} x {summary.size} x {summary.size}",
        "preprocessing": "; ".join(steps),
        "features": f"{summary.features}, {summary.feature_dimension} values",
        "training": "yes" if summary.trainable else "no: only bank, detector and calibration",
        "gradient": "yes" if summary.gradient else "no: it cannot guide a diffusion model",
    }
    for name, text in rows.items():
        click.echo(f"{name:<14} {text}")


@click.command(epilog=EPILOG)
@settings_options
@json_option
def show(spec: str, classes: Path | None, as_json: bool, **values: Any) -> None:
    """Show what a classifier is: source, classes, preprocessing, features, and what it can be used
    for.

    SPEC is a folder, timm:NAME, torchvision:NAME or MODULE:ATTR with @FILE.safetensors,
    transformers:FOLDER_OR_NAME, or a .pt2, .pt or .onnx file.
    """
    classifier = open_spec(spec, classes, **values)
    from good_rt.classifier.summary import summarise

    summary = summarise(classifier)
    if as_json:
        emit_json(summary.to_json())
    else:
        print_summary(summary)
