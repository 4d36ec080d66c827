"""A library's network in two parts: the body gives the penultimate features, the head the logits
from them.

`Parted` takes any module whose output is that of one of its modules, mostly the last Linear: that
module is the head, and an identity stands in its place, so that nothing is hooked and training,
tracing and gradients go as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from good_rt.classifier.logits import PROBABILITY_MODULES, left_out
from good_rt.errors import GoodRtError, first_line


class ClassifierNetwork(nn.Module):
    """What `good_rt.classifier.Classifier` calls, with what is to be known of it.

    ``files`` are written into a classifier folder beside the weights, by name.
    """

    trainable: bool = True
    differentiable: bool = True
    features: str = ""
    """Where the features come from, for people."""
    notes: tuple[str, ...] = ()
    """What else there is to know of how the network is read, for people."""
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


class TwoHeads(ClassifierNetwork):
    """A model whose output is the mean of two Linears, such as the own head and a teacher's: the
    features are the inputs of both.

    Args:
        model: The model; it is changed in place.
        heads: The names of both.
    """

    def __init__(self, model: nn.Module, heads: tuple[str, str]) -> None:
        super().__init__()
        first, second = (model.get_submodule(name) for name in heads)
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        self.first, self.second = first, second
        self.width = first.in_features
        for name, padding in zip(heads, ((0, second.in_features), (self.width, 0)), strict=True):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.ZeroPad1d(padding))
        self.model, self.heads = model, heads
        self.features = f"the inputs of {heads[0]} and {heads[1]}"
        self.notes = (f"logits are the mean of {heads[0]!r} and {heads[1]!r}",)

    def forward_features(self, images: Tensor) -> Tensor:
        return 2 * output_of(self.model(images))

    def forward_head(self, features: Tensor) -> Tensor:
        logits: Tensor = (
            self.first(features[..., : self.width]) + self.second(features[..., self.width :])
        ) / 2
        return logits

    def library_names(self) -> dict[str, str]:
        heads = dict(zip(("first", "second"), self.heads, strict=True))
        names = {}
        for own in self.state_dict():
            part, _, rest = own.partition(".")
            names[own] = f"{heads[part]}.{rest}" if part in heads else rest
        return names


def output_of(value: Any) -> Tensor:
    """The tensor in what a library's network returns: itself, its ``logits``, or the only one of
    shape (N, K).

    Raises:
        GoodRtError: there is none, or two could be the logits.
    """
    if isinstance(value, Tensor):
        return value
    logits = value.get("logits") if isinstance(value, Mapping) else getattr(value, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(value, (tuple, list)):
        tensors = [item for item in value if isinstance(item, Tensor)]
        names = [f"output {place}" for place in range(len(tensors))]
        shapes = [tuple(tensor.shape[1:]) for tensor in tensors]
        if tensors:
            return tensors[place_of_logits(names, shapes, "the classifier")]
    raise GoodRtError(
        f"the classifier returns a {type(value).__name__}; it must return its logits (N, K)"
    )


def place_of_logits(names: Sequence[str], shapes: Sequence[tuple[Any, ...]], where: str) -> int:
    """Which of a network's outputs the logits are: the one of that name, or the only one of shape
    (N, K).

    Args:
        names: Names of the outputs.
        shapes: Their shapes without the batch.
        where: The classifier, for errors.

    Raises:
        GoodRtError: several could be the logits, such as features or a teacher's.
    """
    if "logits" in names:
        return list(names).index("logits")
    places = [place for place, shape in enumerate(shapes) if len(shape) <= 1]
    if len(places) > 1:
        raise GoodRtError(
            f"{where} has several outputs that could be the logits "
            f"({', '.join(names[place] for place in places)}); let it return one, or call the one "
            "to use 'logits'"
        )
    return places[0] if places else 0


def last_linear(model: nn.Module, images: Tensor) -> str:
    """The name of the Linear that runs last.

    Args:
        model: The model.
        images: (N, C, H, W) that it takes, already prepared.

    Raises:
        GoodRtError: there is none, or the model does not take the images.
    """
    return linears_run(model, images)[-1]


def linears_run(model: nn.Module, images: Tensor) -> list[str]:
    """The names of a model's Linears in the order in which they run.

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
    return ran


@torch.no_grad()
def run_network(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, K) in evaluation mode; (N, 1) of a network that gives one number an image.

    Args:
        model: The model.
        images: (N, C, H, W) that it takes, already prepared.

    Raises:
        GoodRtError: the model does not take them.
    """
    outputs = output_of(_tried(model, model, images))
    return outputs.unsqueeze(1) if outputs.ndim == 1 else outputs


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


def part(model: nn.Module, images: Tensor, head: str | None = None) -> Parted | TwoHeads:
    """The model divided before the module that gives the logits, or before two whose mean they are.

    Softmax and sigmoid modules at its end are taken off.

    Args:
        model: The model; it is changed in place.
        images: (N, C, H, W) that it takes, already prepared, to check both parts on.
        head: Name of the module; None for the Linear that runs last.

    Raises:
        GoodRtError: there is no such module, or the model's output is not that module's.
    """
    notes = drop_probabilities(model, images)
    whole = run_network(model, images)
    pair = mean_of_heads(model, images, whole) if head is None else None
    parted: Parted | TwoHeads
    if pair is None:
        parted = Parted(model, head or last_linear(model, images))
    else:
        parted = TwoHeads(model, pair)
    check_parts(parted, images, whole)
    parted.notes += notes
    return parted


def mean_of_heads(model: nn.Module, images: Tensor, whole: Tensor) -> tuple[str, str] | None:
    """The last two Linears of a model whose output is their mean; None for other models.

    Args:
        model: The model.
        images: (N, C, H, W) that it takes, already prepared.
        whole: Its output for them.

    Raises:
        GoodRtError: the model has no Linear.
    """
    names = linears_run(model, images)[-2:]
    given: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: given.update({name: output})
        )
        for name in dict.fromkeys(names)
    ]
    try:
        run_network(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    parts = list(given.values())
    if len(parts) != 2 or any(part.shape != whole.shape for part in parts):
        return None
    is_mean = torch.allclose((parts[0] + parts[1]) / 2, whole, rtol=1e-4, atol=1e-5)
    return (names[0], names[1]) if is_mean else None


def drop_probabilities(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """Takes off softmax and sigmoid modules that give the model's output.

    Args:
        model: The model in evaluation mode; it is changed in place.
        images: (N, C, H, W) that it takes, already prepared.

    Returns:
        What was taken off, for people.
    """
    notes: list[str] = []
    while (name := _last_probability(model, images)) is not None:
        whole = run_network(model, images)
        parent, _, child = name.rpartition(".")
        module = model.get_submodule(name)
        setattr(model.get_submodule(parent), child, nn.Identity())
        with torch.no_grad():
            again = module(run_network(model, images))
        if again.shape != whole.shape or not torch.allclose(again, whole, rtol=1e-4, atol=1e-5):
            # it also runs elsewhere, or something follows it
            setattr(model.get_submodule(parent), child, module)
            break
        notes.append(left_out(f"{type(module).__name__} {name!r}"))
    return tuple(notes)


def _last_probability(model: nn.Module, images: Tensor) -> str | None:
    """The name of the module, of those that give probabilities, whose output is the model's."""
    ran: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: ran.update({name: output})
        )
        for name, module in model.named_modules()
        if name and isinstance(module, PROBABILITY_MODULES)
    ]
    if not hooks:
        return None
    try:
        whole = run_network(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    return next(
        (
            name
            for name, output in ran.items()
            if output.numel() == whole.numel() and torch.equal(output.reshape(whole.shape), whole)
        ),
        None,
    )


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
