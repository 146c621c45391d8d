"""langchain-openai and instructor, unmodified, against a real Retune.

    pip install -r tests/clients/requirements-frameworks.txt
    python tests/clients/frameworks.py --retune target/release/retune
"""

import typing

import instructor
import openai
import pydantic
from langchain_openai import ChatOpenAI
from server import arguments, server

QUESTION = "I was charged twice for order 4711, please send one payment back."


class Complaint(pydantic.BaseModel):
    """What a customer wants."""

    team: typing.Literal["billing", "shipping"]
    urgent: bool


def langchain(url):
    model = ChatOpenAI(base_url=f"{url}/v1", api_key="any", model="triage", temperature=0, max_retries=0)
    answer = model.invoke(QUESTION)
    assert answer.content and answer.response_metadata["model_name"] == "triage@base", answer
    assert answer.usage_metadata["total_tokens"] > 0
    assert "".join(chunk.content for chunk in model.stream(QUESTION)) == answer.content
    for method in ("json_schema", "function_calling"):
        parsed = model.with_structured_output(Complaint, method=method).invoke(QUESTION)
        assert isinstance(parsed, Complaint), parsed
    called = model.bind_tools([Complaint], tool_choice="Complaint").invoke(QUESTION)
    assert called.tool_calls[0]["name"] == "Complaint", called
    assert len(model.batch([QUESTION] * 3)) == 3


def instructs(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        patched = instructor.from_openai(client, mode=mode)
        parsed = patched.chat.completions.create(
            model="triage", messages=[{"role": "user", "content": QUESTION}], response_model=Complaint, max_retries=0
        )
        assert isinstance(parsed, Complaint), parsed


def main():
    with server(arguments(__doc__).retune) as url:
        langchain(url)
        instructs(url)
    print("langchain-openai and instructor: invoke, stream, batch, parse, call tools")


if __name__ == "__main__":
    main()
