"""schemathesis asks a real Retune questions made from its own /openapi.json: no server error, no answer that is not described.

    pip install -r tests/clients/requirements.txt
    python tests/clients/conformance.py --retune target/release/retune
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import openai
import pocket
from server import parser, server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# Of each operation and phase; in all some thousands of questions.
EXAMPLES = 150


def reachable(description, adapter, lora, completion, file, job):
    """The description with names that exist, beside one that does not, or most questions would end at an unknown one; short answers."""
    schemas = description["components"]["schemas"]
    models = ["triage", "triage@base", "pocket", adapter]
    for name in ("ChatRequest", "CompletionRequest"):
        properties = schemas[name]["properties"]
        properties["model"] = {"enum": models}
        properties["n"] = {"enum": [None, 1, 2]}
        for limit in ("max_tokens", "max_completion_tokens"):
            if limit in properties:
                properties[limit] = {"enum": [None, 1, 16]}
        # The pocket model has 2,048 tokens.
        properties["logit_bias"]["anyOf"][0]["propertyNames"]["pattern"] = "^[0-9]{1,3}$"
        # Both go together.
        options = {"properties": {"stream": {"const": True}}, "required": ["stream"]}
        schemas[name]["anyOf"] = [options, {"properties": {"stream_options": {"type": "null"}}}]
    completion_request = schemas["CompletionRequest"]["properties"]
    completion_request["prompt"] = {"type": ["string", "array"], "minLength": 1, "minItems": 1, "items": {"type": "string", "minLength": 1}}
    # As `n`, which no schema can say.
    del completion_request["best_of"]
    schemas["Feedback"]["properties"]["completion_id"] = {"enum": [completion, "chatcmpl-nobody"]}
    wanted = description["paths"]["/admin/adapters"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    wanted["properties"] = {"task": {"enum": ["triage", "nobody"]}, "folder": {"enum": [lora, "/nowhere"]}}
    # A job that begins would train until the end of the test.
    schemas["JobRequest"]["properties"] |= {"model": {"enum": ["pocket", "nobody"]}, "training_file": {"const": "file-nobody"}}
    names = {
        "/v1/models/{id}": models,
        "/v1/files/{id}": [file],
        "/v1/files/{id}/content": [file],
        "/v1/fine_tuning/jobs/{id}": [job],
        "/v1/fine_tuning/jobs/{id}/events": [job],
        "/v1/fine_tuning/jobs/{id}/checkpoints": [job],
        "/v1/fine_tuning/jobs/{id}/{action}": [job],
        "/v1/chat/completions/{id}": [completion],
        "/v1/chat/completions/{id}/messages": [completion],
        "/admin/adapters/{name}": ["triage@base", adapter],
        "/admin/adapters/{name}/{action}": ["triage@base", adapter],
    }
    for path, known in names.items():
        for operation in description["paths"][path].values():
            for parameter in operation["parameters"]:
                if parameter["name"] in ("id", "name"):
                    parameter["schema"] = {"enum": [*known, "nobody"]}
    return description


def a_job(url, folder):
    """An uploaded file, and a job that trains on it."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any")
    lines = pathlib.Path(folder, "lines.jsonl")
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    lines.write_text(json.dumps({"messages": messages}))
    file = client.files.create(file=open(lines, "rb"), purpose="fine-tune").id
    return file, client.fine_tuning.jobs.create(training_file=file, model="pocket").id


def main():
    program = parser(__doc__, engine=False).parse_args().retune
    with server(program, RETUNE_ENGINE__MAX_QUEUE="1000") as url, tempfile.TemporaryDirectory() as folder:
        lora = pathlib.Path(folder, "lora")
        lora.mkdir()
        adapter = pocket.bring_lora(url, str(lora))
        question = {"model": "triage", "messages": [{"role": "user", "content": "Where is order 204417?"}]}
        completion = pocket.post(f"{url}/v1/chat/completions", question)["id"]
        with urllib.request.urlopen(f"{url}/openapi.json") as answer:
            description = reachable(json.load(answer), adapter, str(lora), completion, *a_job(url, folder))
        file = pathlib.Path(folder, "openapi.json")
        file.write_text(json.dumps(description))
        # One worker: two threads that parse Python at once can end in a SystemError of Python 3.11's own (python/cpython#106905).
        command = [sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", url, "--checks", CHECKS]
        command += ["--max-examples", str(EXAMPLES), "--seed", "1", "--request-timeout", "120", "--workers", "1"]
        result = subprocess.run(command, cwd=folder).returncode
    sys.exit(result)


if __name__ == "__main__":
    main()
