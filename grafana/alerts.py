#!/usr/bin/env python3
"""Makes Grafana-managed alert rules of Prometheus' rules, which stay the source of truth.

    alerts.py            writes provisioning/alerting/rules.yml
    alerts.py --check    exit code 1 where that file is not what this would write

Where Prometheus with an Alertmanager calls people, these copies are not needed: with both, everybody is called twice. What is recorded
(prometheus/rules/recording.yml) has to be evaluated by Prometheus in either case.

Each rule asks Prometheus for the alert's expression, and is true for every series that comes back, whatever its value: a server that is
down is `up == 0`. No series is no alert. In texts {{ $labels.x }} becomes {{ .Labels.x }} and {{ $value }} becomes {{ .Values.A.Value }}:
the same to Grafana, without a $, which some of its versions take for a variable of the environment. Python's standard library alone.
"""

import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
RULES = HERE / "prometheus" / "rules"
TARGET = HERE / "provisioning" / "alerting" / "rules.yml"
# As provisioning/datasources/prometheus.yml names it.
SOURCE = "prometheus"
# Of Grafana's rules: a multiple of the ten seconds that its scheduler counts in.
INTERVAL = "30s"


class Unreadable(Exception):
    """A rule file uses YAML that `read` does not know."""


def read(text, name):
    """The rules of a file, as dictionaries. Knows the YAML that rule files here are written in: mappings, lists of mappings, plain and
    "quoted" scalars, and scalars folded by >-; refuses everything else."""
    lines = [(number, len(line) - len(line.lstrip()), line.strip()) for number, line in enumerate(text.splitlines(), 1)
             if line.strip() and not line.lstrip().startswith("#")]
    value, rest = _block(lines, 0, name)
    if rest:
        raise Unreadable(f"{name}:{rest[0][0]}: {rest[0][2]!r} is less indented than what it follows")
    return [rule for group in value["groups"] for rule in group["rules"]]


def _block(lines, indent, name):
    """The mapping or list that begins at `indent`, and the lines behind it."""
    if lines and lines[0][2].startswith("- "):
        items = []
        while lines and lines[0][1] == indent and lines[0][2].startswith("- "):
            number, _, text = lines[0]
            item, lines = _block([(number, indent + 2, text[2:]), *lines[1:]], indent + 2, name)
            items.append(item)
        return items, lines
    mapping = {}
    while lines and lines[0][1] == indent:
        number, _, text = lines[0]
        found = re.match(r"([A-Za-z_]+):(?: (.*))?$", text)
        if not found:
            raise Unreadable(f"{name}:{number}: {text!r} is no `key: value`")
        key, scalar, lines = found[1], found[2], lines[1:]
        if scalar == ">-":
            folded = []
            while lines and lines[0][1] > indent:
                folded.append(lines[0][2])
                lines = lines[1:]
            mapping[key] = " ".join(folded)
        elif scalar is None:
            if not lines or lines[0][1] <= indent:
                raise Unreadable(f"{name}:{number}: nothing below {key!r}")
            mapping[key], lines = _block(lines, lines[0][1], name)
        else:
            mapping[key] = _scalar(scalar, f"{name}:{number}")
    return mapping, lines


def _scalar(text, where):
    if text.startswith('"'):
        return json.loads(text)
    if text[0] in "'{[&*!|>%@`" or " #" in text or ": " in text:
        raise Unreadable(f"{where}: write {text!r} in double quotes")
    return text


def alerts():
    """All alerts of Prometheus' rules."""
    return [rule for path in sorted(RULES.glob("*.yml")) for rule in read(path.read_text(), path.name) if "alert" in rule]


def text_for_grafana(text):
    def action(found):
        inner = found[1].replace("$labels.", ".Labels.").replace("$value", ".Values.A.Value")
        assert "$" not in inner, f"{found[0]}: Grafana has no such variable"
        return "{{" + inner + "}}"
    return re.sub(r"\{\{(.*?)\}\}", action, text)


def grafana_rule(rule):
    words = re.findall(r"[A-Z][a-z]*", rule["alert"])
    source = {"type": "prometheus", "uid": SOURCE}
    expression = {"type": "__expr__", "uid": "__expr__"}
    return {
        "uid": "-".join(words).lower(),
        "title": rule["alert"],
        "condition": "B",
        "data": [
            {"refId": "A", "relativeTimeRange": {"from": 600, "to": 0}, "datasourceUid": SOURCE,
             "model": {"refId": "A", "datasource": source, "expr": rule["expr"], "instant": True, "range": False}},
            {"refId": "B", "relativeTimeRange": {"from": 600, "to": 0}, "datasourceUid": "__expr__",
             "model": {"refId": "B", "datasource": expression, "type": "math", "expression": "is_number($A)"}},
        ],
        "noDataState": "OK",
        "execErrState": "Error",
        "for": rule.get("for", "0s"),
        "labels": rule["labels"],
        "annotations": {key: text_for_grafana(text) for key, text in rule["annotations"].items()},
    }


def yaml(value, indent=0):
    """`value` as lines of YAML; strings as JSON has them, which YAML reads."""
    pad = " " * indent
    if isinstance(value, list):
        for item in value:
            first, *others = yaml(item, indent + 2)
            yield pad + "- " + first.lstrip()
            yield from others
        return
    for key, item in value.items():
        if isinstance(item, (dict, list)):
            yield f"{pad}{key}:"
            yield from yaml(item, indent + 2)
        else:
            yield f"{pad}{key}: {json.dumps(item, ensure_ascii=False)}"


def made():
    """What provisioning/alerting/rules.yml has to hold."""
    groups = [{"orgId": 1, "name": "retune", "folder": "Retune", "interval": INTERVAL, "rules": [grafana_rule(rule) for rule in alerts()]}]
    head = "# Made by grafana/alerts.py of grafana/prometheus/rules: change those, and run it. Grafana reads this from\n" \
           "# /etc/grafana/provisioning/alerting. Leave it out where Prometheus' own Alertmanager calls people.\n"
    return head + "\n".join(yaml({"apiVersion": 1, "groups": groups})) + "\n"


def main():
    if sys.argv[1:] == ["--check"]:
        if not TARGET.exists() or TARGET.read_text() != made():
            print(f"{TARGET.relative_to(HERE.parent)} is not what grafana/alerts.py makes of the rules: run it", file=sys.stderr)
            return 1
    elif sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    else:
        TARGET.write_text(made())
    return 0


if __name__ == "__main__":
    sys.exit(main())
