"""What each part of the CPU kernels gives: a guided step without the part, against one with it.

    python benchmarks/cpu_kernels.py --case demo --engines build/engines
    python benchmarks/cpu_kernels.py --case stable-diffusion --engines build/sd/engines

Each case is measured in a process of its own, in which all variants take turns after every step, so
that noise on the machine meets all of them. "Without AVX-512" leaves our kernels for AVX-512 out;
ONNX Runtime's own code keeps using it, since there is no switch for that. The model of Stable
Diffusion's architecture has reduced width and random weights (`stable_diffusion.py`).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from record import RESULTS, Bar, write_result
from stable_diffusion import REDUCED, make_all
from torch import Tensor

from good_rt.config.settings import BankConfig, GenerationConfig, GuidanceConfig, SamplerConfig
from good_rt.data.id_data import IdData
from good_rt.demo import assets
from good_rt.engines.base import Engine
from good_rt.engines.cpu import ACCELERATIONS, Accelerated, accelerate, kernel_library
from good_rt.engines.open import open_engine
from good_rt.files import read_json
from good_rt.method.sampler import GuidedModel, SampleBatch, sample, sample_seeds
from good_rt.models import ModelSpec
from good_rt.workflow.generator import Generator, make_generator

GRAPHS = (
    "network", "network_forward", "network_backward", "vae_decoder", "decoder_forward",
    "decoder_backward", "guidance_vjp",
)  # fmt: skip
THREADS, STEPS, LEAST_GAIN = 2, 2, 1.10
REST = 0.01
"""Seconds before each run, in which the threads of the one before stop spinning."""
SETTINGS = {
    "mean guidance": GuidanceConfig(mu=0.1),
    "mean and variance guidance": GuidanceConfig(mu=0.1, rho=0.1),
}
BATCHES = {"demo": (1, 8), "stable-diffusion": (1, 4)}
BANK = 1000
"""ID features of the scales; the engines have banks of their own."""
ALL, NONE = "all parts", "no kernels"
ENDS = ("", ", without AVX-512")
"""How the names of variants end."""
EVERYWHERE = "everywhere"
Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Variant:
    """Which of `ACCELERATIONS` are in use, and whether the kernels for AVX-512 are."""

    parts: tuple[str, ...]
    avx512: bool = True

    def accelerator(self) -> Callable[[Any], Accelerated]:
        return partial(accelerate, parts=self.parts, library=kernel_library(self.avx512))


def variants() -> dict[str, Variant]:
    """Everything; everything but one part; nothing. Without AVX-512 there is no Winograd, as
    `accelerate` has it on such processors."""
    without = tuple(part for part in ACCELERATIONS if "Winograd" not in part)
    found = {ALL: Variant(ACCELERATIONS), NONE: Variant(())}
    found |= {
        f"without {part}": Variant(tuple(other for other in ACCELERATIONS if other != part))
        for part in ACCELERATIONS
    }
    found[f"{ALL}, without AVX-512"] = Variant(without, avx512=False)
    for part in without:
        others = tuple(other for other in without if other != part)
        found[f"without {part}, without AVX-512"] = Variant(others, avx512=False)
    return found


def open_engines(folder: Path, variant: Variant) -> dict[str, Engine]:
    accelerator = variant.accelerator()
    return {
        name: open_engine(
            (folder / f"{name}.onnx").resolve(), threads=THREADS, accelerator=accelerator
        )
        for name in GRAPHS
    }


def step_of(
    generator: Generator, config: GenerationConfig, guidance: GuidanceConfig, batch: int
) -> Step:
    """`STEPS` guided steps of a batch."""
    indices = list(range(batch))
    model = GuidedModel(
        generator.denoiser, generator.decode_with_gradient, generator.guidance(config)
    )
    seeds, rows = sample_seeds(0, indices), generator.rows(indices)

    def run() -> Tensor:
        return sample(model, generator.sigmas, guidance, SampleBatch(seeds, generator.shape, rows))

    return run


def measure(steps: Mapping[str, Step], seconds: float) -> dict[str, list[float]]:
    """Seconds of each variant, which take turns in changing order for about so many seconds."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for run in steps.values():
        run()
    ends, order = time.perf_counter() + seconds, list(steps)
    while time.perf_counter() < ends or len(found[order[0]]) < 3:
        for name in order:
            time.sleep(REST)
            began = time.perf_counter()
            steps[name]()
            found[name].append(time.perf_counter() - began)
        order = [*order[1:], order[0]]
    return found


def logarithms(figures: Mapping[str, Any], without: str, with_it: str) -> list[float]:
    """log(time without / time with it) of every setting and batch, from the median ratio of
    neighbouring runs."""
    return [
        math.log(float(np.median(np.array(seconds[without]) / np.array(seconds[with_it]))))
        for batches in figures.values()
        for seconds in batches.values()
    ]


def gains_of(cases: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Part -> where it is used -> its geometric mean gain over the settings and batches there."""
    found = dict[str, dict[str, float]]()
    for part in (*ACCELERATIONS, ALL):
        by_place = dict[str, list[float]]()
        for case, figures in cases.items():
            names = next(iter(next(iter(figures.values())).values()))
            for end in ENDS:
                without = NONE if part == ALL else f"without {part}{end}"
                if without in names:
                    place = f"{case}, {'without' if end else 'with'} AVX-512"
                    by_place[place] = logarithms(figures, without, f"{ALL}{end}")
        means = {place: math.exp(float(np.mean(logs))) for place, logs in by_place.items()}
        everywhere = [log for logs in by_place.values() for log in logs]
        found[part] = {**means, EVERYWHERE: math.exp(float(np.mean(everywhere)))}
    return found


def of_same_variants(cases: Mapping[str, Any]) -> dict[str, Any]:
    """The cases that were measured with the variants of today, less those of a part since
    removed."""
    names = variants().keys()
    return {
        case: figures
        for case, figures in cases.items()
        if all(
            seconds.keys() == names for batches in figures.values() for seconds in batches.values()
        )
    }


def bars_of(gains: Mapping[str, Mapping[str, float]]) -> list[Bar]:
    """What is kept gives `LEAST_GAIN` in the geometric mean of all cases, settings and batches."""
    return [
        Bar(f"{part}: a guided step, times as fast", means[EVERYWHERE], ">=", LEAST_GAIN)
        for part, means in gains.items()
    ]


@click.command()
@click.option("--case", type=click.Choice(list(BATCHES)), required=True)
@click.option("--engines", type=click.Path(path_type=Path, exists=True), required=True)
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("build/sd"), show_default=True,
    help="Where the model of Stable Diffusion's architecture is made.",
)  # fmt: skip
@click.option("--seconds", default=5.0, show_default=True, help="Of each setting and batch.")
def main(case: str, engines: Path, work: Path, seconds: float) -> None:
    """Measures a case, and writes it into results/cpu_kernels.json beside the other, if that has
    the same variants."""
    torch.set_num_threads(THREADS)
    spec, data = ModelSpec(), assets.DATA
    if case == "stable-diffusion":
        model, classifier, data = make_all(work, REDUCED)
        spec = ModelSpec(classifier=classifier, diffusion=model)
    models, id_data = spec.load(), IdData.of(data)
    config = GenerationConfig(
        sampler=SamplerConfig(steps=STEPS), bank=BankConfig(size=BANK), kind="both"
    )
    generators = {
        name: make_generator(models, id_data, config, open_engines(engines, variant))
        for name, variant in variants().items()
    }
    figures: dict[str, Any] = {}
    for setting, guidance in SETTINGS.items():
        for batch in BATCHES[case]:
            steps = {
                name: step_of(generator, config, guidance, batch)
                for name, generator in generators.items()
            }
            figures.setdefault(setting, {})[str(batch)] = measure(steps, seconds)
    path = RESULTS / "cpu_kernels.json"
    cases = of_same_variants(read_json(path)["figures"]["cases"]) if path.exists() else {}
    cases[case] = figures
    gains = gains_of(cases)
    for part, means in gains.items():
        click.echo(f"{part}: " + ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()))
    context = {
        "load_average": os.getloadavg(),
        "threads": THREADS,
        "sampler_steps": STEPS,
        "gains": gains,
        "cases": cases,
    }
    write_result("cpu_kernels", context, bars_of(gains))


if __name__ == "__main__":
    main()
