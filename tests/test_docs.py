"""The Python in docs/jobs.md runs as it stands there, on small models and a few images."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from good_rt.demo import assets

DOCS = Path(__file__).parents[1] / "docs" / "jobs.md"
QUICK = {
    "count = 128": "count = 10",
    "steps = 25": "steps = 2",
    "batch = 32": "batch = 5",
    'engine = "onnx"': 'engine = "torch"',
    'kinds = ["img", "feat", "both"]': 'kinds = ["img"]',
    "steps = 200": "steps = 2",
    "lr = 0.002": "lr = 1e-5",
}


@pytest.mark.slow
def test_the_documents_python(
    run: Callable[..., Any], model_dir: Path, classifier_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = assets.load_images("test")
    assert data.labels is not None
    for row in range(240):
        path = tmp_path / "photos" / assets.CLASSES[data.labels[row]] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[row, ..., 0]).save(path)
    np.savez(tmp_path / "street.npz", images=assets.load_images("photos").images[:8])
    (tmp_path / "street").mkdir()
    shutil.move(tmp_path / "street.npz", tmp_path / "street")
    shutil.copytree(model_dir, tmp_path / "ddpm")
    shutil.copytree(classifier_dir, tmp_path / "clf")
    monkeypatch.chdir(tmp_path)
    text = DOCS.read_text()
    assert run("init", "photos/", "--classifier", "clf/", "--model", "ddpm/").code == 0
    job = (tmp_path / "job.toml").read_text()
    for before, after in QUICK.items():
        assert before in job, before
        job = job.replace(before, after)
    job = re.sub("max_drop = [0-9.]+", "max_drop = 1.0", job)
    (tmp_path / "job.toml").write_text(job)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 7
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), names)
    assert names["done"].detector.exists() and len(names["splits"].rows("test")) > 40
    assert names["exported"] and len(names["ood"].rows()) == 20
    assert names["parity"].class_disagreements == 0 and names["figures"].ood_sets == ("street",)
