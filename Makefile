# make demo   trains and tests a detector on a small data set that it makes itself
# make test   format, lint, types, tests
# make test-compiler   whole detectors by PyTorch's default compiler
# make test-faults   the slow tests of what goes wrong: killed processes, broken files
PYTHON ?= python3
BIN := .venv/bin
DEMO_CONFIG := configs/digits/mask_rcnn_resnet18_fpn.yaml
DEMO_RUN := output/demo

.PHONY: demo test test-compiler test-faults

.venv/installed: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(BIN)/python tools/write_schemas.py
	touch $@

demo: .venv/installed
	rm -rf $(DEMO_RUN)
	$(BIN)/resdet digits
	$(BIN)/resdet train $(DEMO_CONFIG) --output-dir $(DEMO_RUN) "data.test=[]"
	$(BIN)/resdet test $(DEMO_CONFIG) --weights $(DEMO_RUN) --visualize 12

# One thread a process: two test processes on two cores would otherwise wait for each other.
test: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --durations 10

test-faults: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m faults --durations 10

test-compiler: .venv/installed
	$(BIN)/pytest -m compiler --durations 10
