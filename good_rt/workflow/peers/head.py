"""The linear head of a classifier, found as a layer or by probing, and checked on real images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from good_rt.classifier import Classifier, predict
from good_rt.errors import GoodRtError


def linear_head(classifier: Classifier, images: Tensor) -> nn.Linear | None:
    """The linear layer that gives a classifier's logits from its features, on the CPU.

    It is the last Linear of fitting shape; in a graph without modules, the affine function that the
    head computes. Either must reproduce the logits of real images.

    Args:
        classifier: The classifier.
        images: (N, C, H, W) in [-1, 1]: real images.

    Returns:
        None where no linear layer reproduces the logits.
    """
    logits, features = predict(classifier, images)
    shape = logits.shape[1], features.shape[1]
    modules = [
        module
        for module in classifier.network.modules()
        if isinstance(module, nn.Linear) and tuple(module.weight.shape) == shape
    ]
    for module in reversed(modules):
        bias = torch.zeros(shape[0]) if module.bias is None else module.bias
        head = _linear(module.weight, bias)
        if _reproduces(head, features, logits):
            return head
    probed = _probed_head(classifier, shape[1])
    return probed if probed is not None and _reproduces(probed, features, logits) else None


@torch.no_grad()
def _probed_head(classifier: Classifier, width: int) -> nn.Linear | None:
    """The affine function h(x) = Wx + b of a head, read off h(0) and h of the unit vectors."""
    points = torch.cat([torch.zeros(1, width), torch.eye(width)]).to(classifier.device)
    try:
        values = classifier.head(points)
    except (RuntimeError, ValueError, IndexError, GoodRtError):  # it takes maps or tokens
        return None
    return _linear((values[1:] - values[0]).T, values[0]) if values.ndim == 2 else None


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight.detach().cpu().float(), "bias": bias.detach().cpu()})
    return head.requires_grad_(False)


def _reproduces(head: nn.Linear, features: Tensor, logits: Tensor) -> bool:
    tolerance = 1e-4 * float(logits.abs().max())
    return torch.allclose(head(features), logits, rtol=1e-3, atol=tolerance)
