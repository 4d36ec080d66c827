"""The evaluation: every score of every model on every OOD set, as one value that tables, JSON and
the report share.

It is computed from numpy arrays of scores, whatever their source, and needs no torch. A row is one
score of one model on one OOD set, or that score's plain mean over the sets.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from good_rt.errors import GoodRtError
from good_rt.evaluation.metrics import (
    LOWER_IS_BETTER,
    METRICS,
    DetectionMetrics,
    binomial_interval,
    bootstrap,
    detection_metrics,
    mean_metrics,
)
from good_rt.records import RecordType, drop_format

EVALUATION_RECORD = RecordType("evaluation", "run it again", (drop_format, dict))
MEAN = "mean over sets"
"""The `EvaluationRow.ood_set` of a row that holds the plain mean over all OOD sets."""


@dataclass(frozen=True)
class ScoredSets:
    """One score of one model, higher = more OOD.

    Attributes:
        id: (N,) scores of the ID test images.
        ood: (M,) scores of each OOD set, by name.
    """

    id: NDArray[np.floating[Any]]
    ood: Mapping[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class EvaluationRow:
    """The figures of one score of one model on one OOD set, or on `MEAN`.

    Attributes:
        model: Such as "before", "control" or "trained".
        score: The score's name.
        ood_set: The OOD set's name, or `MEAN`.
        metrics: The figures.
        intervals: 95 % bootstrap intervals (low, high) by figure; a mean row has none.
    """

    model: str
    score: str
    ood_set: str
    metrics: DetectionMetrics
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Share:
    """A count of independent images, with the exact 95 % binomial interval of its rate.

    Attributes:
        count: Images that count.
        n: All images.
        low: Lower bound of the rate.
        high: Upper bound of the rate.
    """

    count: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, hits: ArrayLike) -> Share:
        """The share of true values.

        Args:
            hits: (n,) booleans: whether each image was classified correctly, or refused.
        """
        array = np.asarray(hits, bool)
        return cls.counted(int(array.sum()), array.size)

    @classmethod
    def counted(cls, count: int, n: int) -> Share:
        return cls(count, n, *binomial_interval(count, n))

    @property
    def rate(self) -> float:
        return self.count / self.n


@dataclass(frozen=True)
class Refusal:
    """The ID test images that a detector refuses at one alpha.

    Attributes:
        alpha: Share of ID inputs that the detector may refuse.
        share: What it refused.
    """

    alpha: float
    share: Share

    @classmethod
    def at(cls, alpha: float, p_values: ArrayLike) -> Refusal:
        """The refusals at ``alpha``: an image is refused when p <= alpha.

        Args:
            alpha: Share of ID inputs that may be refused.
            p_values: (n,) conformal p-values of ID test images.
        """
        return cls(alpha, Share.of(np.asarray(p_values) <= alpha))


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        rows: Every score of every model on every OOD set, and means.
        shipped: The model whose detector is delivered; the others are its baselines.
        id_accuracy: ID accuracy of each model.
        id_refusal: ID refusals of the shipped model's detector at each alpha.
        peers: The scores that are other papers', with their settings.
        left_out: Why a model has no row of a peer, by model and peer.
    """

    rows: tuple[EvaluationRow, ...]
    shipped: str
    id_accuracy: Mapping[str, Share] = field(default_factory=dict)
    id_refusal: tuple[Refusal, ...] = ()
    peers: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        return _distinct(row.model for row in self.rows)

    @property
    def scores(self) -> tuple[str, ...]:
        return _distinct(row.score for row in self.rows)

    @property
    def ood_sets(self) -> tuple[str, ...]:
        """The OOD sets in the order given, without the mean."""
        return _distinct(row.ood_set for row in self.rows if row.ood_set != MEAN)

    def row(self, model: str, score: str, ood_set: str = MEAN) -> EvaluationRow:
        """The row of one score of one model on one OOD set.

        Args:
            model: Name of the model.
            score: Name of the score.
            ood_set: An OOD set, or `MEAN`.

        Raises:
            GoodRtError: there is no such row.
        """
        for row in self.rows:
            if (row.model, row.score, row.ood_set) == (model, score, ood_set):
                return row
        raise GoodRtError(
            f"the evaluation has no row of model {model!r}, score {score!r}, OOD set {ood_set!r}"
        )

    def best(self, metric: str, ood_set: str = MEAN) -> EvaluationRow:
        """The row with the best value of one figure on one OOD set; of equals the first.

        Args:
            metric: A name of `METRICS`.
            ood_set: An OOD set, or `MEAN`.

        Raises:
            GoodRtError: there is no such figure.
        """
        rows = [row for row in self.rows if row.ood_set == ood_set]
        if metric not in METRICS or not rows:
            raise GoodRtError(f"the evaluation has no figure {metric!r} on OOD set {ood_set!r}")
        sign = -1 if metric in LOWER_IS_BETTER else 1
        return max(rows, key=lambda row: sign * float(getattr(row.metrics, metric)))

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, for `json.dump`: a record of type evaluation."""
        return EVALUATION_RECORD.to_record(
            {
                "rows": [asdict(row) for row in self.rows],
                "shipped": self.shipped,
                "id_accuracy": {model: asdict(share) for model, share in self.id_accuracy.items()},
                "id_refusal": [asdict(refusal) for refusal in self.id_refusal],
                "peers": dict(self.peers),
                "left_out": {model: dict(reasons) for model, reasons in self.left_out.items()},
            }
        )

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], where: Path | str = "the evaluation"
    ) -> Evaluation:
        """The inverse of `to_json`, also after a round trip through JSON text.

        Args:
            value: What `to_json` returned.
            where: Its file, for errors.

        Raises:
            GoodRtError: the value is not an evaluation, or of a newer version.
        """
        values = EVALUATION_RECORD.from_record(value, where)
        return EVALUATION_RECORD.as_fields(cls, values, where)


def evaluate_scores(
    scores_by_model: Mapping[str, Mapping[str, ScoredSets]],
    *,
    shipped: str | None = None,
    id_accuracy: Mapping[str, Share] | None = None,
    id_refusal: Sequence[Refusal] = (),
    resamples: int = 200,
    seed: int = 0,
) -> Evaluation:
    """Measures every score of every model on every OOD set, with a mean row after each score's
    sets.

    All rows share the seed, so that sets of one size are resampled alike in every row.

    Args:
        scores_by_model: Model -> score -> `ScoredSets`, in the order of the rows.
        shipped: The model that is delivered; None for the last.
        id_accuracy: ID accuracy of each model.
        id_refusal: Refusals of the shipped model's detector.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Raises:
        GoodRtError: there is nothing to measure, the OOD sets differ between scores, or a value is
            not finite; it names the score.
    """
    jobs = [
        (model, score, ood_set, sets.id, values)
        for model, scores in scores_by_model.items()
        for score, sets in scores.items()
        for ood_set, values in sets.ood.items()
    ]
    _check_same_sets(scores_by_model)

    def measure(
        model: str, score: str, ood_set: str, ids: ArrayLike, oods: ArrayLike
    ) -> EvaluationRow:
        try:
            metrics = detection_metrics(ids, oods)
            return EvaluationRow(
                model, score, ood_set, metrics, bootstrap(ids, oods, resamples=resamples, seed=seed)
            )
        except GoodRtError as error:
            raise GoodRtError(
                f"model {model!r}, score {score!r}, OOD set {ood_set!r}: {error}"
            ) from error

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy leaves the lock while it counts
        measured = list(pool.map(measure, *zip(*jobs, strict=True)))
    shipped = list(scores_by_model)[-1] if shipped is None else shipped
    return Evaluation(
        tuple(_with_means(measured)), shipped, dict(id_accuracy or {}), tuple(id_refusal)
    )


def _check_same_sets(scores_by_model: Mapping[str, Mapping[str, ScoredSets]]) -> None:
    names = {
        (model, score): sorted(sets.ood)
        for model, scores in scores_by_model.items()
        for score, sets in scores.items()
    }
    if not names or not all(names.values()):
        raise GoodRtError("an evaluation needs at least one model with one score on one OOD set")
    (first, expected), *others = names.items()
    for key, ood_sets in others:
        if ood_sets != expected:
            raise GoodRtError(
                f"{key} and {first} must have the same OOD sets, not {ood_sets} and {expected}"
            )


def _with_means(rows: Sequence[EvaluationRow]) -> Iterable[EvaluationRow]:
    for model, score in dict.fromkeys((row.model, row.score) for row in rows):
        set_rows = [row for row in rows if (row.model, row.score) == (model, score)]
        yield from set_rows
        yield EvaluationRow(model, score, MEAN, mean_metrics([row.metrics for row in set_rows]), {})


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
