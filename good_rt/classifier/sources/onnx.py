"""Classifiers in an ONNX file: converted to PyTorch where every operation is known, else run by
ONNX Runtime as it is.

Converted, the file is like any other network, but for training. As it is, it serves bank,
calibration and detector, which need no gradient; guidance with it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from good_rt.classifier.base import ClassifierConfig
from good_rt.classifier.network import ClassifierNetwork, example_images, run_network
from good_rt.classifier.sources.exported import graph_classifier
from good_rt.classifier.sources.onnx_operations import OPERATIONS, OnnxGraph
from good_rt.classifier.sources.registry import (
    ClassifierRequest,
    ClassifierSource,
    OpenedClassifier,
)
from good_rt.errors import GoodRtError, first_line, require

ONNX_FILE = "model.onnx"
LAYER_OPERATIONS = ("Gemm", "MatMul", "Conv")
SHAPING_OPERATIONS = (
    "Add",
    "Identity",
    "Flatten",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Softmax",
    "LogSoftmax",
    "Dropout",
    "Cast",
)
"""What may stand between the last layer and the output; a softmax is left out, since logits are
wanted."""


class ConvertedNetwork(ClassifierNetwork):
    """An ONNX file in PyTorch operations; its weights are constants.

    Args:
        body: Images (N, C, H, W) to features.
        head: Features to logits (N, K).
        features: Where the features come from, to print.
    """

    trainable = False

    def __init__(self, body: OnnxGraph, head: OnnxGraph, features: str) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.features = features

    def forward_features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)

    def library_names(self) -> dict[str, str]:
        return {}  # all of it is in the file


class OnnxNetwork(ClassifierNetwork):
    """An ONNX file run by ONNX Runtime; it has no gradient and cannot be traced.

    Args:
        body: onnx.ModelProto, images (N, C, H, W) to features.
        head: onnx.ModelProto, features to logits (N, K).
        features: Where the features come from, to print.
        why: Why it is not in PyTorch operations, for errors.
        parameters: Number of the file's weights.
    """

    trainable = False
    differentiable = False

    def __init__(self, body: Any, head: Any, features: str, why: str, parameters: int) -> None:
        super().__init__()
        # onnx.ModelProto, which export puts into the detector
        self.body_model, self.head_model = body, head
        self.features = features
        self.why, self.parameter_count = why, parameters
        self._sessions = (_session(body), _session(head))

    def forward_features(self, images: Tensor) -> Tensor:
        if images.requires_grad and torch.is_grad_enabled():
            raise GoodRtError(
                f"this ONNX classifier has no gradient ({self.why}), so it cannot guide; guide "
                "with the network that "
                "it was made from, or a .pt2 file of it; bank, calibration and detector take it as "
                "it is"
            )
        return _ran(self._sessions[0], images)

    def forward_head(self, features: Tensor) -> Tensor:
        return _ran(self._sessions[1], features)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxNetwork:
        return self  # nothing in it changes


def open_onnx(request: ClassifierRequest) -> OpenedClassifier:
    """The file's network; the size of its images has to be given where the file leaves it open."""
    path = Path(request.name)
    network, channels, size = read(path, request.features)
    return graph_classifier(network, "onnx", channels, size or request.input_size, str(path))


def restore_onnx(config: ClassifierConfig, folder: Path) -> nn.Module:
    """The file in the folder."""
    return read(folder / ONNX_FILE, config.features)[0]


ONNX = ClassifierSource(open_onnx, restore_onnx)


def read(path: Path, features: str | None) -> tuple[ClassifierNetwork, int, int | None]:
    """The network, its channels, and its size where the file fixes it.

    Args:
        path: The .onnx file.
        features: Name of the node, or of its output, whose input is the features; None for the last
            layer.

    Raises:
        GoodRtError: the file is missing, damaged, or does not turn a batch of images into logits.
    """
    onnx = require("onnx", "toolkit")
    if not path.is_file():
        raise GoodRtError(f"{path} is missing")
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and onnx raise many kinds
        reason = first_line(error)
        raise GoodRtError(
            f"{path} is not an ONNX file that can be read ({reason[:120]}); export it again"
        ) from None
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise GoodRtError(f"{path} takes {len(inputs)} inputs; a classifier takes only images")
    shape = [d.dim_value or None for d in inputs[0].type.tensor_type.shape.dim]
    if len(shape) != 4 or shape[1] not in {1, 3}:
        raise GoodRtError(
            f"{path} takes an input of shape {shape}; a classifier takes images (N, C, H, W)"
        )
    if shape[0] is not None:
        raise GoodRtError(
            f"{path} only takes batches of {shape[0]}; export it with a dynamic batch"
        )
    layer, logits = _layer(graph, features, path)
    source, name = layer.input[0], f"the input of {layer.name or layer.op_type}"
    try:
        body = _extract(model, inputs[0].name, source)
        head = _extract(model, source, logits)
    except Exception as error:
        reason = first_line(error)
        raise GoodRtError(f"{path} cannot be parted at {source!r} ({reason[:120]})") from None
    unknown = sorted({node.op_type for node in graph.node if node.op_type not in OPERATIONS})
    parameters = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    as_it_is = OnnxNetwork(
        body, head, name, f"{unknown[0]} has no conversion" if unknown else "", parameters
    )
    network: ClassifierNetwork = as_it_is
    if not unknown:
        converted = ConvertedNetwork(OnnxGraph(body), OnnxGraph(head), name)
        difference = _difference(converted, as_it_is, example_images(shape[1], shape[2] or 64))
        if difference is None:
            network = converted
        else:
            as_it_is.why = difference
    network.files = {ONNX_FILE: path.read_bytes()}
    network.eval()
    return network, shape[1], shape[2]


def _difference(
    converted: ClassifierNetwork, original: ClassifierNetwork, images: Tensor
) -> str | None:
    """Why the conversion is not used; None where it computes what ONNX Runtime does."""
    try:
        ours = run_network(converted, images)
    except (GoodRtError, NotImplementedError, IndexError, KeyError) as error:
        return f"its conversion fails: {first_line(error)[:80]}"
    if not torch.allclose(ours, run_network(original, images), rtol=1e-3, atol=1e-3):
        return "its conversion computes something else"
    return None


def _layer(graph: Any, features: str | None, path: Path) -> tuple[Any, str]:
    """The node that gives the logits, and the logits' name."""
    made = {name: node for node in graph.node for name in node.output}
    logits = graph.output[0].name
    while logits in made and made[logits].op_type in {"Softmax", "LogSoftmax"}:
        logits = made[logits].input[0]
    if features is not None:
        for node in graph.node:
            if features in {node.name, *node.output}:
                return node, logits
        known = ", ".join(
            [
                node.name or node.output[0]
                for node in graph.node
                if node.op_type in LAYER_OPERATIONS
            ][-6:]
        )
        raise GoodRtError(f"{path} has no node {features!r}; its last layers are {known}")
    name = logits
    while name in made:
        node = made[name]
        if node.op_type in LAYER_OPERATIONS:
            return node, logits
        before = [source for source in node.input if source in made]
        if node.op_type not in SHAPING_OPERATIONS or not before:
            break
        name = before[0]
    raise GoodRtError(
        f"{path}: no last layer was found before {logits!r}; name the node that gives the logits "
        "as `features`"
    )


def _extract(model: Any, source: str, target: str) -> Any:
    from onnx.utils import Extractor

    return Extractor(model).extract_model([source], [target])


def _session(model: Any) -> Any:
    ort = require("onnxruntime", "toolkit")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = first_line(error)
        raise GoodRtError(f"ONNX Runtime cannot run the classifier ({reason[:160]})") from None


def _ran(session: Any, value: Tensor) -> Tensor:
    array = np.ascontiguousarray(value.detach().cpu().numpy(), np.float32)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: array})[0]).to(
        value.device
    )
