# What a newcomer types. Needs make, Python 3.11 or 3.12, Java 17 or newer and a package index.
VENV := .venv
PYTHON := $(VENV)/bin/python
AIRFLOW := build/airflow
LAKE ?= lake
ONLY ?=
STORES ?=
export UV_HTTP_TIMEOUT ?= 300

# $(supported) PYTHON: succeeds for a Python that Lakelens runs on.
supported = -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null

.PHONY: help setup stores demo test test-faults test-cluster test-stores test-airflow cluster demo-cluster check bench bench-stats zip ui \
  clean lock
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/installed $(if $(STORES),stores) ## install everything, fetch JARs and weights, build sample media; STORES=s3,azure for lakes there
	@$(PYTHON) -m jobs.setup

stores: $(VENV)/stores
	@$(if $(STORES),$(PYTHON) -m jobs.setup --stores $(STORES))

demo: setup ## run the whole pipeline on the sample media, into ./lake
	$(VENV)/bin/lakelens demo

test: setup ## run the tests; ARGS='-m "not spark"' for the quick ones
	$(PYTHON) -m pytest $(ARGS)

test-faults: setup ## kill and stop real processes in every phase, and what else takes minutes: 51 tests, more than an hour
	$(PYTHON) -m pytest -n0 -m faults -v $(ARGS)

test-cluster: setup ## the same rows from local masters and from a cluster, one of whose workers is killed
	$(PYTHON) -m pytest -n0 -m cluster -v $(ARGS)

test-stores: STORES = s3,azure
test-stores: setup stores ## lakes on a real S3 server (moto), with faults, kills and two drivers at once: about 10 minutes
	$(PYTHON) -m pytest -n0 -m stores -v $(ARGS)

test-airflow: setup $(AIRFLOW)/installed ## run the DAGs by a real Airflow, in an environment of its own
	AIRFLOW_VENV=$(abspath $(AIRFLOW)) $(PYTHON) -m pytest -n0 -m airflow -v $(ARGS)

check: $(VENV)/installed ## lint, formatting and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy jobs featurizers schemas

bench: setup ## measure against the peers; ONLY=B1,B3 for some
	$(PYTHON) -m benchmarks $(if $(ONLY),ONLY=$(ONLY))

bench-stats: setup ## prove the statistics of comparisons: false verdicts, coverage, power; about 20 minutes
	$(PYTHON) -m benchmarks.statistics

cluster: setup ## a standalone Spark cluster of two workers on 127.0.0.1, until Ctrl-C; GPUS=1: each says it has a GPU
	@$(PYTHON) -m tests.cluster $(if $(GPUS),--gpus)

demo-cluster: setup zip ## run the demo on such a cluster, by spark-submit, into build/cluster/lake
	@$(PYTHON) -m tests.cluster demo

zip: $(VENV)/installed ## pack the code for a cluster (--py-files), as build/lakelens.zip
	@mkdir -p build && find jobs featurizers schemas conf -name __pycache__ -exec rm -rf {} +
	$(PYTHON) -m zipfile -c build/lakelens.zip jobs featurizers schemas conf

ui: $(VENV)/installed ## open MLflow on the lake's runs; LAKE=path for another lake
	@test -f $(LAKE)/mlflow.db || { echo "$(LAKE)/mlflow.db does not exist: run make demo, or name a lake by LAKE=path"; exit 2; }
	@echo "the runs: http://127.0.0.1:5000/#/experiments/1 (Ctrl-C ends it)"
	$(VENV)/bin/mlflow ui --backend-store-uri sqlite:///$(LAKE)/mlflow.db --host 127.0.0.1 --workers 1

clean: ## remove what was built: environment, build folder, caches of the tools; not the lake
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache spark-warehouse

# The package index that pip uses, for uv.
index = index=$$($(PYTHON) -m pip config get global.index-url 2>/dev/null || true); index=$${PIP_INDEX_URL:-$$index}; \
  if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; fi

$(VENV)/installed: requirements.lock pyproject.toml
	@if ! $(PYTHON) $(supported); then \
	  for python in python3.11 python3.12 python3; do $$python $(supported) && break || python=; done; \
	  test -n "$$python" || { echo "Lakelens needs Python 3.11 or 3.12, and found neither python3.11 nor python3.12 on PATH"; exit 2; }; \
	  echo "environment: $(VENV) with $$($$python --version)"; $$python -m venv --clear $(VENV); \
	fi
	@echo "packages: $$(grep -c '^[a-z]' requirements.lock) of requirements.lock"
	@$(PYTHON) -m pip install --quiet $$(grep -oE '^uv==[^ ]+' requirements.lock) || { echo "$(unreachable)"; exit 1; }
	@$(index); $(VENV)/bin/uv pip sync --quiet --python $(PYTHON) --require-hashes --compile-bytecode requirements.lock \
	  || { echo "$(unreachable)"; exit 1; }
	@$(VENV)/bin/uv pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation --offline --editable .
	@touch $@

# On top of the main lock, whose versions it keeps: clients of object stores, and the server that they are tested on.
$(VENV)/stores: $(VENV)/installed requirements-stores.lock
	@$(index); $(VENV)/bin/uv pip install --quiet --python $(PYTHON) --require-hashes --compile-bytecode -r requirements-stores.lock \
	  || { echo "$(unreachable)"; exit 1; }
	@touch $@

$(AIRFLOW)/installed: airflow_dags/requirements.lock $(VENV)/installed
	@echo "Airflow: $$(grep -c '^[a-z]' airflow_dags/requirements.lock) packages of airflow_dags/requirements.lock, into $(AIRFLOW)"
	@$(VENV)/bin/uv venv --quiet --clear --python $(PYTHON) $(AIRFLOW)
	@$(index); $(VENV)/bin/uv pip sync --quiet --python $(AIRFLOW)/bin/python --require-hashes --compile-bytecode \
	  airflow_dags/requirements.lock || { echo "$(unreachable)"; exit 1; }
	@touch $@

unreachable = The packages could not be installed (see above). Is the package index that pip is configured for reachable? Then run make again.

lock: $(VENV)/installed ## resolve the locks anew, and see that they install on Python 3.11 and 3.12
	$(compile) --group dev pyproject.toml --output-file requirements.lock
	$(compile) --constraints requirements.lock --group stores --output-file requirements-stores.lock
	$(compile) --group pyproject.toml:airflow --output-file airflow_dags/requirements.lock
	for locks in "requirements.lock --requirements requirements-stores.lock" airflow_dags/requirements.lock; do \
	  for version in 3.11 3.12; do $(VENV)/bin/uv pip install --quiet --dry-run --target build/dry-run --require-hashes \
	  --python-version $$version --python-platform x86_64-manylinux_2_28 --requirements $$locks || exit 1; done; done

compile = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --no-emit-index-url
