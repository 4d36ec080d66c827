"""detector.onnx around a classifier that is an ONNX file itself, and stays as it is in the
middle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import compose, version_converter
from onnx.inliner import inline_local_functions
from torch import Tensor, nn

from good_rt.classifier import Classifier
from good_rt.classifier.base import as_vectors
from good_rt.classifier.logits import as_logits
from good_rt.classifier.sources.onnx import OnnxNetwork
from good_rt.detector.module import DetectorModule, are_images
from good_rt.errors import GoodRtError, first_line
from good_rt.export.to_onnx import OPSET, export_onnx


class Front(nn.Module):
    """images (N, C, H, W) in [0, 1] -> what the network takes, and which are images (N,)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier.prepare(images * 2 - 1), are_images(images)


class Back(nn.Module):
    """(logits, features as the network gives them, which are images) -> the detector's outputs."""

    def __init__(self, detector: DetectorModule) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, logits: Tensor, features: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        # a copy, since an output may not be an input as well
        return self.detector.decide(as_logits(logits) + 0.0, as_vectors(features), valid)


def merge_detector(
    module: DetectorModule,
    network: OnnxNetwork,
    images: Tensor,
    path: Path,
    metadata: Mapping[str, str],
) -> None:
    """Writes a detector whose classifier is an ONNX file, with that file inside it.

    Args:
        module: The detector in PyTorch.
        network: The classifier's network, an ONNX file.
        images: (N, C, H, W) in [0, 1], examples for the tracing.
        path: The .onnx file; two temporary files appear beside it.
        metadata: What the file's metadata say.

    Raises:
        GoodRtError: the graphs cannot be joined.
    """
    with torch.no_grad():
        prepared = module.classifier.prepare(images * 2 - 1)
        features = network.forward_features(prepared)
        logits = network.forward_head(features)
    front, back = path.with_name("front.onnx"), path.with_name("back.onnx")
    export_onnx(Front(module.classifier).eval(), {"images": images}, ("prepared", "valid"), front)
    examples = {"of_head": logits, "of_body": features, "of_front": are_images(images)}
    export_onnx(Back(module).eval(), examples, module.outputs, back)
    try:
        parts = {"front": onnx.load(front), "body": network.body_model, "head": network.head_model}
        parts["back"] = onnx.load(back)
        parts = {
            name: compose.add_prefix(_at_opset(part), f"{name}/") for name, part in parts.items()
        }
        ends = {
            name: (part.graph.input[0].name, part.graph.output[0].name)
            for name, part in parts.items()
        }
        merged = compose.merge_models(
            parts["front"], parts["body"], io_map=[(ends["front"][1], ends["body"][0])]
        )
        seen = [ends["body"][1], ends["head"][1], "front/valid"]
        merged = compose.merge_models(
            merged, parts["head"], io_map=[(seen[0], ends["head"][0])], outputs=seen
        )
        merged = compose.merge_models(
            merged,
            parts["back"],
            io_map=list(zip(seen, ("back/of_body", "back/of_head", "back/of_front"), strict=True)),
        )
        outputs = {f"back/{name}": name for name in module.outputs}
        _rename(merged.graph, {"front/images": "images", **outputs})
        for key, value in metadata.items():
            merged.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(merged)
    except GoodRtError:
        raise
    except Exception as error:  # onnx raises many kinds
        raise GoodRtError(
            f"the classifier's ONNX file cannot be put into the detector: {first_line(error)}"
        ) from None
    onnx.save(merged, path)


def _at_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at the detector's operator set, since a file only has one."""
    version = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    converted = model if version == OPSET else version_converter.convert_version(model, OPSET)
    result = onnx.ModelProto()
    result.CopyFrom(inline_local_functions(converted))
    del result.metadata_props[:]
    result.ir_version = 10
    return result


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for value in [*graph.input, *graph.output]:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for place in (node.input, node.output):
            place[:] = [names.get(name, name) for name in place]
