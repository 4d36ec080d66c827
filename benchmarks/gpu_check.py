"""Everything that only a GPU can show: plans built for it, parity with PyTorch, and time against
the other runtimes.

    benchmarks/gpu_check.sh

Writes results/gpu.json, and a copy to $OUT where that is set. What is missing on the machine (a
library, a provider, an architecture that the library has no plans for) is written down as missing,
with the reason; nothing stands in for it. NOT YET RUN ON A GPU: the PyTorch and ONNX Runtime parts
were tried on a CPU.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from plans import inputs_of
from record import Bar, write_result
from torch import Tensor, nn

from good_rt.classifier import load_classifier
from good_rt.config.settings import GenerationConfig, GuidanceConfig, SamplerConfig
from good_rt.demo import assets
from good_rt.diffusion import load_diffusion
from good_rt.engines.base import Engine
from good_rt.engines.open import open_engine
from good_rt.engines.tensorrt import LIBRARIES, load_library, present_architecture, present_device
from good_rt.errors import GoodRtError, first_line
from good_rt.export.manifest import GraphEntry, Manifest, load_engines
from good_rt.export.parity import AutogradVjp
from good_rt.export.tensorrt import PRECISIONS, PlanConfig, load_plan
from good_rt.models import ModelSpec
from good_rt.workflow.bench import bench_sampler
from good_rt.workflow.export import export

BATCHES = (1, 8, 32)
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
"""Largest difference from PyTorch in float32, relative to the output's RMS, that passes."""

Arrays = Mapping[str, Tensor]
Run = Callable[[Arrays], Mapping[str, Tensor]]


def modules() -> dict[str, nn.Module]:
    """The PyTorch side of the graphs that have one: modules, and autograd for those with a
    gradient."""
    model, classifier = load_diffusion(assets.MODEL), load_classifier(assets.CLASSIFIER)
    found = {
        "network": model.network,
        "classifier": classifier,
        "network_vjp": AutogradVjp(model.network, 1, 0),
    }
    if model.encoder is not None and model.decoder is not None:
        found |= {"vae_encoder": model.encoder, "vae_decoder": model.decoder}
        found["decoder_vjp"] = AutogradVjp(model.decoder, 1, 0)
    return found


def of_module(module: Callable[..., Any], entry: GraphEntry) -> Run:
    def run(arrays: Arrays) -> Mapping[str, Tensor]:
        with torch.no_grad():
            values = module(*(arrays[name] for name in entry.inputs))
        return dict(
            zip(entry.outputs, values if isinstance(values, tuple) else (values,), strict=True)
        )

    return run


def of_engine(engine: Engine) -> Run:
    return lambda arrays: engine(**arrays)


def on_cuda(name: str, engines: Path, precision: str) -> Run:
    """ONNX Runtime's CUDA provider."""
    loaded = load_engines(
        engines, names=[name], device=present_device(), precisions={name: precision}
    )
    return of_engine(loaded[name])


def on_plan(path: Path, plan: Path, library: str, precision: str, cuda_graphs: bool) -> Run:
    """A plan for the GPU that is there, built where it is not there yet."""
    return of_engine(
        load_plan(
            path, PlanConfig(precision=precision, library=library), plan, cuda_graphs=cuda_graphs
        )
    )


def runners(
    name: str, entry: GraphEntry, engines: Path, module: nn.Module | None, work: Path
) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Every way to run a graph, and what sets it up, which raises where the machine lacks
    something."""
    path = engines / entry.file
    if module is not None:
        yield "torch eager", lambda: of_module(module, entry)
        yield "torch.compile", lambda: of_module(torch.compile(module), entry)
    for precision in ("fp32", "fp16"):
        yield f"onnxruntime cuda {precision}", partial(on_cuda, name, engines, precision)
    for library, precision, graphs in itertools.product(LIBRARIES, PRECISIONS, (False, True)):
        plan = work / f"{name}.{library}.{precision}.plan"
        label = f"{library} {precision}{', CUDA graphs' if graphs else ''}"
        yield label, partial(on_plan, path, plan, library, precision, graphs)


def seconds(
    run: Run, arrays: Arrays, device: torch.device, repeats: int = 50, warm_up: int = 10
) -> float:
    """The median of single runs, each from an idle device to an idle device."""

    def settle() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(warm_up):
        run(arrays)
    settle()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        run(arrays)
        settle()
        found.append(time.perf_counter() - began)
    return float(np.median(found))


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference over all outputs, relative to each output's RMS; NaN where there is
    one."""
    worst = []
    for name, reference in expected.items():
        reference = reference.double().cpu()
        spread = reference.square().mean().sqrt().clamp_min(1e-12)
        worst.append(float((found[name].double().cpu() - reference).abs().max() / spread))
    return float(np.max(worst))


def check_graph(
    name: str,
    manifest: Manifest,
    engines: Path,
    module: nn.Module | None,
    device: torch.device,
    work: Path,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Parity and time of every way to run a graph at every batch, and what could not be run."""
    rows, missing, entry = [], [], manifest.graphs[name]
    inputs = {
        batch: {
            key: torch.from_numpy(value)
            for key, value in inputs_of(manifest, engines, name, batch).items()
        }
        for batch in BATCHES
    }
    # float32 on the CPU is the reference of all, the file itself where PyTorch has no module for it
    if module is not None:
        module.cpu()  # shared with the graph of its gradient, which may have taken it to the GPU
    reference = (
        of_module(module, entry)
        if module is not None
        else of_engine(open_engine(engines / entry.file))
    )
    expected = {batch: dict(reference(arrays)) for batch, arrays in inputs.items()}
    if module is not None:
        module.to(device)
    for label, set_up in runners(name, entry, engines, module, work):
        try:
            run = set_up()
            for batch, arrays in inputs.items():
                here = {key: value.to(device) for key, value in arrays.items()}
                off = difference(run(here), expected[batch])
                row = {
                    "graph": name,
                    "run": label,
                    "batch": batch,
                    "difference": off,
                    "seconds": seconds(run, here, device),
                }
                rows.append(row)
                print(row, flush=True)
        except Exception as error:  # whatever a runtime raises is what this machine has to say
            reason = first_line(error)
            missing.append({"graph": name, "run": label, "reason": reason})
            print(f"missing: {name}, {label}: {reason}", flush=True)
    return rows, missing


def time_sampler(engines: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The guided sampler on the GPU, with as many of the TensorRT precisions as this machine
    builds."""
    missing = []
    config = GenerationConfig(guidance=GuidanceConfig(mu=0.1), sampler=SamplerConfig(10))
    for precisions in (PRECISIONS, PRECISIONS[:1], ()):
        try:
            models = ModelSpec(assets.CLASSIFIER, assets.MODEL).load("cuda")
            speed = bench_sampler(
                models, assets.DATA, config, engines, BATCHES, repeats=5, plans=precisions
            )
            return speed, missing
        except Exception as error:
            reason = first_line(error)
            missing.append(
                {
                    "graph": "the sampler",
                    "run": f"TensorRT {' '.join(precisions)}",
                    "reason": reason,
                }
            )
    return {}, missing


def bars_of(rows: list[dict[str, Any]]) -> list[Bar]:
    """Parity of every run of every graph, at its worst batch."""
    worst: dict[tuple[str, str], float] = {}
    for row in rows:
        key = (row["graph"], row["run"])
        worst[key] = float(np.maximum(worst.get(key, 0.0), row["difference"]))  # keeps NaN
    bounds = {
        key: next((TOLERANCES[name] for name in TOLERANCES if name in key[1]), TOLERANCES["fp32"])
        for key in worst
    }
    return [
        Bar(f"{graph}, {run}: difference", value, "<=", bounds[graph, run])
        for (graph, run), value in worst.items()
    ]


@click.command()
@click.option(
    "--engines", type=click.Path(path_type=Path), default=Path("build/engines"), show_default=True
)
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("build/gpu"), show_default=True
)
def main(engines: Path, work: Path) -> None:
    """Check and time every exported graph on the GPU of this machine."""
    if not torch.cuda.is_available():
        print(
            "PyTorch sees no CUDA GPU here: nothing was checked, and nothing written",
            file=sys.stderr,
        )
        sys.exit(2)
    # float32 means float32 on every side
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if not engines.exists():
        export(ModelSpec(assets.CLASSIFIER, assets.MODEL), assets.DATA, engines)
    work.mkdir(parents=True, exist_ok=True)
    manifest, device = Manifest.read(engines), torch.device("cuda", torch.cuda.current_device())
    manifest.check_files(engines)
    rows, missing, torch_side = [], [], modules()
    for name in manifest.graphs:
        found, lacking = check_graph(name, manifest, engines, torch_side.get(name), device, work)
        rows += found
        missing += lacking
    sampler, lacking = time_sampler(engines)
    missing += lacking
    figures = {
        "gpu": torch.cuda.get_device_name(device),
        "architecture": present_architecture(),
        "cuda": torch.version.cuda,
        "libraries": {name: version_of(name) for name in LIBRARIES},
        "rows": rows,
        "sampler": sampler,
        "missing": missing,
    }
    path = write_result("gpu", figures, bars_of(rows), script="gpu_check")
    if os.environ.get("OUT"):
        shutil.copy(path, os.environ["OUT"])


def version_of(library: str) -> str | None:
    """The library's version, None where it is not installed."""
    try:
        return load_library(library).version
    except GoodRtError:
        return None


if __name__ == "__main__":
    main()
