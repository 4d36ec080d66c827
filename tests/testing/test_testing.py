"""How checks become tests: light imports, expected failures with a reason, errors in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import good_rt.testing
from good_rt.errors import GoodRtError
from good_rt.testing import ContractCheck, ContractError, parametrize_with_checks
from good_rt.testing.contract import require_refusal


def passes() -> None:
    pass


def fails() -> None:
    raise ContractError("the rule is broken")


CHECKS = [ContractCheck("check_that_passes", passes), ContractCheck("check_that_fails", fails)]
PLUGIN_TEST = """
import numpy as np
from good_rt.testing import parametrize_with_checks, score_checks

def largest(logits):
    return -logits.max(axis=1)

@parametrize_with_checks(score_checks(largest))
def test_my_score(check):
    check()

def odd(logits):
    return -logits.max(axis=1) - logits.max()

REASON = {"check_score_batch_independence": "it is relative to the batch",
          "check_score_nan_is_not_hidden": "a NaN reaches the whole batch"}

@parametrize_with_checks(score_checks(odd), REASON)
def test_my_other_score(check):
    check()

@parametrize_with_checks(score_checks(largest), {"check_score_shape": "outdated"})
def test_outdated_exception(check):
    check()
"""


def run_python(code: str, folder: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=folder
    )
    return ran.stdout.strip()


def test_importing_is_light(tmp_path: Path) -> None:
    code = (
        "import sys, good_rt.testing as t; print({'torch', 'numpy', 'pytest'} & set(sys.modules));"
        "t.score_checks; print({'torch', 'pytest'} & set(sys.modules))"
    )
    assert run_python(code, tmp_path) == "set()\nset()"


def test_score_checks_run_without_torch_and_pytest(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['pytest'] = None\n"
        "from good_rt.testing import parametrize_with_checks, score_checks\n"
        "checks = score_checks(lambda logits: -logits.max(axis=1))\n"
        "for check in checks: check()\n"
        "from good_rt.errors import GoodRtError\n"
        "try: parametrize_with_checks(checks)\n"
        "except GoodRtError as error: print(error)"
    )
    assert run_python(code, tmp_path) == (
        "parametrize_with_checks needs pytest; install it with: pip install pytest"
    )


def test_every_public_name_is_there() -> None:
    assert [name for name in good_rt.testing.__all__ if not hasattr(good_rt.testing, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'model_checks'"):
        _ = good_rt.testing.model_checks


def test_a_plugins_own_tests(tmp_path: Path) -> None:
    """As pytest runs them for an author: the ids, an expected failure, and one that no longer
    fails."""
    (tmp_path / "test_plugin.py").write_text(PLUGIN_TEST)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "test_plugin.py"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert "PASSED test_plugin.py::test_my_score[check_score_higher_is_more_ood]" in ran.stdout
    assert "XFAIL test_plugin.py::test_my_other_score[check_score_batch_independence]" in ran.stdout
    assert "FAILED test_plugin.py::test_outdated_exception[check_score_shape]" in ran.stdout
    assert "1 failed" in ran.stdout and "2 xfailed" in ran.stdout, ran.stdout


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"check_that_fials": "why"}, "names no check; there are check_that_passes, check_that"),
        ({"check_that_fails": " "}, "'check_that_fails' needs a reason"),
    ],
)
def test_expected_failures_are_checked(expected: dict[str, str], message: str) -> None:
    with pytest.raises(GoodRtError, match=message):
        parametrize_with_checks(CHECKS, expected)


def refused(message: str, kind: type[Exception] = GoodRtError) -> Callable[[], None]:
    def call() -> None:
        raise kind(message)

    return call


def test_refusals_are_one_line_of_our_error_that_names_the_input() -> None:
    require_refusal(refused("input 'x' is missing"), "no 'x'", "x")
    for call, message in (
        (passes, "nothing was raised"),
        (refused("no", ValueError), "not ValueError: no"),
        (refused("two\nlines"), "more than one line"),
        (refused("something"), "does not name 'x'"),
    ):
        with pytest.raises(ContractError, match=message):
            require_refusal(call, "no 'x'", "x")
