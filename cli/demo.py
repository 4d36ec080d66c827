"""`good-rt demo`: the whole way on the images and models that the package ships, from export to
report."""

from __future__ import annotations

import time
from pathlib import Path

import click

from good_rt.cli.options import emit_json, json_option, out_option, progress, seed_option

EPILOG = """\b
Examples:
  good-rt demo                    everything into ./good-rt-demo; an interrupted run goes on
  good-rt demo -o try/ --seed 1   another seed, another folder
  good-rt demo --images 64        fewer generated images: faster, and a weaker detector
"""

SUMMARY = (
    "A diffusion model was guided by a classifier of eight kinds of garment towards images that "
    "the classifier was "
    "not trained on. The classifier was then fine-tuned with them, and a detector calibrated. "
    "Nothing that is measured "
    "here was seen in training or calibration: neither the held-out classes (bags and ankle "
    "boots, the set “near”), nor digits, emoji, photos and textures."
)
TIMES = {"img": 9, "none": 20}
"""Times as many images as of the other kinds: those at image level are trained with as OOD, the
unguided as ID."""
SAMPLER_STEPS = 12
MU = 0.2
"""In half as many steps of twice the strength, samples move as far as by the defaults, and train as
well."""
CFG_SCALE, CFG_SIGMA_MAX = 1.4, 2.0
ID_BATCH, OOD_BATCH = 192, 128
MAX_DROP = 0.003
"""Of the accuracy on 2,400 held-out images: below the half point that may be lost, by what chance
does to so few."""
MODELS = {
    "before": "the classifier as it came",
    "control": "fine-tuned for as many steps without generated images",
    "trained": "fine-tuned with images generated under image-level guidance as OOD, and unguided "
    "ones as ID",
}


@click.command(epilog=EPILOG)
@click.option(
    "--images",
    type=click.IntRange(20),
    default=100,
    show_default=True,
    help="Generated images of each kind of guidance; 9 times as many at image level, 20 times "
    "unguided, to train.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=450,
    show_default=True,
    help="Optimiser steps of the training.",
)
@seed_option
@out_option("good-rt-demo", "Folder of everything that is made; an interrupted run goes on.")
@json_option
def demo(images: int, steps: int, seed: int, out: Path, as_json: bool) -> None:
    """Run the whole way on shipped models and real images, without a download: about five minutes
    on two cores.

    Exports a diffusion model and a classifier to ONNX, guides the one with the other towards OOD
    images, fine-tunes the classifier with them, writes detector.onnx, and measures it on images
    that nothing was trained on.
    """
    from good_rt.cli.tables import print_evaluation
    from good_rt.data.image_files import CONTACT_SHEET
    from good_rt.demo.assets import CLASSIFIER, DATA, GRADIENT_DECODER, MODEL
    from good_rt.detector.module import DetectorConfig
    from good_rt.method.guidance import GuidanceConfig
    from good_rt.method.training import TrainConfig, has_bfloat16
    from good_rt.workflow.generation import KINDS, GenerationJob
    from good_rt.workflow.steps import (
        Page,
        demo_test_sets,
        open_generator,
        open_training,
        run_build,
        run_evaluate,
        run_job,
        run_train,
    )

    began = time.perf_counter()
    folders = {kind: out / "generated" / kind for kind in KINDS}
    guided = [folders[kind] for kind in KINDS if kind != "none"]
    config = DetectorConfig()
    training = TrainConfig(
        steps=steps,
        id_batch=ID_BATCH,
        ood_batch=OOD_BATCH,
        seed=seed,
        bfloat16=has_bfloat16(),
        max_accuracy_drop=MAX_DROP,
    )
    with progress(quiet=as_json) as bars:
        counts = {kind: TIMES.get(kind, 1) * images for kind in KINDS}
        guidance = GuidanceConfig(mu=MU)
        jobs = [
            GenerationJob(count, kind, guidance, seed=seed, batch=min(50, count))
            for kind, count in counts.items()
        ]
        generator, describe = open_generator(
            MODEL,
            CLASSIFIER,
            DATA,
            jobs[0],
            engines=out / "engines",
            gradients=False,
            steps=SAMPLER_STEPS,
            cfg_scale=CFG_SCALE,
            cfg_sigma_max=CFG_SIGMA_MAX,
            gradient_decoder=GRADIENT_DECODER,
            bars=bars,
        )
        for job in jobs:
            run_job(generator, describe, job, folders[job.guidance], bars, twins=False)
        del generator  # its models and engines make room for the training
        # image-level images train best; the gate needs every kind to weigh both discrepancies
        ood, unguided = [folders["img"]], [folders["none"]]
        data = open_training(CLASSIFIER, MODEL, DATA, ood, bars, unguided)
        run_train(CLASSIFIER, MODEL, DATA, (), out / "control", training, bars, data=data.control)
        run_train(
            CLASSIFIER, MODEL, DATA, ood, out / "trained", training, bars, unguided, data=data
        )
        del data
        classifiers = {
            "before": CLASSIFIER,
            "control": out / "control" / "classifier",
            "trained": out / "trained" / "classifier",
        }
        detector = out / "detector.onnx"
        module, parity = run_build(classifiers["trained"], DATA, guided, detector, config)
        page = Page(
            title="good-rt demo: a classifier that knows what it was not trained on",
            summary=SUMMARY,
            models=MODELS,
            settings={
                "seed": str(seed),
                **{f"images, guidance {kind}": str(count) for kind, count in counts.items()},
                "guidance": f"mu {MU:g}, times {', '.join(f'{s:g}' for s in jobs[0].strengths)}; "
                "a light decoder",
                "sampler": f"{SAMPLER_STEPS} steps, eta {jobs[0].eta:g}, cfg {CFG_SCALE:g}, sigma "
                f"<= {CFG_SIGMA_MAX:g}",
                "training": f"{steps} steps, {ID_BATCH} ID and {OOD_BATCH} OOD images each, "
                "learning rate "
                f"{training.lr:g}, weight of the regulariser {training.weight:g}, interpolation "
                f"{training.interpolation:g}",
                "largest loss of held-out accuracy": f"{MAX_DROP:g}",
            },
            files={"detector": str(detector)},
            also=[folders["none"]],
        )
        built = {"trained": module}
        evaluation = run_evaluate(
            classifiers, DATA, guided, demo_test_sets(), config, out, bars, page, built=built
        )
    seconds = time.perf_counter() - began
    if as_json:
        emit_json(
            {
                "seconds": seconds,
                "detector": str(detector),
                "report": str(out / "report.html"),
                "parity": parity.to_json(),
                **evaluation.to_json(),
            }
        )
        return
    print_evaluation(evaluation)
    click.echo(
        f"detector: {detector} ({detector.stat().st_size / 1e6:.1f} MB); every label as in PyTorch"
    )
    click.echo(f"report:   {out / 'report.html'} (open it in a browser)")
    click.echo(f"pictures: {folders['both'] / CONTACT_SHEET}")
    click.echo(
        f"took {seconds:.0f} s; try: good-rt detector score {folders['both'] / 'images'} "
        f"--detector {detector}"
    )
