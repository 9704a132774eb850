# The commands for development. `make help` lists them.
SHELL := bash
.DEFAULT_GOAL := help
BINARY := target/release/cc-executor
LOG := target/cc-executor.log
PREFIX ?= /usr/local
# The release that the tests were last run with. `make claude CLAUDE_CODE=latest` installs another.
CLAUDE_CODE ?= $(shell sed -n 's/^ENV CLAUDE_CODE_TESTED=//p' deploy/Dockerfile)

.PHONY: help build fmt lint doc test stress claude clients check run install dist up down bench soak fuzz deploy-test logs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the release binary, target/release/cc-executor
	cargo build --release

fmt: ## format the code
	cargo fmt --all

lint: ## formatting, clippy, and licences and sources of the dependencies; warnings as errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --test soak -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then \
		cargo deny --workspace --offline check licenses bans sources; \
	else \
		echo "LEFT OUT: licences, bans and sources of the dependencies: there is no cargo-deny (cargo install --locked cargo-deny)" >&2; \
		[ -z "$$CI" ]; \
	fi

doc: ## the API documentation, warnings as errors
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Three tests for each processor, because most tests wait for timers.
test: ## all tests, with real processes and sockets
	@rm -f target/tmp/left-out
	cargo test --workspace -- --test-threads=$$((3 * $$(nproc)))
	@if [ -s target/tmp/left-out ]; then echo; sort target/tmp/left-out; fi

# The modules that call `scale` of tests/common.rs: tests/holds/handover.rs is holds::handover::
SCALED = $(subst /,::,$(patsubst tests/%.rs,%::,$(shell grep -rlw --include=*.rs --exclude=common.rs scale tests)))

stress: ## the repeating tests with many more rounds, optimised
	STRESS=1 cargo test --release --test integration -- $(SCALED)

claude: ## install Claude Code from npm into target/claude, for the tests that run it
	npm install --no-fund --no-audit --prefix target/claude @anthropic-ai/claude-code@$(CLAUDE_CODE)

# The packages themselves are installed by the tests, from deploy/clients. Nothing is written there.
clients: ## install from PyPI and npm what the tests of deploy/clients need, into target/clients
	python3 -m venv target/clients/python
	target/clients/python/bin/pip install --quiet --disable-pip-version-check 'websockets>=15' 'flit_core>=3.8,<5' mypy==2.4.1
	mkdir -p target/clients/typescript
	cp deploy/clients/typescript/package.json target/clients/typescript
	npm install --no-fund --no-audit --ignore-scripts --prefix target/clients/typescript

check: lint doc test ## everything that must pass before a commit; CI runs it first

run: ## build, then serve on ws://127.0.0.1:8003/ws/mcp; flags in ARGS
	@$(if $(findstring --bind,$(ARGS)),,deploy/free-ports.sh 8003 || { echo "for another port: make run ARGS='--bind 127.0.0.1:PORT'" >&2; exit 1; })
	@$(MAKE) --no-print-directory build
	@LOG_FORMAT=json exec $(BINARY) serve $(ARGS) 2> >(trap '' INT TERM; tee $(LOG) | $(BINARY) logs - >&2)

install: build ## install the binary, completions and manual pages below PREFIX (/usr/local)
	deploy/install.sh $(BINARY) $(DESTDIR)$(PREFIX)

dist: build ## the same files as an archive, target/dist/cc-executor-VERSION-PLATFORM.tar.gz
	deploy/dist.sh $(BINARY)

up: ## build the images, start them with compose, and wait until they are ready
	deploy/up.sh

down: ## stop the containers of `make up`; volumes stay
	deploy/compose.sh down

deploy-test: ## test both images on a real engine, with faults; needs docker and compose
	deploy/test.sh

bench: ## compare the gateway with a plain bridge
	cargo bench --bench gateway

soak: ## mixed load and faults for MINUTES (5), then totals
	MINUTES=$(or $(MINUTES),5) cargo test --release --test soak

fuzz: ## run each fuzzer for SECONDS (60); findings in target/fuzz; needs a nightly Rust and cargo-fuzz
	for target in input multiplex body_end text json_lines claude; do \
		mkdir -p target/fuzz/corpus/$$target && \
		cargo +nightly fuzz run --fuzz-dir tests/fuzz --target-dir target/fuzz $$target target/fuzz/corpus/$$target tests/fuzz/corpus/$$target \
			-- -max_total_time=$(or $(SECONDS),60) -artifact_prefix=target/fuzz/ || exit; \
	done

logs: ## follow the log of `make run` as a timeline; of one session: SESSION=ID
	@[ -e $(LOG) ] || { echo "there is no $(LOG) yet: make run writes it" >&2; exit 1; }
	@tail -n +1 -F $(LOG) | $(BINARY) logs $(if $(SESSION),--session $(SESSION)) -
