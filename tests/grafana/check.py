#!/usr/bin/env python3
"""Does what Grafana and Prometheus are told to show exist?

    check.py                                  the dashboards' conventions, and an entry in the runbook for each alert
    check.py http://127.0.0.1:8080            also: every metric in dashboards and rules is on that server's /metrics
    check.py http://127.0.0.1:8080 --prometheus http://127.0.0.1:9090
                                              also: every expression runs there, and every panel has data

A metric with labels shows up with its first value: ask a server that has answered requests, made an adapter and ended a run, as the
demo does, or say --fresh for one that has not. Python's standard library alone; exit code 1 where something is wrong.
"""

import argparse
import json
import pathlib
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNBOOK = ROOT / "docs" / "runbook.md"
# Absent until what the word says has happened.
APPEARS_WITH = {
    "request": ["retune_requests_total", "retune_tokens_total", "retune_request_duration_seconds", "retune_time_to_first_token_seconds",
                "retune_time_per_output_token_seconds", "retune_format_checks_total"],
    "reference": ["retune_drift_log_e_value", "retune_drift_threshold_log", "retune_reference_age_seconds"],
    "feedback": ["retune_feedback_total"],
    "adapter": ["retune_adapter_stage"],
    "run": ["retune_last_run_timestamp_seconds"],
}
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$job": ".+", "$instance": ".+", "$task": ".*"}
NAME = re.compile(r"\bretune_[a-z0-9_]+\b")


def panels(dashboard):
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def load():
    """Dashboards by file name, and the rule files' texts."""
    dashboards = {path.name: json.loads(path.read_text()) for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json"))}
    rules = {path.name: path.read_text() for path in sorted((ROOT / "grafana" / "prometheus" / "rules").glob("*.yml"))}
    assert dashboards and rules, "no dashboards or no rules found"
    return dashboards, rules


def rule_expressions(text):
    """The values of `expr:`, on one line or folded below it."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        found = re.match(r"^(\s*)(?:- )?expr:\s*(.*)$", line)
        if found and not found[2].startswith((">", "|")):
            yield found[2]
        elif found:
            folded = []
            for below in lines[number + 1:]:
                if len(below) - len(below.lstrip()) <= len(found[1]):
                    break
                folded.append(below.strip())
            yield " ".join(folded)


def dashboard_expressions(dashboard):
    """(where, expression, may it be empty)"""
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"], "noValue" in panel["fieldConfig"]["defaults"]
    for annotation in dashboard["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["name"], annotation["expr"], True


def conventions(name, dashboard):
    """What github.com/grafana/dashboard-linter asks for."""
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    if dashboard["editable"] is not False:
        yield f"{name}: it is editable"
    if variables.get("datasource", {}).get("type") != "datasource":
        yield f"{name}: it has no variable `datasource`"
    for label in ("job", "instance"):
        variable = variables.get(label, {})
        if not (variable.get("multi") and variable.get("allValue") == ".+" and variable.get("refresh") == 2):
            yield f"{name}: its variable `{label}` is missing, not multi, has another allValue than .+ or does not refresh with the time"
    ids = [panel["id"] for panel in panels(dashboard)]
    if len(ids) != len(set(ids)):
        yield f"{name}: two panels have one id"
    for panel in panels(dashboard):
        if panel["type"] == "row":
            continue
        where = f"{name}: panel {panel.get('title')!r}"
        for wanted in ("title", "description"):
            if not panel.get(wanted):
                yield f"{where} has no {wanted}"
        if not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"{where} has no unit"
        for source in [panel["datasource"], *(target["datasource"] for target in panel["targets"])]:
            if source["uid"] != "${datasource}":
                yield f"{where} does not use the variable datasource"
        for target in panel["targets"]:
            yield from (f"{where}: {problem}" for problem in query_conventions(target["expr"]))


def query_conventions(expression):
    for selector in re.findall(r"retune_[a-z0-9_]+(?:\{[^}]*\})?", expression):
        for matcher in ('job=~"$job"', 'instance=~"$instance"'):
            if matcher not in selector:
                yield f"{selector} lacks {matcher}"
    for function, interval in re.findall(r"\b(rate|irate|increase)\([^\[]*\[([^\]]+)\]", expression):
        if interval != "$__rate_interval" and not (function == "increase" and interval == "$__range"):
            yield f"{function} over {interval}"
    for counter in re.findall(r"(\w*)\(?(retune_\w+_total)\b", expression):
        if counter[0] not in ("rate", "irate", "increase"):
            yield f"the counter {counter[1]} is read without rate or increase"


def runbook(rules):
    anchors = {re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
               for line in RUNBOOK.read_text().splitlines() if line.startswith("#")}
    for name, text in rules.items():
        for block in text.split("- alert: ")[1:]:
            alert = block.split()[0]
            for wanted in ("severity:", "summary:", "description:", "runbook_url:", "dashboard_url:"):
                if wanted not in block:
                    yield f"{name}: {alert} has no {wanted.rstrip(':')}"
            if not alert.startswith("Retune"):
                yield f"{name}: {alert} does not begin with Retune"
            anchor = re.search(r"runbook_url: docs/runbook\.md#(\S+)", block)
            if not anchor or anchor[1] not in anchors:
                yield f"{name}: {alert} has no entry in docs/runbook.md"


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def missing_metrics(server, dashboards, rules, fresh):
    text = get(server.rstrip("/") + "/metrics")
    there = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    later = {name: event for event, names in APPEARS_WITH.items() for name in names}
    used = {name for dashboard in dashboards.values() for name in NAME.findall(json.dumps(dashboard))}
    used |= {name for rule in rules.values() for name in NAME.findall(rule)}
    for name in sorted(used):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        if name in there or base in there or (fresh and base in later):
            continue
        hint = f" (it comes with the first {later[base]})" if base in later else ""
        yield f"{name} is not on {server}/metrics{hint}"
    print(f"{len(used)} metrics in dashboards and rules, {len(there)} on /metrics")


def failing_queries(prometheus, dashboards, rules, fresh):
    queries = [(f"{name}: {where}", expression, empty) for name, dashboard in dashboards.items()
               for where, expression, empty in dashboard_expressions(dashboard)]
    # An alert that finds nothing is what one hopes for.
    queries += [(name, expression, True) for name, text in rules.items() for expression in rule_expressions(text)]
    empty_ones = 0
    for where, expression, may_be_empty in queries:
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        url = prometheus.rstrip("/") + "/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            result = json.loads(get(url))["data"]["result"]
        except urllib.error.HTTPError as error:
            yield f"{where}: {expression}: {error.read().decode()}"
            continue
        if not result:
            empty_ones += 1
            if not (may_be_empty or fresh):
                yield f"{where}: no data: {expression}"
    print(f"{len(queries)} expressions ran, {empty_ones} without data")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", nargs="?", help="where /metrics is, as http://host:port")
    parser.add_argument("--prometheus", help="a Prometheus that scrapes it, as http://host:port")
    parser.add_argument("--fresh", action="store_true", help="the server has not seen traffic, an adapter and a run yet")
    arguments = parser.parse_args()
    dashboards, rules = load()
    problems = [problem for name, dashboard in dashboards.items() for problem in conventions(name, dashboard)]
    problems += runbook(rules)
    if arguments.server:
        problems += missing_metrics(arguments.server, dashboards, rules, arguments.fresh)
    if arguments.prometheus:
        problems += failing_queries(arguments.prometheus, dashboards, rules, arguments.fresh)
    for problem in problems:
        print(problem, file=sys.stderr)
    print("all is well" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
