"""Trains a Retune run in a Kubernetes cluster: a `command` for `trainer = "command"` in retune.toml, where Retune itself has no GPU.

    python3 deploy/trl/submit.py [--job job.yaml] [--namespace NAME] FOLDER

Creates the Job of job.yaml for FOLDER, which has to lie on the volume that the Job mounts, by the same path. The pod's progress goes to
stdout, what else it says to stderr. Exit 0: the Job is complete; 2: the input cannot be trained on; 1: it failed. SIGTERM deletes the Job.
Needs Python alone, and kubectl with the right to create, get and delete Jobs and to read pods and their logs.
"""

import argparse
import json
import re
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

PAUSE = 2


class Kubectl:
    def __init__(self, namespace):
        self.command = ["kubectl", *(["--namespace", namespace] if namespace else [])]

    def __call__(self, *args, **more):
        return subprocess.run([*self.command, *args], stdout=subprocess.PIPE, text=True, **more)

    def delete(self, name, wait):
        # In the foreground the Job is there until its pod has ended: two trainings in one folder must not be.
        return self("delete", "job", name, "--ignore-not-found", "--cascade=foreground", f"--wait={wait}")

    def result(self, name):
        """None while it runs; else the exit code, and why."""
        found = self("get", "job", name, "--ignore-not-found", "--output=json")
        if found.returncode != 0:
            # The cluster may be there again soon; kubectl has said what is wrong.
            return None
        if not found.stdout.strip():
            return 1, "somebody deleted it"
        for condition in json.loads(found.stdout).get("status", {}).get("conditions", []):
            if condition["status"] == "True" and condition["type"] == "Complete":
                return 0, "complete"
            if condition["status"] == "True" and condition["type"] == "Failed":
                code = 2 if condition.get("reason") == "PodFailurePolicy" else 1
                return code, f"{condition.get('reason')}: {condition.get('message')}"
        return None

    def relay(self, name, seen):
        """The pod's log until it ends or the connection does. A pod mixes both outputs: progress is known by its shape."""
        logs = subprocess.Popen([*self.command, "logs", "--follow", f"job/{name}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            for line in logs.stdout:
                # A log that is followed anew begins anew.
                if line not in seen:
                    seen.add(line)
                    print(line, end="", flush=True, file=sys.stdout if line.startswith('{"step":') else sys.stderr)
        finally:
            logs.kill()
            logs.wait()


def stop(*_):
    raise SystemExit(143)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--job", type=Path, default=Path(__file__).with_name("job.yaml"))
    parser.add_argument("--namespace")
    args = parser.parse_args()
    folder = args.folder.resolve()
    try:
        name = f"retune-{json.loads((folder / 'config.json').read_text())['run_id']}"
        # JSON is YAML, whatever is in the path.
        job = string.Template(args.job.read_text()).substitute(name=name, folder=json.dumps(str(folder)))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{folder}/config.json or {args.job}: {type(error).__name__}: {error}")
    if not re.fullmatch("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
        sys.exit(f"{folder}/config.json: {name!r} cannot be a Job's name")
    kubectl = Kubectl(args.namespace)
    signal.signal(signal.SIGTERM, stop)
    try:
        # One that an earlier start left: the checkpoints are in the folder.
        for done in (kubectl.delete(name, wait="true"), kubectl("create", "--filename=-", input=job)):
            if done.returncode != 0:
                sys.exit(f"job/{name} cannot be created: see what kubectl says above")
        print(f"job/{name} waits for its pod; if that takes long: kubectl describe job {name}", file=sys.stderr)
        seen, result = set(), None
        while result is None:
            # Asked first: of a Job that has ended the log is then read to its end.
            result = kubectl.result(name)
            kubectl.relay(name, seen)
            if result is None:
                time.sleep(PAUSE)
    except FileNotFoundError:
        sys.exit("kubectl is not there; install it beside retune")
    except SystemExit as end:
        if end.code == 143:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            kubectl.delete(name, wait="false")
        raise
    code, why = result
    print(f"job/{name}: {why}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
