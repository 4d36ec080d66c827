"""What denoisers share, beside what the tests of the architectures say of them."""

from __future__ import annotations

import torch
from torch import Tensor

from good_rt.method.denoiser import remembered


def test_a_condition_is_made_once_for_the_same_labels() -> None:
    asked = []

    def condition(labels: Tensor) -> tuple[Tensor, ...]:
        asked.append(labels.tolist())
        return (labels * 10,)

    once = remembered(condition)
    for labels in ([1, 2], [1, 2], [1, 3], [1], [1, 2]):
        assert once(torch.tensor(labels))[0].tolist() == [10 * label for label in labels]
    assert asked == [[1, 2], [1, 3], [1], [1, 2]]
