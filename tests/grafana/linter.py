"""The rules of github.com/grafana/dashboard-linter, each under the name that it has there. Written anew after its documentation and
source of June 2026; LogQL's two rules are not here, since there is no Loki. Nothing is excluded."""

import re

from promql import FUNCTIONS, selectors

PANELS = {"stat", "singlestat", "graph", "table", "timeseries", "gauge"}
WITH_QUERIES = {"singlestat", "gauge", "table", "stat", "state-timeline", "timeseries"}
# Of the units that the linter knows, those in use here.
UNITS = {"none", "short", "percentunit", "s", "bytes", "reqps", "cps"}


def panels(dashboard):
    """All panels, those inside rows too, without the rows."""
    for panel in dashboard.get("panels", []):
        if panel["type"] != "row":
            yield panel
        yield from panel.get("panels", [])


def variable(dashboard, name):
    return next((v for v in dashboard["templating"]["list"] if v["name"] == name), None)


def template_datasource_rule(dashboard):
    found = [v for v in dashboard["templating"]["list"] if v["type"] == "datasource"]
    if not found:
        yield "has no variable of the type datasource: add one"
    for v in found:
        if v["name"] not in ("datasource", "prometheus_datasource"):
            yield f"variable {v['name']!r}: name it datasource"
        if v["label"] not in ("Data source", "Prometheus data source"):
            yield f"variable {v['name']!r}: label it Data source"


def _template(dashboard, name):
    v = variable(dashboard, name)
    if v is None:
        yield f"has no variable {name!r}: add it"
        return
    if v.get("datasource", {}).get("uid") not in ("$datasource", "${datasource}"):
        yield f"variable {name!r}: set its data source to ${{datasource}}"
    if v["type"] != "query":
        yield f"variable {name!r}: make it a query"
    if v.get("label") != name.title():
        yield f"variable {name!r}: label it {name.title()}"
    if not v.get("multi"):
        yield f"variable {name!r}: let it take several values"
    if v.get("allValue") != ".+":
        yield f"variable {name!r}: set its allValue to .+"


def template_job_rule(dashboard):
    yield from _template(dashboard, "job")


def template_instance_rule(dashboard):
    yield from _template(dashboard, "instance")


def template_label_promql_rule(dashboard):
    for v in dashboard["templating"]["list"]:
        if v["type"] != "query":
            continue
        found = re.fullmatch(r"(label_names|label_values|metrics|query_result)\((.+)\)", v["query"])
        if not found or not selectors(found[2]):
            yield f"variable {v['name']!r}: {v['query']!r} asks for no labels; write label_values(metric{{…}}, label)"


def template_on_time_change_reload_rule(dashboard):
    for v in dashboard["templating"]["list"]:
        if v["type"] == "query" and v.get("refresh") != 2:
            yield f"variable {v['name']!r}: set its refresh to 2, when the time range changes"


def panel_datasource_rule(_dashboard, panel):
    if panel["type"] in PANELS and panel.get("datasource", {}).get("uid") not in ("$datasource", "${datasource}"):
        yield "set its data source to ${datasource}"


def panel_title_description_rule(_dashboard, panel):
    for wanted in ("title", "description"):
        if not panel.get(wanted):
            yield f"give it a {wanted}"


def panel_units_rule(_dashboard, panel):
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    if panel["type"] in PANELS and "mappings" not in defaults and defaults.get("unit") not in UNITS:
        yield f"its unit is {defaults.get('unit')!r}: take one of {sorted(UNITS)}"


def panel_no_targets_rule(_dashboard, panel):
    if not panel.get("targets"):
        yield "it asks for nothing: give it a target"


def target_rate_interval_rule(_dashboard, panel, target):
    if panel["type"] not in WITH_QUERIES:
        return
    for s in selectors(target["expr"]):
        function = s.functions[-1] if s.functions else ""
        if s.range == "$__rate_interval" and function not in FUNCTIONS:
            yield f"$__rate_interval outside of rate: {s.name}"
        if function in ("rate", "irate") and s.range != "$__rate_interval":
            yield f"{function} over {s.range}: use $__rate_interval"


def _matcher(target, label):
    for s in selectors(target["expr"]):
        if not s.has(label, "=~", f"${label}"):
            yield f'{s.name}: add {label}=~"${label}"'


def target_job_rule(_dashboard, _panel, target):
    yield from _matcher(target, "job")


def target_instance_rule(_dashboard, _panel, target):
    yield from _matcher(target, "instance")


def target_counter_agg_rule(_dashboard, _panel, target):
    for s in selectors(target["expr"]):
        if s.name.endswith("_total") and not (s.range and s.functions and s.functions[-1] in FUNCTIONS):
            yield f"the counter {s.name} is read without rate, irate or increase"


def uneditable_dashboard(dashboard):
    if dashboard.get("editable") is not False:
        yield "it can be edited: set editable to false"


DASHBOARD_RULES = {
    "template-datasource-rule": template_datasource_rule,
    "template-job-rule": template_job_rule,
    "template-instance-rule": template_instance_rule,
    "template-label-promql-rule": template_label_promql_rule,
    "template-on-time-change-reload-rule": template_on_time_change_reload_rule,
    "uneditable-dashboard": uneditable_dashboard,
}
PANEL_RULES = {
    "panel-datasource-rule": panel_datasource_rule,
    "panel-title-description-rule": panel_title_description_rule,
    "panel-units-rule": panel_units_rule,
    "panel-no-targets-rule": panel_no_targets_rule,
}
# target-promql-rule asks promtool, for all expressions at once: see check.py.
TARGET_RULES = {
    "target-rate-interval-rule": target_rate_interval_rule,
    "target-job-rule": target_job_rule,
    "target-instance-rule": target_instance_rule,
    "target-counter-agg-rule": target_counter_agg_rule,
}


def lint(name, dashboard):
    """What the linter would say of a dashboard: rule, place, remedy."""
    for rule, function in DASHBOARD_RULES.items():
        yield from (f"{name}: {rule}: {problem}" for problem in function(dashboard))
    for panel in panels(dashboard):
        where = f"{name}: panel {panel.get('title')!r}"
        for rule, function in PANEL_RULES.items():
            yield from (f"{where}: {rule}: {problem}" for problem in function(dashboard, panel))
        for target in panel.get("targets", []):
            for rule, function in TARGET_RULES.items():
                yield from (f"{where}, query {target['refId']}: {rule}: {problem}" for problem in function(dashboard, panel, target))
