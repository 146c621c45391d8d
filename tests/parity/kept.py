"""The store that a demo kept, and what is in it."""

import json
import os
import subprocess


def environment(store):
    return os.environ | {"RETUNE_SERVER__LISTEN": "127.0.0.1:0", "RETUNE_STORE__URL": f"file:{store}/store"}


def play(program, store, *arguments):
    """Plays the demo, keeping its store; gives its figures."""
    command = [program, "demo", "--once", "--json", "--store", store, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows(program, store, query):
    done = subprocess.run(
        [program, "ledger", "sql", "--json", query],
        cwd=store,
        env=environment(store),
        stdout=subprocess.PIPE,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def question(row):
    """The user's message in a row's `messages`."""
    messages = row["messages"]
    messages = json.loads(messages) if isinstance(messages, str) else messages
    return next(m["content"] for m in messages if m["role"] == "user")
