# Everything runs in .venv, which the first target you call makes. Needs python3 (3.11 or newer), make and a compiler.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup quickstart chat test test-thorough test-slow test-versions test-versions-quick faults flags course quality format clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@echo "Installing the package and its libraries into .venv: 2 GB on disk, about three minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
	@echo "Installed. Remove it with: make clean"

quickstart: setup
	rm -rf runs/quickstart
	$(BIN)/python scripts/pretrain.py scripts/configs/quickstart.yaml
	$(BIN)/python scripts/generate.py runs/quickstart --prompt "One day, Anna" "Tom and" --max_new_tokens 60 --temperature 0.7 --seed 1
	@echo "Look at runs/quickstart/loss.png, samples.jsonl, metrics.json and README.md; load it with AutoModelForCausalLM."

# From text to a model that answers: about half an hour on 2 cores (estimated), with a report; then a conversation. Call it again after an interruption.
chat: setup
	$(BIN)/python scripts/zero_to_chat.py

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# What takes seconds each: all cases of conversions and uploads, hostile files in processes of their own, runs that are killed. 8 minutes.
test-thorough: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "thorough and not slow"

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

# Today's checkpoints, opened by other releases of transformers without this package; environments are kept in .venv/versions.
test-versions: setup
	$(BIN)/python tests/versions/run_matrix.py --releases all --results versions.json

# Three columns of that table, and the last release that the checkpoints of 0.1.0 open in by their own code.
test-versions-quick: setup
	$(BIN)/python tests/versions/run_matrix.py --releases oldest pinned newest 5.23.0

# Every lesson of scripts/course/ as an executed notebook and a page in runs/course; first the quickstart's model, if it is not there.
course: setup runs/quickstart/model.safetensors
	$(BIN)/python scripts/course/run.py runs/course --pages scripts/course/pages

runs/quickstart/model.safetensors: | setup
	$(BIN)/python scripts/pretrain.py scripts/configs/quickstart.yaml

# The table of hostile and broken input that the tests hold.
faults: setup
	$(BIN)/python tests/faults_table.py

# The flags of the scripts, which --help and mistakes need before torch and transformers are imported.
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
