# Everything a newcomer or a maintainer runs. `make help` lists it.
SHELL := bash
.DEFAULT_GOAL := help
BINARY := target/release/cc-executor
LOG := target/cc-executor.log
# The release that the tests were last seen green with; `make claude CLAUDE_CODE=latest` tries another.
CLAUDE_CODE ?= $(shell sed -n 's/^ENV CLAUDE_CODE_TESTED=//p' deploy/Dockerfile)

.PHONY: help build fmt lint doc test stress claude check run up down bench soak fuzz deploy-test logs

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the release binary, target/release/cc-executor
	cargo build --release

fmt: ## format the code
	cargo fmt --all

lint: ## formatting, clippy, and the dependencies' licences and sources; warnings as errors
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

# Two tests a processor, because most of them wait for timers most of the time.
test: ## all tests, on real processes and sockets
	@rm -f target/tmp/left-out
	cargo test --workspace -- --test-threads=$$((2 * $$(nproc)))
	@if [ -s target/tmp/left-out ]; then echo; sort target/tmp/left-out; fi

# The modules that call `scale` of tests/common.rs.
SCALED = $(filter-out common::,$(patsubst tests/%.rs,%::,$(shell grep -lw scale tests/*.rs)))

stress: ## the tests that repeat, with many more rounds, optimised
	STRESS=1 cargo test --release --test integration -- $(SCALED)

claude: ## install Claude Code from npm into target/claude, for the tests that ask it
	npm install --no-fund --no-audit --prefix target/claude @anthropic-ai/claude-code@$(CLAUDE_CODE)

check: lint doc test ## what to run before a commit; CI runs it first

run: build ## build, then serve on ws://127.0.0.1:8003/ws/mcp; flags in ARGS
	@LOG_FORMAT=json exec $(BINARY) serve $(ARGS) 2> >(trap '' INT TERM; tee $(LOG) | $(BINARY) logs - >&2)

up: ## build the images and start them with compose; ready when it returns
	deploy/up.sh

down: ## stop what `make up` started; volumes stay
	deploy/compose.sh down

deploy-test: ## both images on a real engine: check, then faults; needs docker and compose
	deploy/test.sh

bench: ## the gateway beside a plain bridge, in one run
	cargo bench --bench gateway

soak: ## mixed load and faults for MINUTES (5), then the sums
	MINUTES=$(or $(MINUTES),5) cargo test --release --test soak

fuzz: ## each fuzzer for SECONDS (60); finds in target/fuzz; needs a nightly Rust and cargo-fuzz
	for target in input multiplex body_end text json_lines claude; do \
		mkdir -p target/fuzz/corpus/$$target && \
		cargo +nightly fuzz run --fuzz-dir tests/fuzz --target-dir target/fuzz $$target target/fuzz/corpus/$$target tests/fuzz/corpus/$$target \
			-- -max_total_time=$(or $(SECONDS),60) -artifact_prefix=target/fuzz/ || exit; \
	done

logs: ## follow the log of `make run` as a timeline; of one session: SESSION=ID
	@[ -e $(LOG) ] || { echo "there is no $(LOG) yet: make run writes it" >&2; exit 1; }
	@tail -n +1 -F $(LOG) | $(BINARY) logs $(if $(SESSION),--session $(SESSION)) -
