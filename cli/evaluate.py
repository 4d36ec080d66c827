"""`good-rt evaluate`: how well each score of each classifier tells ID test images from OOD sets."""

from __future__ import annotations

from pathlib import Path

import click

from good_rt.cli.options import (
    device_option,
    emit_json,
    generated_option,
    id_option,
    json_option,
    named_paths,
    out_option,
    progress,
)

EPILOG = """\b
Examples:
  good-rt evaluate --ood ood/                                               the demo's classifier on the demo's sets
  good-rt evaluate --ood ood/ --classifier before=clf/ --classifier trained=trained/classifier
  good-rt evaluate --ood ood/ --test-set street=street.npz --json
"""


@click.command(epilog=EPILOG)
@generated_option(required=True)
@click.option(
    "--classifier",
    "classifiers",
    multiple=True,
    callback=named_paths,
    metavar="NAME=DIR",
    help="A classifier and its row's name; may be given several times, last the one whose detector "
    "is to be used.  "
    "[default: the demo's]",
)
@id_option
@click.option(
    "--test-set",
    "test_sets",
    multiple=True,
    callback=named_paths,
    metavar="NAME=PATH",
    help="An OOD test set: images of any kind that --id takes; may be given several times.  "
    "[default: the demo's]",
)
@click.option(
    "--k",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Neighbour of the k-NN distance.",
)
@device_option
@out_option("evaluation", "Folder of evaluation.json and report.html.")
@json_option
def evaluate(
    generated: tuple[Path, ...],
    classifiers: dict[str, Path],
    id_data: Path,
    test_sets: dict[str, Path],
    k: int,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Measure OOD detection: AUROC, AUPR and FPR at 95 % recall, with bootstrap intervals.

    Scores: MSP, MaxLogit, Energy, k-NN and the unified score, whose gate is fitted on --ood
    (generated images). FPR95 is the share of OOD images accepted when 95 % of ID images are.
    """
    from good_rt.classifier import load_classifier
    from good_rt.cli.tables import print_evaluation
    from good_rt.demo.assets import CLASSIFIER
    from good_rt.detector.module import DetectorConfig
    from good_rt.environment import use_device
    from good_rt.workflow.steps import demo_test_sets, load_test_sets, run_evaluate

    place = use_device(device)
    classifiers = classifiers or {"before": CLASSIFIER}
    config = load_classifier(next(iter(classifiers.values()))).config
    sets = (
        load_test_sets(test_sets, config.channels, config.image_size)
        if test_sets
        else demo_test_sets()
    )
    with progress(quiet=as_json) as bars:
        evaluation = run_evaluate(
            classifiers, id_data, generated, sets, DetectorConfig(k=k), out, bars, device=place
        )
    if as_json:
        emit_json(evaluation.to_json())
        return
    print_evaluation(evaluation)
    click.echo(
        f"all figures with their intervals: {out / 'evaluation.json'}; pictures: "
        f"{out / 'report.html'}"
    )
