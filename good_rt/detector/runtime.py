"""detector.onnx at work: scores images with only numpy and ONNX Runtime.

`good_rt.export.detector` writes the file; its settings stand in the file's
metadata. docs/format.md describes both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
from numpy.typing import NDArray

from good_rt.config.declaration import Bounds
from good_rt.config.settings import CombinationName, DiscrepancyName
from good_rt.detector.bounded_session import (
    bounded_session,
    first_run,
    out_of_memory,
    reason_of,
)
from good_rt.detector.onnx_content import (
    HASH_DIGITS,
    LARGEST_METADATA,
    content_hash,
    read_onnx_content,
)
from good_rt.errors import GoodRtError
from good_rt.records import Count, RecordType, Values, drop_format, from_json

METADATA_KEY = "good_rt"
LARGEST_IMAGE = 4096
"""Pixels of an image's height and width."""
LONGEST_NAME = 1000
"""Characters of a class's name."""
BYTES_AT_ONCE = 2**26
"""Of the float32 pixels of images that run at once."""
FIRST_WITH_HASH = 4
"""The first version whose ``weights_sha256`` is of the file."""


def output_names(discrepancies: Iterable[str]) -> tuple[str, ...]:
    """The outputs of a detector file in their order."""
    return ("logits", *discrepancies, "score", "p_value", "is_ood")


def describe_score(values: Values) -> Values:
    """Version 2 to 3: the score's discrepancies are listed; they were always the same two."""
    rest = {key: value for key, value in values.items() if key not in ("k", "distance")}
    discrepancies = {"energy": {}, "knn_distance": {"k": values["k"]}}
    return {**rest, "score": {"combination": {"name": "gate"}, "discrepancies": discrepancies}}


def keep_values(values: Values) -> Values:
    """Version 3 to 4: graphs have a guard, and the hash is the file's."""
    return values


DETECTOR_RECORD = RecordType(
    "detector", "build it again", (drop_format, describe_score, keep_values)
)


@dataclass(frozen=True)
class ListedDiscrepancy:
    """What the metadata say of a discrepancy in the score; versions 1 and 2 say less.

    Attributes:
        medians: On held-out ID images, by class.
        spreads: Median to 95 % quantile, by class.
        weight: In the score.
        temperature: Of the energy.
        k: Of the k-NN distance.
        bank_size: Of the k-NN distance.
    """

    medians: tuple[float, ...] | None = None
    spreads: tuple[Annotated[float, Bounds(low=0)], ...] | None = None
    weight: float | None = None
    temperature: Annotated[float, Bounds(low=0, open_low=True)] | None = None
    k: Count | None = None
    bank_size: Count | None = None


@dataclass(frozen=True)
class ListedScore:
    """What the metadata say of the score: a combination, and discrepancies by name."""

    combination: Mapping[str, Any]
    discrepancies: Mapping[str, ListedDiscrepancy]

    @classmethod
    def of(cls, info: DetectorInfo) -> ListedScore:
        """What a detector's metadata say."""
        return from_json(cls, info.score)

    def check(self, classes: int) -> None:
        """Raises ValueError where a name is unknown, or a value is none for so many classes."""
        name = self.combination.get("name")
        if name not in get_args(CombinationName):
            raise ValueError(f"score.combination.name is {name!r}, which is not known")
        for key, value in self.combination.items():
            if key != "name" and not _is_finite(value):
                raise ValueError(f"score.combination.{key} must hold finite numbers")
        if not self.discrepancies:
            raise ValueError("score must list one or more discrepancies")
        for name, listed in self.discrepancies.items():
            if name not in get_args(DiscrepancyName):
                raise ValueError(f"score.discrepancies has {name[:60]!r}, which is not known")
            for values in (listed.medians, listed.spreads):
                if values is not None and len(values) != classes:
                    raise ValueError(
                        f"score.discrepancies.{name} has {len(values)} values, but there are "
                        f"{classes} classes"
                    )


def _is_finite(value: object) -> bool:
    """Whether a value is a finite number or a truth value, or a list of such."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return isinstance(value, (int, float)) and abs(value) < math.inf


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
        weights_sha256: SHA-256 of the file, of which these digits are zeros; before version 4, of
            the weights as PyTorch had them.
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
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {self.channels}")
        if self.image_size > LARGEST_IMAGE:
            raise ValueError(f"image_size must be at most {LARGEST_IMAGE}, not {self.image_size}")
        if not self.classes or not all(isinstance(name, str) for name in self.classes):
            raise ValueError("classes must be one or more names")
        if max(map(len, self.classes)) > LONGEST_NAME:
            raise ValueError(f"classes must be names of at most {LONGEST_NAME} characters")
        if not isinstance(self.alpha, float) or not self.smallest_alpha <= self.alpha < 1:
            raise ValueError(
                f"alpha must be a number from {self.smallest_alpha:.3g}, 1/(calibration_size + 1), "
                f"to 1, not {self.alpha!r}"
            )
        ListedScore.of(self).check(len(self.classes))
        if not re.fullmatch(f"[0-9a-f]{{{HASH_DIGITS}}}", self.weights_sha256):
            raise ValueError(f"weights_sha256 must be {HASH_DIGITS} hexadecimal digits")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        return (self.channels, self.image_size, self.image_size)

    @property
    def smallest_alpha(self) -> float:
        """The smallest p-value, below which no image is refused."""
        return 1 / (self.calibration_size + 1)

    @property
    def discrepancies(self) -> tuple[str, ...]:
        """Names of the discrepancies in the score, in the order of the outputs."""
        return tuple(self.score["discrepancies"])

    def to_json(self) -> str:
        """The file's metadata `METADATA_KEY`."""
        return json.dumps(DETECTOR_RECORD.to_record(asdict(self)))

    @classmethod
    def from_json(
        cls, text: str | bytes, where: Path | str = "the detector's metadata"
    ) -> DetectorInfo:
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
        self.path = path = Path(path)
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            what = "is a folder" if path.is_dir() else what
            raise GoodRtError(
                f"{path} {what}; give a detector.onnx, which `good-rt detector build` writes"
            )
        self.info = info = self._read_info()
        self._outputs = output_names(info.discrepancies)
        self._check_file(threads)
        self._session = bounded_session(path, threads)
        self._at_once = self.images_at_once
        self.alpha = info.alpha if alpha is None else alpha
        if not info.smallest_alpha <= self.alpha < 1:
            raise GoodRtError(
                f"alpha must be at least {info.smallest_alpha:.3g} for this detector, and below 1; "
                f"not {self.alpha}"
            )

    @property
    def images_at_once(self) -> int:
        """How many images are worth holding in memory, from 1 to 256."""
        return max(1, min(256, BYTES_AT_ONCE // (4 * int(np.prod(self.info.image_shape)))))

    def _read_info(self) -> DetectorInfo:
        """The file's metadata, after a look at its nodes and weights and its hash."""
        content = read_onnx_content(self.path)
        text = content.metadata.get(METADATA_KEY.encode())
        if text is None:
            raise GoodRtError(
                f"{self.path} is an ONNX file, but not a good-rt detector; build one with "
                "`good-rt detector build`"
            )
        if len(text) > LARGEST_METADATA:
            raise self._damaged(f"its metadata have {len(text):,} bytes")
        info = DetectorInfo.from_json(text, self.path)
        if info.calibration_size not in content.lengths:
            raise self._damaged(f"it holds no {info.calibration_size} calibration scores")
        version = DETECTOR_RECORD.json_object(text, self.path).get("version", 1)
        if version >= FIRST_WITH_HASH:
            digits = info.weights_sha256
            if content_hash(self.path, digits.encode()) != digits:
                raise self._damaged("its bytes are not those that weights_sha256 was made of")
        return info

    def _check_file(self, threads: int) -> None:
        """Checks inputs and outputs against the metadata, as declared and for a first image."""
        info, session = self.info, bounded_session(self.path, threads, optimise=False)
        inputs = {node.name: (node.type, node.shape[1:]) for node in session.get_inputs()}
        expected = {"images": ("tensor(float)", list(info.image_shape))}
        if inputs != expected:
            raise self._damaged(f"its inputs are {inputs}, not {expected}")
        (batch,) = [node.shape[0] for node in session.get_inputs()]
        if isinstance(batch, int):
            raise self._damaged(f"it only takes batches of {batch}")
        names = tuple(node.name for node in session.get_outputs())
        if names != self._outputs:
            raise self._damaged(f"its outputs are {names}, not {self._outputs}")
        images = np.full((1, *info.image_shape), 0.5, np.float32)
        for name, values in zip(names, first_run(session, self.path, images), strict=True):
            shape = (1, len(info.classes)) if name == "logits" else (1,)
            dtype = np.dtype(np.bool_ if name == "is_ood" else np.float32)
            if not isinstance(values, np.ndarray) or (values.shape, values.dtype) != (shape, dtype):
                kind = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "no"
                raise self._damaged(f"its output {name} is {kind}, not {dtype} {shape}")

    def _damaged(self, reason: str) -> GoodRtError:
        return DETECTOR_RECORD.damaged(self.path, reason)

    def score(self, images: NDArray[np.uint8], batch: int = 64) -> Scores:
        """Scores images (N, H, W, C) uint8.

        Args:
            images: N > 0 images of the detector's size and channels.
            batch: Most images that run at once; fewer where they are large.

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
        parts, first = list[Sequence[NDArray[Any]]](), 0
        while first < len(images):
            part = images[first : first + min(batch, self._at_once)]
            outputs = self._run(part.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
            if outputs is None:  # the same images again, in smaller parts
                self._at_once = len(part) // 2
                continue
            parts.append(outputs)
            first += len(part)
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

    def _run(self, pixels: NDArray[np.float32]) -> Sequence[NDArray[Any]] | None:
        """The outputs for (N, C, H, W) in [0, 1]; None where so many take too much memory."""
        try:
            outputs: Sequence[NDArray[Any]] = self._session.run(
                list(self._outputs), {"images": pixels}
            )
        except Exception as error:  # onnxruntime's exceptions share no base class
            if out_of_memory(error) and len(pixels) > 1:
                return None
            raise GoodRtError(
                f"{self.path} fails on an image ({reason_of(error)}); build it again"
            ) from None
        if any(len(values) != len(pixels) for values in outputs):
            raise self._damaged(f"it does not give one score for each of {len(pixels)} images")
        return outputs
