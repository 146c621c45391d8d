"""The openai package, unmodified, against real Retunes: all that the chat completions API offers, and the package's own typed errors.

    pip install -r tests/clients/requirements.txt
    python tests/clients/openai_client.py --retune target/release/retune

Each engine is asked the same, greedily or with a seed, and all have to say the same: so every parameter arrives upstream.
"""

import asyncio
import json
import tempfile
import typing

import openai
import pocket
import pydantic
from server import alike, engines, parser, raises, server

TEXT = "I was charged twice for order 4711, please send one payment back."
QUESTION = [{"role": "user", "content": TEXT}]
PROMPT = "<|im_start|>user\nWhich month comes after May?<|im_end|>\n<|im_start|>assistant\n"
SCHEMA = {
    "type": "object",
    "properties": {"team": {"enum": ["billing", "shipping"]}, "urgent": {"type": "boolean"}},
    "required": ["team", "urgent"],
    "additionalProperties": False,
}


class Complaint(pydantic.BaseModel):
    """What an answer is parsed into."""

    team: typing.Literal["billing", "shipping"]
    urgent: bool


def tool(name):
    parameters = {
        "type": "object",
        "properties": {"order": {"type": "string", "pattern": "^[0-9]{4}$"}},
        "required": ["order"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": "Where an order is.", "parameters": parameters}}


class Client:
    """What is asked of one engine, and what it said."""

    def __init__(self, url, engine):
        self.url, self.engine = url, engine
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        self.said = {}

    def create(self, **changes):
        return self.openai.chat.completions.create(**({"model": "triage", "messages": QUESTION, "temperature": 0} | changes))

    def texts(self, **changes):
        answer = self.create(**changes)
        return [choice.message.content for choice in answer.choices]

    def keep(self, key, value):
        """What all engines have to say alike."""
        self.said[key] = value
        return value

    def chats(self):
        answer = self.create()
        assert answer.model == "triage@base", answer
        assert answer.choices[0].finish_reason in ("stop", "length"), answer
        assert answer.choices[0].message.content and answer.choices[0].message.refusal is None, answer
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        self.keep("a chat", (answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage.to_dict()))
        return answer

    def streams(self, answer):
        chunks = list(self.create(stream=True, stream_options={"include_usage": True}))
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert said == answer.choices[0].message.content, said
        roles = [chunk.choices[0].delta.role for chunk in chunks if chunk.choices]
        assert roles[0] == "assistant" and not any(roles[1:]), roles
        assert chunks[-1].usage == answer.usage and not chunks[-1].choices, chunks[-1]
        assert chunks[-2].choices[0].finish_reason == answer.choices[0].finish_reason
        assert len({chunk.id for chunk in chunks}) == 1 and len({chunk.created for chunk in chunks}) == 1
        assert all(chunk.usage is None for chunk in chunks[:-1])
        assert all(chunk.usage is None and chunk.choices for chunk in self.create(stream=True))

    async def chats_asynchronously(self):
        async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="any") as client:
            stream = await client.chat.completions.create(model="triage", messages=QUESTION, temperature=0, stream=True)
            async for chunk in stream:
                assert chunk.usage is None
            answers = await asyncio.gather(*(client.chat.completions.create(model="triage", messages=QUESTION) for _ in range(4)))
            assert all(answer.choices[0].message.content for answer in answers)

    def lists_models(self):
        models = [model.id for model in self.openai.models.list()]
        assert models == ["pocket", "triage", "triage@base"], models
        for model in models:
            assert self.openai.models.retrieve(model).object == "model"
        raises(openai.NotFoundError, lambda: self.openai.models.retrieve("nobody"))

    def draws(self):
        """Seeds, choices, temperature, nuclei, penalties, biases."""
        drawn = {"temperature": 1.5, "seed": 5, "n": 2, "max_tokens": 32}
        texts = self.keep("two choices", self.texts(**drawn))
        assert texts == self.texts(**drawn) and texts[0] != texts[1], texts
        chunks = list(self.create(stream=True, **drawn))
        for i, text in enumerate(texts):
            of = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == i]
            assert "".join(choice.delta.content or "" for choice in of) == text, (i, text)
        for key, changes in (
            ("seed", 7),
            ("temperature", 1.0),
            ("top_p", 0.5),
            ("presence_penalty", 2),
            ("frequency_penalty", 2),
        ):
            text = self.keep(key, self.texts(**(drawn | {"n": 1, key: changes})))
            assert text[0] not in texts, (key, text)
        pushed = self.create(logit_bias={"70": 100}, max_tokens=4, logprobs=True).choices[0].logprobs.content
        self.keep("a bias", [token.token for token in pushed])
        assert len(pushed) == 4 and len({token.token for token in pushed}) == 1, pushed

    def tells_probabilities(self):
        for limit, finish in (({"max_completion_tokens": 5}, "length"), ({"max_tokens": 200}, "stop")):
            answer = self.create(logprobs=True, top_logprobs=2, **limit)
            choice = answer.choices[0]
            assert choice.finish_reason == finish, answer
            tokens = choice.logprobs.content
            assert "".join(token.token for token in tokens) == choice.message.content, (choice.message.content, tokens)
            for token in tokens:
                assert bytes(token.bytes).decode() == token.token and len(token.top_logprobs) == 2, token
                assert token.top_logprobs[0].token == token.token and token.logprob <= 0, token
            self.keep(f"probabilities until {finish}", [(token.token, round(token.logprob, 4)) for token in tokens])
            chunks = list(self.create(logprobs=True, top_logprobs=2, stream=True, **limit))
            streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
            assert [token.token for token in streamed] == [token.token for token in tokens]
        assert answer.usage.completion_tokens > 5
        assert self.create(max_tokens=5).usage.completion_tokens == 5
        raises(openai.BadRequestError, lambda: self.create(top_logprobs=2))

    def stops(self):
        whole = self.texts()[0]
        for stop in (",", [",", "never"]):
            answer = self.create(stop=stop)
            assert answer.choices[0].message.content == whole[: whole.index(",")], (answer, whole)
            assert answer.choices[0].finish_reason == "stop"

    def takes_the_rest(self):
        """Parts, roles, and what is kept with an exchange."""
        parts = [{"type": "text", "text": TEXT[:20]}, {"type": "text", "text": TEXT[20:]}]
        text = self.keep("parts", self.texts(messages=[{"role": "user", "content": parts}]))
        kept = {"user": "u1", "safety_identifier": "s1", "metadata": {"shop": "a"}, "store": False}
        assert text == self.texts(response_format={"type": "text"}, parallel_tool_calls=False, **kept)
        history = [{"role": "developer", "content": "Be short."}, *QUESTION, {"role": "assistant", "content": "Yes?"}, *QUESTION]
        assert self.keep("a conversation", self.texts(model="pocket", messages=history))[0] is not None
        for changes, param in (
            ({"prediction": {"type": "content", "content": "a"}}, "prediction"),
            ({"reasoning_effort": "low"}, "reasoning_effort"),
            ({"modalities": ["audio"]}, "modalities"),
        ):
            assert raises(openai.BadRequestError, lambda: self.create(**changes)).param == param

    def parses(self):
        """Structured output: schemas, any object, and into a class, whole and streamed."""
        strict = {"type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": SCHEMA}}
        for model in ("triage", "pocket"):
            text = self.keep(f"a schema, {model}", self.texts(model=model, temperature=1.5, seed=3, response_format=strict))[0]
            assert set(json.loads(text)) == {"team", "urgent"}, text
        text = self.keep("an object", self.texts(response_format={"type": "json_object"}, max_tokens=200))[0]
        assert isinstance(json.loads(text), dict), text
        answer = self.openai.chat.completions.parse(model="triage", messages=QUESTION, response_format=Complaint)
        assert isinstance(answer.choices[0].message.parsed, Complaint), answer
        with self.openai.chat.completions.stream(model="triage", messages=QUESTION, response_format=Complaint) as stream:
            for _ in stream:
                pass
            assert isinstance(stream.get_final_completion().choices[0].message.parsed, Complaint)
        impossible = {"type": "json_schema", "json_schema": {"name": "c", "schema": {"type": "nothing"}}}
        error = raises(openai.BadRequestError, lambda: self.create(response_format=impossible))
        assert error.param == "response_format", error

    def calls_tools(self):
        named = {"type": "function", "function": {"name": "track"}}
        two = [tool("track"), tool("cancel")]
        for tools, choice, finish in (
            (two, named, "stop"),
            ([tool("track")], "required", "stop"),
            (two, "required", "tool_calls"),
        ):
            answer = self.create(tools=tools, tool_choice=choice)
            message = answer.choices[0].message
            called = self.called(message)
            self.keep(f"{len(tools)} tools, {choice}", called)
            assert called[0] in ("track", "cancel") and message.content is None, message
            assert answer.choices[0].finish_reason == finish, answer
        call = message.tool_calls[0]
        history = [*QUESTION, message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "lost"}]
        assert self.keep("a tool's result", self.texts(messages=history))[0] is not None
        with self.openai.chat.completions.stream(model="triage", messages=QUESTION, tools=two, tool_choice=named) as stream:
            for _ in stream:
                pass
            assert self.called(stream.get_final_completion().choices[0].message)[0] == "track"
        assert self.create(tools=two, tool_choice="none").choices[0].message.tool_calls is None
        self.chooses_tools()

    def chooses_tools(self):
        """The pocket model's template tells it nothing of tools; the stand-in for vLLM has a model whose template does."""
        tools = [tool("track")]
        if self.engine != "vllm":
            for free in ({}, {"tool_choice": "auto"}):
                assert raises(openai.BadRequestError, lambda: self.create(tools=tools, **free)).param == "tool_choice"
            return
        answer = self.create(tools=tools)
        assert self.called(answer.choices[0].message)[0] == "track"
        assert answer.choices[0].finish_reason == "tool_calls", answer
        with self.openai.chat.completions.stream(model="triage", messages=QUESTION, tools=tools) as stream:
            for _ in stream:
                pass
            assert self.called(stream.get_final_completion().choices[0].message)[0] == "track"

    @staticmethod
    def called(message):
        (call,) = message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert call.id and call.type == "function" and len(arguments["order"]) == 4, call
        return call.function.name, arguments

    def completes(self):
        def create(**changes):
            return self.openai.completions.create(**({"model": "pocket", "prompt": PROMPT, "temperature": 0} | changes))

        answer = create(logprobs=1)
        first = answer.choices[0]
        assert first.finish_reason == "stop" and first.text == "".join(first.logprobs.tokens), answer
        assert all(token in top for token, top in zip(first.logprobs.tokens, first.logprobs.top_logprobs, strict=True)), first
        self.keep("a raw prompt", (first.text, answer.usage.to_dict()))
        chunks = list(create(stream=True, stream_options={"include_usage": True}))
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == first.text
        assert chunks[-1].usage == answer.usage
        several = create(prompt=[PROMPT, PROMPT], n=2, temperature=1.5, seed=1, max_tokens=8)
        texts = self.keep("raw prompts", [choice.text for choice in several.choices])
        assert len(texts) == 4 and [choice.index for choice in several.choices] == [0, 1, 2, 3]
        stopped = create(stop=first.text[-1:], user="u1").choices[0]
        assert first.text.startswith(stopped.text) and stopped.text != first.text
        assert create(model="triage").choices[0].text == first.text
        for changes, param in (({"echo": True}, "echo"), ({"suffix": "a"}, "suffix"), ({"prompt": [1, 2]}, "prompt")):
            assert raises(openai.BadRequestError, lambda: create(**changes)).param == param

    def finds_stored(self):
        answer = self.create(metadata={"mark": "mine"}, store=True)
        chats = self.openai.chat.completions
        assert [stored.id for stored in chats.list(metadata={"mark": "mine"})] == [answer.id]
        assert chats.retrieve(answer.id).choices[0].message.content == answer.choices[0].message.content
        assert chats.retrieve(answer.id).usage.total_tokens == answer.usage.total_tokens
        assert list(chats.messages.list(answer.id))[0].content == TEXT
        assert len(list(chats.list(limit=20, order="desc"))) > 20
        raises(openai.NotFoundError, lambda: chats.retrieve("chatcmpl-nobody"))

    def gets_typed_errors(self):
        error = raises(openai.NotFoundError, lambda: self.create(model="nobody"))
        assert error.code == "model_not_found" and error.type == "invalid_request_error", error
        for changes, param, code in (
            ({"messages": []}, "messages", None),
            ({"temperature": 3}, "temperature", "decimal_above_max_value"),
            ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
            ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", None),
            ({"logit_bias": {"9999999": 1}}, "logit_bias", None),
            ({"messages": [{"role": "user", "content": "word " * 3000}]}, "messages", "context_length_exceeded"),
        ):
            for stream in (False, True):
                error = raises(openai.BadRequestError, lambda: self.create(stream=stream, **changes))
                assert error.param == param and error.type == "invalid_request_error", (error, param)
                assert code is None or error.code == code, error
        error = raises(openai.BadRequestError, lambda: self.openai.completions.create(model="pocket", prompt="word " * 3000))
        assert (error.param, error.code) == ("prompt", "context_length_exceeded"), error

    def serves_an_adapter(self):
        """A LoRA brought to the server answers there, wherever its engine is; a second Retune upstream cannot be given any."""
        with tempfile.TemporaryDirectory() as folder:
            name = pocket.bring_lora(self.url, folder)
        if self.engine == "upstream":
            error = raises(openai.ConflictError, lambda: self.create(model=name))
            assert error.code == "adapter_refused" and "load_lora_adapter" in error.message, error
            return
        answer = self.create(model=name, max_tokens=16)
        assert answer.model == name, answer
        self.said["an adapter"] = answer.choices[0].message.content
        # The same words go to the base: it is the weights that make the difference.
        raw = {"prompt": PROMPT, "temperature": 0, "max_tokens": 16}
        ours, bases = (self.openai.completions.create(model=model, **raw).choices[0].text for model in (name, "pocket"))
        assert ours != bases, ours
        self.said["an adapter's raw prompt"] = ours

    def bears_bad_habits(self):
        """What vLLM does, and other servers: no usage, JSON instead of a stream, answers that are given up."""

        def asked(habit):
            return [{"role": "user", "content": f"{TEXT} [{habit}]"}]

        plain = self.create(messages=asked("a habit of none"))
        for habit in ("no usage", "in one piece"):
            answer = self.create(messages=asked(habit))
            assert answer.choices[0].message.content and answer.choices[0].finish_reason in ("stop", "length"), answer
            # Nobody counted the prompt, so that it is estimated.
            assert answer.usage.completion_tokens > 0 and answer.usage.prompt_tokens > plain.usage.prompt_tokens / 4, answer
            chunks = list(self.create(messages=asked(habit), stream=True, stream_options={"include_usage": True}))
            assert chunks[-1].usage == answer.usage, (chunks[-1], answer)
        for habit in ("give up", "break down"):
            error = raises(openai.InternalServerError, lambda: self.create(messages=asked(habit)))
            assert (error.status_code, error.code) == (502, "upstream_error"), error
            stream = self.create(messages=asked(habit), stream=True)
            error = raises(openai.APIError, lambda: list(stream))
            assert error.code == "upstream_error" and "EngineCore" not in error.message, error
        error = raises(openai.InternalServerError, lambda: self.create(messages=asked("be away")))
        assert (error.status_code, error.code) == (503, "upstream_unavailable"), error

    def everything(self):
        answer = self.chats()
        self.streams(answer)
        asyncio.run(self.chats_asynchronously())
        self.lists_models()
        self.draws()
        self.tells_probabilities()
        self.stops()
        self.takes_the_rest()
        self.parses()
        self.calls_tools()
        self.completes()
        self.finds_stored()
        self.gets_typed_errors()
        if self.engine == "vllm":
            self.bears_bad_habits()
        self.serves_an_adapter()
        return self.said


def chooses_by_template(program):
    """With a chat template that knows tools, the model inside may call one of its own choice: here it can say nothing else."""
    track = tool("track")
    call = {
        "type": "object",
        "properties": {"name": {"const": "track"}, "arguments": track["function"]["parameters"]},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "json_schema": {"name": "call", "schema": call}}
    with tempfile.TemporaryDirectory() as folder, server(program, RETUNE_ENGINE__BASE=pocket.with_tools(folder)) as url:
        client = Client(url, "embedded")
        answer = client.create(tools=[track], response_format=format)
        assert client.called(answer.choices[0].message)[0] == "track"
        assert answer.choices[0].finish_reason == "tool_calls", answer
        assert answer.usage.prompt_tokens > client.create().usage.prompt_tokens + 20, answer.usage
        free = client.create(tools=[track], tool_choice="auto", stream=True)
        assert list(free)[-1].choices[0].finish_reason in ("stop", "length", "tool_calls")


def main():
    chosen = parser(__doc__).parse_args()
    with engines(chosen.retune, chosen.engine) as urls:
        said = {engine: Client(url, engine).everything() for engine, url in urls.items()}
    alike(said)
    if "embedded" in said:
        chooses_by_template(chosen.retune)
    what = "chats, streams, draws, parses, calls tools, completes, finds stored, serves an adapter, gets typed errors"
    print(f"openai {openai.__version__}, {', '.join(said)}: {what}")


if __name__ == "__main__":
    main()
