"""An ONNX file as the fastest engine that there is for it on ONNX Runtime.

On the CPU the graph is rewritten for our kernels (`good_rt.engines.cpu`), and the batches of a
small graph are computed in parts side by side (`good_rt.engines.batch_splitting`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from onnx import ModelProto

from good_rt.engines.base import Engine, are_rows
from good_rt.engines.batch_splitting import SplitEngine
from good_rt.engines.cpu import Accelerated, accelerate
from good_rt.engines.onnx_file import data_files, is_small, read_graph
from good_rt.engines.onnxruntime import CPU_PROVIDERS, OnnxRuntimeEngine, Provider, SessionGraph
from good_rt.engines.threads import cores


def open_engine(
    path: Path,
    providers: Sequence[Provider] = CPU_PROVIDERS,
    threads: int = 0,
    bind: bool = False,
    accelerator: Callable[[ModelProto], Accelerated] = accelerate,
) -> Engine:
    """An engine of the graph in an ONNX file, whose samples must not depend on each other.

    Args:
        path: The ONNX file.
        providers: Execution providers in the order of preference, of which the first must run.
        threads: Threads to run on; 0: one for each core that the process may use.
        bind: Whether tensors are bound in place on the CPU as well; such an engine is not split.
        accelerator: Rewrites the graph for the CPU.

    Raises:
        GoodRtError: the file is not a graph that the runtime can load, or a provider is not
            installed or cannot run.
    """
    model = read_graph(path)
    names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    on_cpu, small = names == list(CPU_PROVIDERS), is_small(model)
    # the memory of a large model's activations goes back after each run
    graph = SessionGraph(keep_memory=not data_files(model))
    if on_cpu and (fast := accelerator(model)).changes:
        graph = SessionGraph(
            model=fast.model.SerializeToString(),
            custom_operators=fast.library,
            optimise=not fast.is_optimised,
            keep_memory=graph.keep_memory,
        )
    threads = threads or len(cores())
    open_session = partial(OnnxRuntimeEngine, path, providers, bind=bind, graph=graph)
    engine = open_session(threads)
    splits = small and on_cpu and not bind
    if not (splits and are_rows((*engine.inputs.values(), *engine.outputs.values()))):
        return engine
    return SplitEngine(engine, partial(open_session, 1), threads)
