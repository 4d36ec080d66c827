"""The tutorial's commands run as they stand there, on drawings of noise and after two steps of each
training."""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
GROUPS = (
    ("Animals & Nature", "animal-bird"),
    ("Smileys & Emotion", "face-hat"),
    ("Flags", "country-flag"),
    ("Food & Drink", "drink"),
    ("Objects", "tool"),
    ("People & Body", "person-role"),
    ("Animals & Nature", "plant-flower"),
    ("Travel & Places", "transport-air"),
    ("Activities", "game"),
)
QUICK = {
    "count": 10,
    "kinds": '["img"]',
    "steps": 2,
    "batch": 5,
    "max_drop": 1.0,
    "engine": '"torch"',
    "bank_size": 50,
    "lr": 1e-5,
}


def package(path: Path, artist: str, seed: int) -> None:
    """An npm package of drawings, 27 of each group, all but one at hand."""
    rng, entries = np.random.default_rng(seed), []
    with tarfile.open(path, "w:gz") as tar:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        for group, part in GROUPS:
            for number in range(27):
                code = f"{len(entries):x}"
                pixels = rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "png")
                add(f"img/{artist}/64/{code}.png", file.getvalue())
                entries.append(
                    {
                        "category": group,
                        "subcategory": part,
                        "unified": code,
                        "image": f"{code}.png",
                        f"has_img_{artist}": number < 26,
                    }
                )
        add("emoji.json", json.dumps(entries).encode())


@pytest.mark.slow
def test_the_tutorial(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    packages, backbone = tmp_path / "packages", tmp_path / "backbone.pth"
    packages.mkdir()
    for seed, artist in enumerate(("google", "twitter")):
        package(packages / f"emoji-datasource-{artist}-16.0.0.tgz", artist, seed)
    torch.save(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict(), backbone)
    more = {
        "data": ["--packages", str(packages)],
        "classifier": ["--steps", "2", "--backbone", str(backbone)],
        "vae": ["--steps", "2"],
        "unet": ["--steps", "2"],
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    shell = "".join(
        re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL)
    )
    lines = shell.replace("\\\n", " ").splitlines()
    ran = []
    for line in lines:
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "python":
            script, *rest = arguments
            extra = more[rest[0] if script.endswith("models.py") else "data"]
            monkeypatch.setattr(sys, "argv", [script, *rest, *extra])
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            assert not end.value.code, line
        elif program == "good-rt":
            if arguments[0] == "run":
                job = tmp_path / arguments[1]
                text = job.read_text()
                for key, value in QUICK.items():
                    text = re.sub(rf"^{key} = [^#\n]*", f"{key} = {value}  ", text, flags=re.M)
                job.write_text(text)
            assert run(*arguments).code == 0, line
        else:
            assert program in {"", "pip"}, line
            continue
        ran.append(program)
    assert ran.count("python") == 4 and ran.count("good-rt") >= 4
    report = next(tmp_path.rglob("report.html")).read_text()
    assert "second artist" in report or "second-artist" in report
