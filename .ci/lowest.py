"""Prints the lowest versions that pyproject.toml promises, of the base install and some extras, as
pip's requirements: `python .ci/lowest.py toolkit dev`. An extra may need more than the base
install."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = [line for name in sys.argv[1:] for line in project["optional-dependencies"][name]]
lowest = {}
for requirement in [*project["dependencies"], *extras]:
    name, _, version = re.split(r"(>=)", requirement.partition(";")[0].strip())
    lowest[name] = version
for name, version in lowest.items():
    print(f"{name}=={version}")
