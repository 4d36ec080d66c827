"""Every command and every piece of Python in docs/ runs as it stands there, on small models and a
few images.

The tutorial's are in tests/test_tutorial.py, format.md's in tests/records/; `good-rt demo` and the
installation are run by CI, as the README has them.
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from good_rt.config.settings import BackendConfig, SamplerConfig
from good_rt.data.generated_set import GeneratedSet
from good_rt.demo import assets

DOCS = Path(__file__).parents[1] / "docs"
ELSEWHERE = {"tutorial.md", "index.md", "format.md", "extending.md"}
QUICK = {
    "count = 128": "count = 10",
    "steps = 25": "steps = 2",
    "batch = 32": "batch = 5",
    'engine = "onnx"': 'engine = "torch"',
    'kinds = ["img", "feat", "both"]': 'kinds = ["img"]',
    "steps = 200": "steps = 2",
    "lr = 0.0015": "lr = 1e-5",
}


def blocks(page: str, language: str) -> list[str]:
    """The page's code in that language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The arguments of every `good-rt` in the page's shell commands."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("good-rt ")]


@pytest.fixture
def workplace(
    model_dir: Path,
    classifier_dir: Path,
    detector_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with what the documents speak of, which is the current one: photos/, clf/, ddpm/,
    detector.onnx."""
    data = assets.load_images("test")
    assert data.labels is not None
    for row in range(240):
        path = tmp_path / "photos" / assets.CLASSES[data.labels[row]] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[row, ..., 0]).save(path)
    Image.fromarray(data.images[300, ..., 0]).resize((48, 64)).convert("RGB").save(
        tmp_path / "photo.jpg"
    )
    (tmp_path / "street").mkdir()
    np.savez(tmp_path / "street" / "street.npz", images=assets.load_images("photos").images[:8])
    shutil.copytree(model_dir, tmp_path / "ddpm")
    shutil.copytree(classifier_dir, tmp_path / "clf")
    shutil.copy(detector_path, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hurry(job: Path) -> None:
    """Has a job take seconds."""
    text = job.read_text()
    for before, after in QUICK.items():
        assert before in text, before
        text = text.replace(before, after)
    job.write_text(re.sub("max_drop = [0-9.]+", "max_drop = 1.0", text))


def test_every_page_is_run_and_in_the_navigation() -> None:
    pages = {path.name for path in DOCS.glob("*.md")}
    assert {page for page in pages if commands(page) or blocks(page, "python")} <= ELSEWHERE | {
        *RUN,
        *OTHERS,
    }
    assert {page for page in pages if page not in (DOCS.parent / "mkdocs.yml").read_text()} == set()


RUN = ["detector.md", "own-models.md"]
OTHERS = ["jobs.md", "gpu.md"]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_commands_and_python(
    page: str, workplace: Path, generated_dirs: list[Path], run: Callable[..., Any]
) -> None:
    assert commands(page)
    if page == "detector.md":  # builds a gate with generated images
        shutil.copytree(generated_dirs[0], workplace / "ood")
    for arguments in commands(page):
        assert run(*arguments).code == 0, arguments
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_commands_for_a_gpu_get_as_far_as_the_gpu(workplace: Path, run: Callable[..., Any]) -> None:
    (workplace / "ood").mkdir()
    assert len(commands("gpu.md")) == 3
    for arguments in commands("gpu.md"):
        assert "sees no CUDA GPU here" in run(*arguments).failed(), arguments


PYTHON_STEPS = (
    "run_job", "ModelSpec", "export", "generate", "train", "build_detector", "evaluate", "Detector",
    "generate",
)  # fmt: skip
"""The call of each block of Python in jobs.md, in order."""
QUICK_PYTHON = {
    "count=500": "count=20, batch=10, sampler=SamplerConfig(2)",
    'kind="both", seed=1': 'kind="both", seed=1, backend=BackendConfig("torch")',
    "steps=450, max_accuracy_drop=0.005": "steps=2, max_accuracy_drop=1.0",
}


def test_every_step_is_at_most_five_lines_of_python() -> None:
    code = blocks("jobs.md", "python")
    assert len(code) == len(PYTHON_STEPS)
    for block, step in zip(code, PYTHON_STEPS, strict=True):
        assert f"good_rt.{step}(" in block
        assert len([line for line in block.splitlines() if line.strip()]) <= 5, block
        assert "good_rt.cli" not in block


@pytest.mark.slow
def test_a_job_and_its_steps_in_python(workplace: Path, run: Callable[..., Any]) -> None:
    first, second = commands("jobs.md")
    assert run(*first).code == 0
    hurry(workplace / "job.toml")
    assert run(*second).code == 0
    names: dict[str, Any] = {
        "images": assets.load_images("test").images[:8],
        "BackendConfig": BackendConfig,
        "SamplerConfig": SamplerConfig,
    }
    for block in blocks("jobs.md", "python"):
        for shown, quick in QUICK_PYTHON.items():
            block = block.replace(shown, quick)
        exec(compile(block, "jobs.md", "exec"), names)
    assert names["result"].detector.exists() and len(names["splits"].rows("test")) > 40
    assert names["exported"].exported and len(names["generated"].rows()) == 20
    assert names["trained"].kept_step is not None and names["built"].path.exists()
    assert names["built"].parity.class_disagreements == 0
    assert (workplace / "trained-2" / "classifier").is_dir()
    rounds = [GeneratedSet(workplace / name) for name in ("ood", "ood-2")]
    assert not {row.seed for row in rounds[0].rows()} & {row.seed for row in rounds[1].rows()}
    guide = names["guide"].classifier.fingerprint
    assert rounds[1].settings()["classifier"] == guide != rounds[0].settings()["classifier"]
    assert names["evaluation"].ood_sets == ("street",) and len(names["scores"].is_ood) == 8


@pytest.mark.parametrize("script", ["readme_tables.py", "settings_tables.py"])
def test_generated_tables_are_up_to_date(script: str) -> None:
    checked = subprocess.run(
        [sys.executable, f"scripts/{script}", "--check"],
        cwd=DOCS.parent,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr


def test_options_of_the_settings_tables_exist(run: Callable[..., Any]) -> None:
    script = runpy.run_path(str(DOCS.parent / "scripts" / "settings_tables.py"))
    for table, settings in script["tables"]().items():
        shown = run(*script["COMMANDS"][table], "--help").out
        options = [script["option"](table, setting) for setting in settings]
        for flag in "/".join(filter(None, options)).split("/"):
            assert not flag or re.search(rf"{flag}\b", shown), (table, flag)


@pytest.mark.slow
def test_python_of_the_readme(workplace: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", (DOCS.parent / "README.md").read_text(), re.DOTALL)
    assert len(code) == 1 and len(code[0].strip().splitlines()) <= 4
    names = {"images": assets.load_images("test").images[:8]}
    exec(compile(code[0], "README.md", "exec"), names)
    assert names["scores"].is_ood.shape == (8,)


def texts_of(source: str) -> Iterator[str]:
    """Every text in Python code; what an f-string formats is {}."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_of_the_troubleshooting_page_exist() -> None:
    root = DOCS.parent
    files = [
        path for folder in ("good_rt", "engines", "export", "cli")
        for path in (root / folder).rglob("*.py")
    ]  # fmt: skip
    texts = [text for path in files for text in texts_of(path.read_text())]
    rows = re.findall(r"^\| (.+?) \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = {message for row in rows for message in re.findall(r"`(.+?)`", row)}
    # PyTorch's own
    messages.remove("torchvision::nms does not exist")
    assert len(messages) > 8
    variable = r"\.\.\.|no CUDA GPU|\b\d[\d.]*\b|--\w+|\w+ExecutionProvider"
    missing = []
    for message in messages:
        pieces = [piece.strip(" ,") for piece in re.split(variable, message)]
        if not any(all(piece in text for piece in pieces) for text in texts):
            missing.append(message)
    assert missing == []


def test_the_readme_fits_one_screen() -> None:
    assert len((DOCS.parent / "README.md").read_text().split()) <= 900
