"""`good-rt generate`: guided OOD images into a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from good_rt.cli.options import (
    device_option,
    emit_json,
    engine_folder_option,
    id_option,
    json_option,
    out_option,
)
from good_rt.cli.settings import image_limit_options, takes
from good_rt.config.settings import GenerationConfig
from good_rt.models import ModelSpec
from good_rt.progress import shown_progress

EPILOG = """\b
Examples:
  good-rt generate -n 64                          64 images with the demo's models
  good-rt generate --batch -n 10000 -o ood/       times batch sizes and takes the fastest
  good-rt generate --guidance feat --mu 0.2       feature-level guidance, twice as strong
  good-rt generate --gradients torch              PyTorch computes the gradients
  good-rt generate --device cuda --engine tensorrt --precision fp16
  good-rt generate --model sd/ --classifier clf/ --id photos/ --engine torch
  good-rt generate --model sd/ --classifier clf/ --id photos/ --cfg 7.5 --prompt "a photo of a {}, outdoors"
"""  # noqa: E501


@click.command(epilog=EPILOG)
@takes(ModelSpec, "models")
@id_option
@image_limit_options
@takes(GenerationConfig, "config")
@engine_folder_option
@device_option
@out_option("ood", "Folder of the images; an interrupted run resumes.")
@json_option
def generate(
    models: ModelSpec,
    id_data: Path,
    config: GenerationConfig,
    engine_folder: Path,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Generate OOD images by guiding a diffusion model.

    The classifier guides the sampler away from the ID images. Writes PNG images, manifest.jsonl
    (seed, class, energy and k-NN distance of every image), job.json and contact_sheet.png. The same
    seed, batch size, engines and device give the same images. With gradients by engines on the CPU,
    the images of convolutional networks do not depend on the batch size. PyTorch rounds differently
    at each batch size, and guidance amplifies the difference.
    """
    models.check_paths()
    from good_rt.data.folder_tree import CONTACT_SHEET
    from good_rt.workflow import generate as step

    with shown_progress(quiet=as_json) as progress:
        loaded = models.load(device)
        generated = step.generate(loaded, id_data, out, config, engine_folder, progress)
    rows = generated.rows()
    summary = {
        "out": str(out),
        "images": len(rows),
        "energy": _mean(row.energy for row in rows),
        "energy_before": _mean(row.energy_before for row in rows),
        "knn_distance": _mean(row.knn_distance for row in rows),
        "knn_distance_before": _mean(row.knn_distance_before for row in rows),
        "contact_sheet": str(out / CONTACT_SHEET),
    }
    if as_json:
        emit_json(summary)
        return
    click.echo(f"{len(rows)} images in {out}, see {summary['contact_sheet']}")
    for name in ("energy", "knn_distance"):
        before = summary[f"{name}_before"]
        unguided = "" if before is None else f", unguided twins {before:.3f}"
        click.echo(f"mean {name.replace('_', ' ')}: {summary[name]:.3f}{unguided}")


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
