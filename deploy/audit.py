#!/usr/bin/env python3
"""Reads the JSON log lines of one service on standard input, and checks that each opened session was closed and that each
started execution ended exactly once. Exits with 1 otherwise.

A killed service logs no endings. --deaths N is the expected number of kills, --errors N the expected number of lines of
level ERROR, and --least N the least number of openings and starts."""

import argparse
import collections
import json
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--deaths", type=int, default=0)
parser.add_argument("--errors", type=int, default=0)
parser.add_argument("--least", type=int, default=1)
expected = parser.parse_args()

# The event of a beginning, the events that may end it, and the ids that both have.
SPANS = [
    ("session.opened", {"session.closed"}, ["session_id"]),
    (
        "execution.started",
        {"execution.finished", "execution.released", "execution.taken_over"},
        ["session_id", "execution_id"],
    ),
    ("process.started", {"process.finished"}, ["execution_id"]),
]

n_begun, n_ended, ends, open_spans = (collections.Counter() for _ in range(4))
problems, errors = [], []
n_deaths, is_running = 0, False

for text in sys.stdin:
    try:
        line = json.loads(text)
    except ValueError:
        problems.append(f"not a log line: {text.strip()[:200]}")
        continue
    event = line.get("event")
    if line["level"] == "ERROR":
        errors.append(text.strip())
    if event == "service.listening":
        if is_running:
            n_deaths += 1
            open_spans.clear()
        is_running = True
    elif event == "service.stopped":
        is_running = False
    elif event == "log.dropped":
        problems.append(f"{line['lines']} lines are missing: {line['message']}")
    for beginning, endings, ids in SPANS:
        span = (beginning, *(line.get(name) for name in ids))
        if event == beginning:
            n_begun[beginning] += 1
            open_spans[span] += 1
        elif event in endings:
            n_ended[beginning] += 1
            # An execution that could not start, for want of a backend, has one end and no beginning.
            if not open_spans[span] and ends[span]:
                problems.append(f"a second end: {text.strip()}")
            open_spans[span] = max(open_spans[span] - 1, 0)
            ends[span] += 1

problems += [f"no end: {' '.join(map(str, span))}" for span, n in open_spans.items() if n]
if n_deaths != expected.deaths:
    problems.append(f"killed {n_deaths} times, not {expected.deaths}")
if len(errors) != expected.errors:
    problems += [f"{len(errors)} errors, not {expected.errors}:", *errors]
if sum(n_begun.values()) < expected.least:
    problems.append(f"{sum(n_begun.values())} beginnings, not {expected.least} or more")
counts = ", ".join(f"{n_begun[name]} {name} with {n_ended[name]} ends" for name, _, _ in SPANS if n_begun[name])
print(f"{counts}; killed {n_deaths} times, {len(errors)} errors")
for problem in problems:
    print(f"  {problem}")
sys.exit(1 if problems else 0)
