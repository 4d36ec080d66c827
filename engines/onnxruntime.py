"""ONNX graphs on ONNX Runtime: CPU, and CUDA or TensorRT where those execution providers are installed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from good_rt.engines.base import TensorSpec, check_inputs
from good_rt.errors import GoodRtError

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
GPU_PROVIDERS = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRtRtxExecutionProvider"})
NUMPY_DTYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.float64: np.float64,
                torch.int64: np.int64, torch.bool: np.bool_}  # fmt: skip


class OnnxRuntimeEngine:
    """An ONNX file as an engine. CPU tensors pass to and from the runtime without a copy.

    ``providers`` in the order of preference, ``threads`` within an operator (0: the runtime's choice, all cores).
    On a GPU provider, inputs and outputs are bound to PyTorch's CUDA tensors in place; ``bind`` asks for the same on
    the CPU. Raises GoodRtError when the file is none that the runtime can load, which is checked before it gets
    it, or a provider is not installed.
    """

    def __init__(
        self, path: Path, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 0, bind: bool = False
    ) -> None:
        import onnxruntime as ort

        from good_rt.engines.onnx_file import data_files, read_graph

        self.device = torch.device("cuda" if GPU_PROVIDERS.intersection(providers) else "cpu")
        self._bind = bind or self.device.type != "cpu"

        missing = [name for name in providers if name not in ort.get_available_providers()]
        if missing:
            raise GoodRtError(
                f"ONNX Runtime has no {missing[0]} here; install a build that has it: pip install 'good-rt[gpu]'"
            )
        graph = read_graph(path)
        options = ort.SessionOptions()
        # of a graph with so many weights, activations go back after each run instead of being kept for the next
        options.enable_cpu_mem_arena = not data_files(graph)
        options.intra_op_num_threads = threads
        # threads that wait for work while spinning take the cores from PyTorch and from the other engines
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what goes wrong is raised, in one line
        try:
            self._session = ort.InferenceSession(path, options, providers=list(providers))
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise GoodRtError(f"{path} cannot be loaded by ONNX Runtime {ort.__version__} ({_reason(error)})") from None

    @cached_property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {node.name: _spec(node) for node in self._session.get_inputs()}

    @cached_property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return {node.name: _spec(node) for node in self._session.get_outputs()}

    def __call__(self, **arrays: Tensor) -> dict[str, Tensor]:
        check_inputs(self, arrays)
        try:
            return self._run_bound(arrays) if self._bind else self._run_copied(arrays)
        except Exception as error:
            raise GoodRtError(f"ONNX Runtime failed: {_reason(error)}") from None

    def _run_copied(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        feeds = {name: np.ascontiguousarray(array.detach().cpu().numpy()) for name, array in arrays.items()}
        values = self._session.run(None, feeds)
        return {name: torch.from_numpy(value) for name, value in zip(self.outputs, values, strict=True)}

    def _run_bound(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        binding = self._session.io_binding()
        held = {name: array.detach().to(self.device).contiguous() for name, array in arrays.items()}  # alive until run
        for name, array in held.items():
            dtype = NUMPY_DTYPES[array.dtype]
            binding.bind_input(name, self.device.type, self.device.index or 0, dtype, array.shape, array.data_ptr())
        for name in self.outputs:
            binding.bind_output(name, self.device.type, self.device.index or 0)
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # ONNX Runtime works on a stream of its own
        self._session.run_with_iobinding(binding)
        return {name: from_dlpack(value) for name, value in zip(self.outputs, binding.get_outputs(), strict=True)}


def _reason(error: Exception) -> str:
    """What ONNX Runtime says, in one line and without its codes and the file's name, which the caller gives."""
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?", "", first)


def _spec(node: Any) -> TensorSpec:
    # a dimension without a name gets one that no other input shares
    shape = tuple(f"{node.name}:{axis}" if size is None else size for axis, size in enumerate(node.shape))
    return TensorSpec(DTYPES.get(node.type, node.type), shape)
