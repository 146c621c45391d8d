#!/usr/bin/env python3
"""Are dashboards, rules, runbooks and provisioning what Grafana, Prometheus and whoever is called can work with?

    check.py          needs `promtool` on the path (Debian: apt-get install prometheus)

Dashboards: Grafana's own schema (grafana-schema.json), the rules of dashboard-linter (linter.py), and what is agreed on here. Alerts: labels,
texts, a runbook, a dashboard, tests that they fire and that they stay silent. Grafana's copy of the alerts is what grafana/alerts.py makes. Before
that, each check is shown something that it has to complain of: one that cannot fail is none. That there is data behind every expression
is what live.py asks. Python's standard library alone; exit code 1 where something is wrong.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import linter
import promql
import schema

ROOT = pathlib.Path(__file__).resolve().parents[2]
GRAFANA = ROOT / "grafana"
RUNBOOKS = ROOT / "docs" / "runbooks"
sys.path.insert(0, str(GRAFANA))
import alerts as grafana_alerts  # noqa: E402

VARIABLES = ("datasource", "job", "instance", "task", "adapter")
ANNOTATIONS = {"Alarms", "Stages", "Runs"}
SEVERITIES = ("critical", "warning", "info")
SECTIONS = ("## How to look", "## What to do", "## How it ends")
# Values of variables, where an expression is run outside of Grafana.
VALUES = {"$__rate_interval": "1m", "$__range": "1h", "$job": ".+", "$instance": ".+", "$task": ".*", "$adapter": ".*", "$stream": ".*"}
RECORDED = re.compile(r"[a-z_]+:[a-z_]+:[a-z0-9_]+")


def dashboards():
    """By file name."""
    found = {path.name: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
    assert found, "grafana/dashboards has no dashboard"
    return found


def rules():
    """Of all rule files."""
    return [rule for path in sorted((GRAFANA / "prometheus" / "rules").glob("*.yml")) for rule in grafana_alerts.read(path.read_text(), path.name)]


def substituted(expression):
    """Longest names first: $__range is no $__rate_interval, but $task might begin another."""
    for variable in sorted(VALUES, key=len, reverse=True):
        expression = expression.replace(variable, VALUES[variable])
    return expression


def expressions(boards):
    """(where, expression) of every panel and annotation."""
    for name, board in boards.items():
        for panel in linter.panels(board):
            yield from ((f"{name}: {panel['title']}", target["expr"]) for target in panel["targets"])
        for annotation in board["annotations"]["list"]:
            if "expr" in annotation:
                yield f"{name}: annotation {annotation['name']}", annotation["expr"]


def dashboard_problems(name, board):
    """What is wrong with one dashboard."""
    yield from linter.lint(name, board)
    for problem in schema.problems(board):
        yield f"{name}: schema: {problem}"
    for panel in linter.panels(board):
        yield from (f"{name}: panel {panel.get('title')!r}: schema: {problem}" for problem in schema.panel_problems(panel))
        yield from (f"{name}: panel {panel.get('title')!r}: {problem}" for problem in panel_problems(panel))
    yield from (f"{name}: {problem}" for problem in layout_problems(board))
    yield from (f"{name}: {problem}" for problem in frame_problems(board))


def panel_problems(panel):
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    for wanted in ("unit", "noValue"):
        if not defaults.get(wanted):
            yield f"give it a {wanted}"
    if not panel.get("description"):
        yield "give it a description"
    if defaults.get("unit") == "percentunit" and defaults.get("min") != 0:
        yield "a share begins at 0: set min"
    for target in panel.get("targets", []):
        if panel["type"] != "table" and not target.get("legendFormat"):
            yield f"query {target['refId']} names its series by all their labels: give it a legendFormat"


def layout_problems(board):
    ids, taken = set(), {}
    if board["panels"] and board["panels"][0]["type"] != "row":
        yield "its first panel stands in no row"
    for panel in board["panels"]:
        if panel["id"] in ids:
            yield f"two panels have the id {panel['id']}: number them anew"
        ids.add(panel["id"])
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            yield f"panel {panel['title']!r} goes beyond the 24 columns"
        for spot in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
            if spot in taken:
                yield f"panels {taken[spot]!r} and {panel['title']!r} overlap"
                break
            taken[spot] = panel["title"]


def frame_problems(board):
    """Variables, links, annotations."""
    if "retune" not in board.get("tags", []) or not str(board.get("uid", "")).startswith("retune-"):
        yield "tag it retune, and begin its uid with retune-: the other dashboards link to it by that"
    text = json.dumps([board["panels"], [v for v in board["templating"]["list"]]])
    for name in VARIABLES:
        if linter.variable(board, name) is None:
            yield f"has no variable {name!r}: add it, so that links can hand it on"
    for variable in board["templating"]["list"]:
        if not re.search(r"\$\{?" + variable["name"] + r"\b", text):
            yield f"no query uses its variable {variable['name']!r}: use it, or take it out"
    if not any(link["type"] == "dashboards" and "retune" in link["tags"] and link["includeVars"] and link["keepTime"] for link in board.get("links", [])):
        yield "does not link to the others: add a link of the type dashboards by the tag retune, with variables and time"
    missing = ANNOTATIONS - {annotation["name"] for annotation in board["annotations"]["list"]}
    if missing:
        yield f"lacks the annotations {sorted(missing)}"


def doubles(boards):
    """Two dashboards of one uid, two panels that say the same thing."""
    uids, said = {}, {}
    for name, board in boards.items():
        if board["uid"] in uids:
            yield f"{name}: {uids[board['uid']]} has the uid {board['uid']} as well"
        uids[board["uid"]] = name
        for panel in linter.panels(board):
            for target in panel["targets"]:
                key = "".join(target["expr"].split())
                if key in said:
                    yield f"{name}: panel {panel['title']!r} says what {said[key]} says: keep one"
                said[key] = f"{panel['title']!r} of {name}"


def promql_problems(named):
    """target-promql-rule: promtool reads every expression as one rule of a file, and says which it cannot parse."""
    named = list(named)
    groups = [{"name": str(number), "rules": [{"record": "a:b:c", "expr": substituted(expression)}]} for number, (_, expression) in enumerate(named)]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        json.dump({"groups": groups}, file)
        file.flush()
        done = subprocess.run(["promtool", "check", "rules", "--lint=none", file.name], capture_output=True, text=True)
    if done.returncode == 0:
        return
    for number, reason in re.findall(r'group "(\d+)", rule \d+, .*?: (.*)', done.stdout + done.stderr) or [(None, done.stderr)]:
        where, expression = named[int(number)] if number else ("promtool", "")
        yield f"{where}: target-promql-rule: {expression}: {reason}"


def alert_problems(alert, uids, runbooks):
    """What is wrong with one alert. `runbooks`: texts by file name."""
    name = alert["alert"]
    if not re.fullmatch(r"Retune([A-Z][a-z]+)+", name):
        yield f"{name}: name it in CamelCase, Retune first"
    if alert.get("labels", {}).get("severity") not in SEVERITIES:
        yield f"{name}: its severity is none of {SEVERITIES}: nobody is told"
    texts = alert.get("annotations", {})
    for wanted in ("summary", "description", "runbook_url", "dashboard_url"):
        if not texts.get(wanted):
            yield f"{name}: has no {wanted}"
    if any("$value" in str(label) for label in alert.get("labels", {}).values()):
        yield f"{name}: a value in a label makes a new alert of each: put it into a text"
    uid = re.match(r"/d/([a-z-]+)", texts.get("dashboard_url", ""))
    if not uid or uid[1] not in uids:
        yield f"{name}: no dashboard has the uid of its dashboard_url {texts.get('dashboard_url')!r}"
    page = runbooks.get(f"{name}.md", "")
    if texts.get("runbook_url") != f"docs/runbooks/{name}.md" or not page.startswith(f"# {name}\n"):
        yield f"{name}: write docs/runbooks/{name}.md, with its name as the title, and let runbook_url lead there"
    severity = alert.get("labels", {}).get("severity", "")
    if page and not re.search(rf"^\*\*{severity}\b", page, re.IGNORECASE | re.MULTILINE):
        yield f"docs/runbooks/{name}.md: begin with the severity, **{severity.title()}**"
    for section in SECTIONS:
        if page and section not in page:
            yield f"docs/runbooks/{name}.md: has no section {section!r}"


def runbook_problems(alerts, runbooks):
    names = {alert["alert"] for alert in alerts}
    listed = set(re.findall(r"^\| \[(\w+)\]\(\1\.md\) \|", runbooks["README.md"], re.MULTILINE))
    for name in names ^ listed:
        yield f"docs/runbooks/README.md: its table and the alerts differ in {name}"
    for file in runbooks:
        if file != "README.md" and file.removesuffix(".md") not in names:
            yield f"docs/runbooks/{file}: there is no such alert"
    for file, text in runbooks.items():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            if not (RUNBOOKS / target).exists():
                yield f"docs/runbooks/{file}: links to {target}, which is not there"


def test_problems(all_rules, tests):
    """`tests`: the text of Prometheus' rule tests. promtool runs them; here is asked whether there are enough."""
    fires = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", tests))
    silent = set(re.findall(r"alertname: (\w+), exp_alerts: \[\]", tests))
    for rule in all_rules:
        if "alert" in rule and rule["alert"] not in fires:
            yield f"{rule['alert']}: no test in grafana/prometheus/tests sees it fire"
        if "alert" in rule and rule["alert"] not in silent:
            yield f"{rule['alert']}: no test in grafana/prometheus/tests sees it stay silent"
        if "record" in rule and not re.search(rf"expr: {re.escape(rule['record'])}\b", tests):
            yield f"{rule['record']}: no test in grafana/prometheus/tests asks for it"


def recording_problems(all_rules, boards):
    """What is recorded is named as Prometheus has it, and read; what is read is recorded."""
    recorded = {rule["record"] for rule in all_rules if "record" in rule}
    by_alerts = {name for rule in all_rules if "alert" in rule for name in RECORDED.findall(rule["expr"])}
    by_boards = {name for _, expression in expressions(boards) for name in RECORDED.findall(expression)}
    for name in recorded:
        if not RECORDED.fullmatch(name):
            yield f"{name}: name it level:metric:operation"
        if name not in by_alerts or name not in by_boards:
            yield f"{name}: record what both alerts and dashboards read; this one is not"
    for name in (by_alerts | by_boards) - recorded:
        yield f"{name}: is read, and not recorded"


def provisioning_problems(contacts, policies):
    """Texts of the two files."""
    known = set(re.findall(r"^    name: (\S+)", contacts, re.MULTILINE))
    for receiver in re.findall(r"receiver: (\S+)", policies):
        if receiver not in known:
            yield f"provisioning/alerting/policies.yml: no contact point is called {receiver}"
    for severity in ("critical", "warning"):
        if not re.search(rf'\[severity, "=", {severity}\]', policies):
            yield f"provisioning/alerting/policies.yml: has no route for {severity}"


def all_problems():
    boards, all_rules = dashboards(), rules()
    alerts = [rule for rule in all_rules if "alert" in rule]
    runbooks = {path.name: path.read_text() for path in sorted(RUNBOOKS.glob("*.md"))}
    tests = "".join(path.read_text() for path in sorted((GRAFANA / "prometheus" / "tests").glob("*.yml")))
    alerting = GRAFANA / "provisioning" / "alerting"
    for name, board in boards.items():
        yield from dashboard_problems(name, board)
    yield from doubles(boards)
    yield from promql_problems(expressions(boards))
    for alert in alerts:
        yield from alert_problems(alert, {board["uid"] for board in boards.values()}, runbooks)
    yield from runbook_problems(alerts, runbooks)
    yield from test_problems(all_rules, tests)
    yield from recording_problems(all_rules, boards)
    yield from provisioning_problems((alerting / "contact-points.yml").read_text(), (alerting / "policies.yml").read_text())
    if grafana_alerts.TARGET.read_text() != grafana_alerts.made():
        yield "grafana/provisioning/alerting/rules.yml is not what grafana/alerts.py makes of the rules: run it"
    count = sum(1 for _ in expressions(boards))
    print(f"{len(boards)} dashboards with {count} expressions, {len(alerts)} alerts, {len(all_rules) - len(alerts)} recording rules")


def main():
    import self_test
    failed = list(self_test.problems())
    problems = failed or list(all_problems())
    for problem in problems:
        print(problem, file=sys.stderr)
    print("all is well" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
