"""Whether a network's outputs can be logits: probabilities are taken off where a module gives them,
and refused elsewhere.

Energy and the other scores need logits. Probabilities have the same largest class, so that nothing
else would tell.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from good_rt.errors import GoodRtError

SCALES = (1.0, -1.0, 1e3, -1e3, 1e6, -1e6)
"""Of features: a layer's outputs grow with them, probabilities do not."""
RELATIVE_TOLERANCE = 1e-3
PROBABILITY_MODULES = (
    nn.Softmax,
    nn.LogSoftmax,
    nn.Softmax2d,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Hardsigmoid,
    nn.Tanh,
)
"""Modules whose outputs are no logits; a larger input is a larger output."""
LOGITS_REMEDY = (
    "let the network return what goes into its last softmax or sigmoid, or name the layer that "
    "gives the logits as `features` (--features)"
)


def as_logits(outputs: Tensor) -> Tensor:
    """(N, K) as they are; one output (N, 1) or (N,) of a network for two classes as (N, 2): 0 and
    the output."""
    outputs = outputs.unsqueeze(1) if outputs.ndim == 1 else outputs
    if outputs.ndim != 2 or outputs.shape[1] != 1:
        return outputs
    return torch.cat([torch.zeros_like(outputs), outputs], dim=1)


def check_logits(network: Any, features: Tensor, where: str) -> None:
    """Checks on features of images, also far larger ones and random ones, that the network's head
    gives logits.

    Args:
        network: Has ``forward_head``.
        features: What ``forward_features`` gives for example images.
        where: The classifier's spec, for errors.

    Raises:
        GoodRtError: the outputs can only be probabilities.
    """
    random = torch.randn(
        (8, *features.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float32
    )
    probes = torch.cat([features, random.to(features) * features.abs().amax().clamp(min=1)])
    training = network.training
    network.eval()
    with torch.no_grad():
        outputs = torch.cat([network.forward_head(probes * scale) for scale in SCALES])
    network.train(training)
    outputs = outputs.unsqueeze(1) if outputs.ndim == 1 else outputs
    outputs = outputs.double()[outputs.isfinite().all(dim=1)]
    fault = _fault(outputs)
    if fault is not None:
        raise GoodRtError(f"{where}: the outputs are {fault}, not logits; {LOGITS_REMEDY}")


def _fault(outputs: Tensor) -> str | None:
    """What outputs (N, K) for widely spread features are where they are no logits."""
    if not len(outputs):
        return None
    low, high, sums = outputs.min(), outputs.max(), outputs.sum(dim=1)
    several = outputs.shape[1] > 1
    steady = bool((sums - sums.mean()).abs().max() <= RELATIVE_TOLERANCE * sums.mean().abs())
    if several and low >= -RELATIVE_TOLERANCE and steady and sums.mean() > RELATIVE_TOLERANCE:
        return f"probabilities (never negative, with the sum {float(sums.mean()):.4g})"
    if several and outputs.logsumexp(dim=1).abs().max() <= RELATIVE_TOLERANCE:
        return "logarithms of probabilities (their exponentials have the sum 1)"
    if low >= -RELATIVE_TOLERANCE and high <= 1 + RELATIVE_TOLERANCE:
        return "probabilities (all within [0, 1])"
    if high <= RELATIVE_TOLERANCE and bool((outputs.amax(dim=0) >= -RELATIVE_TOLERANCE).all()):
        return "logarithms of probabilities (never positive)"
    extreme = (outputs.abs() >= 1 - RELATIVE_TOLERANCE).double().mean()
    if outputs.abs().max() <= 1 + RELATIVE_TOLERANCE and extreme > 0.5:
        return "bounded (all within [-1, 1], as after a tanh)"
    return None


def left_out(what: str) -> str:
    """What is said of an operation at a network's end that is not used."""
    return f"logits are the inputs of {what} at the network's end, which is left out"
