"""TOML that is written is TOML for every character."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from good_rt.config.toml import toml_key, toml_value
from good_rt.errors import GoodRtError
from good_rt.files import printable

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    TEXT | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(TEXT, VALUES)
def test_what_is_written_is_read(key: str, value: object) -> None:
    assert tomllib.loads(f"{toml_key(key)} = {toml_value(value)}") == {key: value}


@given(st.text(st.characters()))
def test_any_name_stands_in_a_comment(text: str) -> None:
    assert tomllib.loads(f"# {printable(text)}: 3 images\nx = 1") == {"x": 1}


def test_a_path_that_is_not_utf_8_is_named() -> None:
    with pytest.raises(GoodRtError, match=r"caf\\udce9 is not UTF-8, .*TOML file; rename it"):
        toml_value("caf\udce9")
