#!/usr/bin/env python3
"""Plays the demo under a real Prometheus, then asks that Prometheus everything that dashboards and rules ask.

    live.py --retune target/release/retune       needs `prometheus` on the path (Debian: apt-get install prometheus)

Every expression of a dashboard had data at some time of the demo, or is in EMPTY, with the reason; what is in EMPTY had none. Every series
that an alert looks at is there; no alert is left at the end, when all is well again. The format alert was pending, then fired, and resolved with the
new champion. Everything is in a temporary folder and on free ports. It takes as long as the demo, and a minute.
Python's standard library alone; exit code 1 where something is wrong.
"""

import argparse
import json
import math
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import check
import linter
import promql

RULES = check.GRAFANA / "prometheus" / "rules"
# A demo that takes longer than this many seconds hangs.
LIMIT = 900
# Without data in a demo where all is well; whatever is here and has data is to be taken out. By dashboard and panel with its query, or by
# alert with what it looks at.
NO_ERRORS = "no request failed or was refused"
NO_SCHEDULE = "the demo's task has no schedule"
TOO_SHORT = "the demo's adapter is not asked in a thousand conversations"
EMPTY = {
    "service.json: Failed and refused, A": NO_ERRORS,
    "service.json: Failed and refused, B": NO_ERRORS,
    'RetuneErrors: instance_task_code:retune_requests:rate5m{code=~"5.."}': NO_ERRORS,
    'RetuneOverloaded: instance_task_code:retune_requests:rate5m{code="429"}': NO_ERRORS,
    "adapters.json: Schedule, A": NO_SCHEDULE,
    "adapters.json: Run overdue, A": NO_SCHEDULE,
    "RetuneRunOverdue: instance_task:retune_run_due_timestamp_seconds:overdue{}": NO_SCHEDULE,
    "instance_task:retune_run_due_timestamp_seconds:overdue": NO_SCHEDULE,
    "drift.json: Distance to the training examples, A": TOO_SHORT,
    "RetuneTrainingDistance: retune_training_distance{}": TOO_SHORT,
}


class Prometheus:
    """One that scrapes `target` every two seconds and evaluates the rules as often."""

    def __init__(self, folder, target):
        config = {
            "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
            "rule_files": [f"{RULES}/*.yml"],
            "scrape_configs": [{"job_name": "retune", "static_configs": [{"targets": [target]}]}],
        }
        path = folder / "prometheus.yml"
        path.write_text(json.dumps(config))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.url, self.began, self.log = f"http://{address}", time.time(), folder / "prometheus.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address={address}"],
                stdout=subprocess.DEVNULL, stderr=log)
        self._wait_until_ready()

    def _wait_until_ready(self, seconds=60):
        give_up = time.monotonic() + seconds
        while True:
            try:
                return urllib.request.urlopen(f"{self.url}/-/ready", timeout=5).read()
            except OSError:
                if self.process.poll() is not None or time.monotonic() > give_up:
                    raise SystemExit(f"prometheus did not start:\n{self.log.read_text()}")
                time.sleep(0.5)

    def _ask(self, route, **parameters):
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{route}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
                return json.loads(answer.read())["data"]["result"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{parameters['query']}: {error.read().decode()}") from error

    def now(self, expression):
        """The series that an expression has now."""
        return self._ask("query", query=expression)

    def times(self, expression, step=1):
        """When, since its start, an expression had a figure."""
        series = self._ask("query_range", query=expression, start=self.began, end=time.time(), step=step)
        return sorted({float(at) - self.began for one in series for at, value in one["values"] if math.isfinite(float(value))})

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=30)


def questions():
    """(where, expression) of all that should have data: panels, annotations, variables, what is recorded, what alerts look at."""
    for name, board in check.dashboards().items():
        for panel in linter.panels(board):
            yield from ((f"{name}: {panel['title']}, {target['refId']}", target["expr"]) for target in panel["targets"])
        for annotation in board["annotations"]["list"]:
            if "expr" in annotation:
                yield f"{name}: annotation {annotation['name']}", annotation["expr"]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{name}: variable {variable['name']}", str(promql.selectors(variable["query"])[0])
    for rule in check.rules():
        if "record" in rule:
            yield rule["record"], rule["expr"]
        else:
            yield from ((f"{rule['alert']}: {selector}", str(selector)) for selector in promql.selectors(rule["expr"]))


def empty_problems(prometheus):
    asked, empty = 0, set()
    for where, expression in questions():
        asked += 1
        if prometheus.times(check.substituted(expression), step=2):
            if where in EMPTY:
                yield f"{where}: has data: take it out of live.py's EMPTY"
            continue
        empty.add(where)
        if where not in EMPTY:
            yield f"{where}: never had data: {check.substituted(expression)}"
    for where in EMPTY.keys() - empty - {where for where, _ in questions()}:
        yield f"{where}: is in live.py's EMPTY, and nobody asks for it: take it out"
    print(f"{asked} expressions, {len(empty)} without data")


def standing_problems(prometheus):
    """Whether an alert is left."""
    for alert in (rule for rule in check.rules() if "alert" in rule):
        for series in prometheus.now(alert["expr"]):
            yield f"{alert['alert']}: all should be well at the end, and it finds {series['metric']}"


def format_alert_problems(prometheus):
    """It was pending, then fired, then was gone."""
    at = {state: prometheus.times(f'ALERTS{{alertname="RetuneFormatDrift", alertstate="{state}"}}') for state in ("pending", "firing")}
    for state, times in at.items():
        if not times:
            yield f"RetuneFormatDrift: was never {state}"
    if not all(at.values()):
        return
    end = prometheus.times("up")[-1]
    print(f"RetuneFormatDrift: pending after {at['pending'][0]:.0f} s, fired after {at['firing'][0]:.0f} s, resolved after {at['firing'][-1]:.0f} s")
    if not at["pending"][0] < at["firing"][0]:
        yield "RetuneFormatDrift: fired before it was pending"
    if at["firing"][-1] > end - 4:
        yield "RetuneFormatDrift: fires still, though another champion serves"


def problems(prometheus):
    yield from format_alert_problems(prometheus)
    yield from empty_problems(prometheus)
    yield from standing_problems(prometheus)


def play(demo, folder):
    """Passes on what the demo tells; the Prometheus that was started as soon as there was a server."""
    prometheus = None
    for line in demo.stdout:
        print(line, end="", flush=True)
        if prometheus is None and (found := re.search(r"listens on http://([0-9.:]+)", line)):
            prometheus = Prometheus(folder, found[1])
        if "goes on serving" in line:
            return prometheus
    if prometheus:
        prometheus.stop()
    raise SystemExit("the demo ended before it served")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", help="the built program")
    parser.add_argument("--seed", default="1", help="the demo's")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retune-grafana-") as temporary:
        folder = pathlib.Path(temporary)
        demo = subprocess.Popen(
            [os.path.abspath(arguments.retune), "demo", "--seed", arguments.seed, "--store", str(folder / "demo")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        watchdog = threading.Timer(LIMIT, demo.kill)
        watchdog.start()
        prometheus = None
        try:
            prometheus = play(demo, folder)
            time.sleep(10)  # Scrapes and rules of what came last.
            found = list(problems(prometheus))
        finally:
            watchdog.cancel()
            demo.send_signal(signal.SIGINT)
            demo.wait(timeout=90)
            if prometheus:
                prometheus.stop()
    for problem in found:
        print(problem, file=sys.stderr)
    print("all is well" if not found else f"{len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
