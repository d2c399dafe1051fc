# Development tasks. `make help` lists them.
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PATH := $(CURDIR)/.tools/bin:$(PATH)
export PATH

PACKAGES := app tests benchmarks charts docs examples grafana prometheus tools

##@ Use
.PHONY: run
run: $(VENV)/.runtime models ## Set up, start the service, and print its URLs
	@$(BIN)/facial-service serve

.PHONY: help
help: ## List all targets
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n\033[1m%s\033[0m\n", substr($$0, 5)} \
	  /^[a-z0-9-]+:.*##/ {printf "  \033[36m%-10s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Check
.PHONY: test
test: $(VENV)/.dev tools models ## Run all tests (ARGS="-k name" selects some)
	@$(BIN)/python tools/models.py --images || echo "test images are missing; tests that need them are skipped" >&2
	@$(BIN)/pytest $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## Check style, complexity, types, layers, spelling and generated files
	@$(BIN)/ruff check $(PACKAGES)
	@$(BIN)/ruff format --check $(PACKAGES)
	@$(BIN)/mypy -p app -p benchmarks -p grafana.builder -p prometheus.source
	@MYPYPATH=tools $(BIN)/mypy docs/*.py examples/*.py tools/setup.py tools/models.py tools/page_constants.py tools/photos.py tools/record_kubernetes.py tools/slim_packages.py
	@MYPYPATH=charts $(BIN)/mypy charts/*.py
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/codespell $$(git ls-files)
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python tools/page_constants.py --check
	@$(BIN)/python -m prometheus.source.generate --check
	@$(BIN)/python -m grafana.builder --check
	@$(BIN)/python charts/generate.py --check
	@$(BIN)/pytest -q tests/contracts/test_language.py tests/contracts/test_source.py -k "not examples"

.PHONY: test-nats
test-nats: $(VENV)/.dev models ## Run the task tests with several nats-server versions (30 minutes)
	@tools/nats_matrix.sh

.PHONY: bench
bench: $(VENV)/.dev ## Compare performance with the reference program; writes benchmarks/latest.json
	@$(BIN)/python -m benchmarks.run $(ARGS)

##@ Kubernetes
IMAGE ?= facial-service:e2e
BASE_IMAGE ?= python:3.13-slim-bookworm
export IMAGE

.PHONY: image
image: ## Build the container image (IMAGE=name:tag, BASE_IMAGE=…)
	@docker build --tag $(IMAGE) --build-arg BASE_IMAGE=$(BASE_IMAGE) \
	  --build-arg REVISION=$$(git rev-parse HEAD) --build-arg CREATED=$$(git log -1 --format=%cI) .

.PHONY: kind-up
kind-up: ## Create a kind cluster with kube-prometheus-stack and the service
	@tools/kind.sh up

.PHONY: kind-down
kind-down: ## Delete the kind cluster
	@tools/kind.sh down

.PHONY: forward
forward: ## Forward ports of the service, Prometheus, Alertmanager and Grafana; print their URLs
	@tools/kind.sh forward

.PHONY: e2e
e2e: $(VENV)/.dev ## Run the end-to-end tests on the cluster of KUBECONFIG; IMAGE must be loaded
	@E2E_REQUIRED=1 E2E_IMAGE=$(IMAGE) KUBECONFIG=$${KUBECONFIG:-$$HOME/.kube/config} $(BIN)/pytest tests/e2e --verbose -rP $(ARGS)

##@ Change
.PHONY: format
format: $(VENV)/.dev ## Format the code
	@$(BIN)/ruff check --fix $(PACKAGES)
	@$(BIN)/ruff format $(PACKAGES)

.PHONY: generate
generate: $(VENV)/.dev ## Regenerate generated files: README, docs, rules, dashboards, chart, examples
	@$(BIN)/python examples/make_label_map.py
	@$(BIN)/python examples/make_docs_examples.py app/web/static/examples.json
	@$(BIN)/python examples/make_page_sample.py app/web/static/page
	@$(BIN)/python docs/generate.py
	@$(BIN)/python tools/page_constants.py
	@$(BIN)/python -m prometheus.source.generate
	@$(BIN)/python -m grafana.builder
	@$(BIN)/python charts/generate.py
	@$(BIN)/python docs/draw_overlay.py docs/overlay.jpg
	@$(BIN)/python docs/draw_page.py docs

OUTPUT ?= build/monitoring
.PHONY: monitoring
monitoring: $(VENV)/.dev ## Write rules and dashboards for the objectives in VALUES to OUTPUT (RUNBOOKS=URL, ARGS="--release …")
	@$(BIN)/python -m prometheus.source.generate --output $(OUTPUT)/rules $(MONITORING) $(ARGS)
	@$(BIN)/python -m grafana.builder --output $(OUTPUT)/dashboards $(MONITORING)

MONITORING = $(if $(VALUES),--values $(VALUES)) $(if $(RUNBOOKS),--runbooks $(RUNBOOKS))

.PHONY: screenshots
screenshots: $(VENV)/.dev ## Render the screenshots of the documentation from a running service
	@$(BIN)/python docs/draw_monitor.py docs/monitor.svg

.PHONY: pictures
pictures: $(VENV)/.dev tools models ## Draw the dashboards of the documentation from a running service (10 minutes)
	@DASHBOARD_PICTURES=docs BROWSER_REQUIRED=1 $(BIN)/pytest -q tests/browser/test_dashboards.py

.PHONY: golden
golden: $(VENV)/.dev ## Regenerate the golden overlays; inspect them before you commit
	@$(BIN)/python tests/golden/regenerate.py

.PHONY: lock
lock: $(VENV)/.dev ## Update the dependency lock files
	@$(BIN)/uv pip compile -q pyproject.toml --extra heif --extra otel --group build $(LOCK_OPTIONS) -o requirements.lock
	@$(BIN)/uv pip compile -q pyproject.toml --extra heif --extra otel --group build --group dev -c requirements.lock $(LOCK_OPTIONS) -o requirements-dev.lock

LOCK_OPTIONS := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade

##@ Set up
.PHONY: tools
tools: ## Install what tests need and pip does not provide
	@$(PYTHON) tools/setup.py

.PHONY: models
models: $(VENV)/.runtime ## Install the face-detection models; without them, requests must include landmarks
	@$(BIN)/python tools/models.py || echo "face detection is not available; everything else works" >&2

.PHONY: clean
clean: ## Remove the virtual environment, tools, models and caches
	@rm -rf $(VENV) .tools app/models build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@echo "Setting up $(VENV) with the packages of requirements.lock (less than a minute with a warm cache)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "expected Python 3.11 to 3.13, got $$($(PYTHON) --version); set PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.lock pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --progress-bar on --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --progress-bar on --require-hashes -r requirements-dev.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.runtime
