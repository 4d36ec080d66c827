"""Prints the lowest versions that pyproject.toml promises, of the base install and some extras, as
pip's requirements: `python .ci/lowest.py toolkit dev`."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = [line for name in sys.argv[1:] for line in project["optional-dependencies"][name]]
for requirement in [*project["dependencies"], *extras]:
    name, _, lowest = re.split(r"(>=)", requirement.partition(";")[0].strip())
    print(f"{name}=={lowest}")
