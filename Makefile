# Everything starts here: `make demo` runs the whole loop on this machine, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo setup test test-fast check bench clean

demo: setup
	$(BIN)/east-ray run jobs/configs/tiny.toml

setup: $(VENV)/.ready

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

test: setup
	$(BIN)/python -m pytest

# The tests that start neither an engine nor Ray.
test-fast: setup
	$(BIN)/python -m pytest tests/answers tests/config tests/evaluation tests/preflight tests/questions tests/report \
		tests/weighting tests/test_docs.py tests/test_public_api.py tests/test_rooms.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: setup
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf $(VENV) build dist *.egg-info
