"""A library's network in two parts: the body gives the penultimate features, the head the logits
from them.

`Parted` takes any module whose output is that of one of its modules, mostly the last Linear: that
module is the head, and an identity stands in its place, so that nothing is hooked and training,
tracing and gradients go as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from good_rt.errors import GoodRtError, first_line


class ClassifierNetwork(nn.Module):
    """What `good_rt.classifier.Classifier` calls, with what is to be known of it.

    ``files`` are written into a classifier folder beside the weights, by name.
    """

    trainable: bool = True
    differentiable: bool = True
    features: str = ""
    """Where the features come from, for people."""
    files: Mapping[str, bytes]

    def __init__(self) -> None:
        super().__init__()
        self.files = {}

    def forward_features(self, images: Tensor) -> Tensor:
        """What `Classifier.prepare` makes, (N, C, H, W) -> features (N, D), (N, T, D) or (N, D, h,
        w)."""
        raise NotImplementedError

    def forward_head(self, features: Tensor) -> Tensor:
        """Features -> logits (N, K)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Images -> logits (N, K)."""
        return self.forward_head(self.forward_features(images))

    def library_names(self) -> dict[str, str]:
        """Each of the state dict's names -> the name that the library's own network has for it."""
        return {name: name.removeprefix("model.") for name in self.state_dict()}


class Parted(ClassifierNetwork):
    """A model divided before one of its modules: the features are that module's input.

    `check_parts` tells whether the model's output is really that module's.

    Args:
        model: The model; it is changed in place.
        head: Name of the module that gives the logits.

    Raises:
        GoodRtError: the model has no such module.
    """

    def __init__(self, model: nn.Module, head: str) -> None:
        super().__init__()
        parent, _, name = head.rpartition(".")
        try:
            self.head = model.get_submodule(head)
            setattr(model.get_submodule(parent), name, nn.Identity())
        except AttributeError:
            known = ", ".join([name for name, _ in model.named_modules() if name][-8:])
            raise GoodRtError(
                f"the classifier has no module {head!r} to take the features from; it has {known}"
            ) from None
        self.model = model
        self.head_name = head
        self.features = f"the input of {head}"

    def forward_features(self, images: Tensor) -> Tensor:
        return output_of(self.model(images))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)

    def library_names(self) -> dict[str, str]:
        return {
            own: f"{self.head_name}.{own.removeprefix('head.')}"
            if own.startswith("head.")
            else own.removeprefix("model.")
            for own in self.state_dict()
        }


def output_of(value: Any) -> Tensor:
    """The tensor in what a library's network returns: itself, its ``logits``, or the first of
    several."""
    if isinstance(value, Tensor):
        return value
    logits = getattr(value, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor):
        return value[0]
    raise GoodRtError(
        f"the classifier returns a {type(value).__name__}; it must return its logits (N, K)"
    )


def last_linear(model: nn.Module, images: Tensor) -> str:
    """The name of the Linear that runs last.

    Args:
        model: The model.
        images: (N, C, H, W) that it takes, already prepared.

    Raises:
        GoodRtError: there is none, or the model does not take the images.
    """
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: ran.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        run_network(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    if not ran or not ran[-1]:
        raise GoodRtError(
            "the classifier has no Linear whose input could be the features; name the module that "
            "gives the logits "
            "as `features`"
        )
    return ran[-1]


@torch.no_grad()
def run_network(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, K) in evaluation mode.

    Args:
        model: The model.
        images: (N, C, H, W) that it takes, already prepared.

    Raises:
        GoodRtError: the model does not take them.
    """
    return output_of(_tried(model, model, images))


@torch.no_grad()
def run_features(network: nn.Module, images: Tensor) -> Tensor:
    """The features of example images, in evaluation mode."""
    return _tried(network, network.forward_features, images)  # type: ignore[arg-type]


def _tried(model: nn.Module, function: Callable[[Tensor], Any], images: Tensor) -> Any:
    training = model.training
    model.eval()
    try:
        return function(images)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        shape = tuple(images.shape[1:])
        reason = first_line(error)
        raise GoodRtError(
            f"the classifier does not take images of shape {shape} ({reason})"
        ) from None
    finally:
        model.train(training)


def part(model: nn.Module, images: Tensor, head: str | None = None) -> Parted:
    """The model divided before the module that gives the logits.

    Args:
        model: The model; it is changed in place.
        images: (N, C, H, W) that it takes, already prepared, to check both parts on.
        head: Name of the module; None for the Linear that runs last.

    Raises:
        GoodRtError: there is no such module, or the model's output is not that module's.
    """
    whole = run_network(model, images)
    parted = Parted(model, head or last_linear(model, images))
    check_parts(parted, images, whole)
    return parted


def check_parts(network: ClassifierNetwork, images: Tensor, whole: Tensor) -> None:
    """Checks that the head, applied to the features, gives the logits of the undivided model.

    Args:
        network: The divided network.
        images: (N, C, H, W) that it takes, already prepared.
        whole: Output of the undivided model for them.

    Raises:
        GoodRtError: it does not, or ``whole`` is not of shape (N, K).
    """
    if whole.ndim != 2:
        raise GoodRtError(
            f"the classifier's output has shape {tuple(whole.shape)}; it must be logits (N, K)"
        )
    logits = run_network(network, images)
    if logits.shape != whole.shape or not torch.allclose(logits, whole, rtol=1e-3, atol=1e-4):
        raise GoodRtError(
            "the classifier's output differs from that of "
            f"{network.features.rpartition(' ')[2]!r}; name the module that gives the logits as "
            "`features`, and let the network return logits, not probabilities"
        )


def example_images(channels: int, size: int) -> Tensor:
    """Two images (2, C, H, W) to try a network on."""
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def library_names(network: nn.Module) -> dict[str, str]:
    """`ClassifierNetwork.library_names`, for any module."""
    return (
        network.library_names()
        if isinstance(network, ClassifierNetwork)
        else {name: name for name in network.state_dict()}
    )
