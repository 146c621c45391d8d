"""Real Retunes for the clients' scripts: with the model inside, and in front of other servers."""

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import vllm_standin

# Which engine answers: the one inside; a second Retune upstream; upstream a server with the habits of vLLM.
ENGINES = ("embedded", "upstream", "vllm")


@contextlib.contextmanager
def engines(program, chosen=ENGINES):
    """The servers' addresses by engine. One model answers behind all of them, so that they have to say the same."""
    with contextlib.ExitStack() as stack:
        inside = stack.enter_context(server(program))

        def in_front_of(url):
            env = {"RETUNE_ENGINE__KIND": "upstream", "RETUNE_ENGINE__URL": url}
            return stack.enter_context(server(program, **env))

        urls = {"embedded": inside}
        if "upstream" in chosen:
            urls["upstream"] = in_front_of(inside)
        if "vllm" in chosen:
            urls["vllm"] = in_front_of(stack.enter_context(vllm_standin.serve(inside)))
        for url in urls.values():
            until_ready(url)
        yield {engine: urls[engine] for engine in chosen}


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


def until_ready(url):
    """Waits until a model answers."""
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/readyz").close()
            return
        except urllib.error.HTTPError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def parser(description, engine=True):
    """What every script is started with; `engine`: whether one can choose what answers."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", help="the built program")
    if engine:
        parser.add_argument("--engine", choices=ENGINES, nargs="+", default=ENGINES, help="what answers; all of them by default")
    return parser


def raises(kind, call):
    """The error that `call` raises, which must be of this kind."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def alike(said):
    """What several engines said of the same must be the same."""
    first, *others = said
    for engine in others:
        for key in said[first].keys() & said[engine].keys():
            one, other = said[first][key], said[engine][key]
            assert one == other, f"{key}: {first} says {one!r}, {engine} says {other!r}"
