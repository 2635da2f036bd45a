# From a bare clone, `make demo` and `make test` set everything up by themselves: what they need
# is Python >= 3.11 with pip (or uv on PATH), make, and a package index. No Docker, no PostgreSQL.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# uv ships its own list of certificate authorities; the system's is the one that knows proxies.
export UV_SYSTEM_CERTS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore
# What runs here must not depend on a virtual environment that happens to be active.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH
# Tests start hundreds of interpreters; each would compile SQLAlchemy and the package anew.
unexport PYTHONDONTWRITEBYTECODE

UV_VERSION := 0.13.8
# Tests mostly wait for the server, so every logical processor gets a worker. Each begins with a
# contiguous share, in which a module finds the templates of databases that it made itself.
WORKERS ?= logical
# More arguments for pytest: make test ARGS="-m unit -x"; or for the benchmarks:
# make bench ARGS="--quick --only writing"
ARGS ?=
# On the other SQLAlchemy and protobuf: what they can change. SELECT= runs all tests there.
SELECT ?= --affected
# make lock UPGRADE= keeps the locked versions, and adds or removes what pyproject.toml says.
UPGRADE ?= --upgrade
# How long `make soak` goes on, and the seed of an earlier run whose draws it shall repeat.
MINUTES ?= 10
SEED ?=

PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	command -v $$p >/dev/null 2>&1 \
	&& $$p -c 'import sys, venv, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { command -v $$p; break; }; done)

RUN := .venv/bin/python
TYPED = $(wildcard oplog pytest_oplog.py tests examples benchmarks migrations website)

.PHONY: help demo test check bench soak mutants histories real docs
.PHONY: format format-check lint types floors protos protos-check test-sqlalchemy-20 lock clean

help:
	@echo 'make demo     watch transactions being logged, tables rebuilt from the log, and compared'
	@echo 'make test     run all tests (ARGS="-m unit" runs some of them)'
	@echo 'make check    format, lint, types, wire formats, and the tests on both SQLAlchemys'
	@echo 'make bench    measure the cost of the log, in turns with plain SQLAlchemy and two others'
	@echo 'make soak     kill, cut and race for MINUTES=10, then try all that tests draw from (SEED=)'
	@echo 'make mutants  break the code in small ways and see the tests notice (ONLY=codec)'
	@echo 'make histories  migrate published applications with a log (ARGS="mlflow prefect")'
	@echo 'make real     run applications and their tests with a log from outside (ARGS="optuna")'
	@echo
	@echo 'make docs     build the documentation as a site in .site, and check its links'
	@echo 'make format   rewrite the code in the house format'
	@echo 'make protos   generate oplog/_proto from protos/'
	@echo 'make lock     resolve pyproject.toml into the four locks again'
	@echo 'make clean    remove everything that make created'

demo: .venv/ready
	@$(RUN) -m examples.demo

test: .venv/ready
	@$(RUN) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: format-check lint types protos-check docs test test-sqlalchemy-20

bench: .venv-bench/ready
	@.venv-bench/bin/python -m benchmarks $(ARGS)

# Strict: a page that no other leads to, and a link or an anchor that leads nowhere, is an error.
docs: .venv-docs/ready
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=. .venv-docs/bin/python -m mkdocs build

soak: .venv/ready
	@$(RUN) -m tests.fault.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))
	@$(RUN) -m tests.fault.publishing_soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))
	@$(RUN) -m tests.model --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))
	@$(RUN) -m pytest -n $(WORKERS) --dist worksteal -m sampled --whole
	@$(MAKE) test-sqlalchemy-20 SELECT=--whole

mutants: .venv/ready
	@$(RUN) -m tests.mutants $(ONLY)

# Takes an hour, and installs applications from the package index: no part of `make check`.
histories: .venv/ready
	@$(RUN) -m tests.histories $(ARGS)

# The same for applications that run.
real: .venv/ready
	@$(RUN) -m tests.real $(ARGS)

format: .venv/ready
	@$(RUN) -m ruff check --fix --quiet . ; $(RUN) -m ruff format .

format-check: .venv/ready
	@$(RUN) -m ruff format --check .

lint: .venv/ready
	@$(RUN) -m ruff check .

types: .venv/ready
	@$(RUN) -m mypy $(TYPED)

floors: .venv/ready
	@.venv/bin/lint-imports --no-logo

test-sqlalchemy-20: .venv-sa20/ready
	@.venv-sa20/bin/python -m pytest -n $(WORKERS) --dist worksteal $(SELECT) $(ARGS)

# -- wire formats -----------------------------------------------------------------------------

PROTOS = $(shell cd protos && find . -name '*.proto' | sed 's|^\./||' | sort)
# $(1): directory to write to. The descriptors keep the path below protos/, so the modules need
# no import rewritten.
generate = $(RUN) -m grpc_tools.protoc -I protos --python_out=$(1) --pyi_out=$(1) $(PROTOS)

protos: .venv/ready
	@$(call generate,oplog/_proto)

protos-check: .venv/ready
	@.venv/bin/buf lint protos
	@rm -rf .venv/protos && mkdir -p .venv/protos && $(call generate,.venv/protos)
	@for f in $$(cd .venv/protos && find . -type f); do \
	  cmp -s ".venv/protos/$$f" "oplog/_proto/$$f" \
	  || { echo "oplog/_proto/$$f is not what protos/ says: run 'make protos'" >&2; exit 1; }; done

# -- environments -----------------------------------------------------------------------------

# A home directory that cannot be written to (a service account's, say) must not stop uv.
ifeq ($(shell test -w "$${HOME:-/nonexistent}" && echo yes),)
export UV_CACHE_DIR ?= $(CURDIR)/.boot/cache
export PIP_CACHE_DIR ?= $(CURDIR)/.boot/pip-cache
endif

# uv installs in seconds what takes pip half a minute. It is fetched with pip into a directory of
# its own (which works without ensurepip, too); where that fails pip does the whole work.
UV_ON_PATH := $(shell command -v uv 2>/dev/null)
UV := $(or $(UV_ON_PATH),.boot/bin/uv)

.boot/ready:
	@test -n "$(PYTHON)$(UV_ON_PATH)" || { echo 'Python >= 3.11 with pip, or uv, is needed.' \
	  'Debian: apt install python3-pip. Or name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	@mkdir -p .boot
	@test -n "$(UV_ON_PATH)" || { echo 'setting up: fetching uv' >&2; \
	  $(PYTHON) -m pip install -q --target .boot --upgrade uv==$(UV_VERSION) \
	  || echo 'uv could not be fetched; going on with pip alone' >&2; }
	@touch $@

# $(1): environment, $(2): lock. Nothing but what the lock's hashes name gets in; the package
# itself is built by the locked backend.
define install
	@echo 'setting up: $(1) from $(2)' >&2
	@{ $(UV) venv -q --clear --python "$(or $(PYTHON),>=3.11)" $(1) \
	  && $(UV) pip sync -q --compile-bytecode --require-hashes --python $(1)/bin/python $(2) \
	  && $(UV) pip install -q --python $(1)/bin/python --no-deps --no-build-isolation -e . ; } \
	|| { echo 'uv did not manage; trying pip' >&2 \
	  && $(PYTHON) -m venv --clear --without-pip $(1) \
	  && $(PYTHON) -m pip --python $(1)/bin/python install -q --require-hashes -r $(2) \
	  && $(PYTHON) -m pip --python $(1)/bin/python install -q --no-deps --no-build-isolation -e . ; }
	@touch $(1)/ready
endef

.venv/ready: pyproject.toml requirements.lock | .boot/ready
	$(call install,.venv,requirements.lock)

.venv-sa20/ready: pyproject.toml requirements-sqlalchemy-2.0.lock | .boot/ready
	$(call install,.venv-sa20,requirements-sqlalchemy-2.0.lock)

# What the benchmarks compare the log with is installed for them alone.
.venv-bench/ready: pyproject.toml requirements-bench.lock | .boot/ready
	$(call install,.venv-bench,requirements-bench.lock)

# So is what builds the site.
.venv-docs/ready: pyproject.toml requirements-docs.lock | .boot/ready
	$(call install,.venv-docs,requirements-docs.lock)

# The locks hold for every platform and name no host. No settings of whoever runs this get in.
compile = env -u UV_INDEX -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS -u UV_INDEX_STRATEGY \
	$(UV) pip compile -q --no-config --universal --python-version 3.11 $(UPGRADE) \
	--generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command 'make lock' pyproject.toml

# The second lock is the other end of both ranges that span two major lines. The others have the
# versions of the first, so that what is measured and described is what is tested.
lock: .boot/ready
	@$(compile) --extra dev -o requirements.lock
	@printf 'SQLAlchemy<2.1\nprotobuf>=7\n' \
	| $(compile) --extra test --constraints - -o requirements-sqlalchemy-2.0.lock
	@$(compile) --extra embedded --group bench --constraints requirements.lock -o requirements-bench.lock
	@$(compile) --extra pytest --group docs --constraints requirements.lock -o requirements-docs.lock

clean:
	@rm -rf .venv .venv-bench .venv-docs .venv-sa20 .site .boot build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis \
	  .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
