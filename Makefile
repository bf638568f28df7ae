# make setup: a virtual environment with pinned dependencies. make demo: train, evaluate, draw. make test: the whole suite.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)
# Where torch comes from: the CPU build, or the plain index where an accelerator is found. TORCH_INDEX=URL overrides both.
ACCELERATOR := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo yes)
TORCH_INDEX ?= $(if $(ACCELERATOR),,https://download.pytorch.org/whl/cpu)
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: setup demo test browser lint wheel

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@start=$$(date +%s); set -e; \
	$(PYTHON) -m venv $(VENV); \
	$(BIN)/pip install --quiet --upgrade pip; \
	if [ -n "$(TORCH_INDEX)" ] && $(BIN)/pip download --quiet --no-deps --dest $(VENV)/torch --index-url "$(TORCH_INDEX)" --retries 1 --timeout 15 "$(TORCH)" 2>/dev/null; \
	then $(BIN)/pip install --quiet $(VENV)/torch/*.whl -c constraints.txt; rm -rf $(VENV)/torch; \
	else $(BIN)/pip install --quiet "$(TORCH)" -c constraints.txt; fi; \
	$(BIN)/pip install --quiet -e '.[dev,gguf,transport,endpoint]' -c constraints.txt; \
	echo $$(( $$(date +%s) - start )) > $(VENV)/.installed; \
	echo "installed into $(VENV) in $$(cat $(VENV)/.installed) s"

demo: setup
	@if [ -e runs/quickstart/settings.json ]; then mv runs/quickstart "runs/quickstart.$$(date +%Y%m%d-%H%M%S)"; fi
	SELFDISTILL_INSTALL_SECONDS=$$(cat $(VENV)/.installed) $(BIN)/selfdistill train quickstart

test: setup browser
	$(THREADS) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The report's page is tested in Debian's chromium: fetched where CI runs as root and lacks it, else left to whoever wants those tests.
browser:
	@if [ -n "$$CI" ] && ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; \
	then timeout 120 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 240 apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null \
	|| echo "no chromium could be installed: the report's page is not tested in a browser"; fi

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

wheel: setup
	$(BIN)/python -m build --wheel
