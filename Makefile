# The README's two commands are `make demo` and `make test`; each sets itself up. `make check` is what you run all day.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
JOBS   ?= 2
KILLS  ?= 50
FUZZ_S ?= 60
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-fast test-slurm check format lint types imports setup system soak fuzz atheris table clean

setup: $(READY)

# torch by exact version: a range would fetch the CUDA build where a CPU build is at hand.
# deepspeed without its compiled operators: it is pure Python then, and the CPU path needs none.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -U pip setuptools wheel
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt ninja py-cpuinfo numpy packaging
	DS_BUILD_OPS=0 $(BIN)/pip install -q -c constraints.txt --no-build-isolation deepspeed
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[demo,s3,dev]'
	touch $@

system:  ## what the SLURM and browser tests need, from Debian; skipped without root
	@sh tests/system_packages.sh

demo: $(READY)
	$(BIN)/thalweg demo

# Real processes on few cores can miss a deadline beside others: what fails is run once more, alone, and then counts.
test: $(READY) system
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m 'not gpu and not slurm' || \
	  $(BIN)/python -m pytest --last-failed --last-failed-no-failures none -m 'not gpu and not slurm'
	$(BIN)/python -m pytest -m slurm tests/slurm

test-fast: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) -m 'not gpu and not slurm and not slow'

test-slurm: $(READY) system
	$(BIN)/python -m pytest -m slurm tests/slurm

check: $(READY)
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(MAKE) --no-print-directory test-fast

format: $(READY)
	$(BIN)/ruff format -q .
	$(BIN)/ruff check -q --fix .

soak: $(READY)  ## KILLS random kills of a rank, each run compared with an unbroken one
	THALWEG_KILLS=$(KILLS) $(BIN)/python -m pytest tests/test_river.py -k killed_at_a_random

table: $(READY)  ## the README's results table, about three hours on two cores; FASHION=folder CIFAR=folder
	$(BIN)/python benchmarks/results_table.py --fashion $(FASHION) --cifar $(CIFAR)

fuzz: $(READY)  ## the tar reader and the index parser, long
	THALWEG_FUZZ=20000 $(BIN)/python -m pytest tests/data_pipelines/test_fuzz.py --timeout 0

atheris: $(READY)  ## the same, guided by coverage, FUZZ_S seconds each; installs atheris
	$(BIN)/pip install -q atheris==3.0.0
	$(BIN)/python -m tests.fuzz.readers tar -max_total_time=$(FUZZ_S)
	$(BIN)/python -m tests.fuzz.readers index -max_total_time=$(FUZZ_S)

clean:
	rm -rf demo runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
