"""Shows each check something that it has to complain of. A check that says nothing then would say nothing ever."""

import copy
import json

import check
import linter
import promql


def first(board, kind):
    return next(panel for panel in linter.panels(board) if panel["type"] == kind)


def target(board):
    return first(board, "timeseries")["targets"][0]


def defaults(board):
    return first(board, "timeseries")["fieldConfig"]["defaults"]


def variable(board, name):
    return linter.variable(board, name)


def without(board, name):
    board["templating"]["list"].remove(variable(board, name))


# What is done to a good dashboard, and the words of the complaint that has to follow.
DAMAGES = [
    ("template-datasource-rule", lambda b: variable(b, "datasource").update(name="ds")),
    ("template-datasource-rule", lambda b: without(b, "datasource")),
    ("template-job-rule", lambda b: variable(b, "job").update(multi=False)),
    ("template-job-rule", lambda b: without(b, "job")),
    ("template-instance-rule", lambda b: variable(b, "instance").update(allValue=".*")),
    ("template-label-promql-rule", lambda b: variable(b, "task").update(query="labels(up, task)")),
    ("template-on-time-change-reload-rule", lambda b: variable(b, "task").update(refresh=1)),
    ("uneditable-dashboard", lambda b: b.update(editable=True)),
    ("panel-datasource-rule", lambda b: first(b, "stat").update(datasource={"type": "prometheus", "uid": "abc"})),
    ("panel-title-description-rule", lambda b: first(b, "stat").update(description="")),
    ("panel-units-rule", lambda b: defaults(b).update(unit="parsecs")),
    ("panel-no-targets-rule", lambda b: first(b, "stat").update(targets=[])),
    ("target-rate-interval-rule", lambda b: target(b).update(expr=target(b)["expr"].replace("$__rate_interval", "5m"))),
    ("target-job-rule", lambda b: target(b).update(expr=target(b)["expr"].replace('job=~"$job"', 'job="retune"'))),
    ("target-instance-rule", lambda b: target(b).update(expr=target(b)["expr"].replace(', instance=~"$instance"', ""))),
    ("target-counter-agg-rule", lambda b: target(b).update(expr='sum(retune_requests_total{job=~"$job", instance=~"$instance"})')),
    ("schema: .panels[1]: Grafana knows no 'titel'", lambda b: b["panels"][1].update(titel="x")),
    ("schema: .panels[1].fieldConfig.defaults.decimals", lambda b: b["panels"][1]["fieldConfig"]["defaults"].update(decimals="two")),
    ("schema: .graphTooltip: 7 is none of", lambda b: b.update(graphTooltip=7)),
    ("schema: : lacks 'schemaVersion'", lambda b: b.pop("schemaVersion")),
    ("schema: options.colorMode", lambda b: first(b, "stat")["options"].update(colorMode="rainbow")),
    ("schema: custom: Grafana knows no 'fill'", lambda b: defaults(b)["custom"].update(fill=1)),
    ("schema: options: grafana-schema.json has no type of 'piechart'", lambda b: first(b, "stat").update(type="piechart")),
    ("give it a noValue", lambda b: defaults(b).pop("noValue")),
    ("a share begins at 0", lambda b: (defaults(b).update(unit="percentunit"), defaults(b).pop("min"))),
    ("give it a legendFormat", lambda b: target(b).update(legendFormat="")),
    ("two panels have the id", lambda b: b["panels"][1].update(id=b["panels"][2]["id"])),
    ("goes beyond the 24 columns", lambda b: b["panels"][1]["gridPos"].update(x=23)),
    ("overlap", lambda b: b["panels"][2].update(gridPos=b["panels"][1]["gridPos"])),
    ("stands in no row", lambda b: b["panels"].pop(0)),
    ("tag it retune", lambda b: b.update(tags=[])),
    ("has no variable 'adapter'", lambda b: without(b, "adapter")),
    ("no query uses its variable 'task'", lambda b: b.update(json.loads(json.dumps(b).replace("$task", "x")))),
    ("does not link to the others", lambda b: b.update(links=[])),
    ("lacks the annotations", lambda b: b["annotations"].update(list=[])),
]


def dashboard_damages():
    name, board = next((name, board) for name, board in check.dashboards().items() if name == "service.json")
    for wanted, damage in DAMAGES:
        damaged = copy.deepcopy(board)
        damage(damaged)
        said = list(check.dashboard_problems(name, damaged))
        if not any(wanted in problem for problem in said):
            yield f"self-test: a damaged dashboard should have led to {wanted!r}, and led to {said}"
    rules = {problem for problem, _ in DAMAGES}
    for rule in {**linter.DASHBOARD_RULES, **linter.PANEL_RULES, **linter.TARGET_RULES}:
        if rule not in rules:
            yield f"self-test: nothing is damaged for {rule}"


def expected(wanted, said):
    said = list(said)
    if not any(wanted in problem for problem in said):
        yield f"self-test: should have led to {wanted!r}, and led to {said}"


def other_damages():
    boards = check.dashboards()
    twice = {"a.json": boards["cost.json"], "b.json": boards["cost.json"]}
    yield from expected("has the uid", check.doubles(twice))
    yield from expected("says what", check.doubles(twice))
    yield from expected("target-promql-rule: sum(: ", check.promql_problems([("good", "sum(up)"), ("bad", "sum(")]))

    good = next(rule for rule in check.rules() if rule.get("alert") == "RetuneDown")
    pages = {"RetuneDown.md": (check.RUNBOOKS / "RetuneDown.md").read_text(), "README.md": (check.RUNBOOKS / "README.md").read_text()}
    for wanted, change in [
        ("CamelCase", {"alert": "retune_down"}),
        ("its severity is none of", {"labels": {"severity": "bad"}}),
        ("has no summary", {"annotations": {}}),
        ("a value in a label", {"labels": {"severity": "info", "value": "{{ $value }}"}}),
        ("no dashboard has the uid", {"annotations": {**good["annotations"], "dashboard_url": "/d/other"}}),
        ("write docs/runbooks/RetuneUp.md", {"alert": "RetuneUp"}),
        ("begin with the severity", {"labels": {"severity": "info"}}),
    ]:
        yield from expected(wanted, check.alert_problems({**good, **change}, {"retune-service"}, pages))
    yield from expected("has no section", check.alert_problems(good, {"retune-service"}, {"RetuneDown.md": "# RetuneDown\n"}))
    yield from expected("there is no such alert", check.runbook_problems([], pages))
    yield from expected("differ in RetuneDown", check.runbook_problems([], pages))
    yield from expected("links to x.md", check.runbook_problems([good], {**pages, "RetuneDown.md": "[x](x.md)"}))

    record = {"record": "a:b:c", "expr": "up"}
    yield from expected("sees it fire", check.test_problems([good], ""))
    yield from expected("sees it stay silent", check.test_problems([good], ""))
    yield from expected("asks for it", check.test_problems([record], ""))
    yield from expected("this one is not", check.recording_problems([record], boards))
    yield from expected("name it level", check.recording_problems([{"record": "errors", "expr": "up"}], boards))
    yield from expected("is read, and not recorded", check.recording_problems([{**good, "expr": "x:y:z > 1"}], boards))
    yield from expected("no contact point", check.provisioning_problems("", "receiver: nobody"))
    yield from expected("has no route for critical", check.provisioning_problems("", ""))


def selectors():
    """The reader of PromQL, on what is hard to read."""
    text = 'time() - (max by (job) (a{x="}"}) unless on (job) (rate(b_total{y=~"z"}[5m] offset 1m) >= sum(c) by (d))) or vector(0)'
    got = [(s.name, s.range, s.functions[-1:]) for s in promql.selectors(text)]
    if got != [("a", "", ["max"]), ("b_total", "5m", ["rate"]), ("c", "", ["sum"])]:
        yield f"self-test: promql.py reads {text} as {got}"


def problems():
    yield from selectors()
    yield from dashboard_damages()
    yield from other_damages()
