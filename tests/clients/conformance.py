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

from server import parser, server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# Of each operation and phase; in all some thousands of questions.
EXAMPLES = 150


def reachable(description):
    """The description with models that exist, or most questions would end at an unknown one; and with few choices each."""
    for name in ("ChatRequest", "CompletionRequest"):
        properties = description["components"]["schemas"][name]["properties"]
        properties["model"] = {"enum": ["triage", "triage@base", "pocket"]}
        properties["n"] = {"enum": [None, 1, 2]}
    return description


def main():
    program = parser(__doc__, engine=False).parse_args().retune
    with server(program, RETUNE_ENGINE__MAX_QUEUE="1000") as url, tempfile.TemporaryDirectory() as folder:
        with urllib.request.urlopen(f"{url}/openapi.json") as answer:
            description = reachable(json.load(answer))
        file = pathlib.Path(folder, "openapi.json")
        file.write_text(json.dumps(description))
        command = [sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", url, "--checks", CHECKS]
        command += ["--max-examples", str(EXAMPLES), "--seed", "1", "--request-timeout", "120", "--workers", "2"]
        result = subprocess.run(command, cwd=folder).returncode
    sys.exit(result)


if __name__ == "__main__":
    main()
