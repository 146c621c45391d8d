#!/usr/bin/env python3
"""Plays `retune demo --once --json` for consecutive seeds and says, line by line, what held and what did not.

    benches/demo_seeds.py --retune target/release/retune --first 1 --seeds 10 > lines.jsonl

Each seed's line goes to stdout as the demo printed it; what it took and which limits it missed, to stderr. One after another, on an
otherwise idle machine: the demo's seconds are among its limits. Exit code 1 where a limit was missed. Standard library alone.
"""

import argparse
import json
import os
import re
import subprocess
import sys

SECONDS = 480
MEMORY_GB = 4.0

# What each line has to show.
LIMITS = {
    "every exchange is logged": lambda f: f["exchanges_logged"] == f["exchanges"],
    "the alarm is about the format": lambda f: f["alarm_kind"] == "format",
    "no alarm before the drift": lambda f: f["alarms_before_drift"] == 0,
    "an alarm within 300 requests": lambda f: f["alarm_after_requests"] <= 300,
    "0.97 of the answers valid after": lambda f: f["format_valid_after"] >= 0.97,
    "0.3 more than before": lambda f: f["format_valid_after"] - f["format_valid_before"] >= 0.3,
    "150 prompts examined": lambda f: f["examples_examined"] >= 150,
    "p below 0.05": lambda f: f["p_value"] < 0.05,
    "half the prompt tokens": lambda f: f["prompt_tokens_after"] <= f["prompt_tokens_before"] / 2,
    f"{SECONDS} s": lambda f: f["seconds"] <= SECONDS,
    f"{MEMORY_GB} GB": lambda f: f["memory_gb"] <= MEMORY_GB,
}


def missed(figures):
    for name, holds in LIMITS.items():
        try:
            if not holds(figures):
                yield name
        except (KeyError, TypeError):
            yield f"{name} (it did not happen)"


def play(program, seed):
    """The demo's line, and the most memory that it says it used."""
    done = subprocess.run([program, "demo", "--once", "--json", "--seed", str(seed)], capture_output=True, text=True)
    line = (done.stdout.splitlines() or ["{}"])[-1]
    memory = re.search(r"at most ([0-9.]+) GB", done.stderr)
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
    return line, float(memory[1]) if memory else None, done.returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", help="the built program")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    arguments = parser.parse_args()
    bad = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        line, memory, code = play(os.path.abspath(arguments.retune), seed)
        figures = json.loads(line) | {"memory_gb": memory}
        misses = list(missed(figures)) + ([f"exit code {code}"] if code else [])
        bad += bool(misses)
        print(line, flush=True)
        print(f"seed {seed}: {figures.get('seconds')} s, {memory} GB: {', '.join(misses) or 'all held'}", file=sys.stderr, flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
