# `make chex` sets up and re-runs a paper; `make test` sets up and tests. Everything lives in .venv.
PAPERS := adam chex chex-detection chex-points elsa elsa-dense entroformer fedformer hico motionrgbd transfgu uot zendet
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

.PHONY: setup test lint serve bench sync requirements $(PAPERS)

setup: $(VENV)/.done

$(VENV)/.done: requirements.txt
	command -v uv >/dev/null || python3 -m pip install --quiet uv
	uv venv --quiet --allow-existing --python ">=3.11" $(VENV)
	uv pip sync --quiet --compile-bytecode requirements.txt
	touch $@

$(PAPERS): setup
	dvc repro $@
	@python -m stages.common.show $@

test: setup
	pytest -n auto --dist loadfile

lint: setup
	ruff check . && ruff format --check . && mypy

serve: setup
	python -m flows serve

bench: setup
	python -m benchmarks

requirements:
	uv pip compile pyproject.toml --extra dev --no-emit-index-url --no-annotate --no-header --quiet --output-file requirements.txt

sync: setup
	python -m stages.common.sync
