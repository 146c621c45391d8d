"""A server in a folder of its own, for the tests of stores that fail."""

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request


class Machine:
    """A folder of its own, as another machine has, and a server in it."""

    def __init__(self, retune, folder, environment):
        folder.mkdir()
        self.retune, self.folder, self.child = retune, folder, None
        self.env = os.environ | {
            "RETUNE_SERVER__LISTEN": "127.0.0.1:0",
            "RETUNE_STORE__LOCAL": str(folder / "local"),
            "RETUNE_STORE__APPEND_SECONDS": "0.5",
            **environment,
        }

    def start(self):
        self.log = open(self.folder / "log", "a")
        self.child = subprocess.Popen(
            [self.retune, "serve", "--json"], cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        line = self.child.stdout.readline()
        assert line, (self.folder / "log").read_text()
        self.url = json.loads(line)["listening"]
        until(lambda: self.get("/readyz")[0] == 200, "a model answers")
        return self

    def kill(self, how=signal.SIGKILL):
        self.child.send_signal(how)
        return self.child.wait(timeout=120)

    def get(self, path):
        return self.send(urllib.request.Request(self.url + path))

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        return self.send(request)

    @staticmethod
    def send(request):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body, is_json = answer.read(), "json" in answer.headers.get_content_type()
                return answer.status, json.loads(body or b"null") if is_json else body
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def ask(self, text, model="triage", **more):
        body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": text}], **more}
        status, answer = self.post("/v1/chat/completions", body)
        assert status == 200, answer
        return answer["id"]

    def feedback(self, id, rating):
        return self.post("/v1/feedback", {"completion_id": id, "rating": rating})[0]

    def run(self, *args, code=0):
        done = subprocess.run([self.retune, *args], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, f"retune {' '.join(args)}: {done.returncode} {done.stderr}"
        return done.stdout

    def try_to(self, *args):
        return subprocess.run([self.retune, *args], cwd=self.folder, env=self.env, capture_output=True, timeout=120).returncode == 0

    def sql(self, query):
        return [json.loads(line) for line in self.run("ledger", "sql", "--json", query).splitlines()]

    def ids(self):
        rows = self.sql("select request_id, count(*) as n from exchanges group by request_id")
        return {row["request_id"]: row["n"] for row in rows}


def until(true, what, seconds=90):
    give_up = time.monotonic() + seconds
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if true():
                return
        assert time.monotonic() < give_up, f"not within {seconds} s: {what}"
        time.sleep(0.2)
