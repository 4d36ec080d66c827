"""Builds TensorRT plans of ONNX graphs, and leaves alone those that nothing changed for.

TensorRT-RTX builds on any machine, with or without a GPU, and one plan of it holds several
architectures; TensorRT builds for the GPU that is there. Networks are strongly typed: the precision
is the graph's own (`good_rt.export.precision`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto

import good_rt
from good_rt.engines.base import TensorSpec
from good_rt.engines.onnx_file import data_files, read_graph
from good_rt.engines.tensorrt import (
    Library,
    PlanInfo,
    Range,
    TensorRTEngine,
    info_path,
    load_library,
    present_architecture,
)
from good_rt.errors import GoodRtError
from good_rt.export.manifest import Manifest, graph_hash
from good_rt.export.precision import HALF, in_precision
from good_rt.files import atomic_path, sha256, write_json

PRECISIONS = ("fp32", *HALF)
PLAN_BATCHES: Range = (1, 8, 32)
TURING = "sm75"
"""Left out of the default architectures: it has no bf16, and a plan that holds it is slower on the
others."""
PLAN_TYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
}
"""What TensorRT takes as inputs and gives as outputs. Not double: it would compute it in float32
and not say so."""


@dataclass(frozen=True)
class PlanConfig:
    """How a plan is built.

    Attributes:
        architectures: GPU architectures, such as "sm89"; empty for the current GPU's with TensorRT,
            and for all from Ampere on that TensorRT-RTX offers.
        precision: "fp32", "fp16" or "bf16".
        profile: Least, usual and largest length of every dynamic dimension, by its name.
        library: One of `LIBRARIES`; None for the first that is installed.
        tf32: Whether float32 may be computed with 10-bit mantissas.
        optimisation_level: TensorRT's builder optimisation level, 0 to 5; None for its default.
        timing_cache: File that TensorRT keeps its kernels' timings in; None for tensorrt.timings
            beside the plan. TensorRT-RTX times nothing.

    Raises:
        GoodRtError: a setting is out of its range.
    """

    architectures: tuple[str, ...] = ()
    precision: str = "fp32"
    profile: Mapping[str, Range] = field(default_factory=lambda: {"batch": PLAN_BATCHES})
    library: str | None = None
    tf32: bool = False
    optimisation_level: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise GoodRtError(
                f"there is no precision {self.precision!r}; there are {', '.join(PRECISIONS)}"
            )
        for name, (low, best, high) in self.profile.items():
            if not 1 <= low <= best <= high:
                raise GoodRtError(
                    f"the profile of {name!r} is {low}/{best}/{high}; it must be "
                    "least/usual/largest, from 1"
                )
        if self.optimisation_level is not None and not 0 <= self.optimisation_level <= 5:
            raise GoodRtError(f"optimisation levels go from 0 to 5, not {self.optimisation_level}")


def plan_path(folder: Path, graph: str, config: PlanConfig) -> Path:
    """The path of a graph's plan; plans of other precisions have other names.

    Args:
        folder: Folder of the engines.
        graph: Name of the graph.
        config: Decides the precision.
    """
    return folder / f"{graph}.{config.precision}.plan"


def build_plans(
    folder: Path,
    config: PlanConfig,
    *,
    force: bool = False,
    on_graph: Callable[[str], None] = lambda name: None,
) -> dict[str, tuple[PlanInfo, bool]]:
    """Builds the plans of all graphs in a folder of engines, beside them.

    Args:
        folder: Folder of the engines.
        config: How plans are built.
        force: Also builds unchanged plans again.
        on_graph: Called with the name of each graph before its plan is built.

    Returns:
        What `build_plan` returned, by graph.

    Raises:
        GoodRtError: the folder holds no engines, one is damaged, or a plan cannot be built.
    """
    manifest = Manifest.read(folder)
    manifest.check_files(folder)
    plans = {}
    for name, entry in manifest.graphs.items():
        on_graph(name)
        plans[name] = build_plan(
            folder / entry.file, config, plan_path(folder, name, config), force=force
        )
    return plans


def load_plan(
    onnx_path: Path, config: PlanConfig, plan: Path, *, cuda_graphs: bool = False
) -> TensorRTEngine:
    """The engine of a graph's plan on the current GPU.

    The existing plan is used when it runs on this GPU and its profile covers that of ``config``.
    Otherwise it is built again, by the first library that has plans for this GPU.

    Args:
        onnx_path: The graph, an ONNX file.
        config: How the plan is built.
        plan: Path of the plan.
        cuda_graphs: Records and replays the kernels of each set of shapes; see `TensorRTEngine`.

    Raises:
        GoodRtError: there is no GPU, or the plan cannot be built.
    """
    architecture = present_architecture()
    if architecture is None:
        raise GoodRtError(
            "TensorRT's plans run on an NVIDIA GPU, and PyTorch sees none here; ONNX Runtime needs "
            "none"
        )
    graph_sha256 = graph_hash(onnx_path, data_files(read_graph(onnx_path)))
    try:
        found = TensorRTEngine(plan, graph_sha256=graph_sha256, cuda_graphs=cuda_graphs)
    except GoodRtError:
        found = None
    if found is None or not _holds(found.info, config):
        library = load_library(config.library, architecture)
        present = replace(
            config, architectures=(architecture,) if library.targets else (), library=library.name
        )
        build_plan(onnx_path, present, plan)
        found = TensorRTEngine(plan, graph_sha256=graph_sha256, cuda_graphs=cuda_graphs)
    return found


def _holds(info: PlanInfo, config: PlanConfig) -> bool:
    """Whether a plan takes the shapes that are asked for, with no less precision."""
    ranges = [(info.profile.get(name), wanted) for name, wanted in config.profile.items()]
    return info.tf32 <= config.tf32 and all(
        own is None or (own[0] <= wanted[0] and wanted[2] <= own[2]) for own, wanted in ranges
    )


def build_plan(
    onnx_path: Path, config: PlanConfig, out: Path, *, force: bool = False
) -> tuple[PlanInfo, bool]:
    """Writes the plan of an ONNX file, and a JSON that describes it beside it.

    Args:
        onnx_path: The graph, an ONNX file.
        config: How the plan is built.
        out: Path of the plan.
        force: Also builds an unchanged plan again.

    Returns:
        The plan's description, and whether it was built.

    Raises:
        GoodRtError: no TensorRT is installed, the file is not valid ONNX, TensorRT does not know an
            operation (it names the operation), or an architecture or profile does not fit; ``out``
            stays as it was.
    """
    library = load_library(config.library)
    architectures = _architectures(library, config)
    model = read_graph(onnx_path)
    profile = _profile(model, config, onnx_path)
    graph_sha256 = graph_hash(onnx_path, data_files(model))
    options = {
        "good-rt": good_rt.__version__,  # whose rules say what is computed in half precision
        "graph": graph_sha256,
        "library": [library.name, library.version],
        "architectures": architectures,
        "precision": config.precision,
        "profile": profile,
        "tf32": config.tf32,
        "optimisation_level": config.optimisation_level,
    }
    key = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
    if not force and (found := _unchanged(out, key)) is not None:
        return found, False
    inputs, outputs = _specs(model.graph.input, onnx_path), _specs(model.graph.output, onnx_path)
    began = time.perf_counter()
    plan, layers = _build(onnx_path, model, config, library, profile, out)
    seconds = time.perf_counter() - began
    with atomic_path(out) as temporary:
        temporary.write_bytes(plan)
        info = PlanInfo(
            graph=os.path.relpath(onnx_path.absolute(), out.absolute().parent),
            graph_sha256=graph_sha256,
            plan_sha256=sha256(temporary),
            plan_bytes=temporary.stat().st_size,
            library=library.name,
            library_version=library.version,
            architectures=architectures,
            precision=config.precision,
            profile=profile,
            tf32=config.tf32,
            optimisation_level=config.optimisation_level,
            layers=layers,
            build_seconds=round(seconds, 2),
            inputs=inputs,
            outputs=outputs,
            key=key,
        )
    write_json(info_path(out), info.to_json())
    return info, True


def check_config(config: PlanConfig) -> None:
    """Checks that a plan can be built here.

    Args:
        config: How it would be built.

    Raises:
        GoodRtError: no TensorRT is installed, or it does not build for an architecture here.
    """
    _architectures(load_library(config.library), config)


def _architectures(library: Library, config: PlanConfig) -> tuple[str, ...]:
    """The architectures to build for, in the library's order."""
    if not library.targets:
        present = present_architecture()
        if present is None:
            raise GoodRtError(
                f"{library.name} builds plans for the GPU that is there, and there is none; "
                "tensorrt-rtx needs none"
            )
        others = [name for name in config.architectures if name != present]
        if others:
            raise GoodRtError(
                f"{library.name} builds plans for the GPU that is there, {present}, not for "
                f"{others[0]}"
            )
        return (present,)
    unknown = [name for name in config.architectures if name not in library.targets]
    if unknown:
        raise GoodRtError(
            f"{library.name} {library.version} has no architecture {unknown[0]!r}; it has "
            f"{', '.join(library.targets)}"
        )
    return tuple(
        name
        for name in library.targets
        if (name in config.architectures if config.architectures else name != TURING)
    )


def _dimensions(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """A tensor's shape; a dynamic dimension without a name is "batch" where it is the first."""

    def size(place: int, dim: Any) -> int | str:
        if dim.HasField("dim_value"):
            return int(dim.dim_value)
        return str(dim.dim_param) or ("batch" if place == 0 else f"{value.name}.{place}")

    return tuple(size(place, dim) for place, dim in enumerate(value.type.tensor_type.shape.dim))


def _specs(values: Any, path: Path) -> dict[str, TensorSpec]:
    found = {}
    for value in values:
        kind = value.type.tensor_type.elem_type
        if kind not in PLAN_TYPES:
            name = TensorProto.DataType.Name(kind).lower()
            raise GoodRtError(
                f"{path}: {value.name!r} is {name}, which TensorRT does not take; it takes "
                f"{', '.join(PLAN_TYPES.values())}"
            )
        found[value.name] = TensorSpec(PLAN_TYPES[kind], _dimensions(value))
    return found


def _profile(model: ModelProto, config: PlanConfig, path: Path) -> dict[str, Range]:
    """The ranges of the dynamic dimensions that the graph's inputs have."""
    names = {
        name for value in model.graph.input for name in _dimensions(value) if isinstance(name, str)
    }
    missing = sorted(names - config.profile.keys())
    if missing:
        raise GoodRtError(
            f"{path}: dimension {missing[0]!r} is dynamic; give its --profile "
            f"{missing[0]}=MIN/OPT/MAX"
        )
    return {name: config.profile[name] for name in sorted(names)}


def _unchanged(out: Path, key: str) -> PlanInfo | None:
    """What the plan at ``out`` is, when it is there, whole, and what would be built."""
    try:
        found = PlanInfo.read(out)
    except GoodRtError:
        return None
    whole = found.key == key and out.exists() and sha256(out) == found.plan_sha256
    return found if whole else None


def _build(
    onnx_path: Path,
    model: ModelProto,
    config: PlanConfig,
    library: Library,
    profile: Mapping[str, Range],
    out: Path,
) -> tuple[Any, int]:
    """The plan's bytes, and how many layers its network has."""
    api = library.api
    logger, errors = library.logger()
    builder = api.Builder(logger)
    # a library without the flag only has strongly typed networks
    flag = getattr(api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = api.OnnxParser(network, logger)  # holds the weights until the plan is built
    settings = builder.create_builder_config()
    if not config.tf32:
        settings.clear_flag(api.BuilderFlag.TF32)  # set by default
    if config.optimisation_level is not None:
        settings.builder_optimization_level = config.optimisation_level
    if library.targets:
        architectures = _architectures(library, config)
        settings.num_compute_capabilities = len(architectures)
        for place, name in enumerate(architectures):
            settings.set_compute_capability(getattr(api.ComputeCapability, name.upper()), place)
    with in_precision(onnx_path, config.precision) as path, _stdout_kept():
        if not parser.parse_from_file(str(path)):
            raise GoodRtError(f"{onnx_path}: {_refusal(parser, library, errors)}")
        if profile:
            settings.add_optimization_profile(_shapes(builder, model, profile, onnx_path))
        with _timings(settings, config, library, out):
            plan = builder.build_serialized_network(network, settings)
    if plan is None:
        reason = errors[-1].splitlines()[0] if errors else "no reason given"
        raise GoodRtError(
            f"{onnx_path}: {library.name} {library.version} cannot build its plan: {reason}"
        )
    return plan, network.num_layers


@contextlib.contextmanager
def _stdout_kept() -> Iterator[None]:
    """What the library prints, past its logger, goes to standard error: standard output is for a
    command's JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _refusal(parser: Any, library: Library, errors: list[str]) -> str:
    """The first error that names an operation, in one line: the parser gives one for each node."""
    found = [parser.get_error(place) for place in range(parser.num_errors)]
    named = next((error for error in found if error.node_operator()), None)
    by = f"{library.name} {library.version}"
    if named is None:
        reason = found[0].desc() if found else errors[-1] if errors else "no reason given"
        return f"{by} cannot read it ({' '.join(reason.split())})"
    reason = " ".join(named.desc().split()).removeprefix("Assertion failed: ")
    why = "" if reason in ("", "false") else f" ({reason})"
    return f"{by} cannot take operation {named.node_operator()}, node {named.node_name()!r}{why}"


def _shapes(builder: Any, model: ModelProto, profile: Mapping[str, Range], path: Path) -> Any:
    """The optimisation profile: least, usual and largest shape of every input."""
    found = builder.create_optimization_profile()
    for value in model.graph.input:
        shape = _dimensions(value)
        shapes = [
            tuple(profile[size][place] if isinstance(size, str) else size for size in shape)
            for place in range(3)
        ]
        try:
            found.set_shape(value.name, *shapes)
        except RuntimeError as error:
            raise GoodRtError(
                f"{path}: the profile does not fit input {value.name!r} ({error})"
            ) from None
    return found


@contextlib.contextmanager
def _timings(settings: Any, config: PlanConfig, library: Library, out: Path) -> Iterator[None]:
    """Kernel timings of earlier builds for this one, and this one's for later. TensorRT-RTX takes
    none."""
    if library.targets:
        if config.timing_cache is not None:
            raise GoodRtError(
                f"{library.name} times nothing while it builds, and has no timing cache; leave it "
                "out"
            )
        yield
        return
    path = (
        config.timing_cache if config.timing_cache is not None else out.parent / "tensorrt.timings"
    )
    cache = settings.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if cache is None or not settings.set_timing_cache(cache, ignore_mismatch=False):
        # damaged, or of another version or GPU, whose timings say nothing of this one: a new one
        # takes its place
        settings.set_timing_cache(settings.create_timing_cache(b""), ignore_mismatch=False)
    yield
    with atomic_path(path) as temporary:
        temporary.write_bytes(settings.get_timing_cache().serialize())
