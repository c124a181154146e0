# Two commands to know: `make demo` and `make test`. Both need root on Debian 12, 13 or a current Ubuntu.
SALT ?= 3008
VENV := .venv
PYTEST := $(VENV)/bin/python -m pytest
SPHINX := $(VENV)/bin/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky
# Tests of one area: make test TESTS=test/unit
TESTS ?=
ALL := test/unit test/functional test/integration test/hosts

.PHONY: help demo test soak bench bench-restarts bench-rollouts docs release clean

help:
	@echo 'make demo          the whole formula on a real host, from bare to a deploy; KEEP=1 leaves the host up'
	@echo 'make test          every test; TESTS=test/unit for one layer'
	@echo 'make soak          the long forms of the proofs'
	@echo 'make bench         what a run that changes nothing costs, beside the least Salt can do'
	@echo 'make bench-restarts  what ways of restarting Sidekiq cost and lose under load; takes an hour'
	@echo 'make bench-rollouts  what deploy events cost on 2, 6 and 12 hosts; takes half an hour'
	@echo 'make docs          the reference pages, made from the code, and all pages as HTML and as man pages'
	@echo 'make release       what users download, in dist/; see docs/releasing.md'
	@echo 'make clean         takes down all hosts and removes the virtual environment'

demo:
	bin/demo $(if $(KEEP),--keep)

test: $(VENV)/.ready
	$(if $(TESTS),$(PYTEST) -m 'not soak' $(TESTS),tools/lanes $(VENV)/bin/python -m 'not soak')

soak: $(VENV)/.ready
	$(PYTEST) -m soak $(or $(TESTS),$(ALL))

bench:
	bin/bench

bench-restarts:
	bin/bench --restarts

bench-rollouts:
	bin/bench --rollouts

docs: $(VENV)/.ready
	$(VENV)/bin/python tools/pillar_reference.py
	$(VENV)/bin/python tools/module_reference.py
	$(SPHINX) -b html docs build/docs/html
	$(SPHINX) -t man -b man docs build/docs/man
	@echo 'build/docs/html/index.html, or: man -l build/docs/man/redis-sidekiq-formula.7'

release: $(VENV)/.ready
	$(PYTEST) -q test/unit
	tools/release

clean:
	bin/host down --all
	rm -rf $(VENV)

$(VENV)/.ready: tools/venv test/requirements.txt $(wildcard test/constraints/salt-$(SALT)*.txt)
	tools/venv $(VENV) $(SALT)
