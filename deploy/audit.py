#!/usr/bin/env python3
"""Reads one service's JSON log lines on standard input and says whether each life in them is complete: every
session opened is closed, every execution has one end. Exits with 1 where one is not.

A service that is killed says nothing of what it held: --deaths N says how often that must have happened, and
--errors N how many lines of level ERROR there must be, --least N how many lives at the least."""

import argparse
import collections
import json
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--deaths", type=int, default=0)
parser.add_argument("--errors", type=int, default=0)
parser.add_argument("--least", type=int, default=1)
expected = parser.parse_args()

# What begins, what may end it, and the ids by which the two know each other.
LIVES = [
    ("session.opened", {"session.closed"}, ["session_id"]),
    (
        "execution.started",
        {"execution.finished", "execution.released", "execution.taken_over"},
        ["session_id", "execution_id"],
    ),
    ("process.started", {"process.finished"}, ["execution_id"]),
]

n_begun, n_ended, ends, open_lives = (collections.Counter() for _ in range(4))
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
            open_lives.clear()
        is_running = True
    elif event == "service.stopped":
        is_running = False
    for beginning, endings, ids in LIVES:
        life = (beginning, *(line.get(name) for name in ids))
        if event == beginning:
            n_begun[beginning] += 1
            open_lives[life] += 1
        elif event in endings:
            n_ended[beginning] += 1
            # What could not begin, with a backend that was not there, has an end all the same: one.
            if not open_lives[life] and ends[life]:
                problems.append(f"a second end: {text.strip()}")
            open_lives[life] = max(open_lives[life] - 1, 0)
            ends[life] += 1

problems += [f"no end: {' '.join(map(str, life))}" for life, n in open_lives.items() if n]
if n_deaths != expected.deaths:
    problems.append(f"it was killed {n_deaths} times, not {expected.deaths}")
if len(errors) != expected.errors:
    problems += [f"{len(errors)} errors, not {expected.errors}:", *errors]
if sum(n_begun.values()) < expected.least:
    problems.append(f"{sum(n_begun.values())} lives, not {expected.least} or more")
counts = ", ".join(f"{n_begun[name]} {name} with {n_ended[name]} ends" for name, _, _ in LIVES if n_begun[name])
print(f"{counts}; killed {n_deaths} times, {len(errors)} errors")
for problem in problems:
    print(f"  {problem}")
sys.exit(1 if problems else 0)
