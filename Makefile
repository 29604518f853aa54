# One environment, in this clone, for the pipeline, the tests and JupyterLab. Nothing is registered outside the clone.
#   make PYTHON=python3.11 ...   another interpreter        make UV= ...            pip even where uv is installed
#   make LAB=--no-browser lab    arguments of JupyterLab    make TESTS="-k name" test   arguments of pytest

PYTHON ?= python3
UV ?= $(shell command -v uv 2>/dev/null)
LAB ?=
TESTS ?=

STAMP := .venv/installed
ACTIVATE := export VIRTUAL_ENV="$$PWD/.venv" PATH="$$PWD/.venv/bin:$$PATH";

unexport PYTHONPATH PYTHONHOME
export DVC_NO_ANALYTICS := 1
export PYTHONDONTWRITEBYTECODE := 1
export JUPYTER_PREFER_ENV_PATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help .venv reproduce test lab clean

help:  ## this list
	@sed -n 's/^\([a-z.]*\):.*## /\1 /p' Makefile | while read -r target meaning; do printf 'make %-10s %s\n' "$$target" "$$meaning"; done

.venv: $(STAMP)  ## the environment: constraints.txt and this clone, installed in .venv (the targets below do it when needed)

reproduce: $(STAMP)  ## run the whole pipeline from nothing, compare every number with the committed one
	@$(ACTIVATE) dvc repro -f
	@$(ACTIVATE) irstd compare
	@echo "The report: reports/index.html   Tables and figures: reports/$$(sed -n 's/^profile: *\([a-z]*\).*/\1/p' params.yaml)/"

test: export OMP_NUM_THREADS := 1
test: $(STAMP)  ## execute all component notebooks, then the tests
	@$(ACTIVATE) failed=; \
	nbdev_test --n_workers 2 || failed=nbdev_test; \
	python -m pytest $(TESTS) || failed="$$failed pytest"; \
	test -z "$$failed" || { echo "failed: $$failed" >&2; exit 1; }

lab: $(STAMP)  ## open nbs/index.ipynb in JupyterLab
	@$(ACTIVATE) exec jupyter lab --LabApp.default_url=/lab/tree/nbs/index.ipynb $(LAB)

clean:  ## remove the environment and caches; weights (.dvc/cache), work/ and real data stay
	rm -rf .venv build dist irstd_nb.egg-info .pytest_cache .hypothesis
	find irstd_nb nbs tests tools \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# The stamp holds the folder in which the environment was made: scripts of a moved or copied one point to the old place.
MADE_IN := $(shell cat $(STAMP) 2>/dev/null)
ifneq ("$(MADE_IN)","$(CURDIR)")
.PHONY: $(STAMP)
endif

# `unfinished` lies in .venv from the first to the last step; an environment that has it was interrupted and is made anew.
# torch comes first and through pip, so that pip's configuration decides which build it is. uv does not read that, but keeps what it finds.
$(STAMP): pyproject.toml constraints.txt settings.ini
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "irstd_nb needs Python 3.10 or newer (3.11 for the exact environment), but $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
	       "Name another one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments: its modules venv and ensurepip are missing. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@set -e; base=$$($(PYTHON) -c 'import sys; print(sys._base_executable)'); \
	if [ -e .venv/unfinished ] || [ -n "$(MADE_IN)" -a "$(MADE_IN)" != "$(CURDIR)" ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
	  mkdir -p .venv; : > .venv/unfinished; \
	  find .venv/ -mindepth 1 -maxdepth 1 ! -name unfinished -exec rm -rf {} +; \
	  echo "Making .venv with $$("$$base" --version)"; "$$base" -m venv .venv; \
	fi; \
	: > .venv/unfinished; rm -f $(STAMP); \
	pip=".venv/bin/python -m pip install --quiet"; pins="-c constraints.txt"; \
	.venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  pins=; echo "constraints.txt needs Python 3.11; installing the newest versions for this one instead, numbers may differ."; }; \
	echo "Installing torch"; $$pip $$pins "$$(grep '^torch==' constraints.txt)"; \
	echo "Installing the rest with $(if $(UV),uv,pip: one to two minutes)"; \
	$(if $(UV),"$(UV)" pip install --quiet --compile-bytecode --python .venv/bin/python $$pins -e '.[dev]' || { echo "uv failed; trying pip"; $$pip $$pins -e '.[dev]'; },$$pip $$pins -e '.[dev]'); \
	printf '%s\n' "$(CURDIR)" > .venv/unfinished; mv .venv/unfinished $(STAMP)
