# Everything a newcomer needs: `make demo`, then `make test`. Both set up their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint bench bench-more docs

# torch goes first and by its exact version: a range would let pip choose a build with GPU libraries of several GB.
$(VENV)/.installed: pyproject.toml constraints.txt tests/real-models.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q $$(grep '^torch==' constraints.txt)
	$(PIP) install -q -c constraints.txt -e '.[demo,dev]'
	$(PIP) install -q --no-deps -r tests/real-models.txt
	touch $@

demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" sh models/demo.sh

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests models benchmarks studies

# Time and memory against torch; two result files are compared by `python -m benchmarks.compare OLD NEW`.
bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.speed --json bench.json

# The rest of benchmarks/: compiling, mapping, wires, and how time grows.
bench-more: $(VENV)/.installed
	$(BIN)/python -m benchmarks.compile_resnet18
	$(BIN)/python -m benchmarks.compile_faulty
	$(BIN)/python -m benchmarks.wires
	$(BIN)/python -m benchmarks.predistortion
	$(BIN)/python -m benchmarks.growth

docs: $(VENV)/.installed
	$(BIN)/xbarc ops --markdown > docs/supported-ops.md
	$(BIN)/xbarc spec fields --markdown > docs/spec.md
	$(BIN)/python -m studies.physics_plots
