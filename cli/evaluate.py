"""`good-rt evaluate`: how well each score of each classifier tells ID test images from OOD sets."""

from __future__ import annotations

from pathlib import Path

import click

from good_rt.cli.options import (
    PATH,
    NamedPath,
    device_option,
    emit_json,
    generated_option,
    id_option,
    json_option,
    out_option,
    test_set_option,
)
from good_rt.cli.settings import image_limit_options, takes
from good_rt.config.settings import EvaluateConfig
from good_rt.demo import assets
from good_rt.models import check_classifier_path
from good_rt.progress import shown_progress

EPILOG = """\b
Examples:
  good-rt evaluate --generated ood/         the demo's classifier and sets
  good-rt evaluate --generated ood/ --classifier before=clf/ --classifier trained=trained/classifier
  good-rt evaluate --generated ood/ --detector detector.onnx   with the settings of that file
  good-rt evaluate --generated ood/ --test-set street=street.npz --json
  good-rt evaluate --generated ood/ --peers  beside ReAct, ViM, KNN and other papers' scores
"""


@click.command(epilog=EPILOG)
@generated_option(required=True)
@click.option(
    "--classifier",
    "classifiers",
    multiple=True,
    type=NamedPath(PATH),
    metavar="NAME=CLASSIFIER",
    help="A classifier and the name of its row; may be repeated, with the one to be shipped last.  "
    "[default: the demo's]",
)
@id_option
@image_limit_options
@test_set_option(
    "Real OOD images, of any kind that --id accepts; may be repeated.  [default: the demo's]"
)
@takes(EvaluateConfig, "config")
@device_option
@out_option("evaluation", "Folder of evaluation.json and report.html.")
@json_option
def evaluate(
    generated: tuple[Path, ...],
    classifiers: tuple[tuple[str, Path], ...],
    id_data: Path,
    test_sets: tuple[tuple[str, Path], ...],
    config: EvaluateConfig,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Measure how well each score separates ID from OOD images.

    Gives AUROC, AUPR and FPR95 with bootstrap intervals for scores of logits, for every
    discrepancy, and for the unified score. FPR95 is the share of OOD images that are accepted when
    95 % of ID images are. The detectors are built with the options below, or with the settings of
    --detector.
    """
    paths = dict(classifiers) or {"before": assets.CLASSIFIER}
    for path in paths.values():
        check_classifier_path(path)
    from good_rt.cli.tables import print_evaluation
    from good_rt.detector.runtime import Detector
    from good_rt.environment import use_device
    from good_rt.workflow import evaluate as step
    from good_rt.workflow.detector import config_of, open_classifier
    from good_rt.workflow.report_figures import training_roles

    settings, detector = config.detector, config.detector_file
    if detector is not None:
        settings = config_of(Detector(detector).info)
    used_device = use_device(device)
    with shown_progress(quiet=as_json) as progress:
        loaded = {
            name: open_classifier(path, generated, used_device) for name, path in paths.items()
        }
        page = step.ReportPage(
            training=list(paths.values())[-1],
            scores=config.scores,
            peers=config.peers,
            roles=training_roles(paths),
            detector=None if detector is None else Path(detector),
        )
        evaluation = step.evaluate(
            loaded,
            id_data,
            dict(test_sets) or assets.TEST_SETS,
            out,
            generated,
            settings,
            page,
            progress,
        )
    if as_json:
        emit_json(evaluation.to_json())
        return
    print_evaluation(evaluation)
    click.echo(
        f"all figures with their intervals: {out / 'evaluation.json'}; pictures: "
        f"{out / 'report.html'}"
    )
