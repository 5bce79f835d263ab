# make run    the worker on test_input.json, with a summary
# make view   the same, and its graph in the browser
# make test   the test suite
# make soak   what takes minutes: a thousand jobs, SIGTERM in each stage, ten thousand requests
# make lint   style, types and the Dockerfile
# make image-check   the image's build without a container: install, import, prefetch, a job
# make docs-check    every command in the documents
# make lock   compile the lock files anew from requirements*.txt
# make demo-model   train the demo model and its transcoders anew
# make picture      take the README's picture of a graph anew
# make web-assets   fetch the web pages' third-party scripts anew, as pinned

# The first of these that is Python 3.11 or 3.12.
CANDIDATES := python3 python3.12 python3.11
SUITS := -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})'
PYTHON ?= $(firstword $(foreach p,$(CANDIDATES),$(shell $(p) $(SUITS) 2>/dev/null && echo $(p))) python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps

.PHONY: run view test soak lint image-check docs-check lock demo-model picture web-assets clean

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

# A CUDA build of torch needs NVIDIA's libraries besides; without them `pip check` complains.
$(VENV)/.runtime: requirements.lock requirements-cuda.lock
	@$(PYTHON) $(SUITS) || { echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.lock
	$(BIN)/python -m pip check >/dev/null || $(PIP) -r requirements-cuda.lock
	$(BIN)/python -m pip check
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	$(PIP) -r requirements-dev.lock
	touch $@
