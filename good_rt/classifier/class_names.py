"""The names of classes: which output of the classifier a class of the data means.

Names decide where both sides have them. What could mean two outputs is refused; only where the
classifier has no names is the data's order taken, which
`good_rt.workflow.class_order.check_class_order` then compares with what the classifier predicts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from good_rt.errors import GoodRtError

NAMES_SHOWN = 5
NUMBERED = re.compile(r"(?P<stem>(?:.*[^0-9])?)(?P<number>[0-9]+)", re.DOTALL)
PLACEHOLDER_STEMS = frozenset({"", "class", "label", "output"})
NAMING_REMEDY = (
    "name the folders as the classifier's classes, or by its outputs: 0, 1, 2, ...; or name the "
    "outputs with `good-rt classifier save SPEC --classes names.txt`"
)


def placeholder_names(count: int) -> tuple[str, ...]:
    """Names for the outputs of a classifier that does not name them: class 0, class 1, ...

    Args:
        count: Number of outputs.
    """
    return tuple(f"class {i}" for i in range(count))


def are_placeholders(names: Sequence[str]) -> bool:
    """Whether names only number the outputs in their order, such as LABEL_0, LABEL_1, ...

    Args:
        names: The classifier's classes, in the order of its outputs.
    """
    numbered = _numbered(names)
    if numbered is None or numbered[0].casefold() not in PLACEHOLDER_STEMS:
        return False
    return numbered[1] == list(range(len(names)))


def match_by_name(names: Sequence[str], expected_names: Sequence[str]) -> dict[int, int]:
    """The classifier's output for each class of the data whose name it has.

    Equal names match first. The others match without Unicode's forms, then case, then what
    separates words, as long as each form stands for one class on either side: C# never is C++.

    Args:
        names: Classes of the data.
        expected_names: Classes of the classifier, in the order of its outputs.
    """
    outputs: dict[int, int] = {}
    for form in NAME_FORMS:
        ours, theirs = [form(name) for name in names], [form(name) for name in expected_names]
        our_counts, their_counts = Counter(ours), Counter(theirs)
        for place, name in enumerate(ours):
            if place not in outputs and our_counts[name] == their_counts[name] == 1:
                outputs[place] = theirs.index(name)
    return outputs


def class_outputs(names: Sequence[str], expected_names: Sequence[str], where: str) -> list[int]:
    """For each class of the data the classifier's output (from 0).

    Classes are matched by name (`match_by_name`); by number, where the data's classes are numbers
    from 0; in the data's order, where the classifier's outputs have no names.

    Args:
        names: Classes of the data.
        expected_names: Classes of the classifier, in the order of its outputs.
        where: The data's path, for errors.

    Raises:
        GoodRtError: the classes differ, or could mean several outputs.
    """
    count = len(expected_names)
    if len(names) != count:
        kind = "class" if len(names) == 1 else "classes"
        raise GoodRtError(
            f"{where} has {len(names)} {kind} ({_some(names)}), the classifier {count} "
            f"({_some(expected_names)}); give the images that the classifier was trained on, or "
            "another classifier"
        )
    by_name = match_by_name(names, expected_names)
    if len(by_name) == count:
        return [by_name[place] for place in range(count)]
    if not by_name:
        numbered, unnamed = _numbered(names), are_placeholders(expected_names)
        if numbered is not None and numbered[0].casefold() in PLACEHOLDER_STEMS:
            whole = sorted(numbered[1]) == list(range(count))
            if whole and (unnamed or (not numbered[0] and _numbered(expected_names) is None)):
                return numbered[1]
            if _numbered(expected_names) is not None:
                raise _order_error(names, expected_names, where)
        if unnamed:
            if numbered is not None and numbered[1] != sorted(numbered[1]):
                raise _order_error(names, expected_names, where)
            return list(range(count))
    raise _names_error(names, expected_names, by_name, where)


def _order_error(names: Sequence[str], expected_names: Sequence[str], where: str) -> GoodRtError:
    return GoodRtError(
        f"{where}: the classes {_some(names)} are numbered otherwise than the classifier's "
        f"({_some(expected_names)}): {names[-1]!r} could be the output of that number, or the one "
        f"in that place of the order; {NAMING_REMEDY}"
    )


def _names_error(
    names: Sequence[str], expected_names: Sequence[str], by_name: dict[int, int], where: str
) -> GoodRtError:
    unknown = [name for place, name in enumerate(names) if place not in by_name]
    missing = [name for place, name in enumerate(expected_names) if place not in by_name.values()]
    for name in unknown:
        alike = [other for other in expected_names if NAME_FORMS[-1](other) == NAME_FORMS[-1](name)]
        same = [other for other in names if NAME_FORMS[-1](other) == NAME_FORMS[-1](name)]
        if alike:
            return GoodRtError(
                f"{where}: the class {' and '.join(map(repr, same))} could be the classifier's "
                f"{' or '.join(map(repr, alike))}; {NAMING_REMEDY}"
            )
    return GoodRtError(
        f"{where}: classes {_some(unknown)} are not among the classifier's, which also has "
        f"{_some(missing)}; {NAMING_REMEDY}"
    )


def _numbered(names: Sequence[str]) -> tuple[str, list[int]] | None:
    """The stem that all names share and their numbers, each once; None for other names."""
    matches = [NUMBERED.fullmatch(name.strip()) for name in names]
    stems = {match["stem"].rstrip(" _-") or match["stem"] for match in matches if match is not None}
    if None in matches or len(stems) != 1:
        return None
    numbers = [int(match["number"]) for match in matches if match is not None]
    return (stems.pop(), numbers) if len(set(numbers)) == len(numbers) else None


def _composed(name: str) -> str:
    """One of Unicode's forms: file systems decompose é."""
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return _composed(_composed(name).strip().casefold())


def _joined(name: str) -> str:
    """Without what separates words. Signs at an end (C#, A-) and between digits (1-2) stay."""
    return re.sub(r"(?<=\w)(?:[^\w+#*&]|_)+(?=\w)", _separator, _folded(name).strip(" _"))


def _separator(match: re.Match[str]) -> str:
    before, after = match.string[match.start() - 1], match.string[match.end()]
    separates_digits = before.isdigit() and after.isdigit()
    return match[0] if separates_digits else ""


NAME_FORMS: tuple[Callable[[str], str], ...] = (str, _composed, _folded, _joined)
"""What names are compared by, from the finest to the coarsest."""


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"{shown}, ..." if len(names) > NAMES_SHOWN else shown
