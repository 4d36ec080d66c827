"""ONNX graphs on ONNX Runtime: CPU, and CUDA or TensorRT where those execution providers are
installed."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from good_rt.engines.base import TensorSpec, are_rows, check_inputs
from good_rt.engines.kernels import library
from good_rt.errors import GoodRtError, first_line

DTYPES = {
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
LEAST, PART = 2, 16
"""Fewest and most samples of a batch's part. A single one leaves a thread too little to do; beyond
the most, what one operator hands the next no longer stays in a core's cache."""
DATA_FOLDER = "session.model_external_initializers_file_folder_path"
SMALL = 2**28
"""Bytes of weights up to which a graph may be loaded twice, to be optimised and to run a batch's
parts side by side."""


def providers_for(device: torch.device) -> tuple[Provider, ...]:
    """The execution providers for tensors of that device; float32 is computed as float32 on a GPU
    too."""
    if device.type == "cpu":
        return ("CPUExecutionProvider",)
    return (
        "CUDAExecutionProvider",
        {"device_id": device.index or 0, "use_tf32": 0},
    ), "CPUExecutionProvider"


def check_providers(providers: Sequence[Provider]) -> None:
    """Raises GoodRtError that names the first one that this ONNX Runtime lacks."""
    import onnxruntime as ort

    names = [one if isinstance(one, str) else one[0] for one in providers]
    missing = [name for name in names if name not in ort.get_available_providers()]
    if missing:
        raise GoodRtError(
            f"ONNX Runtime has no {missing[0]} here; put the build of good-rt[gpu] in its place: "
            "pip uninstall -y "
            "onnxruntime && pip install --force-reinstall --no-deps onnxruntime-gpu"
        )


class OnnxRuntimeEngine:
    """An ONNX file as an engine.

    ``providers`` in the order of preference, of which the first must run, ``threads`` to run on (0:
    all cores). On the CPU `good_rt.engines.fusing` puts our kernels in the graph. Of a small graph,
    `good_rt.engines.layout` also takes out what is reordered between them and convolutions,
    `good_rt.engines.winograd` has these multiply less, and its batch is divided in parts, so that
    the threads wait for each other once a run instead of once an operator: samples must not depend
    on each other. On a GPU provider, inputs and outputs are bound to PyTorch's CUDA tensors in
    place; ``bind`` asks for the same on the CPU. Raises GoodRtError when the file is none that the
    runtime can load, which is checked before it gets it, or a provider is not installed or cannot
    run.
    """

    def __init__(
        self,
        path: Path,
        providers: Sequence[Provider] = ("CPUExecutionProvider",),
        threads: int = 0,
        bind: bool = False,
    ) -> None:

        from good_rt.engines.fusing import fuse, has_inner_graphs
        from good_rt.engines.onnx_file import data_files, read_graph

        settings: dict[str, Mapping[str, Any]] = dict(
            (one, {}) if isinstance(one, str) else one for one in providers
        )
        gpu = next((name for name in settings if name in GPU_PROVIDERS), None)
        self.device = torch.device(
            "cpu" if gpu is None else f"cuda:{settings[gpu].get('device_id', 0)}"
        )
        self._bind = bind or self.device.type != "cpu"

        check_providers(providers)
        self._path, self._providers = path, list(settings.items())
        graph = read_graph(path)
        # of a graph with so many weights, activations go back after each run instead of being kept
        # for the next
        self._keeps_memory = not data_files(graph)
        self._kernels = library() if set(settings) == {"CPUExecutionProvider"} else None
        small = self._keeps_memory and path.stat().st_size <= SMALL
        self._graph: Path | bytes = path
        self._optimise = True
        if self._kernels is not None and not has_inner_graphs(graph.graph):
            fused = fuse(graph) > 0
            convolves = small and (
                fused or any(node.op_type == "Conv" for node in graph.graph.node)
            )
            model = graph.SerializeToString() if fused or convolves else b""
            if fused:
                self._graph = model
            if convolves and (blocked := _in_blocks(model, self._kernels)) is not None:
                self._graph, self._optimise = blocked, False
        self._threads = threads or len(
            cores()
        )  # not what ONNX Runtime would take, which does not see an affinity
        self._session = self._open(self._threads)
        self._divides = small and not self._bind
        if not self._divides:
            self._graph = path  # it is not opened again

    def _open(self, threads: int) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.enable_cpu_mem_arena = self._keeps_memory
        options.intra_op_num_threads = threads
        # between runs, threads that wait for work while spinning would take the cores from PyTorch
        # and other engines
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4  # what goes wrong is raised, in one line
        if not self._optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            if self._kernels is not None:
                options.register_custom_ops_library(str(self._kernels))
                # of weights in files of their own, which a graph in memory cannot tell
                options.add_session_config_entry(DATA_FOLDER, str(self._path.parent))
            session = ort.InferenceSession(self._graph, options, providers=self._providers)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise GoodRtError(
                f"{self._path} cannot be loaded by ONNX Runtime {ort.__version__} "
                f"({_reason(error)})"
            ) from None
        wanted, taken = self._providers[0][0], session.get_providers()
        if wanted not in taken:  # it falls back without a word
            raise GoodRtError(
                f"ONNX Runtime took {taken[0]} in the place of {wanted}, whose libraries it cannot "
                "load here; the "
                "versions of CUDA and cuDNN must be those that onnxruntime-gpu was built for"
            )
        return session

    @cached_property
    def _one_thread(self) -> Any:
        return self._session if self._threads == 1 else self._open(1)

    @cached_property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {node.name: _spec(node) for node in self._session.get_inputs()}

    @cached_property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return {node.name: _spec(node) for node in self._session.get_outputs()}

    def __call__(self, **arrays: Tensor) -> dict[str, Tensor]:
        check_inputs(self, arrays)
        parts = self.parts(len(next(iter(arrays.values())))) if self._rows else ()
        if len(parts) > 1:
            found = self._side_by_side(
                [{name: array[part] for name, array in arrays.items()} for part in parts]
            )
            return {name: torch.cat([outputs[name] for outputs in found]) for name in self.outputs}
        return self._run(self._session, arrays)

    def parts(self, count: int) -> Sequence[slice]:
        """As many samples to every thread, or the whole of a batch too small to be worth it."""
        if not self._divides or count < LEAST * self._threads:
            return [slice(0, count)]
        number = self._threads * math.ceil(count / (self._threads * PART))
        return [
            slice(*ends)
            for ends in pairwise(count * place // number for place in range(number + 1))
        ]

    def each(
        self, batches: Sequence[Mapping[str, Any]], kept: Collection[str] = ()
    ) -> list[dict[str, Any]]:
        """The outputs of each; those of a small graph are computed side by side, each on one
        thread.

        On the CPU those in ``kept`` are NumPy arrays: to make tensors of them and back would take
        longer than to check them. (ONNX Runtime's own values were slower still.) On a GPU they are
        tensors there.
        """
        for arrays in batches:
            check_inputs(self, arrays)
        if not self._divides or len(batches) == 1:
            return [self._run(self._session, arrays, kept) for arrays in batches]
        return self._side_by_side(batches, kept)

    def _side_by_side(
        self, batches: Sequence[Mapping[str, Any]], kept: Collection[str] = ()
    ) -> list[dict[str, Any]]:
        run = partial(self._run, self._one_thread, kept=kept)
        return list(thread_pool(self._threads, cores()).map(run, batches))

    @cached_property
    def _rows(self) -> bool:
        return are_rows((*self.inputs.values(), *self.outputs.values()))

    def _run(
        self, session: Any, arrays: Mapping[str, Any], kept: Collection[str] = ()
    ) -> dict[str, Any]:
        try:
            return (
                self._run_bound(session, arrays)
                if self._bind
                else self._run_numpy(session, arrays, kept)
            )
        except Exception as error:
            raise GoodRtError(f"ONNX Runtime failed: {_reason(error)}") from None

    def _run_numpy(
        self, session: Any, arrays: Mapping[str, Any], kept: Collection[str]
    ) -> dict[str, Any]:
        feeds = {
            name: _numpy(array) if isinstance(array, Tensor) else array
            for name, array in arrays.items()
        }
        values = session.run(None, feeds)
        return {
            name: value if name in kept else torch.from_numpy(value)
            for name, value in zip(self.outputs, values, strict=True)
        }

    def _run_bound(self, session: Any, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        binding = session.io_binding()
        tensors = {name: torch.as_tensor(array).detach() for name, array in arrays.items()}
        held = {
            name: array.to(self.device).contiguous() for name, array in tensors.items()
        }  # alive until run
        for name, array in held.items():
            dtype = NUMPY_DTYPES[array.dtype]
            binding.bind_input(
                name,
                array.device.type,
                array.device.index or 0,
                dtype,
                array.shape,
                array.data_ptr(),
            )
        for name in self.outputs:
            binding.bind_output(name, self.device.type, self.device.index or 0)
        if self.device.type == "cuda":
            torch.cuda.current_stream(
                self.device
            ).synchronize()  # ONNX Runtime works on a stream of its own
        session.run_with_iobinding(binding)
        return {
            name: from_dlpack(value)
            for name, value in zip(self.outputs, binding.get_outputs(), strict=True)
        }


def _in_blocks(model: bytes, kernels: Path) -> bytes | None:
    """The graph as ONNX Runtime's CPU provider runs it, made faster, to be run as it is.

    None where there is nothing to be made faster, or it cannot be had: what is wrong, ONNX Runtime
    says on opening it.
    """
    from good_rt.engines.fusing import has_inner_graphs
    from good_rt.engines.layout import keep_blocks, optimised
    from good_rt.engines.winograd import put_convolutions

    found = optimised(model, kernels)
    if found is None or has_inner_graphs(
        found.graph
    ):  # of a function, perhaps, which is no function any more
        return None
    changed = keep_blocks(found), put_convolutions(found.graph) > 0
    return found.SerializeToString() if any(changed) else None


def _numpy(array: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(array.detach().cpu().numpy())


@cache
def thread_pool(threads: int, cores: tuple[int, ...]) -> ThreadPoolExecutor:
    """So many threads. If they are to use all of the cores, each has one: Linux was seen to leave
    two on one core."""
    left = list(cores) if threads == len(cores) else []

    def settle() -> None:
        if left and hasattr(os, "sched_setaffinity"):
            with suppress(OSError):  # where a sandbox forbids it
                os.sched_setaffinity(0, {left.pop()})  # this thread's alone

    return ThreadPoolExecutor(threads, thread_name_prefix="good-rt-engine", initializer=settle)


def cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


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
    return TensorSpec(DTYPES.get(node.type, node.type), shape)
