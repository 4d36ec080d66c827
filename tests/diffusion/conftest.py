from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from architectures import build


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an architecture, built once. Not to be changed."""
    return cache(lambda name: build(name, tmp_path_factory.mktemp("architectures") / name))
