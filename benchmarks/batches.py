"""Whether an image depends on the batch that it is sampled in: engines, PyTorch's gradients, and a
plain TFG loop.

And whether rounding is all that tells the sampler's images from the loop's: both in double
precision.

python benchmarks/batches.py --engines build/engines
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from record import Bar, write_result
from sampler import (
    CONFIG,
    GENERATORS,
    SAME_IMAGE,
    SETTINGS,
    Case,
    demo,
    latents_of,
    loop_of,
    open_case,
)

from good_rt.config.settings import GuidanceConfig
from good_rt.data.pixels import to_uint8
from good_rt.workflow.generator import Generator

COUNT = 32
SIZES = (1, 2, 3, 5, 8, 16)
Sampler = Callable[[GuidanceConfig, list[int]], NDArray[np.uint8]]


def images_of(
    generator: Generator, config: GuidanceConfig, indices: list[int]
) -> NDArray[np.uint8]:
    return generator.images(replace(CONFIG, guidance=config), indices)


def images_of_loop(case: Case, eager: Generator) -> Sampler:
    """The TFG loop in PyTorch alone."""
    loop = loop_of(case, eager)

    def images(config: GuidanceConfig, indices: list[int]) -> NDArray[np.uint8]:
        latents = loop(config, indices)
        with torch.no_grad():
            return to_uint8(eager.decode(latents))

    return images


def compared(
    whole: NDArray[np.uint8], sampler: Sampler, config: GuidanceConfig, size: int
) -> dict[str, float]:
    """Images that were one batch beside those that ``sampler`` makes in batches of ``size``: the
    share that is the same to the byte, and the largest difference of a pixel in levels of 255."""
    batches = [
        sampler(config, list(range(first, min(first + size, COUNT))))
        for first in range(0, COUNT, size)
    ]
    difference = np.abs(whole.astype(int) - np.concatenate(batches)).reshape(COUNT, -1).max(axis=1)
    return {"identical": float((difference == 0).mean()), "levels": int(difference.max())}


def on_one_core(case: Case) -> Generator:
    """Engines end to end that were opened where one core is allowed."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        return open_case(case, "engines")
    finally:
        os.sched_setaffinity(0, cores)


def in_double(generator: Generator) -> Generator:
    """A generator of PyTorch's modules alone, in double precision."""
    unet, decoder, light, classifier = (
        copy.deepcopy(module).double()
        for module in (
            generator.denoiser.differentiable,
            generator.decode,
            generator.decode_with_gradient,
            generator.classifier,
        )
    )
    denoiser = replace(generator.denoiser, network=unet, differentiable=unet)
    return replace(
        generator,
        denoiser=denoiser,
        decode=decoder,
        decode_with_gradient=light,
        classifier=classifier,
    )


def differences_in_double(case: Case, eager: Generator) -> dict[str, float]:
    """By setting, how far the sampler's images on [-1, 1] are from the loop's in double precision
    at most."""
    double, indices = in_double(eager), list(range(COUNT))
    loop, found = loop_of(case, double, double=True), {}
    for setting, config in SETTINGS.items():
        latents = latents_of(double, config, indices, torch.float64), loop(config, indices)
        with torch.no_grad():
            ours, loops = (double.decode(each) for each in latents)
        found[setting] = float((ours - loops).abs().max())
    return found


@click.command()
@click.option(
    "--engines", type=click.Path(path_type=Path), default=Path("build/engines"), show_default=True
)
def main(engines: Path) -> None:
    """Measures, and writes results/batches.json."""
    case = demo(engines)
    generators = {kind: open_case(case, kind) for kind in GENERATORS}
    samplers: dict[str, Sampler] = {
        kind: partial(images_of, generator) for kind, generator in generators.items()
    }
    samplers["tfg"] = images_of_loop(case, generators["eager"])
    others = {**samplers, "engines, one thread": partial(images_of, on_one_core(case))}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, other in others.items():
        sizes = (*SIZES, COUNT) if name == "engines, one thread" else SIZES
        for setting, config in SETTINGS.items():
            whole = samplers.get(name, samplers["engines"])(config, list(range(COUNT)))
            rows = {str(size): compared(whole, other, config, size) for size in sizes}
            found.setdefault(name, {})[setting] = rows
            click.echo(f"{name}, {setting}: {rows}")
    bars = [
        Bar(
            f"{name}, {setting}: images that are the same in a batch of any size, share",
            least,
            "==",
            1,
        )
        for name in ("engines", "engines, one thread")
        for setting, rows in found[name].items()
        for least in [min(row["identical"] for row in rows.values())]
    ]
    differences = differences_in_double(case, generators["eager"])
    bars += [
        Bar(
            f"{setting}, in double precision: images differ from the loop's",
            difference,
            "<=",
            SAME_IMAGE,
        )
        for setting, difference in differences.items()
    ]
    figures = {
        "images": COUNT,
        "threads": torch.get_num_threads(),
        "samplers": found,
        "in_double": differences,
    }
    write_result("batches", figures, bars)


if __name__ == "__main__":
    main()
