# `make demo` and `make test` set up everything that they need: Python >= 3.11 and a package index are enough.

PYTHON ?= python3
# Two processes on two cores: a thread of linear algebra for each core in each of them would make them wait for one another.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
# Containers often set it; each of a hundred processes would compile all of its imports (a coordinator: 7 s, not 2).
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Four processes on the two cores of continuous integration: tests of real processes wait half of their time. A file's
# tests stay together, they share its fixtures; files come in the order of tests/conftest.py, the longest first.
PYTEST := $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test suite quick check bench docs package clean

demo: $(READY)
	$(BIN)/python examples/01_digits_fleet/demo.py $(DEMO_OPTIONS)

# mypy takes a minute of one core: beside the tests.
test: $(READY)
	$(MAKE) --no-print-directory --jobs=2 --keep-going check suite

suite: $(READY)
	$(PYTEST)

# Two processes: these tests wait for nothing, and each process takes seconds to import them.
quick: $(READY)
	$(BIN)/ruff check .
	$(PYTEST) -n 2 -m 'not slow and not broker and not long'

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/agent_footprint.py
	$(BIN)/python benchmarks/train_step.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	@# Bytecode is written when a module is first imported: for all 200 MB of sources at once it takes a minute.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[convert,coordinator,demo,dev]'
	@touch $(READY)

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo 'open docs-site/index.html, or to search it: python3 -m http.server -d docs-site'

# A wheel, a source archive, and what a device gets with the wheel, as a bill of materials (CycloneDX).
package: $(READY)
	$(BIN)/python -m build --outdir dist
	rm -rf dist/device && $(PYTHON) -m venv dist/device && dist/device/bin/pip install --quiet -c constraints.txt dist/edgeloop-*.whl
	$(PYTHON) -m venv dist/sbom && dist/sbom/bin/pip install --quiet cyclonedx-bom
	dist/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file dist/edgeloop.cdx.json dist/device
	rm -rf dist/device dist/sbom

clean:
	rm -rf $(VENV) demo-output docs-site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
