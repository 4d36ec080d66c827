"""detector.onnx at work: scores images with only numpy and ONNX Runtime.

`good_rt.export.detector` writes the file; its settings stand in the file's
metadata. docs/format.md describes both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from good_rt.errors import GoodRtError, first_line
from good_rt.records import RecordType, Values, drop_format

METADATA_KEY = "good_rt"


def output_names(discrepancies: Iterable[str]) -> tuple[str, ...]:
    """The outputs of a detector file in their order."""
    return ("logits", *discrepancies, "score", "p_value", "is_ood")


def describe_score(values: Values) -> Values:
    """Version 2 to 3: the score's discrepancies are listed; they were always the same two."""
    rest = {key: value for key, value in values.items() if key not in ("k", "distance")}
    discrepancies = {"energy": {}, "knn_distance": {"k": values["k"]}}
    return {**rest, "score": {"combination": {"name": "gate"}, "discrepancies": discrepancies}}


DETECTOR_RECORD = RecordType("detector", "build it again", (drop_format, describe_score))


@dataclass(frozen=True)
class DetectorInfo:
    """The metadata of a detector file.

    Attributes:
        classes: Names of the ID classes.
        channels: 1 (grey) or 3 (RGB).
        image_size: Height and width of the images.
        alpha: Share of ID inputs that may be refused, where the caller does not set another.
        calibration_size: Held-out ID images behind the p-value; no p-value is below
            1/(calibration_size + 1).
        score: The ``combination`` with its parameters, and the ``discrepancies`` by name in the
            order of the outputs: settings, medians and spreads on ID images by class, and weight.
        training: What the classifier was fine-tuned with.
        versions: Packages that built the file.
        weights_sha256: Hash of the graph's weights.
    """

    classes: tuple[str, ...]
    channels: int
    image_size: int
    alpha: float
    calibration_size: int
    score: Mapping[str, Mapping[str, Any]]
    training: str
    versions: Mapping[str, str]
    weights_sha256: str

    def __post_init__(self) -> None:
        for name in ("channels", "image_size", "calibration_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not self.classes or not all(isinstance(name, str) for name in self.classes):
            raise ValueError("classes must be one or more names")
        if not isinstance(self.alpha, float) or not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be a number between 0 and 1, not {self.alpha!r}")
        listed = self.score.get("discrepancies") if isinstance(self.score, Mapping) else None
        if not isinstance(listed, Mapping) or not listed:
            raise ValueError(f"score must list the discrepancies by name, not {self.score!r}")

    @property
    def discrepancies(self) -> tuple[str, ...]:
        """Names of the discrepancies in the score, in the order of the outputs."""
        return tuple(self.score["discrepancies"])

    def to_json(self) -> str:
        """The file's metadata `METADATA_KEY`."""
        return json.dumps(DETECTOR_RECORD.to_record(asdict(self)))

    @classmethod
    def from_json(cls, text: str, where: Path | str = "the detector's metadata") -> DetectorInfo:
        """What `to_json` returned, of this version or an older one.

        Args:
            text: The file's metadata.
            where: The file, for errors.

        Raises:
            GoodRtError: the text is something else, damaged, or of a newer version.
        """
        return DETECTOR_RECORD.as_fields(cls, DETECTOR_RECORD.loads(text, where), where)


@dataclass(frozen=True)
class Scores:
    """The detector's results for N images; higher scores are more out-of-distribution.

    Attributes:
        score: (N,) unified scores.
        p_value: (N,) conformal p-values in (0, 1].
        is_ood: (N,) p_value <= alpha.
        label: (N,) the classifier's classes.
        logits: (N, K) the classifier's logits.
        discrepancies: (N,) values of each discrepancy in the score, by name.
    """

    score: NDArray[np.float32]
    p_value: NDArray[np.float32]
    is_ood: NDArray[np.bool_]
    label: NDArray[np.int64]
    logits: NDArray[np.float32]
    discrepancies: Mapping[str, NDArray[np.float32]]


class Detector:
    """A detector.onnx, ready to score on the CPU.

    Args:
        path: The file.
        alpha: Share of ID inputs that may be refused; None for the file's.
        threads: Threads that ONNX Runtime uses; 0 for all cores.

    Raises:
        GoodRtError: the file is missing, damaged, or not a detector, or its calibration is too
            small for alpha.
    """

    def __init__(self, path: Path | str, alpha: float | None = None, threads: int = 0) -> None:
        import onnxruntime as ort

        self.path = path = Path(path)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise GoodRtError(
                f"{path} {what}; give a detector.onnx, which `good-rt detector build` writes"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what goes wrong is raised, in one line
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            metadata = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # onnxruntime's exceptions share no base class
            reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", first_line(error))
            raise GoodRtError(
                f"{path} is damaged or not an ONNX file ({reason}); build it again"
            ) from None
        if METADATA_KEY not in metadata:
            raise GoodRtError(
                f"{path} is an ONNX file, but not a good-rt detector; build one with `good-rt "
                "detector build`"
            )
        self.info = info = DetectorInfo.from_json(metadata[METADATA_KEY], path)
        names, self._outputs = (
            tuple(node.name for node in self._session.get_outputs()),
            output_names(info.discrepancies),
        )
        if names != self._outputs:
            raise DETECTOR_RECORD.damaged(path, f"its outputs are {names}, not {self._outputs}")
        inputs = {node.name: node.shape[1:] for node in self._session.get_inputs()}
        expected = {"images": [info.channels, info.image_size, info.image_size]}
        if inputs != expected:
            raise DETECTOR_RECORD.damaged(path, f"its inputs are {inputs}, not {expected}")
        self.alpha = self.info.alpha if alpha is None else alpha
        smallest = 1 / (self.info.calibration_size + 1)
        if not smallest <= self.alpha < 1:
            raise GoodRtError(
                f"alpha must be at least {smallest:.3g} for this detector, and below 1; not "
                f"{self.alpha}"
            )

    def score(self, images: NDArray[np.uint8], batch: int = 64) -> Scores:
        """Scores images (N, H, W, C) uint8.

        Args:
            images: N > 0 images of the detector's size and channels.
            batch: Images that run at once.

        Raises:
            GoodRtError: the images do not fit, or an output is not finite.
        """
        expected = (self.info.image_size, self.info.image_size, self.info.channels)
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[1:] != expected
            or len(images) == 0
        ):
            raise GoodRtError(
                f"images must be uint8 (N, {', '.join(map(str, expected))}), not {images.dtype} "
                f"{images.shape}"
            )
        parts = []
        for first in range(0, len(images), batch):
            pixels = images[first : first + batch].transpose(0, 3, 1, 2).astype(np.float32) / 255
            parts.append(self._session.run(list(self._outputs), {"images": pixels}))
        columns = zip(*parts, strict=True)
        arrays = dict(zip(self._outputs, map(np.concatenate, columns), strict=True))
        wrong = ~np.isfinite(arrays["logits"]).all(axis=1)
        for name in (*self.info.discrepancies, "score", "p_value"):
            wrong |= ~np.isfinite(arrays[name])
        if wrong.any():
            raise GoodRtError(
                f"{self.path} gives a value that is not finite (image {np.flatnonzero(wrong)[0]} "
                f"of {len(images)}); its weights or its calibration are damaged: build it again"
            )
        return Scores(
            score=arrays["score"],
            p_value=arrays["p_value"],
            is_ood=arrays["p_value"] <= np.float32(self.alpha),
            label=arrays["logits"].argmax(axis=1),
            logits=arrays["logits"],
            discrepancies={name: arrays[name] for name in self.info.discrepancies},
        )
