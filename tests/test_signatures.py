"""A function takes objects, not their fields: at most 8 parameters (docs/architecture.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_PARAMETERS = 8
OPERATOR_SCHEMAS = (
    "export/vjp/rules/convolution.py",
    "export/vjp/rules/normalisation.py",
    "good_rt/classifier/sources/onnx_operations.py",
)
"""Modules in which a function takes the arguments that PyTorch's or ONNX's schema of an operator
gives it."""
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("good_rt", "cli", "engines", "export")
    for path in (ROOT / folder).rglob("*.py")
)


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[str]:
    arguments = function.args
    declared = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    declared += [rest for rest in (arguments.vararg, arguments.kwarg) if rest is not None]
    return [argument.arg for argument in declared if argument.arg not in ("self", "cls")]


def functions(source: str) -> Iterator[tuple[str, int, int]]:
    """(name, line, number of parameters) of every function, method and lambda."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield getattr(node, "name", "lambda"), node.lineno, len(parameters(node))


def test_count_of_parameters():
    source = "class A:\n def f(self, a, /, b, *c, d=1, **e): ...\ng = lambda x: x\n"
    assert sorted(functions(source)) == [("f", 2, 5), ("lambda", 3, 1)]


@pytest.mark.parametrize("module", [module for module in MODULES if module not in OPERATOR_SCHEMAS])
def test_functions_take_at_most_eight_parameters(module: str):
    too_long = [
        f"{module}:{line} {name} takes {count} parameters; pass an object instead"
        for name, line, count in functions((ROOT / module).read_text())
        if count > MAX_PARAMETERS
    ]
    assert not too_long
