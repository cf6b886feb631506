# make serve   serve the bundled family and its page on http://127.0.0.1:8000 (HOST=, PORT=, FAMILY= change it)
# make test    lint, types, all tests
# make family  train the bundled families anew, from nothing
# make pictures  draw the strip and the curve of docs/ from FAMILY as it is
# make clean   remove what the others made
#
# All set-up happens by itself, in .venv. Variables:
#   PYTHON=python3.11    the Python to build .venv with (3.11 or later)
#   TORCH_INDEX=URL      take PyTorch from this package index: its CPU builds spare a machine without a GPU several GB
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
FAMILY ?= families/shapes
TORCH_INDEX ?=
STRIP ?= "a red star on mint; a blue ring on cream; a purple heart on snow; an orange moon on sky; a green drop on lilac; a black cross on silver; a pink diamond on mint; a teal square on cream; a yellow circle on sky; a brown triangle on snow"
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SHELL := /bin/bash

.PHONY: serve test lint browser family pictures clean

serve: .venv/.serve
	$(BIN)/stepdial serve --family $(FAMILY) --host $(HOST) --port $(PORT)

test: lint browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

# the browser tests want Chromium; where it cannot be had they say so (and fail if CI=true)
browser:
	@if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing chromium for the browser tests"; \
	  (apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium) >/dev/null || echo "chromium could not be installed"; \
	fi

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stepdial needs Python 3.11 or later, $(PYTHON) is " + sys.version.split()[0] + "; choose another with PYTHON=")'
	$(PYTHON) -m venv .venv

.venv/.torch: .venv/bin/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) 'torch>=2.11,<2.14'
	@touch $@

.venv/.serve: .venv/.torch pyproject.toml
	$(PIP) --editable .
	@touch $@

.venv/.test: .venv/.serve
	$(PIP) --editable '.[training,gpu,tracing,dev]'
	@touch $@

# the commands of the bundled families, to be followed by stepdial evaluate and report: about an hour and a half for shapes and ten minutes for digits on two idle cores
family: .venv/.test
	OMP_NUM_THREADS=1; export OMP_NUM_THREADS; set -e; \
	$(BIN)/stepdial train --data shapes --family families/shapes --iterations 10000 --batch 24 --lr 8e-4 --seed 1; \
	distill="$(BIN)/stepdial distill --family families/shapes --guidance 1 --batch 24 --lr 3.5e-4 --warmup 50 --decay-from 0.4 --ema 0.998 --seed 1"; \
	($$distill --steps 1 --iterations 4000 && $$distill --steps 2 --iterations 2000) & first=$$!; \
	$$distill --steps 4 --iterations 2000; $$distill --steps 8 --iterations 1000; $$distill --steps 16 --iterations 800; wait $$first; \
	$(BIN)/stepdial train --data digits --preset tiny8 --family families/digits --iterations 1500 --batch 128 --lr 1e-3 --ema 0.998 --teacher-guidance 0 --seed 1; \
	$(BIN)/stepdial distill --family families/digits --iterations 400 --batch 128 --lr 1e-3 --warmup 40 --decay-from 0.4 --ema 0.99 --seed 1

pictures: .venv/.test
	$(BIN)/stepdial sample --family $(FAMILY) --steps 1,2,4,8,16,32 --seed 5 --count 10 --zoom 3 --out docs/strip.png --prompt $(STRIP)
	$(BIN)/stepdial curve --family $(FAMILY) --out docs/curve.png

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .schemathesis *.egg-info
