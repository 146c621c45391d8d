"""What a PromQL expression selects, as far as the checks here have to know. That it is valid PromQL is promtool's business."""

import re
from dataclasses import dataclass, field

TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|[A-Za-z_:][A-Za-z0-9_:]*|\d[\w.]*|\$\w+|=~|!~|!=|[<>=]=|\S')
KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan", "atan2"}
# Before a list of labels in brackets.
LABELS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
FUNCTIONS = "rate", "irate", "increase"


@dataclass
class Selector:
    """`name{matchers}[range]`, and the functions that it stands in, the innermost last."""
    name: str
    matchers: list = field(default_factory=list)
    range: str = ""
    functions: list = field(default_factory=list)

    def __str__(self):
        return self.name + "{" + ", ".join(f'{label}{operator}"{value}"' for label, operator, value in self.matchers) + "}"

    def has(self, label, operator, value):
        return (label, operator, value) in self.matchers


def selectors(expression):
    """All selectors of an expression, in their order."""
    tokens = TOKEN.findall(expression)
    found, functions, at = [], [], 0
    while at < len(tokens):
        token = tokens[at]
        after = tokens[at + 1] if at + 1 < len(tokens) else ""
        is_name = re.match(r"[A-Za-z_:]", token)
        if token in LABELS:
            at = _behind(tokens, at + 1, ")") if after == "(" else at + 1
        elif token in KEYWORDS:
            at += 1
        elif is_name and after in ("(", *LABELS):
            # An aggregation may have its labels before its bracket: sum by (task) (…).
            at += 1
            if after in LABELS:
                at = _behind(tokens, at + 1, ")")
            functions.append(token)
            at += 1
        elif token == "(":
            functions.append("")
            at += 1
        elif token == ")":
            functions.pop()
            at += 1
        elif is_name or token == "{":
            selector, at = _selector(tokens, at)
            selector.functions = [name for name in functions if name]
            found.append(selector)
        else:
            at += 1
    return found


def _behind(tokens, at, closing):
    return tokens.index(closing, at) + 1


def _selector(tokens, at):
    selector = Selector("" if tokens[at] == "{" else tokens[at])
    at += tokens[at] != "{"
    if tokens[at:at + 1] == ["{"]:
        end = _behind(tokens, at, "}")
        inner = [token for token in tokens[at + 1:end - 1] if token != ","]
        selector.matchers = [(label, operator, value[1:-1]) for label, operator, value in zip(*[iter(inner)] * 3)]
        at = end
    if tokens[at:at + 1] == ["["]:
        end = _behind(tokens, at, "]")
        selector.range = "".join(tokens[at + 1:end - 1])
        at = end
    return selector, at
