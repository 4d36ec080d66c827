# The names people try first. `.ci/run` checks everything, in a clean copy.

.PHONY: help test slow lint format types docs

help:
	@echo "make test | slow | lint | format | types | docs"

test:
	pytest -n auto

slow:
	pytest -n auto -m slow

lint:
	ruff check .
	ruff format --check .

format:
	ruff check --fix .
	ruff format .

# in a folder of its own, since good_rt/ here is only a part of the package; needs an editable
# install in strict mode (CONTRIBUTING.md)
types:
	mkdir -p build/types
	cd build/types && mypy --config-file ../../pyproject.toml -p good_rt

docs:
	python scripts/readme_tables.py
	python scripts/settings_tables.py
	mkdocs build --quiet
