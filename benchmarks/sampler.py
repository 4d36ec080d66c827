"""The guided sampler measured: engines against PyTorch, torch.compile and a plain TFG loop, side by
side in one run.

    python benchmarks/sampler.py --engines build/engines
    python benchmarks/sampler.py --engines build/light-engines --light
    python benchmarks/sampler.py --engines build/engines --compile

The TFG loop is written from its paper's Algorithm 1 (arXiv 2409.15761): autograd through UNet and
decoder for variance guidance, through the decoder again for mean guidance. All variants sample the
same seeds, and give the same images. Beside the demo's model it is one of Stable Diffusion's
architecture at reduced width, whose weights are random. --light measures both with gradients
through their light decoders, on both sides, and nothing else; --compile the demo's model with
torch.compile beside the others, which takes a C++ compiler and minutes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from record import Bar, write_result
from stable_diffusion import REDUCED, light_decoder, make_all
from torch import Tensor

from good_rt.config.settings import BackendConfig, GenerationConfig, GuidanceConfig, SamplerConfig
from good_rt.data.id_data import IdData
from good_rt.demo import assets
from good_rt.diffusion import DiffusionModel, load_diffusion
from good_rt.export.manifest import load_engines
from good_rt.export.parity import AutogradVjp
from good_rt.method.classifier_guidance import ClassifierGuidance
from good_rt.method.denoiser import PREDICTIONS
from good_rt.method.guidance import LEVEL_WEIGHTS, limited
from good_rt.method.sampler import GuidedModel, Noise, SampleBatch, sample, sample_seeds
from good_rt.method.schedule import strengths
from good_rt.models import ModelSpec
from good_rt.workflow.bench import ratio, side_by_side, step_parts
from good_rt.workflow.generate import open_generator
from good_rt.workflow.generator import Generator

SETTINGS = {
    "mu": GuidanceConfig(mu=0.1),
    "rho": GuidanceConfig(mu=0.0, rho=0.1),
    "mu and rho": GuidanceConfig(mu=0.1, rho=0.1),
}
BATCHES = (1, 8, 32)
STEPS = 10
CONFIG = GenerationConfig(kind="both", sampler=SamplerConfig(STEPS))
SAME_IMAGE = 1e-3
CASES = {
    "samplers": "",
    "light_decoder": "",
    "stable_diffusion": "Stable Diffusion's architecture, ",
    "light_stable_diffusion": "Stable Diffusion's architecture, ",
}
"""What is measured, by its key in the JSON, and how its bars' names begin."""


@dataclass(frozen=True)
class Case:
    """A diffusion model with what is needed to guide it, and the batch sizes to sample it at."""

    models: ModelSpec
    data: Path
    engines: Path
    batches: tuple[int, ...] = BATCHES


def tfg_latents(
    model: DiffusionModel,
    guidance: ClassifierGuidance,
    config: GuidanceConfig,
    seeds: list[int],
    condition: tuple[Tensor, ...],
) -> Tensor:
    """TFG's Algorithm 1 in PyTorch alone, in x_t, with the noise and the step lengths of
    good_rt.method.sampler."""
    assert model.gradient_decoder is not None
    sigmas = model.sigmas(STEPS)
    alphas = 1 / (1 + sigmas**2)
    rho, mu = strengths(sigmas, config.rho, "constant"), strengths(sigmas, config.mu, "constant")
    noise = Noise(seeds, 0)
    x = noise(
        torch.empty(len(seeds), *model.sample_shape, dtype=next(model.network.parameters()).dtype)
    )
    x0_of = PREDICTIONS[model.prediction_type]
    times = np.interp(
        np.log(sigmas[:-1]), np.log(_trained_sigmas(model)), np.arange(len(model.alphas_cumprod))
    )
    for step, time in enumerate(times):
        a, a_next = float(alphas[step]), float(alphas[step + 1])
        t = torch.full((len(x),), float(time))
        push = torch.zeros_like(x)
        if rho[step]:
            x = x.detach().requires_grad_(True)
            x0 = x0_of(model.network(x, t, *condition), x / a**0.5, float(sigmas[step]))
            value = guidance(model.gradient_decoder(x0))
            (gradient,) = torch.autograd.grad(value.sum(), x)
            push = rho[step] * limited(gradient, value.detach(), config, step)
        else:
            with torch.no_grad():
                x0 = x0_of(model.network(x, t, *condition), x / a**0.5, float(sigmas[step]))
        x, x0 = x.detach(), x0.detach()
        shift = torch.zeros_like(x)
        if mu[step]:
            moved = x0.clone().requires_grad_(True)
            value = guidance(model.gradient_decoder(moved))
            (gradient,) = torch.autograd.grad(value.sum(), moved)
            shift = mu[step] * limited(gradient, value.detach(), config, step)
        up = ((1 - a_next) / (1 - a) * (1 - a / a_next)) ** 0.5
        direction = (x - a**0.5 * x0) / (1 - a) ** 0.5
        mean = a_next**0.5 * x0 + max(1 - a_next - up**2, 0.0) ** 0.5 * direction
        x = (
            mean
            + (up * noise(x) if up > 0 else 0.0)
            + push / (a / a_next) ** 0.5
            + a_next**0.5 * shift
        )
    return x


def _trained_sigmas(model: DiffusionModel) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.sqrt((1 - model.alphas_cumprod) / model.alphas_cumprod)


def latents_of(
    generator: Generator,
    config: GuidanceConfig | None,
    indices: list[int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The sampler's latents of these indices, guided by ``config`` or not at all."""
    guidance = generator.guidance(CONFIG) if config else None
    return sample(
        GuidedModel(generator.denoiser, generator.decode_with_gradient, guidance),
        generator.sigmas,
        config or GuidanceConfig(mu=0.0),
        SampleBatch(
            sample_seeds(CONFIG.seed, indices),
            generator.shape,
            generator.rows(indices),
            dtype=dtype,
        ),
    )


GENERATORS = {
    "engines": BackendConfig("onnx", gradients="engine"),
    "torch gradients": BackendConfig("onnx", gradients="torch"),
    "eager": BackendConfig("torch"),
}
"""What runs a case: engines end to end, engines with PyTorch's gradients, only PyTorch."""


def open_case(case: Case, kind: str) -> Generator:
    """A case's models on one of `GENERATORS`."""
    config = replace(CONFIG, backend=GENERATORS[kind])
    return open_generator(case.models.load(), IdData(case.data), config, case.engines)


def loop_of(
    case: Case, eager: Generator, double: bool = False
) -> Callable[[GuidanceConfig, list[int]], Tensor]:
    """The TFG loop for a case, as `latents_of` is for a generator, which is in double precision as
    well if this is."""
    model = load_diffusion(
        case.models.diffusion_path, gradient_decoder=case.models.gradient_decoder_path
    )
    if double:
        for module in (model.network, model.gradient_decoder):
            assert module is not None
            module.double()
    guidance = ClassifierGuidance(
        eager.classifier, eager.feature, eager.scales, LEVEL_WEIGHTS[CONFIG.kind]
    )

    def latents(config: GuidanceConfig, indices: list[int]) -> Tensor:
        rows = eager.rows(indices)
        assert eager.conditioning is not None and rows is not None
        return tfg_latents(
            model, guidance, config, sample_seeds(0, indices), eager.conditioning(rows)
        )

    return latents


def demo(engines: Path) -> Case:
    return Case(ModelSpec(assets.CLASSIFIER, assets.MODEL), assets.DATA, engines)


def light(engines: Path) -> Case:
    models = ModelSpec(assets.CLASSIFIER, assets.MODEL, assets.GRADIENT_DECODER)
    return Case(models, assets.DATA, engines)


def reduced_stable_diffusion(work: Path) -> Case:
    model, classifier, images = make_all(work, REDUCED)
    return Case(ModelSpec(classifier, model), images, work / "engines", batches=(1, 8))


def light_stable_diffusion(work: Path) -> Case:
    case = reduced_stable_diffusion(work)
    models = replace(case.models, gradient_decoder=light_decoder(case.models.diffusion_path))
    return replace(case, models=models, engines=work / "light-engines")


def compiled(generator: Generator) -> Generator:
    """The eager generator with torch.compile on UNet, decoder and classifier."""
    unet = torch.compile(generator.denoiser.differentiable)
    return replace(
        generator,
        denoiser=replace(generator.denoiser, network=unet, differentiable=unet),
        decode=torch.compile(generator.decode),
        decode_with_gradient=torch.compile(generator.decode_with_gradient),
        classifier=torch.compile(generator.classifier),
    )


def measure_samplers(case: Case, generators: dict[str, Generator], repeats: int) -> dict[str, Any]:
    """Seconds of every variant by setting and batch, and how far each one's images are from the TFG
    loop's."""
    eager = generators["eager"]
    loop = loop_of(case, eager)
    found: dict[str, Any] = {}
    for setting, config in SETTINGS.items():
        for batch in case.batches:
            indices = list(range(batch))
            works: dict[str, Callable[[], Tensor]] = {
                name: partial(latents_of, generator, config, indices)
                for name, generator in generators.items()
            }
            works["unguided"] = partial(latents_of, generators["engines"], None, indices)
            works["tfg"] = partial(loop, config, indices)
            plain = works["tfg"]()
            with torch.no_grad():
                expected = eager.decode(plain)
                differences = {
                    name: (eager.decode(run()) - expected).abs().amax((1, 2, 3))
                    for name, run in works.items()
                    if name not in ("unguided", "tfg")
                }
            largest = {name: float(each.max()) for name, each in differences.items()}
            click.echo(f"{setting}, batch {batch}: images differ from the TFG loop's by {largest}")
            seconds = side_by_side(works, repeats)
            found.setdefault(setting, {})[str(batch)] = {
                "seconds": seconds,
                "images_per_second": {
                    name: batch / float(np.median(values)) for name, values in seconds.items()
                },
                "times_tfg": {
                    name: ratio(seconds["tfg"], values) for name, values in seconds.items()
                },
                "times_unguided": {
                    name: ratio(values, seconds["unguided"]) for name, values in seconds.items()
                },
                "max_difference": largest,
                "same_images": {
                    name: float((each <= SAME_IMAGE).double().mean())
                    for name, each in differences.items()
                },
            }
    return found


def measure_vjps(engines: Path, repeats: int) -> dict[str, Any]:
    """The VJP engines of decoder and UNet against autograd, alone."""
    model = load_diffusion(assets.MODEL)
    assert model.decoder is not None
    loaded = load_engines(engines, names=("decoder_vjp", "network_vjp"))
    references = {
        "decoder_vjp": AutogradVjp(model.decoder, 1, 0),
        "network_vjp": AutogradVjp(model.network, 1, 0),
    }
    found: dict[str, Any] = {}
    for name, reference in references.items():
        for batch in BATCHES:
            generator = torch.Generator().manual_seed(batch)
            z = torch.randn(batch, *model.sample_shape, generator=generator)
            arrays = (
                {"latents": z}
                if name == "decoder_vjp"
                else {
                    "sample": z,
                    "timestep": torch.full((batch,), 500.0),
                    "class_labels": torch.arange(batch) % 8,
                }
            )
            shape = model.image_shape if name == "decoder_vjp" else model.sample_shape
            arrays = {"cotangent": torch.randn(batch, *shape, generator=generator), **arrays}
            works = {
                "engine": partial(loaded[name].__call__, **arrays),
                "autograd": partial(reference, *arrays.values()),
            }
            expected = reference(*arrays.values())[-1]
            difference = (
                loaded[name](**arrays)["gradient"] - expected
            ).abs().max() / expected.square().mean().sqrt()
            seconds = side_by_side(works, max(repeats, 9))
            found.setdefault(name, {})[str(batch)] = {
                "seconds": seconds,
                "times_autograd": ratio(seconds["autograd"], seconds["engine"]),
                "relative_error": float(difference),
            }
    return found


def measure_parts(generators: dict[str, Generator], repeats: int) -> dict[str, Any]:
    """Where a guided step's time goes: medians in seconds of each part, by variant and batch."""
    return {
        name: {
            str(batch): {
                part: float(np.median(seconds))
                for part, seconds in side_by_side(
                    step_parts(generator, CONFIG, batch), repeats
                ).items()
            }
            for batch in BATCHES
        }
        for name, generator in generators.items()
    }


def in_processes(
    engines: Path, works: Mapping[str, tuple[str, int]], repeats: int
) -> dict[str, dict[str, float]]:
    """Medians of seconds and peak memory of fresh processes that sample so many images, guided by
    mu, in batches of 16.

    ``works`` are kind and number of images by name; they run in turn. Peaks differ by 5 % from one
    process to the next.
    """
    found: dict[str, list[list[float]]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, (kind, count) in works.items():
            command = [
                sys.executable,
                __file__,
                "--engines",
                str(engines),
                "--images",
                str(count),
                "--kind",
                kind,
            ]
            printed = subprocess.run(
                command, check=True, capture_output=True, text=True
            ).stdout.split()
            found[name].append([float(figure) for figure in printed[-2:]])
    figures = "seconds", "peak_gib"
    return {
        name: dict(zip(figures, np.median(runs, 0).tolist(), strict=True))
        for name, runs in found.items()
    }


def sample_and_report(engines: Path, kind: str, count: int) -> None:
    """What such a process does."""
    case = demo(engines)
    generator = open_case(
        case, kind if kind in GENERATORS else "eager" if kind == "tfg" else "engines"
    )
    of_generator = partial(latents_of, generator, None if kind == "unguided" else SETTINGS["mu"])
    run = partial(loop_of(case, generator), SETTINGS["mu"]) if kind == "tfg" else of_generator
    run(list(range(16)))
    seconds = side_by_side(
        {"all": lambda: [run(list(range(i, i + 16))) for i in range(0, count, 16)]}, repeats=1
    )
    # not ru_maxrss, which counts from the parent's memory
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    click.echo(f"{seconds['all'][0]} {int(peak[1]) / 2**20}")


def bars_of(figures: dict[str, Any]) -> list[Bar]:
    """Every bar of the sampler."""
    bars = []
    for case, title in CASES.items():
        for setting, batches in figures.get(case, {}).items():
            for batch, found in batches.items():
                name, bound = f"{title}{setting}, batch {batch}", 2.0 if batch == "1" else 1.5
                difference = found["max_difference"]["engines"]
                bars += [
                    Bar(
                        f"{name}: engines, times the TFG loop",
                        found["times_tfg"]["engines"],
                        ">=",
                        bound,
                    ),
                    Bar(f"{name}: images differ", difference, "<=", SAME_IMAGE),
                ]
                if setting == "mu":
                    cost = found["times_unguided"]["engines"]
                    bars.append(Bar(f"{name}: guided, times unguided", cost, "<=", 2.0))
    for name, batches in figures.get("vjps", {}).items():
        for batch, found in batches.items():
            bound = 2.0 if batch == "1" else 1.3
            bars.append(
                Bar(
                    f"{name}, batch {batch}: engine, times autograd",
                    found["times_autograd"],
                    ">=",
                    bound,
                )
            )
            bars.append(
                Bar(f"{name}, batch {batch}: relative error", found["relative_error"], "<=", 1e-4)
            )
    if "growth" not in figures:
        return bars
    growth = figures["growth"]
    per_image = [found["seconds"] / int(count) for count, found in growth.items()]
    memory = [found["peak_gib"] for found in growth.values()]
    bars.append(
        Bar("seconds an image, 128 images against 32", per_image[-1] / per_image[0], "<=", 1.15)
    )
    bars.append(
        Bar("peak memory, 128 images against fewer", memory[-1] / min(memory[:-1]), "<=", 1.05)
    )
    return bars


@click.command()
@click.option(
    "--engines", type=click.Path(path_type=Path), default=Path("build/engines"), show_default=True
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("build/stable-diffusion"),
    show_default=True,
    help="Where the model of Stable Diffusion's architecture is made.",
)
@click.option("--repeats", default=5, show_default=True)
@click.option(
    "--compile/--no-compile", "with_compile", help="With torch.compile, into results/compile.json."
)
@click.option(
    "--light",
    "with_light",
    is_flag=True,
    help="The light decoders alone, into results/light_decoder.json.",
)
@click.option("--images", type=int, hidden=True)
@click.option("--kind", hidden=True)
def main(
    engines: Path,
    work: Path,
    repeats: int,
    with_compile: bool,
    with_light: bool,
    images: int | None,
    kind: str,
) -> None:
    """Measures, and writes results/sampler.json."""
    if images is not None:
        sample_and_report(engines, kind, images)
        return
    context = {"steps": STEPS, "threads": torch.get_num_threads()}

    def measured(case: Case) -> tuple[dict[str, Generator], dict[str, Any]]:
        generators = {kind: open_case(case, kind) for kind in GENERATORS}
        return generators, measure_samplers(case, generators, repeats)

    if with_compile:
        case = demo(engines)
        generators = {kind: open_case(case, kind) for kind in GENERATORS}
        generators["compile"] = compiled(generators["eager"])
        write_result(
            "compile",
            {**context, "samplers": measure_samplers(case, generators, repeats)},
            [],
            script="sampler",
        )
        return
    if with_light:
        generators, found = measured(light(engines))
        figures = {
            **context,
            "light_decoder": found,
            "light_stable_diffusion": measured(light_stable_diffusion(work))[1],
            "parts": measure_parts(generators, repeats),
        }
        write_result("light_decoder", figures, bars_of(figures), script="sampler")
        return
    generators, found = measured(demo(engines))
    figures = {
        **context,
        "samplers": found,
        "stable_diffusion": measured(reduced_stable_diffusion(work))[1],
        "vjps": measure_vjps(engines, repeats),
        "parts": measure_parts(generators, repeats),
        "growth": in_processes(
            engines, {str(count): ("engines", count) for count in (32, 64, 128)}, repeats
        ),
        "processes": in_processes(
            engines, {kind: (kind, 32) for kind in (*GENERATORS, "unguided", "tfg")}, repeats
        ),
    }
    write_result("sampler", figures, bars_of(figures))


if __name__ == "__main__":
    main()
