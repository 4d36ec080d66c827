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
from good_rt.classifier.logits import left_out
from good_rt.classifier.network import (
    ClassifierNetwork,
    example_images,
    place_of_logits,
    run_network,
)
from good_rt.classifier.sources.exported import graph_classifier
from good_rt.classifier.sources.onnx_operations import OPERATIONS, OnnxGraph
from good_rt.classifier.sources.registry import (
    ClassifierRequest,
    ClassifierSource,
    OpenedClassifier,
    settled,
    square_size,
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
    "Dropout",
    "Cast",
)
"""What may stand between the last layer and the output."""
PROBABILITY_OPERATIONS = ("Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Tanh")
"""What is left out there, since logits are wanted; a larger input is a larger output."""
FOLLOWING_OPERATIONS = ("Log", "Exp", "Clip")
"""What may follow them, and is left out with them."""
LOW_PRECISION = ("FLOAT16", "BFLOAT16", "DOUBLE")
"""The types that are read as float32, as all weights are."""


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
    """The file's network; channels and size of its images have to be given where the file leaves
    them open."""
    network, shape = read(request)
    return graph_classifier(network, "onnx", shape, request)


def restore_onnx(config: ClassifierConfig, folder: Path) -> nn.Module:
    """The file in the folder."""
    size = config.resize.crop if config.resize else config.image_size
    request = ClassifierRequest(
        str(folder / ONNX_FILE),
        features=config.features,
        input_channels=config.input_channels or config.channels,
        input_size=size,
    )
    return read(request)[0]


ONNX = ClassifierSource(open_onnx, restore_onnx)


def read(request: ClassifierRequest) -> tuple[ClassifierNetwork, tuple[int | None, int | None]]:
    """The network, and its channels and size where the file fixes them.

    Args:
        request: The .onnx file, the name of the node, or of its output, whose input is the features
            (None for the last layer), and channels and size where the file leaves them open.

    Raises:
        GoodRtError: the file is missing, damaged, or does not turn a batch of images into logits.
    """
    path = Path(request.name)
    model, content = load_model(path)
    graph = model.graph
    shape = _image_shape(graph, path)
    channels = settled(shape[0], request.input_channels, "channels", str(path))
    output, notes = _without_probabilities(graph, _logits_output(graph, path))
    layer = _layer(graph, request.features, output, path)
    source, name = layer.input[0], f"the input of {layer.name or layer.op_type}"
    constants = {tensor.name for tensor in graph.initializer}
    image = next(value.name for value in graph.input if value.name not in constants)
    try:
        body = _extract(model, image, source)
        head = _extract(model, source, output)
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
        images = example_images(channels, shape[1] or request.input_size or 64)
        difference = _difference(converted, as_it_is, images)
        if difference is None:
            network = converted
        else:
            as_it_is.why = difference
    network.files, network.notes = {ONNX_FILE: content}, notes
    network.eval()
    return network, shape


def load_model(path: Path) -> tuple[Any, bytes]:
    """The graph of an ONNX file with all of its weights, in float32, and the file's content, which
    also contains weights that lie in other files.

    Args:
        path: The .onnx file.

    Raises:
        GoodRtError: the file or one that it names is missing or damaged, or together they are
            larger than one file can be.
    """
    onnx = require("onnx", "toolkit")
    from good_rt.engines.onnx_file import LARGEST_FILE, check_data, data_files

    if not path.is_file():
        raise GoodRtError(f"{path} is missing")
    try:
        model = onnx.load(path, load_external_data=False)
        check_data(model, path)
        others = [path.parent / name for name in data_files(model)]
        size = sum(file.stat().st_size for file in (path, *others))
        if size > LARGEST_FILE:
            raise GoodRtError(
                f"{path} and its weights have {size / 2**30:.1f} GiB, and an ONNX file holds 2; "
                "export the network with torch.export.save to a .pt2 file"
            )
        content = path.read_bytes()
        if others:
            model = onnx.load(path)
            content = model.SerializeToString(deterministic=True)
        _to_float32(model)
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model)
    except GoodRtError:
        raise
    except Exception as error:  # protobuf and onnx raise many kinds
        reason = first_line(error)
        raise GoodRtError(
            f"{path} is not an ONNX file that can be read ({reason[:120]}); export it again"
        ) from None
    return model, content


def _to_float32(model: Any) -> None:
    """Turns every number and tensor of half or double precision into float32, in place."""
    from onnx import AttributeProto, TensorProto, numpy_helper

    types = {TensorProto.DataType.Value(name) for name in LOW_PRECISION}

    def convert(tensor: Any) -> None:
        if tensor.data_type in types:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def visit(nodes: Any) -> None:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    convert(attribute.t)
                elif attribute.type == AttributeProto.GRAPH:
                    visit_graph(attribute.g)
                elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in types:
                    attribute.i = TensorProto.FLOAT

    def visit_graph(graph: Any) -> None:
        for tensor in graph.initializer:
            convert(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in types:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        visit(graph.node)

    visit_graph(model.graph)
    for function in model.functions:
        visit(function.node)


def _image_shape(graph: Any, path: Path) -> tuple[int | None, int | None]:
    """Channels and size of the images that a graph takes, None for what it leaves open."""
    from onnx import TensorProto

    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise GoodRtError(f"{path} takes {len(inputs)} inputs; a classifier takes only images")
    kind = inputs[0].type.tensor_type
    shape = [dim.dim_value or None for dim in kind.shape.dim]
    if kind.elem_type != TensorProto.FLOAT:
        name = TensorProto.DataType.Name(kind.elem_type).lower()
        raise GoodRtError(
            f"{path} takes images of type {name}, but a classifier takes normalised floats; export "
            "it without the cast at its beginning"
        )
    if len(shape) == 4 and shape[1] not in {None, 1, 3} and shape[3] in {1, 3}:
        raise GoodRtError(
            f"{path} takes images (N, H, W, C), with channels last; export it for (N, C, H, W)"
        )
    if len(shape) != 4 or shape[1] not in {None, 1, 3}:
        raise GoodRtError(
            f"{path} takes an input of shape {shape}; a classifier takes images (N, C, H, W)"
        )
    if shape[0] is not None:
        raise GoodRtError(
            f"{path} only takes batches of {shape[0]}; export it with a dynamic batch"
        )
    return shape[1], square_size(shape[2:], str(path))


def _logits_output(graph: Any, path: Path) -> str:
    """The name of the output that the logits are."""
    names = [str(value.name) for value in graph.output]
    shapes = [
        tuple(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim)[1:]
        for value in graph.output
    ]
    return names[place_of_logits(names, shapes, str(path))]


def _without_probabilities(graph: Any, output: str) -> tuple[str, tuple[str, ...]]:
    """The output of a graph without the softmax or sigmoid at its end, and what was left out; the
    graph is changed in place."""
    made = {name: node for node in graph.node for name in node.output}
    chain, name = [], output
    while name in made and made[name].op_type in (
        *PROBABILITY_OPERATIONS,
        *FOLLOWING_OPERATIONS,
        *(kind for kind in SHAPING_OPERATIONS if kind != "Add"),
    ):
        chain.append(made[name])
        name = made[name].input[0]
    is_probability = [node.op_type in PROBABILITY_OPERATIONS for node in chain]
    first = max((place for place, is_one in enumerate(is_probability) if is_one), default=-1)
    left = [node for node in chain[: first + 1] if node.op_type not in SHAPING_OPERATIONS]
    for node in left:
        before, after = node.input[0], node.output[0]
        for other in graph.node:
            other.input[:] = [before if name == after else name for name in other.input]
        output = before if output == after else output
    names = [node.name or node.op_type for node in left if node.op_type in PROBABILITY_OPERATIONS]
    return output, tuple(left_out(name) for name in names)


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


def _layer(graph: Any, features: str | None, logits: str, path: Path) -> Any:
    """The node that gives the logits."""
    made = {name: node for node in graph.node for name in node.output}
    if features is not None:
        for node in graph.node:
            if features in {node.name, *node.output}:
                return node
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
            return node
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
    try:
        output = session.run(None, {session.get_inputs()[0].name: array})[0]
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise GoodRtError(
            f"ONNX Runtime cannot run the classifier on an input of shape {tuple(value.shape)} "
            f"({first_line(error)[:160]})"
        ) from None
    return torch.from_numpy(output).to(value.device)
