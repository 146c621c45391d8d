"""The openai package, unmodified, against a real Retune: all that the chat completions API offers, and the package's own typed errors.

    pip install -r tests/clients/requirements.txt
    python tests/clients/openai_client.py --retune target/release/retune
"""

import asyncio
import json
import typing

import openai
import pydantic
from server import arguments, raises, server

QUESTION = [{"role": "user", "content": "I was charged twice for order 4711, please send one payment back."}]


class Complaint(pydantic.BaseModel):
    """What an answer is parsed into."""

    team: typing.Literal["billing", "shipping"]
    urgent: bool


TRACK = {
    "type": "function",
    "function": {
        "name": "track",
        "description": "Where an order is.",
        "parameters": {
            "type": "object",
            "properties": {"order": {"type": "string", "pattern": "^[0-9]{4}$"}},
            "required": ["order"],
            "additionalProperties": False,
        },
    },
}


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


def asks_for_more(client):
    """Choices, seeds, probabilities, biases, limits, stop strings."""
    ask = {"model": "triage", "messages": QUESTION, "temperature": 1.5, "seed": 5, "n": 2}
    first, second = (client.chat.completions.create(**ask) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices] and len(set(texts)) == 2, texts
    answer = client.chat.completions.create(
        model="triage", messages=QUESTION, temperature=0, logprobs=True, top_logprobs=2, max_completion_tokens=5
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "length" and answer.usage.completion_tokens == 5, answer
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    answer = client.chat.completions.create(
        model="triage",
        messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}],
        stop=[","],
        presence_penalty=0.5,
        frequency_penalty=0.5,
        logit_bias={"70": -100},
        user="u1",
        safety_identifier="s1",
        metadata={"shop": "a"},
        response_format={"type": "text"},
    )
    assert "," not in answer.choices[0].message.content


def parses(client):
    """Structured output into a class, whole and streamed."""
    answer = client.chat.completions.parse(model="triage", messages=QUESTION, response_format=Complaint)
    assert isinstance(answer.choices[0].message.parsed, Complaint), answer
    with client.chat.completions.stream(model="triage", messages=QUESTION, response_format=Complaint) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Complaint)


def calls_tools(client):
    named = {"type": "function", "function": {"name": "track"}}
    for choice, finish in ((named, "stop"), ("required", "stop")):
        answer = client.chat.completions.create(model="triage", messages=QUESTION, tools=[TRACK], tool_choice=choice)
        message = answer.choices[0].message
        call = message.tool_calls[0]
        assert call.function.name == "track" and len(json.loads(call.function.arguments)["order"]) == 4, call
        assert answer.choices[0].finish_reason == finish, answer
    history = QUESTION + [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "lost"}]
    assert client.chat.completions.create(model="triage", messages=history).choices[0].message.content is not None
    with client.chat.completions.stream(model="triage", messages=QUESTION, tools=[TRACK], tool_choice=named) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.tool_calls[0].function.name == "track"


def completes(client):
    prompt = "<|im_start|>user\nWhich month comes after May?<|im_end|>\n<|im_start|>assistant\n"
    answer = client.completions.create(model="pocket", prompt=prompt, temperature=0, logprobs=1)
    assert answer.choices[0].text == "".join(answer.choices[0].logprobs.tokens), answer
    chunks = client.completions.create(model="pocket", prompt=prompt, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def finds_stored(client):
    answer = client.chat.completions.create(model="triage", messages=QUESTION, metadata={"mark": "mine"}, store=True)
    listed = client.chat.completions.list(metadata={"mark": "mine"})
    assert [stored.id for stored in listed] == [answer.id]
    assert client.chat.completions.retrieve(answer.id).choices[0].message.content == answer.choices[0].message.content
    messages = list(client.chat.completions.messages.list(answer.id))
    assert messages[0].content == QUESTION[0]["content"]


def main():
    with server(arguments(__doc__).retune) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        answer = chats(client)
        streams(client, answer)
        lists_models(client)
        gets_typed_errors(client)
        asks_for_more(client)
        parses(client)
        calls_tools(client)
        completes(client)
        finds_stored(client)
        asyncio.run(chats_asynchronously(url))
    print(f"openai {openai.__version__}: chats, streams, parses, calls tools, completes, finds stored, gets typed errors")


if __name__ == "__main__":
    main()
