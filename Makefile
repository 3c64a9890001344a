PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint house fuzz clean

demo: .venv/ready  ## environment, then the main job on the embedded world
	$(BIN)/fastltssl demo

test: .venv/ready lint  ## environment if missing, lint, types, tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/ready house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

house:  ## the rooms of the package, and whether its layers hold
	$(PYTHON) tests/house.py

fuzz: .venv/ready  ## 10,000 odd inputs over every public entry; SEED=1 for others
	PYTHONPATH=tests $(BIN)/python -m fuzz --seed $(or $(SEED),0) --keep runs/fuzz --table docs/trust.md

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache
