# The commands of the repository; `make` alone lists them. Every target that compiles first makes sure
# that the machine has what the build needs (scripts/deps.sh: quick, and silent, when it has), and uses
# the settings of scripts/env.sh.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# Nodes of `make demo`, and further arguments of `torc demo`.
NODES ?= 3
DEMO_ARGS ?=
# What `make up` starts: core (three nodes behind Nginx) or full (also all side services).
PROFILE ?= core
# Arguments of `cargo test`, for example TEST_ARGS="-p torc-ring".
TEST_ARGS ?= --workspace
# How long, or how many executions, `make fuzz` spends on each target.
FUZZ_SECONDS ?=
FUZZ_RUNS ?=
export FUZZ_SECONDS FUZZ_RUNS
# For how long `make chaos` injects faults, and the seed that decides which (without one, a new one).
CHAOS_SECONDS ?= 120
CHAOS_SEED ?=

# In CI the lock file is an input: a build that would change it fails.
LOCKED := $(if $(CI),--locked)
ENV := . scripts/env.sh &&
PHASE := $(ENV) scripts/phase.sh
PARTS := fmt-check length purity deny clippy doc-check

.PHONY: help deps services build demo up down test lint $(PARTS) fmt doc bench fuzz chaos clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install what the build needs and this machine lacks (asks for sudo only then)
	@scripts/deps.sh

services: ## install the side services that tests start (Redis, RabbitMQ, Nginx, Prometheus, a browser)
	@scripts/services.sh

build: deps ## build the `torc` binary, optimised
	$(ENV) cargo build $(LOCKED) --release -p torc
	@$(ENV) echo "built $$CARGO_TARGET_DIR/release/torc"

demo: deps ## start a cluster on this machine (NODES=3, DEMO_ARGS=...); Ctrl-C stops it
	@$(ENV) cargo build $(LOCKED) --release -p torc && \
	  exec "$$CARGO_TARGET_DIR/release/torc" demo --nodes $(NODES) $(DEMO_ARGS)

up: ## start the platform in containers, healthy when this returns (PROFILE=core or full)
	@docker/up.sh $(PROFILE)

down: ## end the platform in containers (DATA=1 removes its data too)
	@docker/down.sh $(if $(DATA),--data)

test: deps services lint ## all checks: lint, then every test of the workspace
	@$(PHASE) "tests" cargo test $(LOCKED) $(TEST_ARGS)

lint: deps $(PARTS) ## format, sizes, purity of the core, licences and advisories, clippy, docs

# The parts of lint in this order, also under `make -j`: what is quick to fail comes first.
.NOTPARALLEL:

fmt-check:
	@$(PHASE) "lint: format" cargo fmt --all -- --check

length:
	@$(PHASE) "lint: file and function length" scripts/check-length.py

purity: deps
	@$(PHASE) "lint: purity of the core" scripts/check-purity.sh

deny: deps
	@$(PHASE) "lint: licences, sources, advisories" scripts/deny.sh

clippy: deps
	@$(PHASE) "lint: clippy" cargo clippy $(LOCKED) --workspace --all-targets -- -D warnings

doc-check: deps
	@$(PHASE) "lint: documentation" env RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --no-deps --workspace

fmt: ## format the code
	@$(ENV) cargo fmt --all

doc: deps ## build the API documentation
	@$(ENV) RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --no-deps --workspace && \
	  echo "open $$CARGO_TARGET_DIR/doc/torc_protocol/index.html"

bench: deps ## measure torc beside its limits, and write the ratios to bench.json (docs/performance.md)
	@$(ENV) scripts/bench.sh

fuzz: deps ## fuzz everything that parses bytes from outside (FUZZ_SECONDS=... or FUZZ_RUNS=...)
	@$(ENV) scripts/fuzz.sh

chaos: deps ## faults of every kind on a cluster of processes under load (CHAOS_SECONDS=120, CHAOS_SEED=...)
	@$(ENV) CHAOS_SECONDS=$(CHAOS_SECONDS) $(if $(CHAOS_SEED),CHAOS_SEED=$(CHAOS_SEED)) \
	  cargo test $(LOCKED) -p torc-e2e --test chaos -- --nocapture --test-threads=1

clean: ## remove build output; compiled RocksDB objects stay in the compiler cache
	@$(ENV) cargo clean && echo "kept $$CCACHE_DIR and $$TORC_CACHE_DIR/tools; remove $$TORC_CACHE_DIR to start from nothing"
