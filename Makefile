# make run    the worker on test_input.json, with a summary
#             (TORCH_INDEX=URL installs torch from that index, such as a CPU build)
# make view   the same, and its graph in the browser
# make test   the test suite
# make soak   what takes minutes: a thousand jobs, SIGTERM in each stage, ten thousand requests,
#             two thousand raw answers of job-take
# make lint   style, types and the Dockerfile
# make image-check   the image's build without a container: install, import, prefetch, a job
# make docs-check    every command in the documents
# make audit  compare the locked packages with a database of known vulnerabilities
# make crm-check    complete replacement models compared with llamascopium, put into out/crm
# make crm-fixtures what llamascopium makes of the tests' cases, written down anew
# make lock   compile the lock files anew from requirements*.txt
# make demo-model   train the demo model, its transcoders and its Lorsas anew
# make picture      take the README's picture of a graph anew
# make web-assets   fetch the web pages' third-party scripts anew, as pinned

# The first of these that is Python 3.11 or 3.12.
CANDIDATES := python3 python3.12 python3.11
SUITS := -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})'
PYTHON ?= $(firstword $(foreach p,$(CANDIDATES),$(shell $(p) $(SUITS) 2>/dev/null && echo $(p))) python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-deps

.PHONY: run view test soak lint image-check docs-check audit crm-check crm-fixtures lock demo-model picture web-assets clean

run: $(VENV)/.runtime
	$(BIN)/python handler.py

view: run
	$(BIN)/python client.py view out/michael-jordan-joue-au.json

test: $(VENV)/.dev
	$(BIN)/python -m pytest

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m soak

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/hadolint Dockerfile

image-check: $(VENV)/.dev
	$(BIN)/python -m pytest -n 0 -m "" tests/test_dockerfile.py

docs-check: $(VENV)/.dev
	$(BIN)/python -m tools.docs_check

audit: $(VENV)/.dev
	$(BIN)/python -m tools.audit

crm-check: out/crm/.installed
	PYTHONPATH=out/crm $(BIN)/python -m pytest -n 0 -m llamascopium

crm-fixtures: out/crm/.installed
	PYTHONPATH=out/crm $(BIN)/python -m tests.complete_fixtures

# Beside the worker's own packages, on which it runs, and not among them.
out/crm/.installed: $(VENV)/.dev requirements-crm.txt
	$(PIP) --quiet --upgrade --target out/crm --requirement requirements-crm.txt
	touch $@

lock: $(VENV)/.dev
	$(BIN)/python tools/lock.py

demo-model: $(VENV)/.dev
	$(BIN)/python -m demo.train

picture: $(VENV)/.dev
	$(BIN)/python -m pytest -n0 tests/viewer/test_browser.py
	cp out/screenshots/graph.png docs/graph.png

web-assets: $(VENV)/.dev
	$(BIN)/python -m tools.web_assets

clean:
	rm -rf $(VENV) out

# Torch's lines of the lock, and the others'. Torch is installed on its own, before the rest.
TORCH := awk '/^[^ ]/ { torch = /^torch==/ } torch' requirements.lock
OTHERS := awk '/^[^ ]/ { torch = /^torch==/ } !torch' requirements.lock
CPU_INDEX := https://download.pytorch.org/whl/cpu

# PyPI's torch for Linux on x86 is the CUDA build.
ifeq ($(TORCH_INDEX)$(shell uname -sm),Linux x86_64)
SIZE := about 4 GB to download, 8 GB of disk and 8 minutes at 100 Mbit/s. \
  Without a GPU, 0.4 GB and 2 GB do: make run TORCH_INDEX=$(CPU_INDEX)
else
SIZE := about 0.4 GB to download, 2 GB of disk and 2 minutes at 100 Mbit/s, if torch is a CPU build.
endif

# An index of one's own gives torch in the locked version and without its hash: it is another build.
# A CUDA build of torch needs NVIDIA's libraries besides; without them `pip check` complains.
$(VENV)/.runtime: requirements.lock requirements-cuda.lock
	@$(PYTHON) $(SUITS) || { echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Installing into $(VENV): $(SIZE)"
	$(PYTHON) -m venv $(VENV)
ifdef TORCH_INDEX
	@torch=$$($(TORCH) | head -n 1 | cut -d " " -f 1); \
	$(PIP) --force-reinstall --index-url "$$TORCH_INDEX" "$$torch" || { \
	    echo "$$torch can't be had from TORCH_INDEX; pip says why above. The index needs a build of"; \
	    echo "this version for this Python and system, as $(CPU_INDEX) has."; \
	    exit 1; }
else
	$(TORCH) | $(PIP) --require-hashes --requirement /dev/stdin
endif
	$(OTHERS) | $(PIP) --require-hashes --requirement /dev/stdin
	$(BIN)/python -m pip check >/dev/null || $(PIP) --require-hashes --requirement requirements-cuda.lock
	$(BIN)/python -m pip check
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	$(PIP) --quiet --require-hashes --requirement requirements-dev.lock
	touch $@
