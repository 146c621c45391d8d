"""JSON Schema, as much of it as grafana-schema.json uses; a keyword that it does not know is an error and no silent pass."""

import json
import pathlib

SCHEMA = json.loads((pathlib.Path(__file__).resolve().parent / "grafana-schema.json").read_text())
DEFINITIONS = SCHEMA["definitions"]
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "number": (int, float), "null": type(None)}
KEYWORDS = {"$ref", "additionalProperties", "anyOf", "const", "enum", "items", "properties", "required", "type"}


def problems(value, schema=SCHEMA, at=""):
    """What of `value` breaks `schema`, each with the path to it."""
    unknown = set(schema) - KEYWORDS - {"$schema", "$comment", "definitions"}
    assert not unknown, f"grafana-schema.json uses {unknown}, which schema.py does not know"
    if "$ref" in schema:
        yield from problems(value, DEFINITIONS[schema["$ref"].rsplit("/", 1)[1]], at)
    if "anyOf" in schema:
        tried = [list(problems(value, choice, at)) for choice in schema["anyOf"]]
        if all(tried):
            # The choice that it most resembles tells most.
            yield from min(tried, key=len)
    if "const" in schema and value != schema["const"]:
        yield f"{at}: {value!r} should be {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    if "type" in schema and not _is(value, schema["type"]):
        yield f"{at}: {json.dumps(value)[:60]} should be of type {schema['type']}"
    elif isinstance(value, dict):
        yield from _object(value, schema, at)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from problems(item, schema.get("items", {}), f"{at}[{number}]")


def panel_problems(panel):
    """What of a panel's options its plugin does not know."""
    custom = panel.get("fieldConfig", {}).get("defaults", {}).get("custom")
    for part, value in (("options", panel.get("options")), ("custom", custom)):
        if value is None:
            continue
        definition = DEFINITIONS.get(f"{panel['type']}:{part}")
        if definition is None:
            yield f"{part}: grafana-schema.json has no type of {panel['type']!r}"
        else:
            yield from problems(value, definition, part)


def _is(value, types):
    types = types if isinstance(types, list) else [types]
    # To Python true is a number, to JSON it is none.
    return any(isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in types)


def _object(value, schema, at):
    known = schema.get("properties", {})
    for name in schema.get("required", []):
        if name not in value:
            yield f"{at}: lacks {name!r}"
    others = schema.get("additionalProperties", {})
    for name, item in value.items():
        if name in known:
            yield from problems(item, known[name], f"{at}.{name}")
        elif others is False:
            yield f"{at}: Grafana knows no {name!r} here"
        else:
            yield from problems(item, others, f"{at}.{name}")
