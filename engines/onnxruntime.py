"""ONNX graphs on ONNX Runtime: CPU, and CUDA or TensorRT where those execution providers are
installed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from good_rt.engines.base import TensorSpec, check_inputs
from good_rt.engines.threads import cores
from good_rt.errors import GoodRtError, first_line
from good_rt.onnx_runtime import (
    CPU_PACKAGE,
    GPU_PACKAGE,
    both_installed,
    gpu_commands,
    onnxruntime_module,
)

ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
Provider = str | tuple[str, Mapping[str, Any]]
"""An execution provider's name, or that and its options."""
GPU_PROVIDERS = frozenset(
    {"CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRtRtxExecutionProvider"}
)
NUMPY_DTYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.float64: np.float64,
                torch.int64: np.int64, torch.bool: np.bool_}  # fmt: skip
TORCH_DTYPES = {np.dtype(dtype).name: kind for kind, dtype in NUMPY_DTYPES.items()}
DATA_FOLDER = "session.model_external_initializers_file_folder_path"
CPU_PROVIDERS = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class SessionGraph:
    """What a session opens, where that is not just the graph in an ONNX file.

    Attributes:
        model: A serialised graph that takes the place of the file's; its external data lie in the
            file's folder. None: the file's own graph.
        custom_operators: The library of operators that the graph uses beside ONNX's.
        optimise: Whether ONNX Runtime optimises the graph before it runs it.
        keep_memory: Whether the memory of activations is kept from one run to the next.
    """

    model: bytes | None = None
    custom_operators: Path | None = None
    optimise: bool = True
    keep_memory: bool = True


def providers_for(device: torch.device) -> tuple[Provider, ...]:
    """The execution providers for tensors of that device; float32 is computed as float32 on a GPU
    too."""
    if device.type == "cpu":
        return CPU_PROVIDERS
    return (
        "CUDAExecutionProvider",
        {"device_id": device.index or 0, "use_tf32": 0},
    ), "CPUExecutionProvider"


def check_providers(providers: Sequence[Provider]) -> None:
    """Checks that this ONNX Runtime has the execution providers.

    Args:
        providers: Execution providers.

    Raises:
        GoodRtError: one is missing; it names the first, and the commands that install it.
    """
    available = onnxruntime_module().get_available_providers()
    names = [entry if isinstance(entry, str) else entry[0] for entry in providers]
    missing = [name for name in names if name not in available]
    if missing:
        why = (
            f"{CPU_PACKAGE} and {GPU_PACKAGE} are both installed, and one has overwritten the other"
            if both_installed()
            else f"its GPU build, {GPU_PACKAGE}, is needed"
        )
        raise GoodRtError(
            f"ONNX Runtime has no {missing[0]} here: {why}; run: {gpu_commands(torch.version.cuda)}"
        )


class OnnxRuntimeEngine:
    """An ONNX file as an engine.

    On a GPU provider, inputs and outputs are bound to PyTorch's CUDA tensors in place.

    Args:
        path: The ONNX file.
        providers: Execution providers in the order of preference, of which the first must run.
        threads: Threads to run on; 0: one for each core that the process may use.
        bind: Whether tensors are bound in place on the CPU as well.
        graph: What the session opens in the place of the file as it is; the file is then not
            checked again.

    Raises:
        GoodRtError: the runtime cannot load the file, which is checked before the runtime gets it,
            or a provider is not installed or cannot run.
    """

    def __init__(
        self,
        path: Path,
        providers: Sequence[Provider] = CPU_PROVIDERS,
        threads: int = 0,
        bind: bool = False,
        graph: SessionGraph | None = None,
    ) -> None:
        from good_rt.engines.onnx_file import data_files, read_graph

        settings: dict[str, Mapping[str, Any]] = dict(
            (entry, {}) if isinstance(entry, str) else entry for entry in providers
        )
        gpu = next((name for name in settings if name in GPU_PROVIDERS), None)
        self.device = torch.device(
            "cpu" if gpu is None else f"cuda:{settings[gpu].get('device_id', 0)}"
        )
        self._bind = bind or self.device.type != "cpu"
        check_providers(providers)
        if graph is None:
            # the memory of a large model's activations goes back after each run
            graph = SessionGraph(keep_memory=not data_files(read_graph(path)))
        # ONNX Runtime's own default does not see an affinity
        self.threads = threads or len(cores())
        self._session = _open_session(path, list(settings.items()), self.threads, graph)

    @cached_property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {node.name: _spec(node) for node in self._session.get_inputs()}

    @cached_property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return {node.name: _spec(node) for node in self._session.get_outputs()}

    def __call__(self, **arrays: Tensor) -> dict[str, Tensor]:
        return self.run(arrays)

    def run(self, arrays: Mapping[str, Any], native: Collection[str] = ()) -> dict[str, Any]:
        """The outputs of the inputs by name: tensors, or NumPy arrays of those in ``native``, which
        `run` of another engine takes among its inputs. (ONNX Runtime's own values are slower.)

        Bound to a device, all outputs are tensors there.
        """
        check_inputs(self, arrays)
        try:
            return self._run_bound(arrays) if self._bind else self._run_numpy(arrays, native)
        except Exception as error:
            raise GoodRtError(f"ONNX Runtime failed: {_reason(error)}") from None

    def _run_numpy(self, arrays: Mapping[str, Any], native: Collection[str]) -> dict[str, Any]:
        feeds = {
            name: _numpy(array) if isinstance(array, Tensor) else array
            for name, array in arrays.items()
        }
        values = self._session.run(None, feeds)
        return {
            name: value if name in native else torch.from_numpy(value)
            for name, value in zip(self.outputs, values, strict=True)
        }

    def _run_bound(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        binding = self._session.io_binding()
        tensors = {name: torch.as_tensor(array).detach() for name, array in arrays.items()}
        # alive until run
        held = {name: array.to(self.device).contiguous() for name, array in tensors.items()}
        for name, array in held.items():
            _bind(binding.bind_input, name, array)
        outputs = self._empty_outputs(held)
        for name in self.outputs:
            if name in outputs:
                _bind(binding.bind_output, name, outputs[name])
            else:
                binding.bind_output(name, self.device.type, self.device.index or 0)
        if self.device.type == "cuda":
            # ONNX Runtime works on a stream of its own
            torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding)
        values = zip(self.outputs, binding.get_outputs(), strict=True)
        return {
            name: outputs[name]
            if name in outputs
            else torch.from_numpy(value.numpy()).to(self.device)
            for name, value in values
        }

    def _empty_outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the outputs whose sizes follow from the inputs' axes of the same names."""
        sizes: dict[int | str, int] = {}
        for name, spec in self.inputs.items():
            sizes |= zip(spec.shape, inputs[name].shape, strict=True)
        outputs = {}
        for name, spec in self.outputs.items():
            known = all(isinstance(axis, int) or axis in sizes for axis in spec.shape)
            if known and spec.dtype in TORCH_DTYPES:
                shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
                dtype = TORCH_DTYPES[spec.dtype]
                outputs[name] = torch.empty(shape, dtype=dtype, device=self.device)
        return outputs


def _open_session(
    path: Path,
    providers: Sequence[tuple[str, Mapping[str, Any]]],
    threads: int,
    graph: SessionGraph,
) -> Any:
    ort = onnxruntime_module()
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = graph.keep_memory
    options.intra_op_num_threads = threads
    # between runs, threads that wait for work while spinning would take the cores from PyTorch
    # and other engines
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # what goes wrong is raised, in one line
    if not graph.optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if graph.model is not None:
        # of weights in files of their own, which a graph in memory cannot tell
        options.add_session_config_entry(DATA_FOLDER, str(path.parent))
    try:
        if graph.custom_operators is not None:
            options.register_custom_ops_library(str(graph.custom_operators))
        source = path if graph.model is None else graph.model
        session = ort.InferenceSession(source, options, providers=list(providers))
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise GoodRtError(
            f"{path} cannot be loaded by ONNX Runtime {ort.__version__} ({_reason(error)})"
        ) from None
    wanted, taken = providers[0][0], session.get_providers()
    if wanted not in taken:  # it falls back without a word
        raise GoodRtError(
            f"ONNX Runtime took {taken[0]} in the place of {wanted}, whose libraries it cannot "
            "load here; the "
            "versions of CUDA and cuDNN must be those that it was built for; run: "
            + gpu_commands(torch.version.cuda)
        )
    return session


def _bind(bind: Callable[..., None], name: str, array: Tensor) -> None:
    """Binds an input or output to a tensor's memory."""
    device, dtype = array.device, NUMPY_DTYPES[array.dtype]
    bind(name, device.type, device.index or 0, dtype, array.shape, array.data_ptr())


def _numpy(array: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(array.detach().cpu().numpy())


def _reason(error: Exception) -> str:
    """What ONNX Runtime says, in one line and without its codes and the file's name, which the
    caller gives."""
    return re.sub(
        r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?", "", first_line(error)
    )


def _spec(node: Any) -> TensorSpec:
    # a dimension without a name gets one that no other input shares
    shape = tuple(
        f"{node.name}:{axis}" if size is None else size for axis, size in enumerate(node.shape)
    )
    return TensorSpec(ONNX_TYPES.get(node.type, node.type), shape)
