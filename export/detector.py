"""Writes the finished detector as one ONNX file, checked against PyTorch before it gets its name.

The file contains classifier, discrepancies, their combination and calibration;
`good_rt.detector.runtime` and any ONNX runtime run it.
"""

from __future__ import annotations

import copy
import hashlib
import mmap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import good_rt
from good_rt.classifier.sources.onnx import OnnxNetwork
from good_rt.detector.module import DetectorModule
from good_rt.detector.onnx_content import content_hash
from good_rt.detector.runtime import METADATA_KEY, Detector, DetectorInfo
from good_rt.engines.onnx_file import LARGEST_FILE
from good_rt.engines.open import open_engine
from good_rt.errors import GoodRtError, ParityError
from good_rt.export.detector_merge import merge_detector
from good_rt.export.parity import RELATIVE
from good_rt.export.to_onnx import export_onnx
from good_rt.files import atomic_path
from good_rt.method.discrepancy.energy import Energy


@dataclass(frozen=True)
class DetectorParity:
    """How far detector.onnx and PyTorch differ over N images: largest differences, and labels that
    disagree.

    Differences are relative to the output's mean magnitude over the images. A class disagrees where
    PyTorch's is ahead of it by more than `parity.RELATIVE` of the logits' mean magnitude.
    """

    images: int
    max_relative: dict[str, float]
    class_disagreements: int
    ood_disagreements: int
    p_value_ranks: int
    """Largest difference of the p-values, in calibration scores: a score beside one of them may
    round past it."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def detector_parity(
    module: DetectorModule, path: Path, images: Tensor, batch: int = 250
) -> DetectorParity:
    """Every output of a detector file compared with its module's.

    Args:
        module: The detector in PyTorch, on the CPU.
        path: The .onnx file.
        images: (N, C, H, W) in [0, 1].
        batch: Images that run at once.
    """
    engine = open_engine(path)
    found: dict[str, list[Tensor]] = {name: [] for name in module.outputs}
    expected: dict[str, list[Tensor]] = {name: [] for name in module.outputs}
    with torch.no_grad():
        for part in images.split(batch):
            for name, value in engine(images=part).items():
                found[name].append(value)
            for name, value in zip(module.outputs, module(part), strict=True):
                expected[name].append(value)
    ours = {name: torch.cat(values) for name, values in found.items()}
    reference = {name: torch.cat(values) for name, values in expected.items()}
    relative = {}
    for name in ("logits", *module.unified.names, "score"):
        scale = reference[name].double().abs().mean().clamp_min(1e-12)
        relative[name] = float((ours[name].double() - reference[name].double()).abs().max() / scale)
    # what PyTorch's class is ahead of the file's: of two that are equal up to rounding, either may
    # be the larger
    lost = (
        reference["logits"].amax(1)
        - reference["logits"].gather(1, ours["logits"].argmax(1, keepdim=True))[:, 0]
    )
    return DetectorParity(
        images=len(images),
        max_relative=relative,
        class_disagreements=int((lost > RELATIVE * reference["logits"].abs().mean()).sum()),
        ood_disagreements=int((ours["is_ood"] != reference["is_ood"]).sum()),
        p_value_ranks=round(
            float((ours["p_value"] - reference["p_value"]).abs().max())
            * (len(module.calibration) + 1)
        ),
    )


def export_detector(
    module: DetectorModule, path: Path, images: Tensor, training: str
) -> DetectorParity:
    """Writes a detector as one ONNX file and returns its parity with PyTorch.

    The CPU traces and runs it; the module stays on its device.

    Args:
        module: The detector in PyTorch.
        path: The .onnx file.
        images: (N, C, H, W) in [0, 1] that both are compared on.
        training: What the classifier was fine-tuned with, for the file's metadata.

    Raises:
        ParityError: a label or decision differs, an output differs by more than `parity.RELATIVE`
            of its mean magnitude, or the p-value by more ranks than such a difference of the score
            explains; nothing is written.
        GoodRtError: the weights are larger than one ONNX file may be, or the classifier does what
            no detector may.
    """
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    if size > LARGEST_FILE:
        raise GoodRtError(
            f"{path.name} would hold {size / 2**30:.1f} GiB of weights, but an ONNX file holds "
            f"{LARGEST_FILE / 2**30:.1f}; use a smaller classifier or bank_size"
        )
    if module.classifier.device.type != "cpu":
        module = copy.deepcopy(module).cpu()
    config = module.classifier.config
    info = DetectorInfo(
        classes=config.classes,
        channels=config.channels,
        image_size=config.image_size,
        alpha=module.config.alpha,
        calibration_size=len(module.calibration),
        score=_score_record(module),
        training=training,
        versions={
            "good-rt": good_rt.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        weights_sha256=_weights_hash(module),
    )
    with atomic_path(path) as temporary:
        metadata = {METADATA_KEY: info.to_json()}
        if isinstance(module.classifier.network, OnnxNetwork):
            merge_detector(module, module.classifier.network, images[:2], temporary, metadata)
        else:
            export_onnx(
                module, {"images": images[:2]}, module.outputs, temporary, metadata=metadata
            )
        _write_hash(temporary, info.weights_sha256)
        try:
            Detector(temporary)
        except GoodRtError as error:
            reason = str(error).replace(str(temporary), path.name)
            raise GoodRtError(f"this classifier's detector cannot be opened: {reason}") from None
        parity = detector_parity(module, temporary, images)
        # a NaN is the worst there is
        worst = max(
            parity.max_relative,
            key=lambda name: np.nan_to_num(parity.max_relative[name], nan=np.inf),
        )
        if (
            not parity.max_relative[worst] <= RELATIVE
            or parity.class_disagreements
            or parity.ood_disagreements
            or parity.p_value_ranks > 1 + RELATIVE * len(module.calibration)
        ):
            raise ParityError(
                f"{path.name} is not what PyTorch computes: {worst} differs by "
                f"{parity.max_relative[worst]:.1e} "
                f"relative (bound {RELATIVE:.0e}), the p-value by {parity.p_value_ranks} ranks, "
                f"{parity.class_disagreements} classes and {parity.ood_disagreements} decisions of "
                f"{len(images)} "
                "differ; nothing was written"
            )
    return parity


def _score_record(module: DetectorModule) -> dict[str, Any]:
    """What the metadata say of the score: the combination, and each discrepancy's settings, mean,
    standard deviation and weight."""
    record = module.unified.to_json()
    for one in module.discrepancies:
        record["discrepancies"][one.name] |= one.parameters_used()
        if one.name != Energy.name:
            record["discrepancies"][one.name]["bank_size"] = len(module.id_features)
    return record


def _write_hash(path: Path, digits: str) -> None:
    """Replaces the digits that stand for the file's hash by the hash."""
    digest = content_hash(path, digits.encode())
    assert digest is not None  # a hash of the weights stands nowhere else
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        place = data.find(digits.encode())
        data[place : place + len(digits)] = digest.encode()


def _weights_hash(module: DetectorModule) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
