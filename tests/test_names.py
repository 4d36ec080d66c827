"""A public name is defined once in the package, so that a search finds the one definition."""

from pathlib import Path

from source_counts import repeated_names

ROOT = Path(__file__).parents[1]


def test_public_names_are_defined_once():
    assert repeated_names(ROOT) == {}


def test_repeated_names_are_found(tmp_path: Path):
    for folder, name in (("cli", "train"), ("good_rt/workflow", "train"), ("engines", "Engine")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "module.py").write_text(f"def {name}(): ...\nLIMIT = 1\n_X = 2\n")
    assert repeated_names(tmp_path) == {
        "LIMIT": ["cli/module.py", "engines/module.py", "good_rt/workflow/module.py"]
    }
