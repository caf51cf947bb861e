# Everything runs in .venv, which the first target you call makes. Needs python3 (3.10 or newer), make and a compiler.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup quickstart test test-slow quality format clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

quickstart: setup
	rm -rf runs/quickstart
	$(BIN)/python scripts/pretrain.py scripts/configs/quickstart.yaml
	$(BIN)/python scripts/generate.py runs/quickstart --prompt "One day, Anna" "Tom and" --max_new_tokens 60 --temperature 0.7 --seed 1
	@echo "Look at runs/quickstart/loss.png, samples.jsonl, metrics.json and README.md; load it with AutoModelForCausalLM."

test: setup
	$(BIN)/python -m pytest -q -n 2

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

quality: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
