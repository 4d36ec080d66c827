"""Counts in the package's source: parameters of functions, names defined more than once.

The tests hold them to the rules of docs/architecture.md; benchmarks/house.py prints them.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("good_rt", "cli", "engines", "export")
"""The folders that install as one package."""
OPERATOR_DECORATORS = {"rule", "operation"}
"""They register what an operator does: its function takes the arguments of the operator's schema,
PyTorch's in export/vjp/ and ONNX's in good_rt/classifier/sources/onnx_operations.py."""
REPEATABLE = {"EPILOG", "aten"}
"""EPILOG is the examples of a command's help, `aten` the usual short name of torch.ops.aten."""


@dataclass(frozen=True)
class FunctionCount:
    """A function or method, and how many parameters it takes, not counting self and cls."""

    module: str
    line: int
    name: str
    parameters: int
    is_operator: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.name} takes {self.parameters} parameters"


def modules(root: Path) -> list[Path]:
    """Every module of the package."""
    return sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))


def functions(root: Path) -> Iterator[FunctionCount]:
    """Every function, method and lambda of the package."""
    for path in modules(root):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield FunctionCount(
                    path.relative_to(root).as_posix(),
                    node.lineno,
                    getattr(node, "name", "lambda"),
                    _parameters(node.args),
                    _is_operator(node),
                )


def _parameters(arguments: ast.arguments) -> int:
    declared = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    declared += [rest for rest in (arguments.vararg, arguments.kwarg) if rest is not None]
    return sum(argument.arg not in {"self", "cls"} for argument in declared)


def _is_operator(function: ast.AST) -> bool:
    calls = [d.func for d in getattr(function, "decorator_list", ()) if isinstance(d, ast.Call)]
    return any(isinstance(call, ast.Name) and call.id in OPERATOR_DECORATORS for call in calls)


def repeated_names(root: Path) -> dict[str, list[str]]:
    """Public names of classes, functions and constants that several modules define.

    A command of cli/ may bear the name of the step of good_rt/workflow/ that it runs.
    """
    definitions: dict[str, list[str]] = defaultdict(list)
    for path in modules(root):
        for name in set(_definitions(ast.parse(path.read_text()))):
            definitions[name].append(path.relative_to(root).as_posix())
    return {
        name: sorted(files)
        for name, files in sorted(definitions.items())
        if len(files) > 1 and not _is_command_of_step(sorted(files))
    }


def _definitions(module: ast.Module) -> Iterator[str]:
    for node in module.body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                names = [node.name]
            case ast.Assign():
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                names = []
        yield from (name for name in names if not name.startswith("_") and name not in REPEATABLE)


def _is_command_of_step(files: list[str]) -> bool:
    return [Path(file).parent.as_posix() for file in files] == ["cli", "good_rt/workflow"]
