"""A real Retune for the clients' scripts."""

import argparse
import contextlib
import json
import os
import subprocess
import tempfile


@contextlib.contextmanager
def server(program, **env):
    """`retune up` on a free port in a temporary folder; gives its address."""
    with running(program, **env) as (url, _):
        yield url


@contextlib.contextmanager
def running(program, **env):
    """The same with its process id."""
    with tempfile.TemporaryDirectory(prefix="retune-client-") as folder:
        env = os.environ | {"RETUNE_SERVER__LISTEN": "127.0.0.1:0", "RETUNE_STORE__URL": "file:./store"} | env
        child = subprocess.Popen(
            [os.path.abspath(program), "up", "--json", "--stop-with-stdin"],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield json.loads(child.stdout.readline())["listening"], child.pid
        finally:
            child.stdin.close()
            assert child.wait(timeout=60) == 0, "the server did not end well"


def arguments(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", help="the built program")
    return parser.parse_args()


def raises(kind, call):
    """The error that `call` raises, which must be of this kind."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")
