# Development tasks. `make` lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PATH := $(CURDIR)/.tools/bin:$(PATH)
export PATH

PACKAGES := app facial_service tests benchmarks charts examples grafana prometheus tools

# Use as $(call need,PROGRAM,HINT).
need = command -v $(1) >/dev/null || { echo "$(1): not found on PATH; $(2)" >&2; exit 1; }

##@ Use
.PHONY: run
run: $(VENV)/.runtime models ## Set up, start the service, and print its URLs
	@$(BIN)/facial-service serve

.PHONY: help
help: ## List all targets
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n\033[1m%s\033[0m\n", substr($$0, 5)} \
	  /^[a-z0-9-]+:.*##/ {printf "  \033[36m%-15s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Check
.PHONY: test
test: $(VENV)/.dev tools models test-images ## Run all tests except slow ones: at most 6 minutes (ARGS="-k name": any selection)
	@$(if $(ARGS),,echo 'Running all tests except slow ones, at most 6 minutes on 2 cores; `make test-all` runs all.')
	@$(BIN)/pytest $(or $(ARGS),-m "not slow")

.PHONY: test-all
test-all: $(VENV)/.dev tools models test-images ## Run all tests, as continuous integration does (about an hour)
	@$(BIN)/pytest $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## Check style, complexity, types, layers, spelling and generated files
	@$(BIN)/ruff check $(PACKAGES)
	@$(BIN)/ruff format --check $(PACKAGES)
	@$(BIN)/mypy -p app -p facial_service -p benchmarks -p grafana.builder -p prometheus.source
	@MYPYPATH=tools $(BIN)/mypy tools/docs/*.py examples/*.py tools/setup.py tools/models.py tools/page_constants.py tools/photos.py tools/record_kubernetes.py tools/slim_packages.py
	@MYPYPATH=tools/release $(BIN)/mypy tools/release/*.py
	@MYPYPATH=charts $(BIN)/mypy charts/*.py
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/codespell $$(git ls-files)
	@$(BIN)/python tools/docs/generate.py --check
	@$(BIN)/python tools/docs/draw_overlay.py docs --check
	@$(BIN)/python tools/page_constants.py --check
	@$(BIN)/python -m prometheus.source.generate --check
	@$(BIN)/python -m grafana.builder --check
	@$(BIN)/python charts/generate.py --check
	@$(BIN)/python tools/release/version.py --check
	@! command -v actionlint >/dev/null || actionlint
	@$(BIN)/pytest -q tests/contracts/test_language.py tests/contracts/test_source.py -k "not examples"

.PHONY: test-nats
test-nats: $(VENV)/.dev models ## Run the task tests with several nats-server versions (30 minutes)
	@tools/nats_matrix.sh

.PHONY: bench
bench: $(VENV)/.dev models ## Compare performance with the reference program; writes benchmarks/latest.json
	@$(BIN)/python -m benchmarks.run $(ARGS)

##@ Kubernetes
IMAGE ?= facial-service:e2e
BASE_IMAGE ?=
export IMAGE

.PHONY: image
image: ## Build the container image with Docker (IMAGE=name:tag, BASE_IMAGE=…)
	@$(call need,docker,install Docker to build the image)
	@docker build --tag $(IMAGE) $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
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

##@ Release
.PHONY: release-dry-run
release-dry-run: release-tools ## Try a release without publishing: image built twice, chart, SBOM; needs Docker and Go
	@$(call need,docker,install Docker to build the image)
	@tools/release/dry_run.sh

.PHONY: release-tools
release-tools: ## Install what makes and checks the parts of a release: helm, actionlint, syft, a validator of SPDX
	@$(PYTHON) tools/setup.py helm actionlint syft spdx

##@ Change
.PHONY: format
format: $(VENV)/.dev ## Format the code
	@$(BIN)/ruff check --fix $(PACKAGES)
	@$(BIN)/ruff format $(PACKAGES)

.PHONY: generate
generate: $(VENV)/.dev models ## Regenerate generated files: docs, rules, dashboards, chart, examples
	@$(BIN)/python examples/make_label_map.py
	@$(BIN)/python examples/make_docs_examples.py app/web/static/examples.json
	@$(BIN)/python examples/make_response_examples.py app/web/static/response_examples.json
	@$(BIN)/python examples/make_page_sample.py app/web/static/page
	@$(BIN)/python tools/docs/generate.py
	@$(BIN)/python tools/page_constants.py
	@$(BIN)/python -m prometheus.source.generate
	@$(BIN)/python -m grafana.builder
	@$(BIN)/python tools/release/version.py
	@$(BIN)/python charts/generate.py
	@$(BIN)/python tools/docs/draw_overlay.py docs
	@$(BIN)/python tools/docs/draw_page.py docs

OUTPUT ?= build/monitoring
.PHONY: monitoring
monitoring: $(VENV)/.dev ## Write rules and dashboards for the objectives in VALUES to OUTPUT (RUNBOOKS=URL, ARGS="--release …")
	@$(BIN)/python -m prometheus.source.generate --output $(OUTPUT)/rules $(MONITORING) $(ARGS)
	@$(BIN)/python -m grafana.builder --output $(OUTPUT)/dashboards $(MONITORING)

MONITORING = $(if $(VALUES),--values $(VALUES)) $(if $(RUNBOOKS),--runbooks $(RUNBOOKS))

.PHONY: screenshots
screenshots: $(VENV)/.dev ## Render the screenshots of the documentation from a running service
	@$(BIN)/python tools/docs/draw_monitor.py docs/monitor.svg
	@$(BIN)/python tools/docs/draw_console.py docs

.PHONY: pictures
pictures: $(VENV)/.dev tools models ## Draw the dashboards of the documentation from a running service (10 minutes)
	@$(call need,npm,install Node.js to build Grafana's components)
	@DASHBOARD_PICTURES=docs BROWSER_REQUIRED=1 $(BIN)/pytest -q tests/browser/test_dashboards.py

.PHONY: golden
golden: $(VENV)/.dev ## Regenerate the golden overlays; inspect them before you commit
	@$(BIN)/python tests/golden/regenerate.py

.PHONY: lock
lock: $(VENV)/.dev ## Update the dependency lock files
	@$(BIN)/uv pip compile -q pyproject.toml --extra heif --extra otel --group build $(LOCK_OPTIONS) -o requirements.lock
	@$(BIN)/uv pip compile -q pyproject.toml --extra heif --extra otel --group build --group dev -c requirements.lock $(LOCK_OPTIONS) -o requirements-dev.lock
	@for folder in python_client spdx; do \
	  $(BIN)/uv pip compile -q tools/$$folder/requirements.in $(LOCK_OPTIONS) -o tools/$$folder/requirements.lock; done

LOCK_OPTIONS := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade

##@ Set up
.PHONY: tools
tools: ## Install what tests need and pip does not provide
	@$(PYTHON) tools/setup.py

.PHONY: models
models: $(VENV)/.runtime ## Install the face-detection models; without them, requests must include landmarks
	@$(BIN)/python tools/models.py || echo "face detection is not available; everything else works" >&2

.PHONY: test-images
test-images: $(VENV)/.runtime ## Install the test images; without them, the tests that need them are skipped
	@$(BIN)/python tools/models.py --images || echo "test images are missing; tests that need them are skipped" >&2

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
