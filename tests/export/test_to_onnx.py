"""One module to one ONNX file: what PyTorch computes, for every batch size, with metadata; or an
error in a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from good_rt.classifier import Classifier
from good_rt.errors import GoodRtError
from good_rt.export.to_onnx import OPSET, export_onnx


@pytest.mark.parametrize("opset", [18, OPSET])
def test_the_file_computes_what_the_module_does(
    classifier: Classifier, tmp_path: Path, opset: int
) -> None:
    path = tmp_path / "c.onnx"
    images = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    export_onnx(
        classifier,
        {"images": images[:2]},
        ("logits", "features"),
        path,
        opset=opset,
        metadata={"a": "b"},
    )
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
    assert {entry.key: entry.value for entry in model.metadata_props}["a"] == "b"
    assert [node.name for node in model.graph.input] == ["images"]
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", 1, 32, 32]
    for batch in (1, 5):
        with torch.no_grad():
            expected = classifier(images[:batch])
        for found, reference in zip(
            session.run(None, {"images": images[:batch].numpy()}), expected, strict=True
        ):
            np.testing.assert_allclose(found, reference, rtol=1e-3, atol=1e-4)


def test_it_says_nothing_while_it_works(
    classifier: Classifier,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    export_onnx(
        classifier,
        {"images": torch.zeros(2, 1, 32, 32)},
        ("logits", "features"),
        tmp_path / "c.onnx",
    )
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


class DependsOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(GoodRtError, match=r"d\.onnx cannot be exported to ONNX: .+") as caught:
        export_onnx(DependsOnData(), {"x": torch.zeros(2, 3)}, ("y",), tmp_path / "d.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
