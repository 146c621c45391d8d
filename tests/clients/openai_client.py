"""The openai package, unmodified, against a real Retune: it chats, streams, lists models, and gets its own typed errors.

    pip install -r tests/clients/requirements.txt
    python tests/clients/openai_client.py --retune target/release/retune
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import tempfile

import openai

QUESTION = [{"role": "user", "content": "I was charged twice for order 4711, please send one payment back."}]


@contextlib.contextmanager
def server(program):
    """`retune up` on a free port in a temporary folder; gives its address."""
    with tempfile.TemporaryDirectory(prefix="retune-client-") as folder:
        env = os.environ | {"RETUNE_SERVER__LISTEN": "127.0.0.1:0", "RETUNE_STORE__URL": "file:./store"}
        child = subprocess.Popen(
            [os.path.abspath(program), "up", "--json", "--stop-with-stdin"],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield json.loads(child.stdout.readline())["listening"]
        finally:
            child.stdin.close()
            assert child.wait(timeout=60) == 0, "the server did not end well"


def raises(kind, call):
    """The error that `call` raises, which must be of this kind."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def chats(client):
    answer = client.chat.completions.create(model="triage", messages=QUESTION, temperature=0)
    assert answer.model == "triage@base", answer
    assert answer.choices[0].finish_reason in ("stop", "length"), answer
    assert answer.choices[0].message.content, answer
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    return answer


def streams(client, answer):
    chunks = list(
        client.chat.completions.create(
            model="triage", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == answer.choices[0].message.content, said
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices][0] == "assistant"
    assert chunks[-1].usage == answer.usage and not chunks[-1].choices, chunks[-1]
    assert len({chunk.id for chunk in chunks}) == 1


def lists_models(client):
    models = [model.id for model in client.models.list()]
    assert models == ["pocket", "triage", "triage@base"], models
    assert client.models.retrieve("triage@base").object == "model"
    raises(openai.NotFoundError, lambda: client.models.retrieve("nobody"))


def gets_typed_errors(client):
    def create(**changes):
        return lambda: client.chat.completions.create(**({"model": "triage", "messages": QUESTION} | changes))

    error = raises(openai.NotFoundError, create(model="nobody"))
    assert error.code == "model_not_found" and error.type == "invalid_request_error", error
    error = raises(openai.BadRequestError, create(messages=[]))
    assert error.param == "messages", error
    error = raises(openai.BadRequestError, create(temperature=3))
    assert error.param == "temperature", error
    error = raises(openai.BadRequestError, create(stop=["a"] * 5))
    assert error.param == "stop", error


async def chats_asynchronously(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
        stream = await client.chat.completions.create(model="triage", messages=QUESTION, temperature=0, stream=True)
        async for chunk in stream:
            assert chunk.usage is None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", help="the built program")
    arguments = parser.parse_args()
    with server(arguments.retune) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        answer = chats(client)
        streams(client, answer)
        lists_models(client)
        gets_typed_errors(client)
        asyncio.run(chats_asynchronously(url))
    print(f"openai {openai.__version__}: chats, streams, lists models, gets typed errors")


if __name__ == "__main__":
    main()
