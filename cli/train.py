"""`good-rt train`: energy-regularised fine-tuning of the classifier with generated images."""

from __future__ import annotations

from pathlib import Path

import click

from good_rt.cli.options import (
    Existing,
    classifier_option,
    device_option,
    emit_json,
    generated_option,
    id_option,
    image_size_option,
    json_option,
    model_option,
    out_option,
    progress,
    seed_option,
)

EPILOG = """\b
Examples:
  good-rt train --ood ood/                                 with the demo's classifier and images
  good-rt train --ood img/ --ood feat/ -o trained/         two kinds of generated images
  good-rt train --ood ood/ --unguided plain/               unguided samples, so that only the guidance makes OOD
  good-rt train --control -o control/                      the same steps without any, to compare with
"""


@click.command(epilog=EPILOG)
@generated_option(required=False)
@click.option(
    "--unguided",
    multiple=True,
    type=Existing("holds no generated images; make them with `good-rt generate --guidance none`"),
    help="Folder of samples without guidance, which count as ID: steadier training; may be given "
    "several times.",
)
@click.option("--control", is_flag=True, help="Train the same steps without OOD images.")
@classifier_option
@model_option
@id_option
@image_size_option
@click.option(
    "--steps", type=click.IntRange(1), default=450, show_default=True, help="Optimiser steps."
)
@click.option(
    "--id-batch",
    type=click.IntRange(1),
    default=96,
    show_default=True,
    help="ID images in each step; the demo takes 192, with 128 OOD images: steadier training, "
    "twice the time.",
)
@click.option(
    "--ood-batch",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="OOD images in each step.",
)
@click.option(
    "--lr", type=float, default=1.5e-3, show_default=True, help="Peak learning rate of AdamW."
)
@click.option(
    "--weight", type=float, default=3.0, show_default=True, help="Weight of the energy regulariser."
)
@click.option(
    "--decoded-share",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help='Share of the ID batch that the VAE decoded, so that "looks decoded" is no shortcut: '
    "reconstructions, and as "
    "many --unguided samples where there are any.",
)
@click.option(
    "--interpolation",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.4,
    show_default=True,
    help="How much of the way from the old weights to the trained ones is gone.",
)
@click.option(
    "--bfloat16/--float32",
    default=None,
    help="Precision of the network in training.  [default: bfloat16 where the device multiplies "
    "in it]",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1),
    default=0.005,
    show_default=True,
    help="Largest loss of held-out ID accuracy (a share) with which a state is kept.",
)
@device_option
@seed_option
@out_option("trained", "Folder of the trained classifier; an interrupted run goes on.")
@json_option
def train(
    generated: tuple[Path, ...],
    unguided: tuple[Path, ...],
    control: bool,
    classifier: Path,
    model: Path,
    id_data: Path,
    image_size: int | None,
    steps: int,
    id_batch: int,
    ood_batch: int,
    lr: float,
    weight: float,
    decoded_share: float,
    interpolation: float,
    bfloat16: bool | None,
    max_drop: float,
    device: str,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Fine-tune a classifier so that its energy tells ID from OOD images.

    The ID batch keeps its cross-entropy, ID and generated images together get the energy
    regulariser. The last state that kept the accuracy on held-out images is taken; when all of them
    lost more than --max-drop, the run fails.
    """
    from good_rt.classifier import saved_spec
    from good_rt.environment import use_device
    from good_rt.errors import GoodRtError
    from good_rt.method.training import TrainConfig, has_bfloat16
    from good_rt.workflow.steps import run_train

    if bool(generated) == control:
        raise GoodRtError(
            "say which generated images to train with (--ood DIR), or --control for none; not both"
        )
    place = use_device(device)
    config = TrainConfig(
        steps=steps,
        id_batch=id_batch,
        ood_batch=ood_batch,
        lr=lr,
        weight=weight,
        decoded_share=decoded_share,
        interpolation=interpolation,
        bfloat16=has_bfloat16(place) if bfloat16 is None else bfloat16,
        max_accuracy_drop=max_drop,
        seed=seed,
    )
    with progress(quiet=as_json) as bars:
        result = run_train(
            classifier, model, id_data, generated, out, config, bars, unguided, image_size, place
        )
    summary = {
        "classifier": str(saved_spec(result.classifier, out / "classifier")),
        "steps": steps,
        "kept_step": result.kept_step,
        "held_out_accuracy": result.accuracy,
        "held_out_accuracy_before": result.accuracy_before,
        "ce": result.history[-1].ce,
        "bce": result.history[-1].bce,
    }
    if as_json:
        emit_json(summary)
        return
    click.echo(
        f"kept the state at step {result.kept_step} of {steps}; held-out ID accuracy "
        f"{result.accuracy:.4f} "
        f"(before {result.accuracy_before:.4f}); classifier in {summary['classifier']}"
    )
