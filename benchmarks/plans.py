"""TensorRT plans of every exported graph, by the real builder and without a GPU: layers, build
time, size.

    python benchmarks/plans.py --engines build/engines

Every graph, those with gradients too, is built for each architecture alone and for all of them in
one plan, with a dynamic batch of 1/8/32; in fp16 and bf16 for all of them, with the rounding error
of that, found in ONNX Runtime on random inputs. Nothing is run on a GPU here:
`benchmarks/gpu_check.sh` does that.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from half_precision import rounding_error
from numpy.typing import NDArray
from record import Bar, write_result

from good_rt.demo import assets
from good_rt.engines.base import TensorSpec
from good_rt.engines.open import open_engine
from good_rt.engines.tensorrt import load_library
from good_rt.errors import GoodRtError
from good_rt.export.manifest import GraphEntry, Manifest
from good_rt.export.precision import HALF
from good_rt.export.tensorrt import PLAN_BATCHES, PlanConfig, build_plan
from good_rt.models import ModelSpec
from good_rt.workflow.export import export

ARCHITECTURES = ("sm86", "sm89", "sm120")
ERROR_BATCH = 4


def inputs_of(
    manifest: Manifest, engines: Path, name: str, batch: int
) -> dict[str, NDArray[np.generic]]:
    """Inputs such as the graph meets: unit noise, timesteps over the whole range, labels, weights
    of 0.5.

    A backward half gets what its forward half gives on such inputs.
    """
    stem = name.removesuffix("_backward")
    if stem == name:
        return random_inputs(manifest.graphs[name], batch)
    forward = f"{stem}_forward"
    arrays = {
        key: torch.from_numpy(value)
        for key, value in inputs_of(manifest, engines, forward, batch).items()
    }
    arrays |= open_engine(engines / manifest.graphs[forward].file)(**arrays)
    cotangents = random_inputs(manifest.graphs[name], batch)
    return {
        key: arrays[key].numpy() if key in arrays else value for key, value in cotangents.items()
    }


def random_inputs(entry: GraphEntry, batch: int) -> dict[str, NDArray[np.generic]]:
    """The same for a graph whose inputs do not depend on each other."""
    chance = np.random.default_rng(batch)

    def array(name: str, spec: TensorSpec) -> NDArray[np.generic]:
        shape = [batch if isinstance(size, str) else size for size in spec.shape]
        if name == "timestep":
            return np.linspace(999, 0, batch).round().astype(np.float32)
        if spec.dtype == "int64":
            return np.arange(batch) % len(assets.CLASSES)
        if name.endswith("_weight"):
            return np.full(shape, 0.5, np.float32)
        return chance.standard_normal(shape).astype(np.float32)

    return {name: array(name, spec) for name, spec in entry.inputs.items()}


def measure(path: Path, config: PlanConfig, folder: Path) -> dict[str, Any]:
    """One build, from nothing: its figures, or the error."""
    row = {
        "graph": path.stem,
        "architectures": list(config.architectures),
        "precision": config.precision,
    }
    try:
        info, _ = build_plan(path, config, folder / f"{path.stem}.plan", force=True)
    except GoodRtError as error:
        return {**row, "error": str(error)}
    return {
        **row,
        "layers": info.layers,
        "build_seconds": info.build_seconds,
        "plan_bytes": info.plan_bytes,
    }


@click.command()
@click.option(
    "--engines", type=click.Path(path_type=Path), default=Path("build/engines"), show_default=True
)
@click.option(
    "--graph", "only", multiple=True, help="Only this graph; nothing is written to results/ then."
)
def main(engines: Path, only: tuple[str, ...]) -> None:
    """Build the plans of the demo's graphs (exported to --engines first where they are not there)
    and record them."""
    if not engines.exists():
        export(ModelSpec(assets.CLASSIFIER, assets.MODEL), assets.DATA, engines)
    manifest = Manifest.read(engines)
    manifest.check_files(engines)
    entries = {name: entry for name, entry in manifest.graphs.items() if not only or name in only}
    configs = [
        *(PlanConfig((architecture,)) for architecture in ARCHITECTURES),
        *(PlanConfig(ARCHITECTURES, precision) for precision in ("fp32", *HALF)),
    ]
    rows: list[dict[str, Any]] = []
    errors: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, entry in entries.items():
            for config in configs:
                rows.append(measure(engines / entry.file, config, Path(folder)))
                print(rows[-1], flush=True)
            model, inputs = (
                onnx.load(engines / entry.file),
                inputs_of(manifest, engines, name, ERROR_BATCH),
            )
            errors[name] = {
                precision: rounding_error(model, precision, inputs) for precision in HALF
            }
            print(name, errors[name], flush=True)
    ways = {
        way: {
            "seconds": round(sum(row.get("build_seconds", 0) for row in found), 1),
            "bytes": sum(row.get("plan_bytes", 0) for row in found),
        }
        for way, found in {
            "one plan for all": [
                row for row in rows if row["precision"] == "fp32" and len(row["architectures"]) > 1
            ],
            "one each": [row for row in rows if len(row["architectures"]) == 1],
        }.items()
    }
    bars = [
        Bar(
            f"{name}: plans built, of {len(configs)}",
            sum("error" not in row for row in found),
            "==",
            len(configs),
        )
        for name in entries
        if (found := [row for row in rows if row["graph"] == Path(entries[name].file).stem])
    ]
    library = load_library()
    figures = {
        "library": f"{library.name} {library.version}",
        "profile": list(PLAN_BATCHES),
        "architectures": ways,
        "plans": rows,
        "rounding": errors,
    }
    if only:
        print(figures)
        return
    write_result("plans", figures, bars)


if __name__ == "__main__":
    main()
