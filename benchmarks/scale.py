"""Stable Diffusion's real width on a CPU: export with parity, gradients included, and one guided
step; time and memory.

    python benchmarks/scale.py --work build/scale

The architecture of Stable Diffusion 1.5 (860 M parameters, 512x512 pixels, 64x64 latents) with
random weights, its gradients through a light decoder (AutoencoderTiny). Every part is a command in
a process of its own, whose peak memory is its own; an interrupted benchmark resumes in the same
folder. It takes about 12 GB of disk.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
from record import Bar, measured, write_result
from stable_diffusion import FULL, light_decoder, make_all

from good_rt.export.manifest import Manifest

BAR_GIB = 20


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default="build/scale", show_default=True)
def main(work: Path) -> None:
    """Measures, and writes benchmarks/results/scale.json."""
    # by a process of its own, since the peak memory of a child counts from its parent's
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        model, classifier, images = pool.submit(make_all, work, FULL).result()
    engines = work / "engines"
    common = ["--model", str(model), "--classifier", str(classifier), "--id", str(images)]
    light = ["--gradient-decoder", str(light_decoder(model))]
    one = ["-n", "1", "--batch", "1", "--sampler-steps", "1", "--no-twins", "--guidance", "img"]
    commands = {
        "inspect": ["inspect", str(model), "--json"],
        "export": ["export", *common, *light, "--parity-batch", "1", "-o", str(engines)],
        "step, torch": [
            "generate",
            *common,
            *light,
            *one,
            "--mu",
            "0.1",
            "--rho",
            "0.1",
            "--engine",
            "torch",
        ],
        "step, engines": [
            "generate",
            *common,
            *light,
            *one,
            "--mu",
            "0.1",
            "--rho",
            "0.1",
            "--engine-folder",
            str(engines),
            "--gradients",
            "engine",
        ],
    }
    found = {}
    for name, arguments in commands.items():
        out = work / name.replace(", ", "-")
        more = ["-o", str(out)] if arguments[0] == "generate" else []
        found[name] = measured(
            ["good-rt", *arguments, *more], out.with_name(f"{out.name}.measured.json")
        )
        click.echo(f"{name}: {found[name]['seconds']:.0f} s, {found[name]['peak_gib']:.1f} GiB")
    manifest = Manifest.read(engines)
    parity = {
        graph: max(row.max_relative for row in manifest.parity if row.graph == graph)
        for graph in dict.fromkeys(row.graph for row in manifest.parity)
    }
    figures = {
        "commands": found,
        "parity": parity,
        "gigabytes": {name: entry.bytes / 1e9 for name, entry in manifest.graphs.items()},
        "external": {
            name: list(entry.data) for name, entry in manifest.graphs.items() if entry.data
        },
    }
    peak = max(row["peak_gib"] for row in found.values())
    bars = [
        Bar("peak memory, GiB", peak, "<=", BAR_GIB),
        Bar("largest relative difference of any graph", max(parity.values()), "<=", 1e-3),
    ]
    write_result("scale", figures, bars)


if __name__ == "__main__":
    main()
