"""`good-rt train`: fine-tuning of the classifier with generated images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path

import click

from good_rt.cli.options import (
    Existing,
    device_option,
    emit_json,
    generated_option,
    id_option,
    json_option,
    out_option,
)
from good_rt.cli.settings import image_limit_options, takes
from good_rt.config.settings import TrainConfig
from good_rt.errors import GoodRtError
from good_rt.models import ModelSpec
from good_rt.progress import shown_progress

EPILOG = """\b
Examples:
  good-rt train --generated ood/                        with the demo's classifier and images
  good-rt train --generated img/ --generated feat/ -o trained/    two kinds of generated images
  good-rt train --generated ood/ --unguided plain/      unguided samples as ID: steadier training
  good-rt train --generated ood/ --objective hinge      another way to separate ID from OOD
  good-rt train --control -o control/                   the same steps without generated images
"""


@dataclass(frozen=True)
class TrainingSets:
    """The folders of generated images; without guided images the training is the control."""

    guided: tuple[Path, ...]
    unguided: tuple[Path, ...]


def training_sets_option(command: Callable[..., None]) -> Callable[..., None]:
    """--generated, --unguided and --control, given to the command as ``sets``."""

    @wraps(command)
    def with_sets(
        generated: tuple[Path, ...], unguided: tuple[Path, ...], control: bool, **others: object
    ) -> None:
        if bool(generated) == control:
            raise GoodRtError(
                "give the generated images to train with (--generated DIR), or --control for none; "
                "not both"
            )
        command(sets=TrainingSets(generated, unguided), **others)

    control_option = click.option(
        "--control", is_flag=True, help="Train without OOD images, as a baseline."
    )
    unguided_option = click.option(
        "--unguided",
        multiple=True,
        type=Existing(
            "holds no generated images; create them with `good-rt generate --guidance none`"
        ),
        help="Folder of unguided samples, trained on as ID for a steadier training; may be "
        "repeated.",
    )
    return generated_option(required=False)(unguided_option(control_option(with_sets)))


@click.command(epilog=EPILOG)
@training_sets_option
@takes(ModelSpec, "models", without=("gradient_decoder",))
@id_option
@image_limit_options
@takes(TrainConfig, "config")
@device_option
@out_option("trained", "Folder of the trained classifier; an interrupted run resumes.")
@json_option
def train(
    sets: TrainingSets,
    models: ModelSpec,
    id_data: Path,
    config: TrainConfig,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Fine-tune a classifier so that it detects OOD images.

    The loss is the cross-entropy of ID images plus a regulariser that separates ID from generated
    images (--objective). The last state that kept the accuracy on held-out images is saved. If
    every state lost more than --max-drop, the command fails.
    """
    models.check_paths()
    from good_rt.classifier import saved_spec
    from good_rt.workflow import train as step

    with shown_progress(quiet=as_json) as progress:
        loaded = models.load(device)
        result = step.train(
            loaded, id_data, out, sets.guided, sets.unguided, config, progress=progress
        )
    summary = {
        "classifier": str(saved_spec(result.classifier, out / "classifier")),
        "steps": config.steps,
        "kept_step": result.kept_step,
        "held_out_accuracy": result.accuracy,
        "held_out_accuracy_before": result.accuracy_before,
        "objective": config.objective,
        "augmentation": asdict(result.augmentation),
        "ce": result.history[-1].ce,
        "regulariser": result.history[-1].regulariser,
    }
    if as_json:
        emit_json(summary)
        return
    click.echo(f"augmentation: {result.augmentation.explained}")
    click.echo(
        f"kept the state at step {result.kept_step} of {config.steps}; held-out ID accuracy "
        f"{result.accuracy:.4f} (before {result.accuracy_before:.4f}); classifier in "
        f"{summary['classifier']}"
    )
