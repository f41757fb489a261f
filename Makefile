# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# threads that wait for each other give way soon: on a loaded machine the default is many times slower
export GOMP_SPINCOUNT ?= 20000
READY := $(VENV)/.ready

RUN ?= runs/demo

.PHONY: demo serve test lint format bench clean

demo: $(READY)  ## the main job on the embedded simulation, offline; ends by naming the report
	$(BIN)/innerspace demo

serve: $(READY)  ## the workbench on RUN, by default the demo's run, which is made first where it is missing
	test -f $(RUN)/job.json || test $(RUN) != runs/demo || $(BIN)/innerspace demo
	$(BIN)/innerspace serve $(RUN)

test: lint  ## lint, types, import contracts, tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format src tests benchmarks examples
	$(BIN)/ruff check --fix src tests benchmarks examples

bench: $(READY)  ## all benchmarks, each printing its ratios
	for script in $(filter-out benchmarks/contenders.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache dist
