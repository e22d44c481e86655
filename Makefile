# make demo    install into .venv and run the main job: train, predict, score; results in scvi-tahoe-demo/
# make study   the case study of ST-Tahoe as a ladder of runs, and the recommended recipe; report in scvi-tahoe-study/
# make test    install into .venv and run the tests
# make lint    ruff, mypy, the floors of the package, and the workflows and CITATION.cff checked
# make docs    build the documentation; DOCS_LINKS=1 links names of other projects, too (needs a network)
# make tutorials   execute the tutorials from top to bottom, with small settings
# make clean   remove .venv and what tools leave behind
#
# PYTHON=python3.12 chooses the interpreter of a new .venv; PIP_FLAGS goes to every `pip install`.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
DOCS_LINKS ?=
DEMO ?= scvi-tahoe-demo
STUDY ?= scvi-tahoe-study
# one worker a core, each with one thread, of numba's too: it would raise those of the whole process
PYTEST_FLAGS ?= -n auto

bin := $(VENV)/bin
pip := $(bin)/python -m pip --disable-pip-version-check install -qq $(PIP_FLAGS) -c constraints.txt

.PHONY: demo study test lint docs tutorials clean

demo: $(VENV)/.installed
	$(bin)/scvi-tahoe demo --folder $(DEMO)

# one thread: networks of this size gain little from a second, and lose much where the cores have other work
study: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(bin)/scvi-tahoe study case_study recommended --folder $(STUDY)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(bin)/python -m pytest $(PYTEST_FLAGS)

lint: $(VENV)/.installed-lint
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/lint-imports --no-logo
	$(bin)/zizmor --offline --quiet .github
	$(bin)/python -c "from rattler_build import Stage0Recipe; Stage0Recipe.from_file('conda/recipe.yaml').render()"

docs: $(VENV)/.installed-doc
	DOCS_LINKS=$(DOCS_LINKS) $(bin)/python -m sphinx -M html docs docs/_build -E -W --keep-going

tutorials: $(VENV)/.installed-tutorials
	$(bin)/python tutorials/run.py

# torch first: where an index holds a build of it without CUDA, the pinned version is met by that one and the
# resolver never looks at the CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "scvi-tahoe needs Python 3.11 or newer; choose one with: make PYTHON=python3.12"; exit 2; }
	@echo "Installing scvi-tahoe and its dependencies into $(VENV) (once; a few minutes, mostly PyTorch) ..."
	@test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	@$(bin)/python -m pip --disable-pip-version-check install -qq $(PIP_FLAGS) --upgrade 'pip>=25.1'
	@$(pip) torch
	@$(pip) -e . --group test
	@touch $@
	@echo "Installed: $$($(bin)/python --version), $$($(bin)/python -m pip list 2>/dev/null | awk '/^(torch|scvi-tools|cell-eval) /{printf "%s%s %s", sep, $$1, $$2; sep=", "}')"

$(VENV)/.installed-lint: $(VENV)/.installed
	@$(pip) --group lint
	@touch $@

$(VENV)/.installed-doc: $(VENV)/.installed
	@$(pip) --group doc
	@touch $@

$(VENV)/.installed-tutorials: $(VENV)/.installed
	@$(pip) --group tutorials
	@touch $@

clean:
	rm -rf $(VENV) build dist docs/_build docs/generated .mypy_cache .pytest_cache .ruff_cache
