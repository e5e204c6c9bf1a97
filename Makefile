# make demo: a recogniser trained and tested in minutes. make test: the whole test suite.
# Both set up .venv first; PYTHON names the interpreter (3.10 or later).

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
CORPUS ?= data/synthetic
RECIPE := recipes/Mini/train.py recipes/Mini/hparams/branchformer_summarymixing.yaml

.PHONY: demo test lint format clean

demo: $(READY)
	$(RUN) scripts/make_synthetic_corpus.py $(CORPUS)
	$(RUN) $(RECIPE) --data_folder=$(CORPUS)
	@echo
	@echo "Next: train on real speech (CMU AN4, 42 minutes):"
	@echo "  $(RUN) recipes/AN4/train.py recipes/AN4/hparams/ctc_attention.yaml --data_folder=AN4"
	@echo "or let the demo's model write down a file while it is read:"
	@echo "  $(RUN) scripts/stream.py results/Mini/branchformer_summarymixing/1234 FILE --chunk_ms=1280"
	@echo "or change the demo, here to RoPE self-attention:"
	@echo "  $(RUN) $(RECIPE) --data_folder=$(CORPUS) --attention_type=RoPEMHA --encoder_nhead=4 --output_folder=results/Mini/rope"

test: $(READY)
	$(RUN) -m pytest

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) data results

$(READY): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or later is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo 'Setting up $(VENV): torch and the rest, some GB to download'
	$(RUN) -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
