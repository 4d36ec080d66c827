"""The feature bank: unit-norm penultimate features of in-distribution images, searched by faiss.

It gives the k-NN distance (Sun et al., arXiv 2204.06507) in two ways: as a score, and as a
differentiable discrepancy that guidance climbs. Both search without gradient, then compute the
distance to the neighbour exactly. A score uses the true neighbours; guidance, which searches at
every step, may use the nearest rows of a large bank's nearest clusters.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.errors import GoodRtError
from good_rt.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

LARGE = 20_000
"""Rows beyond which an approximate search looks into clusters (an inverted file) instead of at
every row."""
CLUSTERS_PROBED = 8
"""Of 4√M; at M = 100,000 that is 0.6 % of the rows."""
SPARE = 8
"""Candidates beyond the k-th that are ranked again by exact distance: faiss' expanded
‖q‖²+‖b‖²−2q·b rounds."""


class FeatureBank:
    """M unit-norm features (M, D) float32 on the CPU, searched on the device of the queries.

    Neighbours are ordered by exact Euclidean distance, ties by the lower row, so duplicates in the
    bank count as often as they occur and a search is deterministic. Distances lie in [0, 2].

    Args:
        features: (M, D) floating point, every row of unit norm.

    Raises:
        GoodRtError: the features are not a finite (M, D) matrix of unit rows.
    """

    def __init__(self, features: Tensor) -> None:
        if features.ndim != 2 or len(features) == 0:
            raise GoodRtError(
                "a feature bank needs an (M, D) matrix with M > 0, not shape "
                f"{tuple(features.shape)}"
            )
        norms = torch.linalg.vector_norm(features.float(), dim=1)
        wrong = (~((norms - 1).abs() < 1e-3)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise GoodRtError(
                f"feature {row} of the bank has norm {norms[row]:.4g}, not 1: normalise the "
                "features first"
            )
        self.features = features.detach().float().cpu().contiguous()
        self._copies: dict[torch.device, Tensor] = {}

    @classmethod
    def of(cls, features: Tensor) -> FeatureBank:
        """The bank of features of any norm.

        Args:
            features: (M, D).
        """
        return cls(F.normalize(features, dim=1))

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def _index(self) -> Any:
        import faiss

        index = faiss.IndexFlatL2(self.features.shape[1])
        index.add(self.features.numpy())
        return index

    @cached_property
    def _inverted_file(self) -> Any:
        import faiss

        index: Any = faiss.index_factory(
            self.features.shape[1], f"IVF{4 * math.isqrt(len(self))},Flat"
        )
        # seconds instead of minutes; better clusters would find hardly nearer rows
        index.cp.niter = 5
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, 40
        index.train(self.features.numpy())
        index.add(self.features.numpy())
        index.nprobe = CLUSTERS_PROBED
        return index

    def _on(self, device: torch.device) -> Tensor:
        """The features on that device."""
        if device.type == "cpu":
            return self.features
        if device not in self._copies:
            self._copies[device] = self.features.to(device)
        return self._copies[device]

    def _candidates(self, queries: Tensor, count: int, approximate: bool) -> Tensor:
        """The rows (N, count) nearest to the queries (N, D), in no certain order."""
        queries = queries.detach().float()
        if queries.device.type == "cpu":
            return torch.from_numpy(
                self._candidates_by_faiss(queries.contiguous().numpy(), count, approximate)
            )
        # of unit-norm rows, the nearest have the largest inner products; a GPU has them all in one
        # matrix product
        return (queries @ self._on(queries.device).T).topk(count, dim=1).indices

    def _candidates_by_faiss(
        self, queries: NDArray[np.float32], count: int, approximate: bool
    ) -> NDArray[np.int64]:
        """The candidates by faiss."""
        if not (approximate and len(self) > LARGE):
            return self._index.search(queries, count)[1]
        _, rows = self._inverted_file.search(queries, count)
        incomplete = (rows < 0).any(axis=1)  # the clusters hold fewer rows
        if incomplete.any():
            rows[incomplete] = self._index.search(queries[incomplete], count)[1]
        return rows

    def check_k(self, k: int, *, excluded: bool = False) -> None:
        """Checks that the bank has k rows.

        Args:
            k: Number of neighbours.
            excluded: Whether one row does not count.

        Raises:
            GoodRtError: there are fewer.
        """
        available = len(self) - excluded
        if not 1 <= k <= available:
            raise GoodRtError(f"k must be between 1 and {available} (the bank's size), not {k}")

    @torch.no_grad()
    def search(
        self, queries: Tensor, k: int, exclude: Tensor | None = None, *, approximate: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The k nearest bank rows: distances (N, k), and rows (N, k) int64, nearest first.

        Args:
            queries: (N, D) unit-norm features.
            k: Number of neighbours.
            exclude: (N,) int64, for each query one bank row that does not count: the query itself,
                when the queries come from the bank.
            approximate: May miss neighbours in a bank of more than `LARGE` rows; the distances of
                the returned rows are exact all the same.

        Raises:
            GoodRtError: the bank has fewer than k rows that count.
        """
        self.check_k(k, excluded=exclude is not None)
        wanted = min(len(self), k + SPARE + (exclude is not None))
        candidates = self._candidates(queries, wanted, approximate)
        rows = candidates.sort(dim=1).values  # so that the stable sort below breaks ties by row
        distances = torch.linalg.vector_norm(queries[:, None] - self._rows(rows, queries), dim=2)
        if exclude is not None:
            distances = distances.masked_fill(rows == exclude[:, None], torch.inf)
        distances, order = distances.sort(dim=1, stable=True)
        return distances[:, :k], rows.gather(1, order)[:, :k]

    def distance(self, queries: Tensor, k: int, *, approximate: bool = False) -> Tensor:
        """(N,) distance to the k-th nearest feature, in [0, 2], differentiable in the queries.

        The gradient is the unit vector away from that neighbour; at distance 0 it is 0.

        Args:
            queries: (N, D) unit-norm features.
            k: Which neighbour.
            approximate: See `search`.

        Raises:
            GoodRtError: the bank has fewer than k rows.
        """
        _, rows = self.search(queries, k, approximate=approximate)
        return torch.linalg.vector_norm(queries - self._rows(rows[:, -1], queries), dim=1)

    def _rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """The features of these rows, in the type and on the device of ``like``."""
        return self._on(like.device)[rows].to(like.dtype)

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Writes the features as safetensors."""
        from safetensors.torch import save_file

        with atomic_path(path) as temporary:
            save_file({"features": self.features}, temporary, dict(metadata or {}))

    @classmethod
    def load(cls, path: Path) -> FeatureBank:
        """Reads what `save` wrote.

        Raises:
            GoodRtError: the file is missing or is not a feature bank.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return cls(load_file(path)["features"])
        except (OSError, KeyError, SafetensorError) as error:
            raise GoodRtError(
                f"{path} is not a feature bank ({error}); create it again with `good-rt train`"
            ) from None
