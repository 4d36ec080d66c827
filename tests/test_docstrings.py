"""Every parameter and field of the names in docs/reference.md and docs/method.md is documented."""

import ast
import dataclasses
import inspect
import pkgutil
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NAMES = [
    name
    for page in ("reference.md", "method.md")
    for name in re.findall(r"^::: (\S+)", (DOCS / page).read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_fields_are_documented(name: str):
    value = pkgutil.resolve_name(name)
    undocumented = _of_class(value) if inspect.isclass(value) else _of_function(value)
    assert sorted(undocumented) == [], "describe them under Args: or Attributes:"


def _of_class(cls: type) -> Iterator[str]:
    described = _described(cls, "Args|Attributes") | _fields_above_strings(cls)
    if dataclasses.is_dataclass(cls):  # a setting's description is in its field's metadata
        fields = {f.name for f in dataclasses.fields(cls) if f.init and not f.metadata}
        yield from fields - described
    elif "__init__" in vars(cls):
        yield from set(inspect.signature(cls).parameters) - described
    for name in vars(cls):
        method = getattr(cls, name)
        public = name == "__call__" or not name.startswith("_")
        if public and (inspect.isfunction(method) or inspect.ismethod(method)):
            yield from (f"{name}({parameter})" for parameter in _of_function(method))


def _of_function(function: object) -> set[str]:
    parameters = set(inspect.signature(function).parameters) - {"self"}
    return parameters - _described(function, "Args") if len(parameters) > 1 else set()


def _described(documented: object, sections: str) -> set[str]:
    """The names that these sections of a docstring describe."""
    section = rf"^(?:{sections}):\n((?: +.*\n?)+)"
    entries = "".join(re.findall(section, inspect.getdoc(documented) or "", re.MULTILINE))
    return set(re.findall(r"^    \*{0,2}(\w+): ", entries, re.MULTILINE))


def _fields_above_strings(cls: type) -> set[str]:
    (definition,) = ast.parse(inspect.getsource(cls)).body
    pairs = [pair for pair in pairwise(definition.body) if isinstance(pair[0], ast.AnnAssign)]
    return {field.target.id for field, below in pairs if isinstance(below, ast.Expr)}
