"""Sampling that starts from ID images: encoded, noised to a part of the trajectory, guided from
there (after SDEdit, Meng et al., arXiv 2108.01073).

The samples keep an ID image's composition while guidance changes what the classifier sees in it, so
that they lie nearer to the ID images than those that start from noise, and cost fewer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from good_rt.classifier import Classifier
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8
from good_rt.method.sampler import sample_seeds

STREAM = 3
"""Of the seeds that choose ID images; the sampler has 0 to 2."""


@dataclass(frozen=True, eq=False)
class IdStart:
    """Chooses an ID training image for every generated one, and encodes it.

    Attributes:
        id_data: In-distribution images.
        classifier: Decides shape and classes.
        encode: Images (N, C, H, W) in [-1, 1] to latents.
    """

    id_data: IdData
    classifier: Classifier
    encode: Callable[[Tensor], Tensor]

    @cached_property
    def _rows(self) -> list[list[int]]:
        """The source's rows of the training part by the classifier's class; all of them for every
        class where the images have none."""
        rows, classes = self.id_data.rows("train"), self.classifier.config.classes
        if not self.id_data.labelled:
            return [rows for _ in classes]
        outputs, entries = self.id_data.labels(classes), self.id_data.source.entries
        by_class: list[list[int]] = [[] for _ in classes]
        for row in rows:
            label = entries[row].label
            assert label is not None  # `IdData.labels` checks it
            by_class[outputs[label]].append(row)
        return [of_class or rows for of_class in by_class]

    def rows(self, seed: int, indices: Sequence[int], labels: Sequence[int]) -> list[int]:
        """The source's row that each image starts from: of its class, by its seed.

        Args:
            seed: The job's seed.
            indices: Positions in the generated set.
            labels: Classes of the images.
        """
        draws = [
            np.random.SeedSequence((sample, STREAM)).generate_state(1, np.uint64)[0]
            for sample in sample_seeds(seed, indices)
        ]
        return [
            self._rows[label][int(draw % np.uint64(len(self._rows[label])))]
            for label, draw in zip(labels, draws, strict=True)
        ]

    @torch.no_grad()
    def latents(self, rows: Sequence[int]) -> Tensor:
        """(N, C, H, W) latents of these rows of the source.

        Raises:
            GoodRtError: an image cannot be read.
        """
        config, wanted = self.classifier.config, sorted(set(rows))
        parts = self.id_data.batches("train", None, config.channels, config.image_size, rows=wanted)
        images = np.concatenate([part.images for part in parts])
        position = {row: place for place, row in enumerate(wanted)}
        pixels = from_uint8(images[[position[row] for row in rows]])
        return self.encode(pixels.to(self.classifier.device))
