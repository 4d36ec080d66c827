"""A public name is defined once in the package, so that a search finds the one definition."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("good_rt", "cli", "engines", "export")
REPEATED = {"EPILOG", "aten"}
"""EPILOG is the examples of a command's help, `aten` the usual short name of torch.ops.aten."""


def definitions(source: str) -> Iterator[str]:
    """Public names of a module's classes, functions and constants; not of what is imported."""
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                names = [node.name]
            case ast.Assign():
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                names = []
        yield from (name for name in names if not name.startswith("_") and name not in REPEATED)


def is_command_of_step(files: list[str]) -> bool:
    """Whether these are a workflow step and the command that runs it, which bears its name."""
    return len(files) == 2 and files[0].startswith("cli/") and files[1].startswith(
        "good_rt/workflow/"
    )  # fmt: skip


def repeated_names(root: Path) -> dict[str, list[str]]:
    """Name -> the modules that define it, for names that more than one module defines."""
    modules: dict[str, list[str]] = defaultdict(list)
    for folder in FOLDERS:
        for path in (root / folder).rglob("*.py"):
            for name in definitions(path.read_text()):
                modules[name].append(path.relative_to(root).as_posix())
    return {
        name: sorted(files)
        for name, files in modules.items()
        if len(files) > 1 and not is_command_of_step(sorted(files))
    }


def test_public_names_are_defined_once():
    assert repeated_names(ROOT) == {}


def test_repeated_names_are_found(tmp_path: Path):
    for folder, name in (("cli", "train"), ("good_rt/workflow", "train"), ("engines", "Engine")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "module.py").write_text(f"def {name}(): ...\nLIMIT = 1\n_X = 2\n")
    assert repeated_names(tmp_path) == {
        "LIMIT": ["cli/module.py", "engines/module.py", "good_rt/workflow/module.py"]
    }
