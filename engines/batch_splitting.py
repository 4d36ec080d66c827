"""Batches in parts that are computed at the same time, as a wrapper around engines.

Inside an engine, threads wait for each other after every operator. Where samples do not depend on
each other, as many parts as threads, each computed by one thread, wait once a run. On the CPU
`good_rt.engines.open` wraps the engines of small graphs so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from good_rt.engines.autograd import VjpPair
from good_rt.engines.base import Engine, TensorSpec, are_rows, check_inputs
from good_rt.engines.threads import cores, thread_pool
from good_rt.errors import GoodRtError

LEAST, PART = 2, 16
"""Fewest and most samples of a part. A single sample leaves a thread too little to do; beyond the
most, what one operator hands the next no longer stays in a core's cache."""
PartOfBatch = TypeVar("PartOfBatch")
Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchSplitter:
    """How batches are divided among a number of threads."""

    threads: int

    def parts(self, count: int) -> list[slice]:
        """Parts of ``count`` samples: as many for every thread, or only one if the batch is too
        small to be worth it."""
        if count < LEAST * self.threads:
            return [slice(0, count)]
        number = self.threads * math.ceil(count / (self.threads * PART))
        ends = [count * index // number for index in range(number + 1)]
        return [slice(start, end) for start, end in pairwise(ends)]

    def map(
        self, run: Callable[[PartOfBatch], Result], parts: Sequence[PartOfBatch]
    ) -> list[Result]:
        """``run`` of each part, in order, computed side by side."""
        return list(thread_pool(self.threads, cores()).map(run, parts))


class SplitEngine:
    """An engine that computes the parts of a batch side by side.

    Args:
        whole: Computes batches that are too small to be divided.
        open_single: Opens the same engine to run on one thread; called once, when it is needed.
        threads: Threads that share a batch.
    """

    def __init__(self, whole: Engine, open_single: Callable[[], Engine], threads: int) -> None:
        self.whole = whole
        self.splitter = BatchSplitter(threads)
        self.inputs: Mapping[str, TensorSpec] = whole.inputs
        self.outputs: Mapping[str, TensorSpec] = whole.outputs
        self._open_single = open_single

    @cached_property
    def single(self) -> Engine:
        """The same engine on one thread."""
        return self.whole if self.splitter.threads == 1 else self._open_single()

    def __call__(self, **arrays: Tensor) -> dict[str, Tensor]:
        check_inputs(self, arrays)
        parts = self.splitter.parts(len(next(iter(arrays.values()))))
        if len(parts) == 1:
            return self.whole(**arrays)
        single = self.single  # opened only by this thread
        outputs = self.splitter.map(
            lambda part: single(**{name: array[part] for name, array in arrays.items()}), parts
        )
        return {name: torch.cat([each[name] for each in outputs]) for name in self.outputs}


class SplitVjpPair(VjpPair):
    """A `VjpPair` whose halves compute the parts of a batch side by side; what the forward half
    leaves for the backward half stays in these parts."""

    def __init__(self, forward: SplitEngine, backward: SplitEngine) -> None:
        super().__init__(forward.whole, backward.whole)
        self._halves = forward, backward
        self._splitter = forward.splitter

    @cached_property
    def _single(self) -> VjpPair:
        return VjpPair(*(half.single for half in self._halves))

    def forward(self, **arrays: Tensor) -> tuple[Tensor, Any]:
        self.check_forward(arrays)
        parts = self._splitter.parts(len(next(iter(arrays.values()))))
        if len(parts) == 1:
            return super().forward(**arrays)
        single = self._single
        outputs = self._splitter.map(
            lambda part: single.forward(**{name: array[part] for name, array in arrays.items()}),
            parts,
        )
        residuals = [(part, residual) for part, (_, residual) in zip(parts, outputs, strict=True)]
        return torch.cat([output for output, _ in outputs]), residuals

    def backward(self, cotangent: Tensor, residuals: Any) -> Tensor:
        if not isinstance(residuals, list):
            return super().backward(cotangent, residuals)
        count = residuals[-1][0].stop
        if len(cotangent) != count:
            raise GoodRtError(f"there are {len(cotangent)} cotangents for {count} samples")
        single = self._single
        gradients = self._splitter.map(
            lambda entry: single.backward(cotangent[entry[0]], entry[1]), residuals
        )
        return torch.cat(gradients)


def vjp_pair(forward: Engine, backward: Engine) -> VjpPair:
    """The two halves of a network's VJP as one `VjpPair`, in parts if both halves are."""
    if not (isinstance(forward, SplitEngine) and isinstance(backward, SplitEngine)):
        return VjpPair(forward, backward)
    pair = SplitVjpPair(forward, backward)
    splits = are_rows((*pair.inputs.values(), *pair.outputs.values()))
    return pair if splits else VjpPair(forward.whole, backward.whole)
