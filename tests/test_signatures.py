"""A function takes objects, not their fields: at most 8 parameters."""

from pathlib import Path

from source_counts import functions

ROOT = Path(__file__).parents[1]
MAX_PARAMETERS = 8
OPERATORS = (
    "export/vjp/rules/",
    "export/vjp/operator_fusion.py",
    "good_rt/classifier/sources/onnx_operations.py",
)
"""Where functions take the arguments of an operator's schema."""


def test_functions_take_at_most_eight_parameters():
    too_long = [
        str(function)
        for function in functions(ROOT)
        if function.parameters > MAX_PARAMETERS and not function.is_operator
    ]
    assert not too_long, "pass an object instead"


def test_only_operators_are_exempt():
    exempt = {function.module for function in functions(ROOT) if function.is_operator}
    assert exempt
    assert all(module.startswith(OPERATORS) for module in exempt)


def test_every_kind_of_parameter_counts(tmp_path: Path):
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "module.py").write_text(
        "class A:\n def f(self, a, /, b, *c, d=1, **e): ...\n@rule(1)\ndef h(x): lambda y, z: 1\n"
    )
    counts = {f.name: (f.line, f.parameters, f.is_operator) for f in functions(tmp_path)}
    assert counts == {"f": (2, 5, False), "h": (4, 1, True), "lambda": (4, 2, False)}
