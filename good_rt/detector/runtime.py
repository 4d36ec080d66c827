"""detector.onnx at work: scores images with only numpy and ONNX Runtime.

`good_rt.export.detector` writes the file; its settings stand in the file's
metadata. docs/format.md describes both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from good_rt.errors import GoodRtError, first_line
from good_rt.records import RecordType, drop_format

DETECTOR_RECORD = RecordType("detector", "build it again", (drop_format,))
OUTPUTS = ("logits", "energy", "knn_distance", "score", "p_value", "is_ood")
METADATA_KEY = "good_rt"


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
        k: Which neighbour the k-NN distance is measured to.
        distance: Name of the distance.
        training: What the classifier was fine-tuned with.
        versions: Packages that built the file.
        weights_sha256: Hash of the graph's weights.
    """

    classes: tuple[str, ...]
    channels: int
    image_size: int
    alpha: float
    calibration_size: int
    k: int
    distance: str
    training: str
    versions: Mapping[str, str]
    weights_sha256: str

    def __post_init__(self) -> None:
        for name in ("channels", "image_size", "calibration_size", "k"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not self.classes or not all(isinstance(name, str) for name in self.classes):
            raise ValueError("classes must be one or more names")
        if not isinstance(self.alpha, float) or not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be a number between 0 and 1, not {self.alpha!r}")

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
        energy: (N,) energies.
        knn_distance: (N,) distances to the k-th nearest ID feature, in [0, 2].
    """

    score: NDArray[np.float32]
    p_value: NDArray[np.float32]
    is_ood: NDArray[np.bool_]
    label: NDArray[np.int64]
    logits: NDArray[np.float32]
    energy: NDArray[np.float32]
    knn_distance: NDArray[np.float32]


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
        names = tuple(node.name for node in self._session.get_outputs())
        if METADATA_KEY not in metadata or names != OUTPUTS:
            raise GoodRtError(
                f"{path} is an ONNX file, but not a good-rt detector; build one with `good-rt "
                "detector build`"
            )
        self.info = info = DetectorInfo.from_json(metadata[METADATA_KEY], path)
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
            parts.append(self._session.run(list(OUTPUTS), {"images": pixels}))
        arrays = {
            name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(OUTPUTS)
        }
        wrong = ~np.isfinite(arrays["logits"]).all(axis=1)
        for name in ("energy", "knn_distance", "score", "p_value"):
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
            energy=arrays["energy"],
            knn_distance=arrays["knn_distance"],
        )
