"""The classes of the images against the classifier's: which output a label of the data means."""

from __future__ import annotations

import re
from collections.abc import Sequence

from good_rt.errors import GoodRtError

SHOWN = 5


def match_classes(names: Sequence[str], expected_names: Sequence[str], where: str) -> list[int]:
    """For each class of the data the classifier's output (from 0).

    Classes are matched by name, whatever the case and punctuation; by number, where the data's
    classes are numbers; in alphabetical order, where the classifier's classes have no names.

    Args:
        names: Classes of the data.
        expected_names: Classes of the classifier, in the order of its outputs.
        where: The data's path, for errors.

    Raises:
        GoodRtError: the classes differ.
    """
    ours, theirs = [_plain(name) for name in names], [_plain(name) for name in expected_names]
    if len(names) != len(expected_names):
        kind = "class" if len(names) == 1 else "classes"
        raise GoodRtError(
            f"{where} has {len(names)} {kind} ({_some(names)}), the classifier "
            f"{len(expected_names)} ({_some(expected_names)}); give the images that the classifier "
            "was trained on, or another classifier"
        )
    if len(set(theirs)) == len(theirs) and set(ours) == set(theirs):
        return [theirs.index(name) for name in ours]
    if sorted(ours) == sorted(str(number) for number in range(len(ours))):
        return [int(name) for name in ours]
    if all(re.fullmatch(r"(class|label|output|)\d+", name) for name in theirs):
        return list(range(len(names)))
    unknown = [name for name, plain in zip(names, ours, strict=True) if plain not in theirs]
    missing = [
        name for name, plain in zip(expected_names, theirs, strict=True) if plain not in ours
    ]
    raise GoodRtError(
        f"{where}: classes {_some(unknown)} are not among the classifier's, which also has "
        f"{_some(missing)}; name the folders as the classifier's classes, or by its outputs: "
        "0, 1, 2, ..."
    )


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return f"{shown}, ..." if len(names) > SHOWN else shown
