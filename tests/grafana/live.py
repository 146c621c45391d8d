#!/usr/bin/env python3
"""Plays the demo under a real Prometheus, then asks that Prometheus every expression of the dashboard and the rules.

    live.py --retune target/release/retune       needs `prometheus` on the path (Debian: apt-get install prometheus)

Everything is in a temporary folder and on free ports. Exit code 1 where an expression fails or a panel has no data.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
RULES = HERE.parents[1] / "grafana" / "prometheus" / "rules"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def prometheus(folder, target):
    """A Prometheus that scrapes `target` every two seconds, with the rules; its process and address."""
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": [f"{RULES}/*.yml"],
        "scrape_configs": [{"job_name": "retune", "static_configs": [{"targets": [target]}]}],
    }
    path = folder / "prometheus.yml"
    path.write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address={address}"],
        stdout=subprocess.DEVNULL,
        stderr=open(folder / "prometheus.log", "w"),
    )
    return process, f"http://{address}"


def wait_for(url, seconds=60):
    give_up = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", help="the built program")
    parser.add_argument("--seed", default="1", help="the demo's")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retune-grafana-") as temporary:
        folder = pathlib.Path(temporary)
        demo = subprocess.Popen(
            [os.path.abspath(arguments.retune), "demo", "--seed", arguments.seed, "--store", str(folder / "demo")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        scraper, url, server = None, None, None
        try:
            for line in demo.stdout:
                print(line, end="", flush=True)
                if server is None and (found := re.search(r"listens on (http://[0-9.:]+)", line)):
                    server = found[1]
                    scraper, url = prometheus(folder, server.removeprefix("http://"))
                    wait_for(f"{url}/-/ready")
                if "goes on serving" in line:
                    break
            assert server and demo.poll() is None, "the demo ended before it served"
            time.sleep(5)  # Two scrapes of what came last.
            return subprocess.run([sys.executable, HERE / "check.py", server, "--prometheus", url]).returncode
        finally:
            demo.send_signal(signal.SIGINT)
            demo.wait(timeout=90)
            if scraper:
                scraper.terminate()
                scraper.wait(timeout=30)


if __name__ == "__main__":
    sys.exit(main())
