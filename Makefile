# One virtual environment serves every target; it is made on first use and again when the requirements change.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin

# Models lie in the user's cache, or beside the environment where the home folder cannot be written to.
ifeq ($(THRESHER_CACHE)$(XDG_CACHE_HOME)$(shell test -w "$$HOME" && echo writable),)
export THRESHER_CACHE := $(abspath $(VENV))/cache
endif

.PHONY: demo test lint eval-smoke bench pictures notebooks docs clean

demo: $(VENV)/.installed
	@$(RUN)/thresher demo

test: $(VENV)/.installed-test
	@$(RUN)/thresher pull smollm2-135m-instruct
	$(RUN)/python -m pytest -n auto

lint: $(VENV)/.installed-test
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

# A few minutes on two cores: the model of the demo, short texts, every kind of picture.
SMOKE_LENGTHS ?= 512,1024
SMOKE_LIMIT ?= 2
eval-smoke: $(VENV)/.installed-plot
	@$(RUN)/thresher pull smollm2-135m-instruct
	$(RUN)/thresher eval smollm2-135m-instruct --out build/eval-smoke/$(SMOKE_LENGTHS)-$(SMOKE_LIMIT) --tasks niah,agreement,perplexity --questions known \
		--lengths $(SMOKE_LENGTHS) --limit $(SMOKE_LIMIT) --methods "dense; quoka:budget=0.25; keydiff:budget=0.5; keydiff:budget=0.25; caote:base=tova,budget=0.5"
	$(RUN)/thresher plot build/eval-smoke/$(SMOKE_LENGTHS)-$(SMOKE_LIMIT)

bench: $(VENV)/.installed-bench
	$(RUN)/python -m benchmarks.all --short

# The chapters' pictures, drawn again by the chapters' own code.
pictures: $(VENV)/.installed-test
	$(RUN)/python -m tests.test_docs

# Each chapter as a notebook, with its pictures, in build/notebooks.
notebooks: $(VENV)/.installed-docs
	$(RUN)/python -m docs.notebooks build/notebooks

# The site, in build/site/html; a warning is an error. EXECUTE=off leaves the chapters' outputs out, which is quick.
EXECUTE ?= force
docs: $(VENV)/.installed-docs
	$(RUN)/python -m docs.prepare build/site/source
	$(RUN)/python -m sphinx -W --keep-going -q -D nb_execution_mode=$(EXECUTE) -c docs build/site/source build/site/html

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "thresher needs Python 3.11 or newer, and $(PYTHON) is %d.%d; try: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Making a virtual environment in $(VENV) and installing thresher into it; this takes a minute, once."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	@$(RUN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.made pyproject.toml constraints.txt
	@$(RUN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[test,dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(VENV)/.made pyproject.toml constraints.txt
	@$(RUN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[bench,plot]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-plot: $(VENV)/.made pyproject.toml constraints.txt
	@$(RUN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[plot]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/.made pyproject.toml constraints.txt
	@$(RUN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@ $(VENV)/.installed
