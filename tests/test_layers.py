"""Which room imports which, and that importing is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("good_rt", "engines", "export", "cli")
OPTIONAL = {"tensorrt", "openvino", "pytorch_ood"}
LAYERS = (
    {"cli"},
    {"workflow", "testing"},
    {"export"},
    {"detector", "models"},
    {"diffusion", "demo"},
    {"method", "data"},
    {"classifier", "evaluation"},
    {"engines"},
    {"records"},
    {"config", "environment", "plugins", "progress", "specs"},
    {"files"},
    {"onnx_runtime"},
    {"errors"},
)
"""The rooms from the highest layer to the lowest: each imports only rooms of lower layers."""
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that a piece of code imports, wherever it stands; `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import_time(tree: ast.Module) -> Iterator[str]:
    """What is imported by importing the module: not in functions, and not for type checkers
    alone."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imports(node)
        todo.extend(ast.iter_child_nodes(node))


def room_of(module: str) -> str | None:
    """The room that an imported module lies in; None when it is not ours."""
    parts = module.split(".")
    if parts[0] != "good_rt":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else "good_rt"


def allowed(room: str, module: str) -> bool:
    """Whether a room may import a module: its own, and those of lower layers."""
    other = room_of(module)
    if other in (None, room):
        return True
    if room == "good_rt":  # the package itself, whose public names come from everywhere below
        return other != "cli"
    return other == "good_rt" or LEVEL[other] > LEVEL[room]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_layers(path: Path) -> None:
    tree = ast.parse(path.read_text())
    parts = path.relative_to(ROOT).with_suffix("").parts
    room = parts[0] if parts[0] != "good_rt" else parts[1]
    room = "good_rt" if room == "__init__" else room
    assert room in {*LEVEL, "good_rt"}
    assert [module for module in imports(tree) if not allowed(room, module)] == []
    # the folders' own names exist only in the repository, not where the package is installed
    assert [
        module for module in imports(tree) if module.split(".")[0] in {"engines", "export", "cli"}
    ] == []
    assert OPTIONAL & {module.split(".")[0] for module in at_import_time(tree)} == set()


def test_the_rules_themselves() -> None:
    assert not allowed("engines", "good_rt.classifier.Classifier")
    assert allowed("method", "good_rt.engines.autograd.VjpPair")
    assert not allowed("method", "good_rt.data.id_data.IdData")
    assert not allowed("detector", "good_rt.models.Models")
    assert not allowed("export", "good_rt.cli.main")
    assert not allowed("good_rt", "good_rt.cli.main")
    assert allowed("workflow", "good_rt.export.export.export_models")
    assert allowed("engines", "good_rt.errors.GoodRtError")
    assert list(at_import_time(ast.parse("def f():\n    import openvino\nimport os"))) == ["os"]


def python(code: str, folder: Path) -> str:
    """What a new interpreter prints; not in the repository, whose folder good_rt/ is only a part of
    the package."""
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=folder
    )
    return ran.stdout


@pytest.mark.parametrize("module", ["good_rt", "good_rt.cli.main"])
def test_importing_is_quick_and_light(module: str, tmp_path: Path) -> None:
    code = (
        "import sys, time; began = time.process_time(); import MODULE; "
        "print(time.process_time() - began, *(m for m in sys.modules if '.' not in m))"
    ).replace("MODULE", module)
    runs = [python(code, tmp_path).split() for _ in range(3)]
    assert min(float(run[0]) for run in runs) < 0.3
    loaded = set(runs[0][1:])
    assert (
        loaded & {"torch", "numpy", "onnxruntime", "diffusers", "onnx", "scipy", "rich", *OPTIONAL}
        == set()
    )


def test_the_detector_runs_without_the_toolkit(tmp_path: Path) -> None:
    code = (
        "import sys; import good_rt.data.id_data, good_rt.detector.runtime; "
        "import good_rt.cli.detector_score, good_rt.cli.generate, good_rt.cli.demo; "
        "print({'torch', 'diffusers', 'onnx', 'scipy', 'faiss', 'safetensors', 'sklearn'} & "
        "set(sys.modules))"
    )
    assert python(code, tmp_path) == "set()\n"
