# make demo   from a folder of images and labels, which it makes itself, to a detector and its predictions
# make docs   the site of docs/ in build/site, pages of commands, configs and Python included; warnings are errors
# make gpu    tests and times on a CUDA device beside torchvision's, five minutes; docs/gpu
# make test   format, lint, types, tests
# make test-compiler   whole detectors by PyTorch's default compiler
# make test-faults   the slow tests of what goes wrong: killed processes, broken files
# make mutants   40 faults put into the sources, one at a time: do the tests notice?
# make test-slow   networks of full size beside those of other projects, several processes, the wheel
PYTHON ?= python3
BIN := .venv/bin
DEMO_DATA := output/demo_data
DEMO_RUN := output/demo
# Boxes alone, and short: five minutes on two cores.
DEMO_CHANGES := architecture=faster_rcnn solver.best_metric=bbox.AP50 solver.iterations=360 solver.evaluate_every=0

.PHONY: demo docs gpu mutants test test-compiler test-faults test-slow

.venv/installed: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(BIN)/python tools/write_schemas.py
	touch $@

demo: .venv/installed
	rm -rf $(DEMO_DATA) $(DEMO_RUN)
	$(BIN)/resdet digits --root $(DEMO_DATA)
	$(BIN)/resdet check $(DEMO_DATA)/digits/coco --from none --output-dir $(DEMO_RUN)
	$(BIN)/resdet train $(DEMO_DATA)/digits/coco --output-dir $(DEMO_RUN) $(DEMO_CHANGES) "data.test=[]"
	$(BIN)/resdet test $(DEMO_RUN)/init/config.yaml --weights $(DEMO_RUN) --visualize 12 $(DEMO_CHANGES)
	$(BIN)/resdet predict --weights $(DEMO_RUN) --output-dir $(DEMO_RUN)/predictions $(DEMO_DATA)/digits/coco/test

.venv/installed_docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	touch $@

docs: .venv/installed_docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The Python at hand, if it has torch: a GPU's machine comes with its own.
gpu:
	$(PYTHON) tools/gpu.py

# One thread a process: two test processes on two cores would otherwise wait for each other.
test: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --threads 2
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --durations 10

test-faults: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m faults --durations 10

test-compiler: .venv/installed
	$(BIN)/pytest -m compiler --durations 10

test-slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'slow and not faults and not compiler' --durations 10

mutants: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutants.py
