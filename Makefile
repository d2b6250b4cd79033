# Everything runs from .venv, which the first target that needs it creates from requirements.lock.
PYTHON := .venv/bin/python
STAMP := .venv/installed.stamp
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help .venv lint test demo prove clean

help:  ## show the targets
	@grep -E '^[.a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

.venv: $(STAMP)  ## create .venv and install what requirements.lock pins

# One torch thread for the demo and the tests: their matrices are small, and two threads beside any other
# process wait for each other (measured: ten times slower and more). Stages that you run yourself use all cores.

# torch goes first and alone: whichever build the machine offers for the pinned version is kept by what follows.
# bitsandbytes (43 MB; tests of 4-bit bases) lies beside the environment: once it can be imported, peft imports it
# in every process, a second each.
$(STAMP): requirements.lock pyproject.toml
	@test -x $(PYTHON) || for python in python3.11 python3; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "creating .venv with $$python"; exec $$python -m venv .venv; fi; done; \
	    test -x $(PYTHON) || { echo "make: no Python 3.11 or later found (with its venv module)" >&2; exit 1; }
	$(PYTHON) -m pip install $$(grep '^torch==' requirements.lock)
	$(PYTHON) -m pip install -r requirements.lock
	$(PYTHON) -m pip install --no-deps --no-build-isolation -e .
	$(PYTHON) -m pip install --no-deps --upgrade --target .venv/qlora bitsandbytes==0.50.2 || \
	    echo "make: no bitsandbytes for this machine: the tests of 4-bit bases will be skipped" >&2
	@touch $@

lint: $(STAMP)  ## ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test: $(STAMP)  ## all tests but the long proofs (about 10 to 12 minutes)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile -m "not long"

demo: $(STAMP)  ## the whole loop in the embedded world; writes demo/report.html (at most 8 minutes)
	OMP_NUM_THREADS=1 $(PYTHON) -m rlhf.cli demo --workspace demo
	@ls demo/report.html demo/report.json

prove: $(STAMP)  ## the long tests, then the long proofs, one after the other: hours
	@failed=""; OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m long || failed=" tests"; \
	    for script in scripts/prove/*.py; do echo "== $$script"; $(PYTHON) $$script || failed="$$failed $$script"; done; \
	    test -z "$$failed" || { echo "fell short:$$failed" >&2; exit 1; }

clean:  ## remove caches and build outputs; .venv and workspaces stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find rlhf sft reward feedback_app scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
