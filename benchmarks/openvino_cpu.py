"""OpenVINO against ONNX Runtime on the same exported graphs: whether its results are PyTorch's, and
how fast they come.

    python benchmarks/openvino_cpu.py --engines build/engines

Each graph runs with a dynamic batch and with the batch fixed, on one thread on either side, in
turn, so that another job on the machine slows both; only the ratios mean something. An engine is
worth adding where every result is right and the graphs of a guided step are 1.2 times as fast.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from gpu_check import difference, modules, of_module
from numpy.typing import NDArray
from plans import inputs_of
from record import Bar, write_result
from torch import Tensor

from good_rt.demo import assets
from good_rt.engines.base import Engine
from good_rt.engines.open import open_engine
from good_rt.errors import first_line
from good_rt.export.manifest import Manifest
from good_rt.export.parity import nearest
from good_rt.export.vjp import GRADIENT
from good_rt.models import ModelSpec
from good_rt.workflow.bench import ratio, side_by_side
from good_rt.workflow.export import export

GRAPHS = (
    "network",
    "vae_decoder",
    "classifier",
    "network_vjp",
    "network_backward",
    "decoder_backward",
    "guidance_vjp",
)
BATCHES = (1, 8, 32)
TOLERANCE = 1e-3
"""Largest difference from the reference, relative to the output's RMS, that passes."""
FASTER = 1.2

Arrays = Mapping[str, NDArray[np.generic]]
Run = Callable[[], Mapping[str, Tensor]]


def with_openvino(path: Path, arrays: Arrays, fixed: bool, exact: bool = True) -> tuple[Run, float]:
    """The graph on OpenVINO on one thread, and the seconds that it took to compile.

    Where it isn't told to be ``exact``, it computes in half precision on processors that have that.
    """
    import openvino as ov

    core = ov.Core()
    began = time.perf_counter()
    model = core.read_model(path)
    if fixed:
        model.reshape({name: list(array.shape) for name, array in arrays.items()})
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    settings |= {"INFERENCE_PRECISION_HINT": "f32"} if exact else {}
    compiled = core.compile_model(model, "CPU", settings)
    seconds = time.perf_counter() - began
    request, names = (
        compiled.create_infer_request(),
        [output.get_any_name() for output in compiled.outputs],
    )

    def run() -> Mapping[str, Tensor]:
        found = request.infer(dict(arrays), share_inputs=True, share_outputs=False)
        return {name: torch.from_numpy(np.array(found[name])) for name in names}

    return run, seconds


def reference_of(
    name: str, manifest: Manifest, engines: Path, batch: int
) -> tuple[Mapping[str, Tensor], str]:
    """What PyTorch computes, a backward half's gradient by autograd; of the fused graph what ONNX
    Runtime computes."""
    arrays = tensors_of(name, manifest, engines, batch)
    side, stem = modules(), name.removesuffix("_backward")
    if name in side:
        return of_module(side[name], manifest.graphs[name])(arrays), "PyTorch"
    if stem != name:
        joint = manifest.graphs[f"{stem}_vjp"]
        inputs = {
            **tensors_of(f"{stem}_forward", manifest, engines, batch),
            "cotangent": arrays["cotangent"],
        }
        return {GRADIENT: of_module(side[f"{stem}_vjp"], joint)(inputs)[GRADIENT]}, "PyTorch"
    return open_engine(engines / manifest.graphs[name].file, threads=1)(**arrays), "ONNX Runtime"


def off(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    engine: Engine,
    inputs: Mapping[str, Tensor],
) -> float:
    """The difference from the reference; a gradient's from one at inputs that differ by rounding,
    where it jumps."""
    plain = difference(found, expected)
    if plain <= TOLERANCE or GRADIENT not in expected:
        return plain
    reference = expected[GRADIENT].double()
    spread = reference.square().mean().sqrt()
    closest = nearest(
        (found[GRADIENT].double() - reference).abs(),
        torch.full_like(reference, TOLERANCE * float(spread)),
        found[GRADIENT],
        lambda *arrays: tuple(engine(**dict(zip(inputs, arrays, strict=True))).values()),
        list(inputs.values()),
    )
    others = {name: value for name, value in expected.items() if name != GRADIENT}
    return max(float(closest.max() / spread), difference(found, others) if others else 0.0)


def tensors_of(name: str, manifest: Manifest, engines: Path, batch: int) -> dict[str, Tensor]:
    return {
        key: torch.from_numpy(value)
        for key, value in inputs_of(manifest, engines, name, batch).items()
    }


def measure(
    name: str, manifest: Manifest, engines: Path, batch: int, repeats: int
) -> list[dict[str, Any]]:
    """A row for the dynamic and one for the fixed batch; an error where OpenVINO does not take the
    graph."""
    path = engines / manifest.graphs[name].file
    arrays = inputs_of(manifest, engines, name, batch)
    engine = open_engine(path, threads=1)
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    expected, by = reference_of(name, manifest, engines, batch)
    row = {"graph": name, "batch": batch, "reference": by}
    variants: dict[str, Callable[[], object]] = {"onnxruntime": lambda: engine(**tensors)}
    rows = []
    for label, fixed in (("dynamic", False), ("fixed", True)):
        try:
            run, seconds = with_openvino(path, arrays, fixed)
            found = {
                "difference": off(run(), expected, engine, tensors),
                "compile_seconds": round(seconds, 2),
            }
            loose, _ = with_openvino(path, arrays, fixed, exact=False)
            found["difference_by_default"] = difference(loose(), expected)
            variants[label] = run
        except Exception as error:  # whatever it raises is what it has to say of the graph
            found = {"error": first_line(error)}
        rows.append({**row, "shapes": label, **found})
    timed = side_by_side(variants, repeats)
    for found in rows:
        found["onnxruntime_difference"] = difference(engine(**tensors), expected)
        if found["shapes"] in timed:
            found["seconds"] = float(np.median(timed[found["shapes"]]))
            found["onnxruntime_seconds"] = float(np.median(timed["onnxruntime"]))
            found["times_as_fast"] = ratio(timed["onnxruntime"], timed[found["shapes"]])
        print(found, flush=True)
    return rows


def bars_of(rows: list[dict[str, Any]]) -> list[Bar]:
    """What would have to hold for an engine to be added: right everywhere, and faster as a rule."""
    bars = []
    for shapes in ("dynamic", "fixed"):
        found = [row for row in rows if row["shapes"] == shapes]
        worst = max(
            (row.get("difference", float("inf")) for row in found),
            key=lambda value: np.nan_to_num(value, nan=np.inf),
        )
        right = sum(row.get("difference", float("inf")) <= TOLERANCE for row in found)
        faster = float(np.median([row.get("times_as_fast", 0.0) for row in found]))
        bars += [
            Bar(
                f"OpenVINO, {shapes} batch: graphs and batches with right results, of {len(found)}",
                right,
                "==",
                len(found),
            ),
            Bar(f"OpenVINO, {shapes} batch: worst difference", worst, "<=", TOLERANCE),
            Bar(
                f"OpenVINO, {shapes} batch: median times as fast as ONNX Runtime",
                faster,
                ">=",
                FASTER,
            ),
        ]
    return bars


@click.command()
@click.option(
    "--engines", type=click.Path(path_type=Path), default=Path("build/engines"), show_default=True
)
@click.option("--repeats", default=7, show_default=True)
@click.option(
    "--graph", "only", multiple=True, help="Only this graph; nothing is written to results/ then."
)
def main(engines: Path, repeats: int, only: tuple[str, ...]) -> None:
    """Measures, and writes results/openvino.json."""
    torch.set_num_threads(1)
    if not engines.exists():
        export(ModelSpec(assets.CLASSIFIER, assets.MODEL), assets.DATA, engines)
    manifest = Manifest.read(engines)
    manifest.check_files(engines)
    rows = [
        row
        for name in only or GRAPHS
        for batch in BATCHES
        for row in measure(name, manifest, engines, batch, repeats)
    ]
    bars = bars_of(rows)
    if only:
        return
    missed = [bar.name for bar in bars if not bar.ok]
    figures = {
        "threads": 1,
        "timing": "one thread each, in turn",
        "engine_added": False,
        "missed": missed,
        "rows": rows,
    }
    write_result("openvino", figures, bars, script="openvino_cpu")


if __name__ == "__main__":
    main()
