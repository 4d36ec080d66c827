"""TensorRT plans as engines: on NVIDIA GPUs, by TensorRT (data-centre GPUs) or TensorRT-RTX (the
others), one API.

A plan only runs on the library version and the architectures that it was built for; the JSON
beside it says which, and any other is refused with the command that builds it anew. NOT YET RUN ON
A GPU: the plans' builder and every refusal are tested, the execution only against a stand-in.
`benchmarks/gpu_check.sh` is what checks it on a GPU machine.
"""

from __future__ import annotations

import hashlib
import importlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from good_rt.engines.base import TensorSpec, check_inputs
from good_rt.errors import GoodRtError, first_line
from good_rt.files import parse_json
from good_rt.records import Count, from_json

LIBRARIES = {
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
}
"""Library, which is the extra's name as well, in the order of preference -> the modules that it may
come as."""

FORMAT = 1
Range = tuple[Count, Count, Count]
"""The least, the usual and the largest length of a dimension."""


@dataclass(frozen=True)
class Library:
    """TensorRT or TensorRT-RTX: its name, and the module with its API."""

    name: str
    api: Any

    @property
    def version(self) -> str:
        return str(self.api.__version__)

    @property
    def targets(self) -> tuple[str, ...]:
        """The architectures that it builds plans for on any machine; none where it builds for the
        present GPU only."""
        members = getattr(getattr(self.api, "ComputeCapability", None), "__members__", {})
        return tuple(name.lower() for name in members if name.startswith("SM"))

    def logger(self) -> tuple[Any, list[str]]:
        """A logger that prints nothing, and the list that it writes errors to."""
        errors: list[str] = []
        api = self.api

        class Collector(api.ILogger):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                api.ILogger.__init__(self)  # super() is not enough for its bindings

            def log(self, severity: Any, message: str) -> None:
                if severity in (api.ILogger.Severity.ERROR, api.ILogger.Severity.INTERNAL_ERROR):
                    errors.append(message)

        return Collector(), errors


def load_library(name: str | None = None, architecture: str | None = None) -> Library:
    """The first library of `LIBRARIES` that is installed and has plans for the architecture.

    Args:
        name: Only this library; None for any.
        architecture: A GPU's architecture, such as "sm89"; None where plans are only built.

    Raises:
        GoodRtError: there is none; it names the extra to install.
    """
    if name is not None and name not in LIBRARIES:
        raise GoodRtError(
            f"there is no TensorRT library {name!r}; there are {', '.join(LIBRARIES)}"
        )
    reasons, present = [], []
    for candidate in [name] if name is not None else LIBRARIES:
        for module in LIBRARIES[candidate]:
            try:
                found = Library(candidate, importlib.import_module(module))
                if architecture is None or not found.targets or architecture in found.targets:
                    return found
                present.append(candidate)
                reasons.append(f"{candidate} {found.version} has no plans for {architecture}")
                break
            except (
                ImportError,
                OSError,
                RuntimeError,
                AttributeError,
            ) as error:  # the bindings without the libraries
                reasons.append(f"{module}: {first_line(error)}")
    wanted = name or next(
        (one for one in LIBRARIES if one not in present), "a TensorRT for this GPU"
    )
    advice = f"; install it with: pip install 'good-rt[{wanted}]'" if wanted in LIBRARIES else ""
    raise GoodRtError(f"{wanted} is missing ({'; '.join(reasons)}){advice}")


def present_architecture() -> str | None:
    """The present GPU's architecture ("sm89"), None without a GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def present_device() -> torch.device:
    """The GPU that is in use."""
    return torch.device("cuda", torch.cuda.current_device())


@dataclass(frozen=True)
class PlanInfo:
    """The JSON beside a plan: what the plan is, and what it was built from.

    Attributes:
        graph: Path of the ONNX file, relative to the plan's folder.
        graph_sha256: Hash of the ONNX file and its external data.
        plan_sha256: Hash of the plan.
        plan_bytes: Size of the plan.
        library: TensorRT library that built it, one of `LIBRARIES`.
        library_version: Its version.
        architectures: GPU architectures that the plan runs on, such as "sm89".
        precision: "fp32", "fp16" or "bf16".
        profile: Least, usual and largest length of every dynamic dimension, by its name.
        tf32: Whether float32 may be computed with 10-bit mantissas.
        optimisation_level: TensorRT's builder optimisation level; None for its default.
        layers: Number of layers of the network that TensorRT parsed.
        build_seconds: Time that the build took.
        inputs: Specs of the inputs by name.
        outputs: Specs of the outputs by name.
        key: Hash of everything that the plan depends on; an equal key means an unchanged plan.
        format: Version of the JSON.
    """

    graph: str
    graph_sha256: str
    plan_sha256: str
    plan_bytes: int
    library: str
    library_version: str
    architectures: tuple[str, ...]
    precision: str
    profile: Mapping[str, Range]
    tf32: bool
    optimisation_level: int | None
    layers: int
    build_seconds: float
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    key: str
    format: int = FORMAT

    def __post_init__(self) -> None:
        for spec in (*self.inputs.values(), *self.outputs.values()):
            if not isinstance(getattr(torch, spec.dtype, None), torch.dtype):
                raise ValueError(f"PyTorch has no dtype {spec.dtype[:60]!r}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, plan: Path) -> PlanInfo:
        """The JSON beside a plan.

        Args:
            plan: The plan.

        Raises:
            GoodRtError: the JSON is missing, damaged, or of another format.
        """
        path = info_path(plan)
        try:
            text = path.read_bytes()
        except OSError as error:
            raise GoodRtError(
                f"{plan} cannot be verified: {path.name} beside it cannot be read "
                f"({error.strerror}); build it with "
                "`good-rt export --to tensorrt`"
            ) from None
        try:
            values = parse_json(text, path)
        except GoodRtError as error:
            raise GoodRtError(f"{error}; build the plan again") from None
        if values.get("format") != FORMAT:
            raise GoodRtError(f"{path} has another format than {FORMAT}; build the plan again")
        try:
            return from_json(cls, values)
        except ValueError as error:
            raise GoodRtError(f"{path} is damaged ({error}); build the plan again") from None

    def command(self, folder: Path, architectures: Sequence[str] | None = None) -> str:
        """The command that builds the plan again.

        Args:
            folder: The plan's folder.
            architectures: Architectures to build for; None for those that it was built for.
        """
        words = [
            "good-rt",
            "export",
            "--to",
            "tensorrt",
            "--onnx",
            str(folder / self.graph),
            "-o",
            str(folder),
        ]
        words += ["--library", self.library, "--precision", self.precision]
        for name, sizes in self.profile.items():
            words += ["--profile", f"{name}={'/'.join(map(str, sizes))}"]
        if self.library == "tensorrt-rtx":  # the other one builds for the present GPU
            for architecture in self.architectures if architectures is None else architectures:
                words += ["--arch", architecture]
        words += ["--tf32"] if self.tf32 else []
        words += (
            []
            if self.optimisation_level is None
            else ["--optimisation-level", str(self.optimisation_level)]
        )
        return shlex.join(words)


def info_path(plan: Path) -> Path:
    """Where the JSON of a plan lies."""
    return plan.with_name(f"{plan.name}.json")


def check_plan(
    info: PlanInfo,
    path: Path,
    library: Library,
    architecture: str,
    graph_sha256: str | None = None,
) -> None:
    """Checks that a plan is intact, and of this library, GPU and graph.

    Args:
        info: The JSON beside the plan.
        path: The plan.
        library: The library that would run it.
        architecture: The GPU's architecture, such as "sm89".
        graph_sha256: Hash of the ONNX file that it must have been built from; None does not check
            it.

    Raises:
        GoodRtError: a check fails; it names the command that builds the plan again.
    """
    again = f"build it again: {info.command(path.parent)}"
    if info.library_version != library.version:
        raise GoodRtError(
            f"{path} was built by {info.library} {info.library_version}, and runs on no other than "
            "it; here is "
            f"{library.version}; {again}"
        )
    if architecture not in info.architectures:
        if library.targets and architecture not in library.targets:
            advice = (
                f"{library.name} has no plans for it, the library `tensorrt` (data-centre GPUs) "
                "may have"
            )
        else:
            advice = f"build one: {info.command(path.parent, [*info.architectures, architecture])}"
        raise GoodRtError(
            f"{path} is for {', '.join(info.architectures)}; the GPU here is {architecture}; "
            f"{advice}"
        )
    if graph_sha256 is not None and info.graph_sha256 != graph_sha256:
        raise GoodRtError(
            f"{path} was built of another {info.graph} than the one that is there now; {again}"
        )
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise GoodRtError(f"cannot read {path} ({error.strerror}); {again}") from None
    if found != info.plan_sha256:
        raise GoodRtError(f"{path} is not the plan that was built (its hash differs); {again}")


def check_profile(info: PlanInfo, arrays: Mapping[str, Tensor], folder: Path) -> None:
    """Checks that the lengths of dynamic dimensions lie within the plan's profile.

    Args:
        info: The JSON beside the plan.
        arrays: Inputs by name.
        folder: The plan's folder.

    Raises:
        GoodRtError: a dimension is too short or too long; it names the command that builds a wider
            plan.
    """
    for name, spec in info.inputs.items():
        for dimension, size in zip(spec.shape, arrays[name].shape, strict=True):
            if not isinstance(dimension, str) or dimension not in info.profile:
                continue
            low, best, high = info.profile[dimension]
            if not low <= size <= high:
                wider = {**info.profile, dimension: (min(low, size), best, max(high, size))}
                wanted = PlanInfo(**{**vars(info), "profile": wider})
                raise GoodRtError(
                    f"engine input {name!r}: {dimension} is {size}, the plan takes {low} to "
                    f"{high}; build a wider one: "
                    f"{wanted.command(folder)}"
                )


@dataclass
class _Captured:
    """A CUDA graph of one set of shapes: its fixed input and output buffers, and the context that
    it runs in."""

    graph: Any
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    context: Any


class TensorRTEngine:
    """A plan on the current GPU; inputs are copied to it, outputs back to the inputs' device.

    No GPU has run this class yet; the module's docstring says what was tested.

    Args:
        path: The plan, with its JSON beside it.
        graph_sha256: Hash of the ONNX file that it must have been built from
            (`good_rt.export.manifest.graph_hash`); None does not check it.
        cuda_graphs: Records the kernels of each set of shapes once and replays them, which pays off
            where few shapes recur.

    Raises:
        GoodRtError: there is no GPU, or the plan is damaged, or of another library version,
            architecture or graph.
    """

    def __init__(
        self, path: Path, *, graph_sha256: str | None = None, cuda_graphs: bool = False
    ) -> None:
        self._path, self.info = Path(path), PlanInfo.read(Path(path))
        self._library = load_library(self.info.library)
        architecture = present_architecture()
        if architecture is None:
            raise GoodRtError(
                f"{path} needs an NVIDIA GPU ({', '.join(self.info.architectures)}), and PyTorch "
                "sees none here; the "
                "ONNX file runs without one"
            )
        check_plan(self.info, self._path, self._library, architecture, graph_sha256)
        self.inputs, self.outputs = self.info.inputs, self.info.outputs
        self._logger, self._errors = self._library.logger()
        self._runtime = self._library.api.Runtime(self._logger)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(self._path.read_bytes())
        if self._engine is None:
            raise GoodRtError(f"{path} cannot be loaded: {self._reason()}")
        self._device = present_device()
        # TensorRT-RTX records graphs by itself, of every shape that it meets; the other's are
        # recorded here
        self._own_graphs = cuda_graphs and hasattr(self._library.api, "CudaGraphStrategy")
        self._cuda_graphs = cuda_graphs and not self._own_graphs
        self._captured: dict[tuple[tuple[int, ...], ...], _Captured] = {}
        self._context = self._new_context()

    def __call__(self, **arrays: Tensor) -> dict[str, Tensor]:
        check_inputs(self, arrays)
        check_profile(self.info, arrays, self._path.parent)
        home = next(iter(arrays.values())).device
        here = {
            name: array.detach().to(self._device).contiguous() for name, array in arrays.items()
        }
        found = self._replay(here) if self._cuda_graphs else self._launch(self._context, here)
        return {name: value.to(home) for name, value in found.items()}

    def _new_context(self) -> Any:
        if self._own_graphs:
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = self._library.api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise GoodRtError(f"{self._path} cannot be run: {self._reason()}")
        return context

    def _launch(self, context: Any, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Runs on the current stream, into new tensors, which come of PyTorch's allocator as all
        others do."""
        for name, array in arrays.items():
            if not context.set_input_shape(name, tuple(array.shape)):
                raise GoodRtError(
                    f"engine input {name!r}: TensorRT refuses its shape: {self._reason()}"
                )
            context.set_tensor_address(name, array.data_ptr())
        found = {}
        for name, spec in self.outputs.items():
            shape = tuple(context.get_tensor_shape(name))
            found[name] = torch.empty(shape, dtype=getattr(torch, spec.dtype), device=self._device)
            context.set_tensor_address(name, found[name].data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise GoodRtError(f"TensorRT failed: {self._reason()}")
        return found

    def _replay(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies the inputs into the recorded buffers and replays; the outputs are copies, the next
        call's to keep."""
        shapes = tuple(tuple(array.shape) for array in arrays.values())
        if shapes not in self._captured:
            self._captured[shapes] = self._capture(arrays)
        captured = self._captured[shapes]
        for name, array in arrays.items():
            captured.inputs[name].copy_(array)
        captured.graph.replay()
        return {name: value.clone() for name, value in captured.outputs.items()}

    def _capture(self, arrays: Mapping[str, Tensor]) -> _Captured:
        # a context of its own, for a recorded graph points into its context's memory
        context, inputs = (
            self._new_context(),
            {name: array.clone() for name, array in arrays.items()},
        )
        self._launch(context, inputs)  # sets up what must not be recorded
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._launch(context, inputs)
        return _Captured(graph, inputs, outputs, context)

    def _reason(self) -> str:
        return self._errors[-1].splitlines()[0] if self._errors else "no reason given"
