"""langchain-openai and instructor, unmodified, against real Retunes.

    pip install -r tests/clients/requirements-frameworks.txt
    python tests/clients/frameworks.py --retune target/release/retune
"""

import importlib.metadata
import typing

import instructor
import openai
import pydantic
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI
from server import alike, engines, parser, raises

QUESTION = "I was charged twice for order 4711, please send one payment back."
PROMPT = "<|im_start|>user\nWhich month comes after May?<|im_end|>\n<|im_start|>assistant\n"


class Complaint(pydantic.BaseModel):
    """What a customer wants."""

    team: typing.Literal["billing", "shipping"]
    urgent: bool


def langchain(url, engine):
    """What has to be the same, whichever engine answers."""
    at = {"base_url": f"{url}/v1", "api_key": "any", "max_retries": 0}

    def chat(**changes):
        return ChatOpenAI(**at, **({"model": "triage", "temperature": 0} | changes))

    model = chat()
    answer = model.invoke(QUESTION)
    assert answer.content and answer.response_metadata["model_name"] == "triage@base", answer
    assert answer.usage_metadata["total_tokens"] > 0
    chunks = list(chat(stream_usage=True).stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == answer.content
    told = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert len(told) == 1 and told[0]["total_tokens"] == answer.usage_metadata["total_tokens"], told
    parts = HumanMessage([{"type": "text", "text": QUESTION}])
    assert model.invoke([SystemMessage("Be short."), parts]).content == answer.content
    assert [one.content for one in model.batch([QUESTION] * 3)] == [answer.content] * 3

    drawn = chat(temperature=1.5, seed=5, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.5, max_tokens=24, stop=[","])
    text = drawn.invoke(QUESTION).content
    assert text == drawn.invoke(QUESTION).content and "," not in text
    several = chat(temperature=1.5, seed=5, n=2).generate([[HumanMessage(QUESTION)]]).generations[0]
    assert len({one.text for one in several}) == 2, several
    tokens = chat(logprobs=True, top_logprobs=2, max_tokens=5).invoke(QUESTION).response_metadata["logprobs"]["content"]
    assert len(tokens) == 5 and all(len(token["top_logprobs"]) == 2 for token in tokens), tokens

    for method in ("json_schema", "function_calling"):
        parsed = model.with_structured_output(Complaint, method=method).invoke(QUESTION)
        assert isinstance(parsed, Complaint), parsed
    assert isinstance(model.with_structured_output(None, method="json_mode").invoke(QUESTION), dict)
    called = model.bind_tools([Complaint], tool_choice="Complaint").invoke(QUESTION)
    assert called.tool_calls[0]["name"] == "Complaint", called
    result = ToolMessage("done", tool_call_id=called.tool_calls[0]["id"])
    assert isinstance(model.invoke([HumanMessage(QUESTION), called, result]).content, str)
    required = model.bind_tools([Complaint], tool_choice="any").invoke(QUESTION)
    assert required.tool_calls[0]["name"] == "Complaint", required
    free = model.bind_tools([Complaint])
    if engine == "vllm":
        assert free.invoke(QUESTION).tool_calls[0]["name"] == "Complaint"
    else:
        # The pocket model's template tells it nothing of tools.
        assert raises(openai.BadRequestError, lambda: free.invoke(QUESTION)).param == "tool_choice"

    raw = OpenAI(**at, model="pocket", temperature=0)
    text_of_raw = raw.invoke(PROMPT)
    assert text_of_raw and "".join(raw.stream(PROMPT)) == text_of_raw
    raises(openai.NotFoundError, lambda: chat(model="nobody").invoke(QUESTION))
    return {"a chat": answer.content, "drawn": text, "raw": text_of_raw, "choices": [one.text for one in several]}


def instructs(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
    ask = {"model": "triage", "messages": [{"role": "user", "content": QUESTION}], "max_retries": 0}
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        patched = instructor.from_openai(client, mode=mode)
        parsed, answer = patched.chat.completions.create_with_completion(response_model=Complaint, **ask)
        assert isinstance(parsed, Complaint) and answer.usage.total_tokens > 0, parsed
    patched = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    *_, last = patched.chat.completions.create_partial(response_model=Complaint, **ask)
    assert isinstance(last.urgent, bool), last


def main():
    chosen = parser(__doc__).parse_args()
    said = {}
    with engines(chosen.retune, chosen.engine) as urls:
        for engine, url in urls.items():
            said[engine] = langchain(url, engine)
            instructs(url)
    alike(said)
    names = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("langchain-openai", "instructor"))
    print(f"{names}, {', '.join(said)}: invoke, stream, batch, draw, parse, call tools, complete")


if __name__ == "__main__":
    main()
