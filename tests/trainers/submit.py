"""deploy/trl/submit.py against a kubectl of the test's own: what it creates, relays, answers and deletes; and job.yaml against Kubernetes' schema.

    pip install kubernetes-validate
    python tests/trainers/submit.py
"""

import argparse
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "deploy/trl"
NAME = "retune-run-0123456789ab"
# Each call is kept; what `get` and `logs` say is in files, one an answer, the last for good.
KUBECTL = """#!{python}
import json, sys, time
from pathlib import Path

here, args = Path(__file__).parent, sys.argv[1:]
with open(here / "calls", "a") as calls:
    calls.write(json.dumps(args) + "\\n")
if "create" in args:
    (here / "created").write_text(sys.stdin.read())
    sys.exit((here / "forbidden").exists())
for what in ("get", "logs"):
    if what in args:
        answers = sorted(here.glob(what + "-*"))
        text = answers[0].read_text()
        if len(answers) > 1:
            answers[0].unlink()
        if text == "unreachable":
            sys.exit(1)
        print(text, end="", flush=True)
        if text.endswith("...\\n"):
            time.sleep(60)
"""
STEPS = [json.dumps({"step": step, "steps": 3, "train_loss": 1 / step}) + "\n" for step in (1, 2, 3)]
RUNNING = json.dumps({"status": {"active": 1}})


def condition(kind, **more):
    conditions = [{"type": "FailureTarget", "status": "True"}, {"type": kind, "status": "True", **more}]
    return json.dumps({"status": {"conditions": conditions}})


class Case:
    def __init__(self, root, name, get=(RUNNING,), logs=("",)):
        self.bin, self.folder = root / f"{name}-bin", root / f"{name} of run"
        self.bin.mkdir()
        self.folder.mkdir()
        (self.folder / "config.json").write_text(json.dumps({"run_id": "run-0123456789ab"}))
        kubectl = self.bin / "kubectl"
        kubectl.write_text(KUBECTL.replace("{python}", sys.executable))
        kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
        for what, answers in (("get", get), ("logs", logs)):
            for number, text in enumerate(answers):
                (self.bin / f"{what}-{number}").write_text(text)

    def start(self, *options, path=None):
        command = [sys.executable, str(SCRIPTS / "submit.py"), *options, str(self.folder)]
        return subprocess.Popen(command, env=os.environ | {"PATH": str(path or self.bin)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def done(self, *options, **more):
        child = self.start(*options, **more)
        out, err = child.communicate(timeout=60)
        return child.returncode, out, err

    def calls(self):
        return [json.loads(line) for line in (self.bin / "calls").read_text().splitlines()]


def complete(root):
    """No pod yet, a cluster that is away for a moment, a stream that breaks; each line once."""
    case = Case(
        root, "complete",
        get=[RUNNING, "unreachable", RUNNING, condition("Complete")],
        logs=["", "Loading weights\n" + STEPS[0], STEPS[0] + STEPS[1], "Loading weights\n" + "".join(STEPS)],
    )  # fmt: skip
    code, out, err = case.done("--namespace", "training")
    assert (code, out) == (0, "".join(STEPS)), (code, out, err)
    assert err.count("Loading weights") == 1 and "complete" in err, err
    calls = case.calls()
    assert all(call[:2] == ["--namespace", "training"] for call in calls), calls
    assert [call[2] for call in calls[:2]] == ["delete", "create"] and "--wait=true" in calls[0], calls
    assert not any("delete" in call for call in calls[1:]), "its logs are to be there for a day"
    created = (case.bin / "created").read_text()
    assert f"\n  name: {NAME}\n" in created and f"- {json.dumps(str(case.folder))}\n" in created and "${" not in created, created
    return created


def failed(root):
    code, out, err = Case(root, "failed", [condition("Failed", reason="BackoffLimitExceeded", message="too many")], [STEPS[0]]).done()
    assert (code, out) == (1, STEPS[0]) and "BackoffLimitExceeded: too many" in err, (code, out, err)
    code, _, err = Case(root, "refused", [condition("Failed", reason="PodFailurePolicy", message="exit code 2")], ["train.jsonl, line 2: not JSON\n"]).done()
    assert code == 2 and "train.jsonl, line 2" in err, (code, err)
    code, _, err = Case(root, "gone", [RUNNING, ""]).done()
    assert code == 1 and "deleted" in err, (code, err)
    case = Case(root, "forbidden")
    (case.bin / "forbidden").touch()
    code, _, err = case.done()
    assert code == 1 and "cannot be created" in err, (code, err)
    code, _, err = Case(root, "without").done(path=root)
    assert code == 1 and err.splitlines() == ["kubectl is not there; install it beside retune"], (code, err)
    case = Case(root, "nothing")
    (case.folder / "config.json").unlink()
    code, _, err = case.done()
    assert code == 1 and "config.json" in err and not (case.bin / "calls").exists(), (code, err)


def stopped(root):
    case = Case(root, "stopped", logs=[STEPS[0] + "...\n"])
    child = case.start()
    assert child.stdout.readline() == STEPS[0]
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=5)
    assert child.returncode == 143, child.returncode
    last = case.calls()[-1]
    assert last[:3] == ["delete", "job", NAME] and "--wait=false" in last, last


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retune-submit-") as folder:
        root = Path(folder)
        created = complete(root)
        failed(root)
        stopped(root)
        (root / "job.yaml").write_text(created)
        validate = [sys.executable, "-m", "kubernetes_validate", "--strict", str(root / "job.yaml")]
        done = subprocess.run(validate, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    print("job.yaml is valid; a Job is created, followed, judged and deleted")


if __name__ == "__main__":
    main()
