"""Questions on a Ballista cluster get the answers that they get without one.

    python tests/stores/ballista.py --retune target/release/retune --scheduler ballista-scheduler --executor ballista-executor

`retune` is a build with `--features ballista`. One scheduler and two executors are started; both have to have worked.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

ROWS, APPENDS = 6000, 12

QUESTIONS = [
    "select count(*) as n from exchanges",
    'select "user", count(*) as n, min(ts) as first, max(ts) as last from exchanges group by "user" order by n desc, "user"',
    "select e.day, e.adapter, count(*) as n, avg(f.rating) as rating from exchanges e left join feedback f on e.request_id = f.request_id "
    "group by e.day, e.adapter order by e.day, e.adapter",
    "select e.answer, f.correction from exchanges e join feedback f on e.request_id = f.request_id where f.rating = 5 and f.correction is not null "
    "order by e.answer limit 20",
    "select request_id, row_number() over (partition by \"user\" order by ts, request_id) as n from exchanges order by request_id limit 50",
    "select count(*) as n from runs",
    "select count(*) as n from exchanges where request_id not in (select request_id from feedback)",
]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listening(port, child, log):
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert child.poll() is None, log.read_text()[-2000:]
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on {port}: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def cluster(scheduler, executor, folder):
    children = []

    def start(name, program, port, *args):
        log = folder / f"{name}.log"
        env = os.environ | {"RUST_LOG": "info"}
        children.append(subprocess.Popen([program, *args], cwd=folder, env=env, stdout=open(log, "w"), stderr=subprocess.STDOUT))
        listening(port, children[-1], log)

    try:
        port = free_port()
        start("scheduler", scheduler, port, "--bind-host", "127.0.0.1", "--bind-port", str(port))
        for n in (1, 2):
            flight, grpc, work = free_port(), free_port(), folder / f"work-{n}"
            work.mkdir()
            start(
                f"executor-{n}", executor, flight, "--bind-host", "127.0.0.1", "--bind-port", str(flight), "--bind-grpc-port", str(grpc),
                "--scheduler-host", "127.0.0.1", "--scheduler-port", str(port), "--work-dir", str(work), "--concurrent-tasks", "2",
            )
        yield f"df://127.0.0.1:{port}"
    finally:
        for child in children:
            child.kill()
            child.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", required=True)
    parser.add_argument("--scheduler", default="ballista-scheduler")
    parser.add_argument("--executor", default="ballista-executor")
    args = parser.parse_args()
    retune = str(Path(args.retune).resolve())
    folder = Path(tempfile.mkdtemp(prefix="retune-ballista-"))
    env = os.environ | {"RETUNE_STORE__URL": f"file:{folder / 'store'}"}

    def run(*arguments, **more):
        done = subprocess.run([retune, *arguments], cwd=folder, env=env | more, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"retune {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    try:
        for n in range(APPENDS):
            lines = []
            for k in range(ROWS // APPENDS):
                day = f"2026-03-{1 + (n + k) % 9:02}T{k % 24:02}:00:00Z"
                said = [{"role": "user", "content": f"Question {n} {k}?"}, {"role": "assistant", "content": f"Answer {n} {k}."}]
                line = {"task": "triage", "messages": said, "ts": day, "user": f"user-{k % 7}", "adapter": f"triage@{1 + k % 3}"}
                line |= {"rating": 1 + k % 5} if k % 4 else {}
                line |= {"correction": f"Better {n} {k}."} if k % 9 == 0 else {}
                lines.append(json.dumps(line))
            (folder / "logs.jsonl").write_text("\n".join(lines) + "\n")
            run("ledger", "import", "logs.jsonl")
        with cluster(args.scheduler, args.executor, folder) as url:
            for question in QUESTIONS:
                here = run("ledger", "sql", "--json", question)
                there = run("ledger", "sql", "--json", question, RETUNE_QUERY__BALLISTA=url)
                assert here == there and here, f"{question}\n{here[:1000]}\n{there[:1000]}"
            refused = subprocess.run(
                [retune, "ledger", "sql", "drop table exchanges"], cwd=folder, env=env | {"RETUNE_QUERY__BALLISTA": url}, capture_output=True
            )
            assert refused.returncode != 0 and b"only questions" in refused.stderr, refused
        for n in (1, 2):
            worked = len(re.findall(r"(?i)finish|complet", (folder / f"executor-{n}.log").read_text()))
            assert worked > 0, f"executor {n} did nothing: {(folder / f'executor-{n}.log').read_text()[-2000:]}"
        gone = subprocess.run(
            [retune, "ledger", "sql", "select 1"], cwd=folder, env=env | {"RETUNE_QUERY__BALLISTA": url}, capture_output=True, timeout=120
        )
        assert gone.returncode != 0 and b"query.ballista" in gone.stderr, gone
        print(f"{len(QUESTIONS)} questions on two executors: the same answers as without them")
    except BaseException:
        for log in folder.glob("*.log"):
            print(f"== {log.name}\n{log.read_text()[-2000:]}")
        raise
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
