# Everything a developer does here. Needs python3 (3.11+); Java 17 and Maven give a real Kafka.
#   make run PROCS=1        one process for each service, with reload
#   make test KAFKA=apache  force apache or embedded; ARGS="-k inbox" goes to pytest

SHELL := /bin/bash
PYTHON := .venv/bin/python
STAMP := .venv/.installed
KAFKA ?=
export OPENBELL_KAFKA := $(or $(KAFKA),$(OPENBELL_KAFKA))
# uv links from its cache where it can; a copy on another file system is fine and no news.
export UV_LINK_MODE ?= copy

.DEFAULT_GOAL := help
.PHONY: help install run test check fmt bench chaos simulate manifests runbooks image scan deploy test-image test-rollback test-containers test-compose up down sbom migrate backup restore asyncapi openapi replay lock clean

help: ## Show this list
	@grep -E '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## (.*)/  \1\t\2/' | expand -t 13

install: $(STAMP) ## Make .venv and install what the lock says (done by the other targets)

# Runs again only when the lock changed. uv installs in seconds what takes pip minutes.
$(STAMP): requirements-dev.lock
	@set -e; for name in python3 python3.13 python3.12 python3.11; do \
	  if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$name; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "Openbell needs Python 3.11 or newer; none was found on the PATH." >&2; exit 1; fi; \
	[ -x $(PYTHON) ] || "$$found" -m venv .venv
	@$(PYTHON) -m uv --version >/dev/null 2>&1 || \
	  $(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r <($(UV_LINES))
	$(PYTHON) -m uv pip sync --quiet --python $(PYTHON) --require-hashes requirements-dev.lock
	@printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" -P -m cli "$$@"\n' "$(CURDIR)" "$(CURDIR)/$(PYTHON)" >.venv/bin/openbell
	@chmod +x .venv/bin/openbell
	@touch $@

# The lines of the lock that pin uv itself.
UV_LINES = awk '/^[^ \#]/ {on = /^uv==/} on && !/ \#/' requirements-dev.lock

run: $(STAMP) ## Start Postgres, Kafka and all services here (PROCS=1: a process each, with reload)
	$(PYTHON) -m deploy.local.run $(if $(PROCS),--processes)

# A process for each core, each with a Postgres and a Kafka of its own; a cluster of yours is not shared between them.
JOBS ?= $(if $(OPENBELL_KAFKA_BOOTSTRAP),0,auto)
test: $(STAMP) ## Run all tests and print their coverage (KAFKA=apache|embedded, JOBS=0, ARGS=...)
	$(PYTHON) -m pytest -n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered $(ARGS)

check: $(STAMP) ## Lint, format, types and import contracts, as CI does
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	.venv/bin/basedpyright
	.venv/bin/lint-imports
	$(PYTHON) -m deploy.prometheus.check
	$(PYTHON) -m deploy.k8s.check
	$(PYTHON) -m deploy.docker.check

fmt: $(STAMP) ## Format, and fix what the linter can
	$(PYTHON) -m ruff check --fix --exit-zero
	$(PYTHON) -m ruff format

bench: $(STAMP) ## Run the benchmarks and print their table
	$(PYTHON) -m benchmarks $(ARGS)

bench-%: $(STAMP) ## Run one of the benchmarks, as in bench-messaging
	$(PYTHON) -m benchmarks $* $(ARGS)

chaos: $(STAMP) ## Kill everything under a ledger, 200,000 events, ten minutes (ARGS="--seed 1 --seconds 60")
	$(PYTHON) -m tests.chaos.ledger $(ARGS)

simulate: $(STAMP) ## Simulate the messaging runtime, crashed wherever it waits (ARGS="--seeds 1000 --from 0")
	$(PYTHON) -m tests.chaos.simulation $(or $(ARGS),--awaits --seeds 300)

# Two builds of one commit hold the same files. BuildKit is a part of Docker since 23; earlier ones need the variable.
TAG ?= $(shell git rev-parse --short=12 HEAD)
manifests: $(STAMP) ## Write what follows from deploy/services.py into deploy/k8s/base
	$(PYTHON) -m deploy.k8s

runbooks: $(STAMP) ## Point the links of all alerts at where you publish docs/runbooks (URL=https://...)
	$(PYTHON) -m deploy.prometheus.runbooks "$(URL)"

image: ## Build the image of all services, openbell:TAG (SERVICE=api: openbell-api:TAG; PYTHON_IMAGE: on another base)
	DOCKER_BUILDKIT=1 docker build --tag openbell$(if $(SERVICE),-$(SERVICE)):$(TAG) --build-arg SERVICE=$(SERVICE) \
	  --build-arg REVISION=$$(git rev-parse HEAD) --build-arg SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
	  $(if $(PYTHON_IMAGE),--build-arg PYTHON_IMAGE=$(PYTHON_IMAGE)) $(ARGS) .

scan: $(STAMP) ## Look in the image for high and critical weaknesses that a newer package mends (IMAGE=openbell:TAG)
	@mkdir -p .openbell
	"$$($(PYTHON) -m deploy.tools grype)" "docker:$(or $(IMAGE),openbell:$(TAG))" --only-fixed --fail-on high \
	  --output table --output cyclonedx-json=.openbell/sbom-image.json

deploy: $(STAMP) ## Roll IMAGE out onto kubectl's cluster, schemas first, back if it is not healthy (OVERLAY=staging)
	$(PYTHON) -m deploy.k8s.rollout "$(OVERLAY)" --image "$(IMAGE)"

# Where no registry gives the base image, one in its place is made (tests/deploy/stand_ins).
test-image: $(STAMP) ## Look into the image, run all services from it until somebody is alerted (IMAGE: a built one; slow; needs Docker)
ifeq ($(IMAGE),)
	for service in "" api; do \
	  $(MAKE) image SERVICE=$$service PYTHON_IMAGE=$$($(PYTHON) -m tests.deploy.stand_ins python) || exit; \
	done
endif
	$(PYTHON) -m tests.deploy.contents $(or $(IMAGE),openbell:$(TAG) openbell-api:$(TAG))
	$(PYTHON) -m tests.deploy.containers $(or $(IMAGE),openbell:$(TAG))

# The code that did not know the newest migration yet.
BEFORE ?= $(shell git log -1 --format=%h^ -- 'services/*/migrations/*')
test-rollback: $(STAMP) ## Run all services, then those of BEFORE on the same schemas and data (slow; needs Docker)
	$(MAKE) image PYTHON_IMAGE=$$($(PYTHON) -m tests.deploy.stand_ins python)
	git archive $(BEFORE) | DOCKER_BUILDKIT=1 docker build --tag openbell:before \
	  --build-arg PYTHON_IMAGE=$$($(PYTHON) -m tests.deploy.stand_ins python) -
	$(PYTHON) -m tests.deploy.containers openbell:$(TAG) openbell:before

test-containers: $(STAMP) ## Run tests (ARGS) on a Postgres and a Kafka in containers (slow; needs Docker)
	TEST_POSTGRES_IMAGE=$$($(PYTHON) -m tests.deploy.stand_ins postgres) \
		TEST_KAFKA_IMAGE=$$($(PYTHON) -m tests.deploy.stand_ins kafka) TESTCONTAINERS_RYUK_DISABLED=true \
		$(PYTHON) -m pytest $(or $(ARGS),tests/flows/test_first_light.py tests/conformance)

test-compose: $(STAMP) ## Bring the core of docker-compose.yml up until somebody is alerted, and take it down (slow; needs Docker)
	$(PYTHON) -m tests.deploy.compose

PROFILES ?= core
up: $(STAMP) ## Start it all in containers (PROFILES="core observability dev")
	$(PYTHON) -m deploy.docker.secrets
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) docker compose $(addprefix --profile ,$(PROFILES)) up --build --wait

down: ## Stop the containers; their volumes stay
	docker compose --profile "*" down

sbom: $(STAMP) ## Write the list of all that the services are made of, .openbell/sbom.json (CycloneDX)
	@mkdir -p .openbell
	"$$($(PYTHON) -m deploy.tools cyclonedx-py)" requirements requirements.lock --output-reproducible --of JSON -o .openbell/sbom.json

migrate: $(STAMP) ## Bring every service's schema to the newest version
	$(PYTHON) -m deploy.local.migrate $(ARGS)

asyncapi: $(STAMP) ## Write the AsyncAPI document of all events
	$(PYTHON) -m deploy.local.asyncapi $(ARGS)

openapi: $(STAMP) ## Write the OpenAPI document of all services
	$(PYTHON) -m services.api.openapi $(ARGS)

replay: $(STAMP) ## Read events again into one consumer (SERVICE=detector ARGS="detector.chains --since 1h")
	$(PYTHON) -m services.$(SERVICE) replay $(ARGS)

COMPILE := -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
  --no-emit-index-url --no-emit-find-links
lock: $(STAMP) ## Pin all dependencies anew (ARGS="--upgrade" moves them)
	$(PYTHON) $(COMPILE) $(ARGS) --extra services pyproject.toml -o requirements.lock
	$(PYTHON) $(COMPILE) $(ARGS) --all-extras pyproject.toml -o requirements-dev.lock
	$(PYTHON) $(COMPILE) $(ARGS) deploy/tools.in -o deploy/tools.lock

backup: $(STAMP) ## Back up Postgres of `make run`, which may run meanwhile (TO=.openbell/backups)
	$(PYTHON) -m deploy.local.backup $(if $(TO),--to "$(TO)")

restore: $(STAMP) ## Bring Postgres back (FROM=.openbell/backups AT=2026-11-23T14:30:00Z); what was there is set aside
	$(PYTHON) -m deploy.local.restore $(if $(FROM),--from "$(FROM)") $(if $(AT),--at "$(AT)")

clean: ## Remove the installation, caches and all local data, backups among them
	@# As root the database may lie outside, behind these links (deploy/local/postgres.py).
	@for data in .openbell/postgres*/data; do \
	  if [ -L "$$data" ]; then rm -rf "$$(readlink "$$data")" "$$(readlink "$$data").wal"; fi; \
	done
	rm -rf .venv .openbell .bench .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
