# make demo   set up, run the main job on the demo model, measure it, leave a report to open
# make test   set up, then lint, types, tests, docs and the demo line
# make aarch64   the harness on an aarch64 userland under qemu; minutes, needs Debian packages
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types unit aarch64 docs clean

$(READY): pyproject.toml
	@echo 'Setting up $(VENV): a few minutes and about 6 GB, most of it PyTorch'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[transformers,timm,tensorrt,recover,tune,dev]'
	touch $@

demo: $(READY)
	rm -rf demo-out && mkdir demo-out
	$(BIN)/shallowvit score demo --prune-ratio 0.25
	$(BIN)/shallowvit export demo --out demo-out/full --data demo
	$(BIN)/shallowvit export demo --prune-ratio 0.25 --out demo-out/shallow --data demo
	$(BIN)/shallowvit verify demo-out/shallow
	$(BIN)/shallowvit export demo --prune-ratio 0.25 --precision fp16 --engine rtx --out demo-out/fast
	$(BIN)/shallowvit bench demo-out/shallow --against demo-out/full --data demo
	$(BIN)/shallowvit report demo-out/shallow demo-out/full --out demo-out/report.html
	@echo "Open demo-out/report.html"

test: lint types unit docs demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/pytest -n 2

# the harness on an aarch64 userland under qemu: apt-get install qemu-user-static debootstrap openssh-server
aarch64: $(READY)
	SHALLOWVIT_AARCH64=$(CURDIR)/.aarch64 $(BIN)/pytest -q tests/benchmarks/test_aarch64.py

docs: $(READY)
	$(BIN)/python docs/api.py site

clean:
	rm -rf $(VENV) .aarch64 demo-out site build dist *.egg-info
