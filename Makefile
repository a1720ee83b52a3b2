# Everything from a fresh clone, each command with all the set-up that it needs:
#
#   make demo     watch submissions being graded through a RabbitMQ of its own (ARGS="--count 50 --keep")
#   make test     lint, types and tests                                        (TESTS=tests.test_wire for a part)
#   make faults   break everything there is, at full size, and count what gets lost: up to 45 minutes
#   make soak     the same at random, one after the other, for MINUTES=30, or as long as you like
#   make fuzz     feed spoilt broker sessions to the AMQP client for SECONDS=60; SEED=… repeats a run
#   make lint     lint and types only
#   make format   let ruff mend what it can
#   make clean    remove all that these commands made in this folder

TESTS = tests
MINUTES = 30
SECONDS = 60
RABBITMQ = /usr/lib/rabbitmq/bin/rabbitmq-server
POSTGRESQL = /usr/lib/postgresql/*/bin/initdb

.PHONY: help demo test faults soak fuzz lint format clean rabbitmq postgresql

help:
	@sed -n 's/^#   //p' Makefile

demo: .venv/ready rabbitmq
	@.venv/bin/edxagent demo $(ARGS)

test: .venv/dev rabbitmq postgresql
	@.venv/bin/python .ci/check.py $(TESTS)

faults: .venv/dev rabbitmq postgresql
	@.venv/bin/python -m tests.faults $(FAULTS)

soak: .venv/dev rabbitmq
	@.venv/bin/python -m tests.faults.soak $(MINUTES)

fuzz: .venv/dev
	@.venv/bin/python -m tests.fuzz_frames $(SECONDS) $(SEED)

lint: .venv/dev
	@.venv/bin/python .ci/check.py

format: .venv/dev
	@.venv/bin/ruff check --fix-only --quiet
	@.venv/bin/ruff format

clean:
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis _trial_temp* build dist *.egg-info twisted/plugins/dropin.cache
	rm -rf edxagent-journal
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/ready: pyproject.toml setup.py .ci/setup
	@bash .ci/setup venv
	@touch $@

# What checks and tests need besides is ten times the size.
.venv/dev: .venv/ready
	@bash .ci/setup venv dev
	@touch $@

rabbitmq:
	@test -x $(RABBITMQ) || bash .ci/setup rabbitmq

postgresql:
	@ls $(POSTGRESQL) >/dev/null 2>&1 || command -v initdb >/dev/null || bash .ci/setup postgresql
