# Everything runs from .venv, which `make setup` fills from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.complete
BENCH_SETUP := .venv-bench/.complete
RESULTS ?= results
MLPS := udacity wiki ioffe_szegedy wu_he chollet handbooks counter ba salimans.rates ioffe_2017 wu_johnson luo laarhoven li_arora

.PHONY: help setup demo test test-extra test-slow test-faults test-cluster lint types docs lock bench device-check reproduce reproduce-images tensorboard report clean

help: ## these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SETUP) ## .venv with the pinned packages and bnexp, editable

$(SETUP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "bnexp needs Python 3.11 to 3.13: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ;]*\).*/\1/p' requirements.lock)"
	$(BIN)/uv pip install --quiet --require-hashes --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --reinstall-package bnexp --editable .
	touch $@

demo: $(SETUP) ## none against batch normalization on the embedded digits, 6 seeds an arm: table and figure
	$(BIN)/bnexp compare experiment=demo norm=none,batch act=relu,sigmoid 'seed=range(6)'

test: $(SETUP) lint types ## lint, types and tests, offline
	$(BIN)/pytest

test-extra: $(SETUP) ## the wide tests: every command of the documentation, the built pages
	$(BIN)/pytest -m extra

test-slow: $(SETUP) ## the long ones: every graph in a stack against alone, byte for byte (long)
	$(BIN)/pytest -m slow

test-faults: $(SETUP) ## kills, damage, full disks, races in full number: results/reliability.md (long)
	$(BIN)/pytest -m faults --faults=1

test-cluster: $(SETUP) ## sweeps on a real Slurm, which Debian's packages bring up here as root, on Ray and by torchrun (6 minutes)
	$(BIN)/pytest --dist loadfile -m cluster tests/cluster

lint: $(SETUP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(SETUP) ## mypy --strict
	$(BIN)/mypy

docs: $(SETUP) ## the documentation as pages in site/, without a network; links are checked
	$(BIN)/python scripts/write_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock: $(SETUP) ## requirements.lock from pyproject.toml, the newest versions
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra docs --extra ray --extra pandas --extra parquet --universal --python-version 3.11 \
		--generate-hashes \
		--no-header --upgrade --quiet --output-file requirements.lock
	$(BIN)/uv pip compile --group bench --universal --python-version 3.11 --generate-hashes \
		--no-header --upgrade --quiet --output-file requirements-bench.lock

bench: $(SETUP) $(BENCH_SETUP) ## bnexp beside PyTorch, Keras and JAX loops, in interleaved rounds (10 minutes)
	$(BIN)/python scripts/bench.py

device-check: $(SETUP) ## a CUDA device: tests, agreement, rates beside their peers, the published table: results/device/ (9 minutes)
	$(BIN)/python scripts/device_check.py

$(BENCH_SETUP): requirements-bench.lock $(SETUP)
	$(PYTHON) -m venv .venv-bench
	$(BIN)/uv pip install --quiet --require-hashes --python .venv-bench/bin/python -r requirements-bench.lock
	touch $@

reproduce: $(SETUP) ## published claims, judged: results/claims.json, README.md, figures (MNIST; BLOCK=0 or 1000: about 2 hours each on 2 cores)
	$(BIN)/bnexp reproduce --out results $(if $(BLOCK),--block $(BLOCK)) $(MLPS)

reproduce-images: $(SETUP) ## those of styles and of networks for images (CIFAR-10's photographs in data/cifar10-jpeg; BLOCK=0 or 1000: 1½ hours each)
	$(BIN)/bnexp reproduce --out results $(if $(BLOCK),--block $(BLOCK)) styles fine_tuning santurkar architectures cifar10 salimans.faster salimans.batch brock bjorck frankle

tensorboard: $(SETUP) ## curves of all runs and sweeps: RESULTS=results/sweeps/… for one
	$(BIN)/tensorboard --logdir $(RESULTS)

report: $(SETUP) ## table and figure of runs that are there: make report RESULTS=results/sweeps/…
	$(BIN)/bnexp report $(RESULTS)

clean: ## delete .venv and caches; keeps data/ and results/
	rm -rf .venv .venv-bench dist site .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
