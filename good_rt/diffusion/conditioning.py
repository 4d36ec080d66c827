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
    """A table of the network's inputs after (sample, timestep): rows (N,) int64 -> one tensor each.

    Row c + classes·i belongs to class c and template i.

    Attributes:
        names: Names of the inputs.
        tables: One (R, …) tensor per input.
        null: The unconditional row; None where the network has none.
        classes: Number of classes.
        templates: Number of prompt templates.
    """

    names: tuple[str, ...]
    tables: tuple[Tensor, ...]
    null: int | None
    classes: int
    templates: int = 1

    def __call__(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(table[rows] for table in self.tables)

    def to(self, device: torch.device | str) -> Conditioning:
        """The same tables on another device, where the rows must be as well."""
        return replace(self, tables=tuple(table.to(device) for table in self.tables))

    def rows(self, labels: Tensor, turn: Tensor) -> Tensor:
        """Rows (N,) int64 of the table.

        Args:
            labels: (N,) int64 classes.
            turn: (N,) int64, how often the class has come before: the templates alternate by it.
        """
        return labels + self.classes * (turn % self.templates)

    @property
    def count(self) -> int:
        return len(self.tables[0])


class Conditioner(Protocol):
    """Creates the conditioning of a classifier's classes."""

    def __call__(self, classes: Sequence[str], templates: Sequence[str]) -> Conditioning:
        """The table for these classes.

        Args:
            classes: Their names.
            templates: Prompts with {} in place of the class's name; only for models that follow
                text.

        Raises:
            GoodRtError: the model has too few classes, or its text encoder cannot be loaded.
        """
        ...


@dataclass(frozen=True)
class ClassLabels:
    """A network with ``count`` labels; the last is unconditional if there are more labels than
    classes.

    Attributes:
        count: Number of labels.
        names: Label by class name, where the model has names: a classifier whose classes are all
            among them gets those labels; otherwise class c is label c.
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
    """A network that follows text; its unconditional row is the empty prompt's.

    Attributes:
        encode: P prompts -> the network's inputs by name, (P, …) each.
        zeroed: Inputs whose unconditional row is zero instead, as some models were trained.
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
