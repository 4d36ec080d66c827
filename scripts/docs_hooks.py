"""Hooks of mkdocs: the package as it is installed, for the reference, and equations without a
script."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
TREE = ROOT / "build" / "docs-tree"
"""Where mkdocs.yml has docstrings looked for."""


def on_startup(**_: Any) -> None:
    """Lays the folders of code out as the package that they install as, since docstrings are read
    off the files."""
    package = TREE / "good_rt"
    package.mkdir(parents=True, exist_ok=True)
    for path in [
        *(ROOT / "good_rt").iterdir(),
        *(ROOT / name for name in ("cli", "engines", "export")),
    ]:
        (package / path.name).unlink(missing_ok=True)
        (package / path.name).symlink_to(path)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """LaTeX between lines of $$ becomes MathML, which browsers show by themselves."""
    return re.sub(
        r"^\$\$\n(.*?)\n\$\$$",
        lambda found: convert(found[1], display="block"),
        markdown,
        flags=re.M | re.S,
    )


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Files are named as they stand in the repository, and the method's code is unfolded."""
    output = output.replace(f"{TREE.relative_to(ROOT)}/", "")
    if page.file.src_uri != "method.md":
        return output
    return output.replace(
        '<details class="mkdocstrings-source"', '<details open class="mkdocstrings-source"'
    )
