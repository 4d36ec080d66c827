"""The Python of docs/extending.md as it stands there, and its tests as pytest runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from good_rt.classifier import IdFeatures
from good_rt.errors import NoGradientRuleError
from good_rt.export.vjp.rules import RULES
from good_rt.method.combination import COMBINATIONS
from good_rt.method.discrepancy import DISCREPANCIES, TITLES, fit_discrepancy
from good_rt.method.measurements import Measurements
from good_rt.method.objective import OBJECTIVES
from good_rt.method.outputs import BatchOutputs
from good_rt.method.unified import fit_unified

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()


def code_of(section: str) -> str:
    """All Python of the section with this heading."""
    (text,) = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


@pytest.fixture
def registers_restored() -> Iterator[None]:
    registers: tuple[dict[Any, Any], ...] = (
        RULES,
        DISCREPANCIES,
        TITLES,
        COMBINATIONS,
        OBJECTIVES,
    )
    before = [dict(register) for register in registers]
    yield
    for register, entries in zip(registers, before, strict=True):
        register.clear()
        register.update(entries)


@pytest.mark.parametrize(
    ("section", "module"),
    [("A score", "scores"), ("A classifier source", "source"), ("An engine", "engine")],
)
def test_the_section_as_a_plugins_tests(section: str, module: str, tmp_path: Path) -> None:
    """The entry points of the page, installed in a folder, and its code as a test file."""
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    code = code_of(section)
    definitions = code.partition("from good_rt.testing import")[0]
    (package / f"{module}.py").write_text(definitions)
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    groups = re.findall(r'\[project\.entry-points\."(.+?)"\]\n(\w+) = "(.+?)"', PAGE)
    assert [group for group, _, _ in groups] == ["good_rt.scores", "good_rt.classifiers"]
    (metadata / "entry_points.txt").write_text(
        "".join(f"[{group}]\n{name} = {target}\n" for group, name, target in groups)
    )
    (tmp_path / "test_page.py").write_text(code)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stdout
    assert int(re.findall(r"(\d+) passed", ran.stdout)[0]) >= 10, ran.stdout


def test_a_gradient_rule(registers_restored: None) -> None:
    code = code_of("A gradient rule")
    names = {"__name__": "extending"}
    exec(compile(code, "extending.md", "exec"), names)
    without_rule = re.sub(r"@rule.*?\n\n\n", "", code, flags=re.DOTALL)
    assert without_rule != code
    del RULES[torch.ops.aten.asinh.default]
    with pytest.raises(NoGradientRuleError, match=r"aten\.asinh\.default"):
        exec(compile(without_rule, "extending.md", "exec"), dict(names))


def test_a_discrepancy_and_a_combination(registers_restored: None) -> None:
    section = code_of("A discrepancy or a combination")
    exec(compile(section, "extending.md", "exec", dont_inherit=True), {"__name__": __name__})
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    id_features = IdFeatures(features, torch.arange(20) % 3, 3)
    values = fit_discrepancy("centre_distance", id_features)(torch.zeros(20, 3), features)
    assert values.shape == (20,) and bool(values.isfinite().all())
    of_images = values.double().numpy()
    pair = {"centre_distance": of_images, "other": -of_images}
    measured = Measurements(np.zeros((20, 3), np.float32), pair)
    score = fit_unified(list(pair), measured, "soft_max")
    columns = torch.from_numpy(np.stack(list(pair.values()), axis=1))
    assert score(columns, torch.zeros(20, 3)).shape == (20,)


def test_an_objective(registers_restored: None) -> None:
    exec(compile(code_of("An objective"), "extending.md", "exec", dont_inherit=True), {})
    logits = torch.tensor([[9.0, 0, 0], [1, 1, 1], [5, 5, -99]])
    outputs = BatchOutputs(logits, torch.zeros(3, 2), torch.zeros(1).long())
    found = OBJECTIVES["entropy"]()(outputs)
    assert float(found) == pytest.approx(float(torch.log(torch.tensor(1.5))) / 2)


def test_every_section_with_code_is_run() -> None:
    tested = {
        "An objective",
        "A score",
        "A classifier source",
        "An engine",
        "A gradient rule",
        "A discrepancy or a combination",
    }
    assert set(re.findall(r"^## (.+)$", PAGE, re.MULTILINE)) == tested
