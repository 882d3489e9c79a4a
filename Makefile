# `make run` and `make test` do all their own set-up; `make help` lists the rest.

PYTHONS = python3 python3.13 python3.12 python3.11
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
BIN = .venv/bin

# What a user may set: make setup EXTRAS="observe stores" TORCH_INDEX=URL DISK_GIB=10 PYTHON=...
EXTRAS ?=
TORCH_INDEX ?=
DISK_GIB ?= 10
PYTHON ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test lint format types contracts sim faults bench bench-observe bench-placement bench-twin bench-calibration bench-control bench-pricing presubmit lock clean \
  test-compose

help: ## Show the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv ready (EXTRAS="learn ..." for some only, TORCH_INDEX=URL, DISK_GIB=N).
	@for python in $(or $(PYTHON),$(PYTHONS)); do \
	  if "$$python" -c '$(SUPPORTED)' 2>/dev/null; then \
	    exec "$$python" ops/setup/bootstrap.py \
	      --extras "$(EXTRAS)" --torch-index "$(TORCH_INDEX)" --disk-gib "$(DISK_GIB)"; \
	  fi; \
	done; \
	echo "setup: gpuloop needs Python 3.11, 3.12 or 3.13; tried: $(or $(PYTHON),$(PYTHONS))." >&2; \
	exit 1

run: setup ## Run the whole loop here (ARGS="--for 5m --report report.json").
	@$(BIN)/gpuloop up $(ARGS)

# The order is that of the files: the long shares come first, so that both processes end together.
test: setup ## Run the tests (ARGS="-k name"); GPULOOP_TRACES=FOLDER adds the real traces.
	@$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

lint: setup ## Check style.
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: setup ## Mend style where that can be done mechanically.
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: setup ## Check types.
	@$(BIN)/mypy

contracts: setup ## Check which package imports which.
	@$(BIN)/lint-imports

sim: setup ## Run the seeded simulations only.
	@$(BIN)/pytest tests/simulation $(ARGS)

faults: setup ## Run the fault tests only.
	@$(BIN)/pytest tests/faults $(ARGS)

bench: setup ## Run the benchmarks, one script per published figure.
	@for script in benchmarks/*.py; do \
	  [ -e "$$script" ] || { echo "There are no benchmarks yet."; break; }; \
	  $(BIN)/python "$$script" $(ARGS) || exit 1; \
	done

bench-observe: setup ## Measure the observe stage beside its peers (QUICK=1: under three minutes).
	@$(BIN)/python benchmarks/observe.py $(if $(QUICK),--quick) $(ARGS)

bench-twin: setup ## Compare the twin with what was published, and measure both its levels.
	@$(BIN)/python benchmarks/twin.py $(ARGS)

bench-calibration: setup ## Compare the twin with every published figure; writes docs/calibration.md.
	@$(BIN)/python benchmarks/calibration.py $(ARGS)

bench-placement: setup ## Measure placement beside the published openb study (QUICK=1: under two minutes).
	@$(BIN)/python benchmarks/placement.py $(if $(QUICK),--quick) $(ARGS)

bench-control: setup ## Compare the shipped policy with all baselines (QUICK=1: as it is; TRACES=FOLDER).
	@$(BIN)/python benchmarks/control.py $(if $(QUICK),--quick) $(if $(TRACES),--traces "$(TRACES)") $(ARGS)

bench-pricing: setup ## Compare the learned price with fixed, market and rule (QUICK=1: a week; TRACES=FOLDER).
	@$(BIN)/python benchmarks/pricing.py $(if $(QUICK),--quick) $(if $(TRACES),--traces "$(TRACES)") $(ARGS)

test-compose: setup ## Run the stack in containers and see it live, die and recover (ARGS="-k name").
	@$(BIN)/python tests/compose/run.py $(ARGS)

presubmit: lint types contracts test ## Everything that a change must pass.

# The groups are cut from one resolution, so every process runs the same versions.
LOCK = $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
  --fork-strategy fewest --only-binary :all: --generate-hashes \
  --no-emit-index-url --no-annotate --no-header

lock: setup ## Resolve requirements/*.txt anew (ARGS=--upgrade for newer versions).
	@$(LOCK) $(ARGS) --all-extras --group dev --group bench --group setup -o requirements/all.txt
	@$(LOCK) -c requirements/all.txt -o requirements/base.txt
	@for extra in observe stores embedded learn causes collect kafka; do \
	  $(LOCK) -c requirements/all.txt --extra $$extra -o requirements/$$extra.txt || exit 1; \
	done
	@for group in dev bench setup; do \
	  $(subst pyproject.toml,,$(LOCK)) -c requirements/all.txt --group $$group \
	    -o requirements/$$(echo $$group | sed s/setup/bootstrap/).txt || exit 1; \
	done

clean: ## Remove the environment, the stack's state and caches.
	rm -rf .venv .gpuloop .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
