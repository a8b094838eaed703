# `make app` and `make test` set up all they need in .venv; the second time they start at once.
#
#   make app  ARGS="--port 7861"      arguments for app.py
#   make app  TORCH=cpu               the CPU-only build of torch; TORCH=cuda: the build for NVIDIA GPUs
#   make test PYTHON=python3.12       the interpreter to build .venv with; without it the first 3.11 or 3.12 found
#   make test TESTS="tests/geometry/test_cameras.py -k orbit"
#
# Without make (Windows): the plain pip lines in README.md do the same.

VENV := .venv
BIN := $(VENV)/bin
TORCH_PIN = $(shell grep '^torch==' requirements.txt)
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
BROWSER = $(if $(findstring not browser,$(TESTS)),,browser)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests start many processes, each of which would compile the program anew where this is set outside.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help app test test-all test-gpu check docs clean browser
help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -8

app: $(VENV)/app.stamp
	$(BIN)/python app.py $(ARGS)

test: check $(BROWSER)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(TESTS)

# The later -m replaces the one of pyproject.toml; tests marked gpu skip themselves where there is no GPU.
test-all: check $(BROWSER)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "" --timeout 1800 $(TESTS)

# Whatever needs an NVIDIA GPU, with the figures that it measures, which a call without TESTS also writes into
# assets/results/.  In an environment that is there already, for nothing to be installed:
#   make test-gpu PYTEST="python3 -m pytest" COMMIT=...     (COMMIT where there is no git)
# Only the files that hold such tests are looked into: the others need packages that these do not.  No test is begun
# after GPU_SECONDS, and each has GPU_TEST_SECONDS, so that all end within ten minutes; what was not begun is skipped.
GPU_TESTS = $(shell grep -rl --include='test_*.py' '^@pytest\.mark\.gpu' tests) tests/test_gpu.py
GPU_SECONDS = 420
GPU_TEST_SECONDS = 180
GPU_PYTEST = $(or $(PYTEST),$(BIN)/python -m pytest)
GPU_REPORT = .pytest_cache/gpu.xml

test-gpu: $(if $(PYTEST),,$(VENV)/test.stamp)
	$(if $(findstring -m pytest,$(GPU_PYTEST)),,$(error PYTEST must name an interpreter: PYTEST="python3 -m pytest"))
	rm -f $(GPU_REPORT)
	PSD_TEST_SHAPES=0 PSD_TEST_SECONDS=$(GPU_SECONDS) $(GPU_PYTEST) -m gpu --timeout $(GPU_TEST_SECONDS) \
	    --junit-xml $(GPU_REPORT) $(or $(TESTS),$(GPU_TESTS)); status=$$?; \
	$(subst pytest,tests.support.gpu_table,$(GPU_PYTEST)) $(GPU_REPORT) \
	    $(if $(TESTS),,--record assets/results) --commit "$(COMMIT)"; exit $$status

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The tables of docs/parameters.md, from the declaration of the preset; a test fails when they are stale.
docs: $(VENV)/app.stamp
	awk '/^<!-- end of parameters/ { skip = 0 } \
	     !skip { print } \
	     /^<!-- parameters/ { skip = 1; fflush(); system("$(BIN)/python -m psd presets table") }' \
	    docs/parameters.md >$(VENV)/parameters.md
	mv $(VENV)/parameters.md docs/parameters.md

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- set-up ---------------------------------------------------------------------------------------------------------

$(BIN)/python:
	@for python in $(or $(PYTHON),python3.12 python3.11 python3 python); do \
	    if "$$python" -c '$(SUPPORTED)' 2>/dev/null; then \
	        "$$python" -m venv $(VENV) && exit 0; \
	        rm -rf $(VENV); \
	        echo "$$python cannot make a virtual environment (Debian, Ubuntu: apt-get install python3-venv)." >&2; exit 1; \
	    fi; \
	done; \
	found=$$($(or $(PYTHON),python3) --version 2>/dev/null) || found=none; \
	echo "Python 3.11 or 3.12 is needed, here is: $$found" >&2; \
	echo "Install one of them, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1

# A torch of its own first: what pip would choose on Linux is the CUDA build, which is no use without an NVIDIA GPU.
# uv is used for the CPU build because it knows PyTorch's own index, which pip must be given.
$(VENV)/app.stamp: requirements.txt | $(BIN)/python
	@$(BIN)/python -c '$(SUPPORTED)' || { \
	    echo "$(VENV) was made with $$($(BIN)/python --version), but 3.11 or 3.12 is needed: make clean, then again." >&2; \
	    exit 1; }
	@torch="$(TORCH)"; \
	if [ -z "$$torch" ] && [ "$$(uname -s)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; then \
	    $(BIN)/pip install --quiet --dry-run --no-deps --report $(VENV)/torch.json "$(TORCH_PIN)" || exit 1; \
	    if grep -q '"version": "$(TORCH_PIN:torch==%=%)"' $(VENV)/torch.json; then \
	        echo "This machine has no NVIDIA GPU, and pip's choice for $(TORCH_PIN) is the CUDA build: several GB with"; \
	        echo "what it needs.  The CPU build (TORCH=cpu) is a tenth of that and just as good here."; \
	        if [ -t 0 ]; then \
	            printf "Install the CPU build? [Y/n] "; read answer; \
	            case "$$answer" in [nN]*) ;; *) torch=cpu;; esac; \
	        fi; \
	    fi; \
	fi; \
	case "$$torch" in \
	    cpu) $(BIN)/pip install --quiet uv && \
	         $(BIN)/uv pip install --python $(BIN)/python --torch-backend cpu "$(TORCH_PIN)";; \
	    ""|cuda) ;; \
	    *) echo "TORCH=$$torch: choose cpu or cuda" >&2; exit 1;; \
	esac
	$(BIN)/pip install -r requirements.txt
	@touch $@

$(VENV)/test.stamp: requirements-test.txt $(VENV)/app.stamp
	$(BIN)/pip install --quiet -r requirements-test.txt
	@touch $@

browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && grep -q '^ID=debian' /etc/os-release 2>/dev/null; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends \
	        chromium fonts-dejavu-core fonts-liberation fonts-noto-color-emoji; \
	else \
	    echo "The browser tests need Chromium (Debian: sudo apt-get install chromium).  To leave them out:" >&2; \
	    echo "make test TESTS=\"-m 'not slow and not gpu and not browser'\"" >&2; exit 1; \
	fi
