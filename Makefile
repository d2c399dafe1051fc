# Every action of the project. `make help` lists them.
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
run: $(VENV)/.runtime models ## Set up, start the service, print where to look
	@$(BIN)/facial-service serve

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n\033[1m%s\033[0m\n", substr($$0, 5)} \
	  /^[a-z0-9-]+:.*##/ {printf "  \033[36m%-10s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Check
.PHONY: test
test: $(VENV)/.dev tools models ## Run every test (ARGS="-k name" for some)
	@$(BIN)/python tools/models.py --pictures || echo "tests that need pictures are skipped" >&2
	@$(BIN)/pytest $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## Types, style, layers, and what is generated against its source
	@$(BIN)/ruff check $(PACKAGES)
	@$(BIN)/ruff format --check $(PACKAGES)
	@$(BIN)/mypy -p app -p benchmarks -p grafana.builder -p prometheus.source
	@MYPYPATH=tools $(BIN)/mypy docs/*.py examples/*.py tools/setup.py tools/custom_resources.py tools/models.py tools/record_kubernetes.py
	@MYPYPATH=charts $(BIN)/mypy charts/*.py
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python -m prometheus.source.generate --check
	@$(BIN)/python -m grafana.builder --check
	@$(BIN)/python charts/generate.py --check

.PHONY: test-nats
test-nats: $(VENV)/.dev models ## Run the tests of tasks with several versions of nats-server (half an hour)
	@tools/nats_matrix.sh

.PHONY: bench
bench: $(VENV)/.dev ## Measure cost against the bare program; writes benchmarks/latest.json
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
kind-up: ## Start a cluster of kind with kube-prometheus-stack and the service
	@tools/kind.sh up

.PHONY: kind-down
kind-down: ## Delete it
	@tools/kind.sh down

.PHONY: forward
forward: ## Forward service, Prometheus, Alertmanager and Grafana; print where they are
	@tools/kind.sh forward

.PHONY: e2e
e2e: $(VENV)/.dev ## Run the end-to-end tests on the cluster of KUBECONFIG, which has IMAGE
	@echo "on the cluster of $$(kubectl config current-context)"
	@E2E_REQUIRED=1 E2E_IMAGE=$(IMAGE) KUBECONFIG=$${KUBECONFIG:-$$HOME/.kube/config} $(BIN)/pytest tests/e2e --verbose -rP $(ARGS)

##@ Change
.PHONY: format
format: $(VENV)/.dev ## Bring the code into shape
	@$(BIN)/ruff check --fix $(PACKAGES)
	@$(BIN)/ruff format $(PACKAGES)

.PHONY: generate
generate: $(VENV)/.dev ## Write again what is made from tables: README, docs, examples
	@$(BIN)/python examples/make_label_map.py
	@$(BIN)/python examples/make_docs_examples.py app/web/static/examples.json
	@$(BIN)/python examples/make_page_sample.py app/web/static/page
	@$(BIN)/python docs/generate.py
	@$(BIN)/python -m prometheus.source.generate
	@$(BIN)/python -m grafana.builder
	@$(BIN)/python charts/generate.py
	@$(BIN)/python docs/draw_overlay.py docs/overlay.jpg
	@$(BIN)/python docs/draw_page.py docs

.PHONY: pictures
pictures: $(VENV)/.dev ## Draw the pictures of the documentation from the running service
	@$(BIN)/python docs/draw_monitor.py docs/monitor.svg

.PHONY: golden
golden: $(VENV)/.dev ## Draw the golden overlays again; look at them before you commit
	@$(BIN)/python tests/golden/regenerate.py

.PHONY: lock
lock: $(VENV)/.dev ## Resolve the dependencies again
	@$(BIN)/uv pip compile -q pyproject.toml --group build $(LOCK_OPTIONS) -o requirements.lock
	@$(BIN)/uv pip compile -q pyproject.toml --group build --group dev -c requirements.lock $(LOCK_OPTIONS) -o requirements-dev.lock

LOCK_OPTIONS := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade

##@ Set up
.PHONY: tools
tools: ## Programs that tests need and pip does not bring
	@$(PYTHON) tools/setup.py
	@$(PYTHON) tools/custom_resources.py

.PHONY: models
models: $(VENV)/.runtime ## Models that find faces; without them, requests have to bring landmarks
	@$(BIN)/python tools/models.py || echo "landmarks cannot be found; everything else works" >&2

.PHONY: clean
clean: ## Remove what was set up
	@rm -rf $(VENV) .tools app/models build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@echo "Setting up $(VENV): Python, then what requirements.lock pins (under a minute where the cache is warm)"
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
