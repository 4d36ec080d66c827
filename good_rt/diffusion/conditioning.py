"""What a network is conditioned on, class by class: labels, or embeddings of a prompt computed once
for every class.

A `Conditioning` is a table with one row for each class and prompt, and the unconditional row last;
the network, its engine and the denoiser take its rows as the inputs that follow sample and
timestep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from good_rt.config.settings import PROMPT
from good_rt.errors import GoodRtError


@dataclass(frozen=True)
class Conditioning:
    """rows (N,) int64 -> one tensor (N, …) for each of ``names``, the network's inputs after
    (sample, timestep).

    ``tables`` are (R, …) each. Row c + classes·i belongs to class c and template i; ``null`` is the
    row of no condition, None where the network knows none.
    """

    names: tuple[str, ...]
    tables: tuple[Tensor, ...]
    null: int | None
    classes: int
    templates: int = 1

    def __call__(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(table[rows] for table in self.tables)

    def to(self, device: torch.device | str) -> Conditioning:
        """The same tables on another device, where its rows then have to be."""
        return replace(self, tables=tuple(table.to(device) for table in self.tables))

    def rows(self, labels: Tensor, turn: Tensor) -> Tensor:
        """Classes (N,) and each one's turn (N,), by which the templates alternate -> rows (N,)."""
        return labels + self.classes * (turn % self.templates)

    @property
    def count(self) -> int:
        return len(self.tables[0])


class Conditioner(Protocol):
    """Makes the conditioning of a classifier's classes."""

    def __call__(self, classes: Sequence[str], templates: Sequence[str]) -> Conditioning:
        """Names of the classes, prompt templates with {} in the name's place (for text alone) ->
        the table.

        Raises GoodRtError when the model does not know that many classes, or its text encoder
        cannot be loaded.
        """
        ...


@dataclass(frozen=True)
class ClassLabels:
    """A network with ``count`` labels. The last is the unconditional one if there are more labels
    than classes.

    ``names`` are label numbers by class name, where the model brings them: a classifier whose
    classes all have such a name gets those labels; any other's class c is label c.
    """

    count: int
    names: Mapping[str, int] | None = None

    def __call__(self, classes: Sequence[str], templates: Sequence[str] = ()) -> Conditioning:
        if len(classes) > self.count:
            raise GoodRtError(
                f"the diffusion model knows {self.count} classes, the classifier {len(classes)}"
            )
        known = self.names or {}
        labels = (
            [known[name] for name in classes]
            if all(name in known for name in classes)
            else [*range(len(classes))]
        )
        null = self.count > len(classes)
        table = torch.tensor([*labels, self.count - 1] if null else labels)
        return Conditioning(
            ("class_labels",), (table,), len(classes) if null else None, len(classes)
        )


@dataclass(frozen=True)
class TextPrompts:
    """A network that follows a text. ``encode``: prompts -> the network's inputs by name, a row a
    prompt.

    The unconditional row is the empty prompt's; those of ``zeroed`` are zero instead, as some
    models were trained.
    """

    encode: Callable[[list[str]], dict[str, Tensor]]
    zeroed: tuple[str, ...] = ()

    def __call__(
        self, classes: Sequence[str], templates: Sequence[str] = (PROMPT,)
    ) -> Conditioning:
        for template in templates:
            if "{}" not in template:
                raise GoodRtError(
                    f"the prompt {template!r} has no place for the class's name; write {{}} there"
                )
        prompts = [
            template.replace("{}", name.replace("_", " "))
            for template in templates
            for name in classes
        ]
        tables = self.encode([*prompts, ""])
        for name in self.zeroed:
            tables[name][-1] = 0
        return Conditioning(
            tuple(tables), tuple(tables.values()), len(prompts), len(classes), len(templates)
        )
