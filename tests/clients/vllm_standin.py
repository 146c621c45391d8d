"""A stand-in for vLLM. What it says comes from a Retune behind it; how it says it is vLLM's, and now and then worse.

The shapes are those of vLLM's chat_completion/serving.py, completion/serving.py, models/serving.py and error_response.py. Beside what
the newest version does, older ones are in it: errors without `error` around them, the role in every piece, empty lists and nulls
where nothing is meant. A request whose text has one of the words of `HABITS` in it gets that trouble.
"""

import contextlib
import http.client
import http.server
import itertools
import json
import os
import sys
import threading
import time
import urllib.parse
import uuid

BASE = "stand-in/pocket"
CONTEXT = 1024
END_OF_TURN = "<|im_end|>"
HABITS = {
    "no usage": "it tells no usage",
    "in one piece": "it answers with JSON, though a stream was asked for",
    "give up": "it ends a begun answer with `abort`",
    "break down": "it ends a begun answer with an error",
    "be away": "it answers 503 before it begins",
}
# Of a request; what vLLM does not know it ignores.
KNOWN = (
    "messages prompt frequency_penalty presence_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens seed stop "
    "temperature top_p tools tool_choice response_format"
).split()


class Refusal(Exception):
    """An error in vLLM's words; `code` is a number there."""

    def __init__(self, status, kind, message, param=None):
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": kind, "param": param, "code": status}


class Vllm(http.server.ThreadingHTTPServer):
    """One server, with what it has loaded."""

    daemon_threads = True

    def __init__(self, behind):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind = urllib.parse.urlsplit(behind).netloc
        # Adapters: the path that each came from, and its name behind.
        self.loras = {}
        self.counter = itertools.count()

    def handle_error(self, request, client_address):
        # Whoever leaves may do so.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def ask(self, method, path, body=None):
        """A response of the Retune behind, and the connection that it comes by."""
        connection = http.client.HTTPConnection(self.behind, timeout=120)
        connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
        return connection.getresponse(), connection


class Handler(http.server.BaseHTTPRequestHandler):
    """A connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/v1/models":
            self.say(200, {"object": "list", "data": models(self.server.loras)})
        else:
            self.say(404, {"detail": "Not Found"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        routes = {
            "/v1/chat/completions": self.answer,
            "/v1/completions": self.answer,
            "/v1/load_lora_adapter": self.load,
            "/v1/unload_lora_adapter": self.unload,
        }
        route = routes.get(self.path)
        if route is None:
            # FastAPI's own; there is no /tokenize here either.
            return self.say(404, {"detail": "Not Found"})
        try:
            route(body)
        except Refusal as refusal:
            self.say(refusal.status, shaped(refusal.error, next(self.server.counter)))

    def say(self, status, body):
        text = isinstance(body, str)
        data = (body if text else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain" if text else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def load(self, body):
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            raise Refusal(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.server.loras:
            hint = "If you want to load the adapter in place, set 'load_inplace' to True."
            raise Refusal(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded. {hint}")
        if not os.path.isfile(os.path.join(path, "adapter_config.json")):
            raise Refusal(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        response, connection = self.server.ask("POST", "/admin/adapters", {"task": "triage", "folder": path})
        with contextlib.closing(connection):
            item = json.load(response)
        if response.status not in (200, 201):
            raise Refusal(500, "InternalServerError", item["error"]["message"])
        self.server.loras[name] = (path, item["name"])
        self.say(200, f"Success: LoRA adapter '{name}' added successfully.")

    def unload(self, body):
        name = body.get("lora_name")
        if self.server.loras.pop(name, None) is None:
            raise Refusal(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        self.say(200, f"Success: LoRA adapter '{name}' removed successfully.")

    def answer(self, body):
        text = body["prompt"] if "prompt" in body else " ".join(str(message["content"]) for message in body["messages"])
        habits = {habit for habit in HABITS if f"[{habit}]" in text}
        if "be away" in habits:
            raise Refusal(503, "ServiceUnavailableError", "The engine is asleep.")
        response, connection = self.server.ask("POST", self.path, self.asked(body))
        with contextlib.closing(connection):
            if response.status != 200:
                raise refusal(json.load(response)["error"], body)
            answer = Answer(body, habits, self.path)
            pieces = answer.pieces(events(response))
            if "in one piece" in habits:
                self.say(200, answer.whole(list(pieces)))
            else:
                self.stream(pieces)

    def asked(self, body):
        """What is asked behind."""
        if not body.get("stream") or body.get("n", 1) != 1:
            raise Refusal(501, "NotImplementedError", "this stand-in streams one answer at a time")
        model = body["model"]
        if model != BASE and model not in self.server.loras:
            raise Refusal(404, "NotFoundError", f"The model `{model}` does not exist.", "model")
        asked = {key: body[key] for key in KNOWN if key in body}
        asked["model"] = "pocket" if model == BASE else self.server.loras[model][1]
        if chooses(body):
            # Its model would call something; the one behind has to be told so.
            asked["tool_choice"] = "required"
        return asked | {"stream": True, "stream_options": {"include_usage": True}}

    def stream(self, pieces):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        # Lines end in either way, and what is sent is cut anywhere.
        odd = next(self.server.counter) % 2
        end = "\r\n" if odd else "\n"
        texts = itertools.chain(pieces, [None])
        for i, piece in enumerate(texts):
            text = "[DONE]" if piece is None else json.dumps(piece)
            comment = f": ping{end}{end}" if odd and i == 1 else ""
            data = f"{comment}data: {text}{end}{end}".encode()
            for at in range(0, len(data), 101):
                part = data[at : at + 101]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")


class Answer:
    """One answer, from the events behind to those that vLLM sends."""

    def __init__(self, body, habits, path):
        self.body, self.habits = body, habits
        self.chat = path == "/v1/chat/completions"
        self.chooses = chooses(body)
        self.call_id = f"chatcmpl-tool-{uuid.uuid4().hex}"
        self.envelope = {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": int(time.time()),
            "model": body["model"],
        }

    def pieces(self, events):
        if self.chat:
            yield self.piece({"role": "assistant", "content": ""})
        usage = None
        for event in events:
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                yield from self.choice(choice)
                if self.chat and choice["delta"].get("content") or choice.get("text"):
                    if "give up" in self.habits:
                        yield self.piece({"content": ""}, finish="abort")
                        return
                    if "break down" in self.habits:
                        error = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": None, "code": 500}
                        yield {"error": error}
                        return
        wanted = (self.body.get("stream_options") or {}).get("include_usage")
        if wanted and "no usage" not in self.habits:
            yield self.envelope | {"choices": [], "usage": usage | {"prompt_tokens_details": None}}

    def choice(self, choice):
        """Of one piece behind none, or the one that it is here."""
        finish, logprobs = choice["finish_reason"], choice["logprobs"]
        if not self.chat:
            if finish == "stop" and self.body.get("logprobs") is not None:
                logprobs = {"tokens": [END_OF_TURN], "token_logprobs": [-0.01], "top_logprobs": [{END_OF_TURN: -0.01}], "text_offset": [0]}
            yield self.piece(choice["text"], logprobs, finish)
            return
        delta = choice["delta"]
        if "role" in delta:
            return
        if finish == "stop" and self.body.get("logprobs"):
            # The end of the turn is one of its tokens.
            end = {"token": END_OF_TURN, "logprob": -0.01, "bytes": list(END_OF_TURN.encode())}
            top = [end] * min(1, self.body.get("top_logprobs", 0))
            logprobs = {"content": [end | {"top_logprobs": top}]}
        if finish:
            finish = "tool_calls" if finish == "stop" and self.chooses else finish
            yield self.piece({"content": ""}, sampled_first(logprobs), finish)
        elif calls := delta.get("tool_calls"):
            for call in calls:
                if "id" in call:
                    call["id"] = self.call_id
            yield self.piece({"tool_calls": calls}, sampled_first(logprobs))
        else:
            yield self.piece({"role": "assistant", "tool_calls": []} | delta, sampled_first(logprobs))

    def piece(self, said, logprobs=None, finish=None):
        choice = {"index": 0, "logprobs": logprobs, "finish_reason": finish, "stop_reason": None, "token_ids": None}
        if self.chat:
            choice["delta"] = {"reasoning_content": None} | said
        else:
            choice |= {"text": said, "prompt_logprobs": None}
        return self.envelope | {"choices": [choice], "usage": None}

    def whole(self, pieces):
        """All of them as one answer; without usage, as a server that counts nothing has it."""
        choices = [choice for piece in pieces for choice in piece["choices"]]
        if self.chat:
            text = "".join(choice["delta"].get("content") or "" for choice in choices)
            said = {"message": {"role": "assistant", "content": text, "reasoning_content": None, "tool_calls": []}}
        else:
            said = {"text": "".join(choice["text"] for choice in choices)}
        choice = {"index": 0, "logprobs": None, "finish_reason": choices[-1]["finish_reason"], "stop_reason": None} | said
        rest = {"object": "chat.completion", "usage": None, "prompt_logprobs": None, "kv_transfer_params": None}
        return self.envelope | {"choices": [choice]} | rest


def chooses(body):
    """Whether the model may call something of its own choice."""
    return bool(body.get("tools")) and body.get("tool_choice", "auto") == "auto"


def sampled_first(logprobs):
    """vLLM has the token that was drawn first among the likeliest ones, whatever its probability, and cuts the last one off for it."""
    for token in (logprobs or {}).get("content") or []:
        drawn = {key: token[key] for key in ("token", "logprob", "bytes")}
        top = token["top_logprobs"]
        others = [other for other in top if other["bytes"] != drawn["bytes"]]
        token["top_logprobs"] = [drawn, *others][: len(top)]
    return logprobs


def events(response):
    """The data of the events behind."""
    for line in response:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def refusal(error, body):
    """What the Retune behind refuses, as vLLM would."""
    message, param = error["message"], error["param"]
    if error["code"] == "context_length_exceeded":
        room = CONTEXT - body["max_tokens"]
        message = (
            f"You passed {CONTEXT + 1} input tokens and requested {body['max_tokens']} output tokens. However, the model's context length "
            f"is only {CONTEXT} tokens, resulting in a maximum input length of {room} tokens. Please reduce the length of the input "
            f"prompt. (parameter=input_tokens, value={CONTEXT + 1})"
        )
        param = "input_tokens"
    elif param == "response_format":
        message, param = f"Failed to transform json schema into a grammar: {message}", None
    return Refusal(400, "BadRequestError", message, param)


def shaped(error, count):
    """An error in the newer shape or the older one, in turns."""
    return {"error": error} if count % 2 else {"object": "error"} | error


def models(loras):
    def card(name, root, parent):
        permission = {"id": f"modelperm-{uuid.uuid4().hex}", "object": "model_permission", "allow_sampling": True, "group": None}
        length = None if parent else CONTEXT
        one = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "vllm", "root": root, "parent": parent}
        return one | {"max_model_len": length, "permission": [permission]}

    return [card(BASE, BASE, None)] + [card(name, path, BASE) for name, (path, _) in loras.items()]


@contextlib.contextmanager
def serve(behind):
    """One on a free port; gives its address."""
    with Vllm(behind) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
