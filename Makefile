# Everything runs in .venv, which the first target creates. Needs python3 (3.11 or newer), make and a compiler.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup quickstart chat test test-thorough test-slow test-versions test-versions-quick faults flags course quality format clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@echo "Installing the package and its libraries into .venv: 2 GB on disk, three to four minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
	@echo "Installed. Remove it with: make clean"

quickstart: setup
	rm -rf runs/quickstart
	$(BIN)/python scripts/pretrain.py scripts/configs/quickstart.yaml
	$(BIN)/python scripts/generate.py runs/quickstart --prompt "One day, Anna" "Tom and" --max_new_tokens 60 --temperature 0.7 --seed 1
	@echo "Look at runs/quickstart/loss.png, samples.jsonl, metrics.json and README.md; load it with AutoModelForCausalLM."

# From text to a small chat model in 26 minutes on one core, with a report; then a conversation. Run it again to resume.
chat: setup
	$(BIN)/python scripts/zero_to_chat.py

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# Tests that take seconds each: all conversions and uploads, hostile files in separate processes, killed runs. 10 minutes.
test-thorough: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "thorough and not slow"

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

# Current checkpoints, loaded by other releases of transformers without this package; environments are kept in .venv/versions.
test-versions: setup
	$(BIN)/python tests/versions/run_matrix.py --releases all --results versions.json

# Three columns of that table, and the last release that loads the checkpoints of 0.1.0 with their own code.
test-versions-quick: setup
	$(BIN)/python tests/versions/run_matrix.py --releases oldest pinned newest 5.23.0

# Every lesson of scripts/course/ as an executed notebook and a page in runs/course; trains the quickstart model first if it is missing.
course: setup runs/quickstart/model.safetensors
	$(BIN)/python scripts/course/run.py runs/course --pages scripts/course/pages

runs/quickstart/model.safetensors: | setup
	$(BIN)/python scripts/pretrain.py scripts/configs/quickstart.yaml

# The table of hostile and invalid input in the tests.
faults: setup
	$(BIN)/python tests/faults_table.py

# The table of the scripts' flags, for --help and checks before torch and transformers are imported.
flags: setup
	$(BIN)/python tests/command_line_table.py

quality: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
