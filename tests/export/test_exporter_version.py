"""The exporter's version: it must change whenever the text of an exported graph does.

The text is a graph's operations, attributes, types and shapes, without names, documentation and the
values of weights, so that it is the same on every machine. `exporter_version.json` holds its hash
for three tiny graphs, together with `EXPORTER`. After a change that is meant:

    raise EXPORTER in export/graphs.py, then: python tests/export/test_exporter_version.py
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxscript
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

from good_rt.classifier import Classifier, ClassifierConfig
from good_rt.demo.network import SmallResNet
from good_rt.diffusion import DiffusionModel
from good_rt.diffusion.process import DiscreteProcess
from good_rt.export.export import write_graph
from good_rt.export.graphs import EXPORTER, FusedGuidance, graphs_of
from good_rt.export.to_onnx import OPSET
from good_rt.method.bank import FeatureBank
from good_rt.method.discrepancy.knn import KnnDistance

RECORD = Path(__file__).with_name("exporter_version.json")
VERSIONS = {
    "torch": torch.__version__.split("+")[0],
    "onnxscript": onnxscript.__version__,
    "onnx_ir": onnx_ir.__version__,
}
"""What the text depends on, besides this package."""


class TinyDenoiser(nn.Module):
    """What every network has: norms, attention, a skip connection, up-sampling, a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.norm, self.token_norm = nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.time, self.qkv, self.out = nn.Linear(2, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 1, 1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        phase = timestep[:, None] * 1e-3
        time = self.time(torch.cat([phase.sin(), phase.cos()], 1))
        skip = F.silu(self.norm(self.first(sample)) + time[:, :, None, None])
        x = self.down(skip)
        tokens = self.token_norm(x.flatten(2).transpose(1, 2))
        query, key, value = self.qkv(tokens).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.out(F.gelu(attended)).transpose(1, 2).reshape(x.shape)
        x = self.up(F.interpolate(x, scale_factor=2.0))
        return self.last(torch.cat([x, skip], 1))


@torch.no_grad()
def ramp(module: nn.Module) -> nn.Module:
    """The module with weights that are the same on every machine."""
    for parameter in module.parameters():
        parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).reshape(parameter.shape))
    return module.eval().requires_grad_(False)


def tiny_texts() -> dict[str, str]:
    """The texts of a denoiser, of its gradient's graph and halves, and of the fused guidance."""
    network = ramp(TinyDenoiser())
    config = ClassifierConfig("small_resnet", ("a", "b"), channels=1, image_size=8)
    classifier = Classifier(ramp(SmallResNet(width=4, num_classes=2)), config)
    alphas = np.linspace(0.99, 0.01, 10)
    process = DiscreteProcess(alphas)
    model = DiffusionModel(network, None, None, process, None, (1, 8, 8), (1, 8, 8), "tiny")
    bank = FeatureBank(torch.eye(16)[:5])
    graphs = graphs_of(model, classifier, None, FusedGuidance(KnnDistance(bank, 2)))
    texts = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("network", "network_vjp", "guidance_vjp"):
            for path in write_graph(name, graphs[name], Path(folder), OPSET):
                texts[path.stem] = graph_text(onnx.load(path).graph)
    return texts


def graph_text(graph: onnx.GraphProto) -> str:
    """A graph as text: tensors are numbered in the order of their use."""
    names: dict[str, str] = {"": "-"}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    lines = [f"input {value_text(value)}" for value in graph.input]
    for number, value in enumerate(graph.input):
        names[value.name] = f"input{number}"

    def numbered(name: str) -> str:
        if name not in names:
            names[name] = f"t{len(names)}"
            if name in weights:
                lines.append(f"{names[name]} = {tensor_text(weights[name])}")
        return names[name]

    for node in graph.node:
        inputs = [numbered(name) for name in node.input]
        outputs = [numbered(name) for name in node.output]
        attributes = sorted(attribute_text(attribute) for attribute in node.attribute)
        lines.append(f"{', '.join(outputs)} = {node.op_type}({', '.join([*inputs, *attributes])})")
    lines += [f"output {value_text(value)} = {numbered(value.name)}" for value in graph.output]
    return "\n".join(lines)


def value_text(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
    # the names between the halves of a gradient are the exporter's, those of the ends are ours
    return f"{kind.elem_type} {shape}"


def tensor_text(tensor: onnx.TensorProto) -> str:
    """Type and shape, and the value of what is no weight: integers, and single numbers."""
    text = f"{tensor.data_type} {list(tensor.dims)}"
    array = numpy_helper.to_array(tensor)
    if array.dtype.kind in "ib" or array.ndim == 0:
        text += f" {rounded(array.reshape(-1).tolist())}"
    return text


def attribute_text(attribute: onnx.AttributeProto) -> str:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return f"{attribute.name}={tensor_text(value)}"
    if isinstance(value, onnx.GraphProto):
        return f"{attribute.name}={{{graph_text(value)}}}"
    return f"{attribute.name}={rounded(value)}"


def rounded(value: Any) -> str:
    """A number, text or list of them, floats to five digits."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return f"[{', '.join(rounded(part) for part in value)}]"
    return str(value)


def hashes(texts: dict[str, str]) -> dict[str, str]:
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def test_the_version_is_raised_when_a_graph_changes() -> None:
    recorded = json.loads(RECORD.read_text())
    if recorded["versions"] != VERSIONS:
        pytest.skip(f"the graphs were recorded with {recorded['versions']}, this is {VERSIONS}")
    changed = [
        name
        for name, digest in hashes(tiny_texts()).items()
        if recorded["graphs"].get(name) != digest
    ]
    advice = (
        "raise EXPORTER in export/graphs.py" if recorded["exporter"] == EXPORTER else "record it"
    )
    assert not changed, (
        f"the exporter writes other graphs: {advice}, then run {Path(__file__).name}"
    )
    assert recorded["exporter"] == EXPORTER, f"record the new version: run {Path(__file__).name}"


def tiny_graph(epsilon: float = 1e-5, doc: str = "", name: str = "y", weight: float = 0.1) -> str:
    kind = onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Relu", ["x"], ["hidden"], doc_string=doc),
        helper.make_node("BatchNormalization", ["hidden", *["w"] * 4], [name], epsilon=epsilon),
    ]
    ends = [helper.make_tensor_value_info(end, kind, ["batch", 1]) for end in ("x", name)]
    weights = [numpy_helper.from_array(np.full(1, weight, np.float32), "w")]
    return graph_text(helper.make_graph(nodes, "g", ends[:1], ends[1:], weights, doc_string=doc))


def test_the_text_has_operations_and_attributes_but_no_names_weights_and_comments() -> None:
    assert tiny_graph() == tiny_graph(doc="/home/someone/module.py", name="z", weight=0.7)
    assert tiny_graph() != tiny_graph(epsilon=1e-3)


def record() -> None:
    """Writes `exporter_version.json`, unless graphs have changed under the same version."""
    graphs = hashes(tiny_texts())
    if RECORD.exists():
        recorded = json.loads(RECORD.read_text())
        same_versions = recorded["versions"] == VERSIONS
        if same_versions and recorded["graphs"] != graphs and recorded["exporter"] == EXPORTER:
            sys.exit(f"the graphs changed and EXPORTER is still {EXPORTER}; raise it first")
    value = {"exporter": EXPORTER, "versions": VERSIONS, "graphs": graphs}
    RECORD.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    record()
