# `make help` lists the targets. Works with GNU make 3.81 (macOS) and later.
# The interpreters to try for .venv; give one to choose it.
PYTHON ?= python3.11 python3 python
VENV := .venv
# Written last: a .venv without it is not finished, and is made afresh.
STAMP := $(VENV)/.complete
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check --no-input
# uv reads no pip.conf: a mirror named there is handed on.
UV := VIRTUAL_ENV=$(VENV) UV_SYSTEM_CERTS=true \
	UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$($(VENV)/bin/python -m pip config get global.index-url 2>/dev/null)}" \
	$(VENV)/bin/uv
# Nor is one whose interpreter has gone or does not start, or that runs the code of another folder:
# it was moved or copied with the project.
# One that is a link to another folder's stays as it is there: the link goes.
$(shell $(VENV)/bin/python -I -c "import os.path as p, sys; \
	sys.exit(p.realpath('src') not in map(p.realpath, sys.path))" 2>/dev/null || \
	if [ -L $(VENV) ]; then rm -f $(VENV); else rm -f $(STAMP); fi)
# Made by runs, each beside a .gitkeep. data/01_raw holds what the project ships: never cleaned.
OUTPUTS := data/02_intermediate data/03_primary data/04_feature data/05_model_input \
	data/06_models data/07_model_output data/08_reporting

# No library reports home. MLflow takes nothing but "true".
export DO_NOT_TRACK := true
export KEDRO_DISABLE_TELEMETRY := true
# Where it is set (containers), every process would compile torch and its like anew: 20 s each.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo report ui viz notebook test coverage release check docs pictures faults bench lock clean

help:
	@echo "make demo    train and evaluate the whole grid, print the transfer matrix"
	@echo "make report  write the report again from the predictions that are there, without a model; ENV=paper, too"
	@echo "make ui      open MLflow at the transfer matrix of conf/base's latest run; ENV=paper: of conf/paper's"
	@echo "make viz     open Kedro-Viz: the lineage, with previews of the results; ENV=paper, too"
	@echo "make notebook  open the notebook of single answers in JupyterLab"
	@echo "make test    run the tests"
	@echo "make coverage  the same, slower, and say which lines they do not reach"
	@echo "make release run the slow tests: every model family through the whole pipeline"
	@echo "make check   lint, check the format, the types and who imports whom"
	@echo "make docs    write the reference of all parameters anew"
	@echo "make pictures  draw the pictures of the documents, from a finished make demo"
	@echo "make faults  kill, damage and starve real runs, half an hour; writes docs/faults.md"
	@echo "make bench   measure against peers, about an hour; writes docs/benchmarks.md"
	@echo "make lock    resolve requirements.lock again from pyproject.toml"
	@echo "make clean   remove everything that runs made, in every environment, and MLflow's records"
	@echo "The first of these sets up .venv; PYTHON=/path/to/python3.11 chooses the interpreter."

demo: $(STAMP)
	$(VENV)/bin/kedro run --pipelines=cross_task

report: $(STAMP)
	$(VENV)/bin/kedro run --pipelines=report $(if $(ENV),--env=$(ENV))

ui: $(STAMP)
	$(VENV)/bin/python -m othink_pipeline.ui $(if $(ENV),--env=$(ENV))

viz: $(STAMP)
	$(VENV)/bin/kedro viz run --pipeline=cross_task $(if $(ENV),--env=$(ENV))

# JupyterLab and its 90 packages, which nothing else here needs, have an environment of their own; the
# kernel is that of .venv. Containers' users are root, whom Jupyter refuses unless it is told.
notebook: $(STAMP)
	$(VENV)/bin/python -m ipykernel install --prefix $(VENV) >/dev/null
	JUPYTER_PATH="$(CURDIR)/$(VENV)/share/jupyter" $(UV) tool run --from jupyterlab==4.6.6 jupyter-lab \
		$(if $(filter 0,$(shell id -u)),--allow-root) notebooks/results.ipynb

# A file's tests share what they train; the order is that of tests/conftest.py.
TWO_AT_ONCE := --numprocesses=2 --dist=loadfile --no-loadscope-reorder

test: $(STAMP)
	$(VENV)/bin/pytest $(TWO_AT_ONCE)

# Apart from `test`: tracing every line costs half of the tests' time again.
coverage: $(STAMP)
	$(VENV)/bin/pytest $(TWO_AT_ONCE) --cov=othink_pipeline --cov-report=term-missing:skip-covered

release: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -m slow

check: $(STAMP)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy src
	$(VENV)/bin/lint-imports

docs: $(STAMP)
	$(VENV)/bin/python -m othink_pipeline.reference docs/reference/parameters.md

pictures: $(STAMP)
	$(VENV)/bin/python docs/kl_schedules.py
	$(VENV)/bin/python docs/sweeps.py
	$(VENV)/bin/python docs/differences.py
	$(VENV)/bin/python docs/pictures.py

faults: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.faults

bench: $(STAMP)
	$(VENV)/bin/python -m benchmarks

# Versions already in the lock are kept: change a pin in pyproject.toml to move it.
lock: $(STAMP)
	$(UV) pip compile pyproject.toml --group dev --output-file requirements.lock \
		--universal --python-version 3.11 --generate-hashes --no-annotate --quiet \
		--no-strip-extras --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

clean:
	find $(OUTPUTS) -mindepth 1 ! -name .gitkeep -delete
	rm -rf data/[a-z]* data/.at_work
	rm -rf mlflow.db mlflow.db-* mlflow.db.lock mlartifacts mlruns
	rm -rf .viz build dist .coverage .coverage.* htmlcov .hypothesis
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# Python's own pip fetches uv, checked by its hash, and uv all the rest: pips of other years read the
# lock differently, uv is the one that wrote it. A finished .venv is brought up to date in place; the
# stamp is gone while that lasts. In the end all that is large is imported once: it works, and is
# compiled for all that comes.
$(STAMP): requirements.lock pyproject.toml
	@set -e; \
	if [ -f $@ ]; then \
		echo "Bringing $(VENV) up to date."; \
		rm $@; \
	else \
		python=; \
		for candidate in $(PYTHON); do \
			if "$$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, 11))' \
				2>/dev/null; then python=$$candidate; break; fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo "No usable Python 3.11 (with venv and pip): tried $(PYTHON)." >&2; \
			echo "Install one, for example:" >&2; \
			echo "  macOS          brew install python@3.11" >&2; \
			echo "  Debian 12      sudo apt install python3.11 python3.11-venv" >&2; \
			echo "  any, with uv   uv python install 3.11" >&2; \
			echo "or name one: make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python3.11" >&2; \
			exit 1; \
		fi; \
		echo "Setting up $(VENV): a minute or two, about 7 GB on Linux (CUDA builds, which also run on a CPU)."; \
		rm -rf $(VENV); \
		"$$python" -m venv $(VENV); \
	fi; \
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock; \
	$(PIP) --quiet --require-hashes --requirement $(VENV)/uv.lock; \
	if [ -t 2 ]; then quiet=; else quiet=--quiet; fi; \
	$(UV) pip sync $$quiet --require-hashes requirements.lock; \
	$(UV) pip install --quiet --no-deps --no-build-isolation --editable .; \
	$(VENV)/bin/python -c "import kedro.framework.cli, matplotlib.pyplot, mlflow, othink_pipeline.training.rl"; \
	touch $@
