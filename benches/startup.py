#!/usr/bin/env python3
"""How large the program is, and how soon after its start a model answers: `retune serve` with the model inside, each time with an empty store.

  benches/startup.py --retune target/release/retune [--starts 20]
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request


def started(program, folder):
    """Seconds until it listens, until it is ready, and until it has answered; MiB of memory then."""
    env = os.environ | {"RETUNE_SERVER__LISTEN": "127.0.0.1:0", "RETUNE_STORE__URL": f"file:{folder}/store"}
    began = time.perf_counter()
    child = subprocess.Popen([program, "serve", "--json", "--stop-with-stdin"], env=env, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        base = json.loads(child.stdout.readline())["listening"]
        listens = time.perf_counter() - began
        while True:
            try:
                urllib.request.urlopen(f"{base}/readyz").close()
                break
            except urllib.error.URLError:
                time.sleep(0.001)
        ready = time.perf_counter() - began
        body = json.dumps({"model": "triage@base", "messages": [{"role": "user", "content": "Where is my parcel?"}], "max_tokens": 8}).encode()
        request = urllib.request.Request(f"{base}/v1/chat/completions", data=body, headers={"content-type": "application/json"})
        urllib.request.urlopen(request).close()
        answered = time.perf_counter() - began
        status = pathlib.Path(f"/proc/{child.pid}/status").read_text()
        memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024
    finally:
        child.stdin.close()
        child.wait()
    return listens, ready, answered, memory


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--retune", required=True)
    arguments.add_argument("--starts", type=int, default=20)
    given = arguments.parse_args()
    program = os.path.abspath(given.retune)
    rows = []
    for _ in range(given.starts):
        with tempfile.TemporaryDirectory(prefix="retune-startup-") as folder:
            rows.append(started(program, folder))
    size = os.path.getsize(program) / 1e6
    with tempfile.NamedTemporaryFile() as stripped:
        done = subprocess.run(["strip", "-o", stripped.name, program])
        without = os.path.getsize(stripped.name) / 1e6 if done.returncode == 0 else float("nan")
    print(f"program: {size:.0f} MB, {without:.0f} MB without symbols")
    print(f"| {given.starts} starts | median | lowest | highest |\n|---|---|---|---|")
    for name, values in zip(("listens, s", "ready, s", "first answer, s", "memory then, MiB"), zip(*rows)):
        print(f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} |")


if __name__ == "__main__":
    main()
