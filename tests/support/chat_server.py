"""A local chat-completions endpoint that checks every request against the published schema and misbehaves on order."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jsonschema
from PIL import Image

TURNS_OF_SEEDS = 1000
KEYS = ("instruction_following", "visual_quality", "content_preservation", "motion_consistency")

_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_PICTURE_PART = {
    "type": "object",
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "type": "object",
            "properties": {
                "url": {"type": "string", "pattern": "^(data:image/(jpeg|png|webp|gif);base64,|https?://)"},
                "detail": {"enum": ["auto", "low", "high"]},
            },
            "required": ["url"],
            "additionalProperties": False,
        },
    },
    "required": ["type", "image_url"],
    "additionalProperties": False,
}


def _message(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    content = {"oneOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"oneOf": list(parts)}}]}
    return {
        "type": "object",
        "properties": {"role": {"const": role}, "content": content, "name": {"type": "string"}},
        "required": ["role", "content"],
        "additionalProperties": False,
    }


# The part of the published request schema that such requests can touch; a property that it does not have is a
# fault here, though servers may pass over it.
REQUEST_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "model": {"type": "string", "minLength": 1},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {"oneOf": [_message("system", _TEXT_PART), _message("user", _TEXT_PART, _PICTURE_PART)]},
        },
        "max_tokens": {"type": ["integer", "null"], "minimum": 1},
        "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1},
        "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
        "top_p": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 128},
        "seed": {"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**63 - 1},
        "stop": {"type": ["string", "array", "null"]},
        "stream": {"type": ["boolean", "null"]},
        "response_format": {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"type": {"enum": ["text", "json_object"]}},
                    "required": ["type"],
                    "additionalProperties": False,
                },
                {
                    "type": "object",
                    "properties": {
                        "type": {"const": "json_schema"},
                        "json_schema": {
                            "type": "object",
                            "properties": {
                                "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
                                "description": {"type": "string"},
                                "schema": {"type": "object"},
                                "strict": {"type": ["boolean", "null"]},
                            },
                            "required": ["name"],
                            "additionalProperties": False,
                        },
                    },
                    "required": ["type", "json_schema"],
                    "additionalProperties": False,
                },
            ]
        },
    },
    "required": ["model", "messages"],
    "additionalProperties": False,
}
_VALIDATOR = jsonschema.Draft202012Validator(REQUEST_SCHEMA)


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it."""

    body: dict[str, Any]
    authorization: str | None
    instruction: str
    turn: int
    attempt: int
    pictures: tuple[Image.Image, ...]

    @property
    def format(self) -> str:
        return str(self.body.get("response_format", {"type": "text"})["type"])

    @property
    def is_video(self) -> bool:
        return any("frame 1 of" in text for text in self.texts)

    @property
    def texts(self) -> list[str]:
        system, user = self.body["messages"]
        return [system["content"], *(part["text"] for part in user["content"] if part["type"] == "text")]


@dataclass(frozen=True)
class Reply:
    """What the server does with one request.

    Attributes:
        body: Sent as it is; None hangs until the server stops.
        closes: Whether to close the connection without a word.
        drips: Whether to send a byte now and then, for ever.
    """

    body: bytes | None = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    closes: bool = False
    drips: bool = False


HANG = Reply(body=None)
CLOSE = Reply(closes=True)
DRIP = Reply(drips=True)


def answer(scores: dict[str, Any] | str, **more: Any) -> Reply:
    """A chat completion whose text is the scores."""
    text = scores if isinstance(scores, str) else json.dumps({"observations": "Fine.", **scores})
    choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "message": {"role": "assistant", "content": text}}
    completion = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge",
        "choices": [choice | more],
        "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
    }
    return Reply(json.dumps(completion).encode())


def refuse(status: int, message: str = "no", **headers: str) -> Reply:
    error = {"error": {"message": message, "type": "x", "param": None, "code": None}}
    return Reply(json.dumps(error).encode(), status, {name.replace("_", "-"): text for name, text in headers.items()})


def good(asked: Asked, score: float = 9) -> Reply:
    """An answer with every score that was asked for."""
    return answer(dict.fromkeys(KEYS if asked.is_video else KEYS[:3], score))


class ChatServer:
    """Answers as `behave(request, how many came before)` says; see `serve`.

    Attributes:
        asked: Every request, in order.
        faults: What was wrong with requests; a test that ends with one has failed.
    """

    def __init__(self, behave: Callable[[Asked, int], Reply]) -> None:
        self.behave = behave
        self.asked: list[Asked] = []
        self.faults: list[str] = []
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def questions(self) -> list[tuple[str, int]]:
        """(instruction, turn) of every request, in order."""
        return [(asked.instruction, asked.turn) for asked in self.asked]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    def receive(self, path: str, headers: Any, content: bytes) -> Reply:
        """Checks one request and says what to do with it."""
        try:
            asked = _read_request(path, headers, content)
        except (AssertionError, ValueError, KeyError, jsonschema.ValidationError) as error:
            fault = f"{type(error).__name__}: {str(error)[:500]}"
            self.faults.append(fault)
            return refuse(400, fault)
        with self._lock:
            count = len(self.asked)
            self.asked.append(asked)
        return self.behave(asked, count)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                announced = int(self.headers["Content-Length"])
                content = self.rfile.read(announced)
                if len(content) < announced:  # a command that gives up hangs up in the middle of a request
                    self.close_connection = True
                    return
                reply = outer.receive(self.path, self.headers, content)
                if reply.body is None:
                    outer.stopped.wait(30)
                if reply.body is None or reply.closes:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, text in ({"Content-Type": "application/json"} | reply.headers).items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(1_000_000 if reply.drips else len(reply.body)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the client has gone
                    self.wfile.write(reply.body)
                if reply.drips:
                    self._drip()

            def _drip(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client has gone
                    while not outer.stopped.wait(0.02):
                        self.wfile.write(b" ")

            def log_message(self, *_: Any) -> None:
                return

        return Handler


@contextlib.contextmanager
def serve(behave: Callable[[Asked, int], Reply] = lambda asked, count: good(asked)) -> Iterator[ChatServer]:
    """Runs a server; raises at the end if a request was not what the published schema allows."""
    server = ChatServer(behave)
    server.start()
    try:
        yield server
    finally:
        server.stop()
    assert not server.faults, server.faults


def _read_request(path: str, headers: Any, content: bytes) -> Asked:
    assert path == "/v1/chat/completions", path
    assert headers["Content-Type"] == "application/json", headers["Content-Type"]
    body = json.loads(content)
    _VALIDATOR.validate(body)
    response_format = body.get("response_format", {})
    if response_format.get("type") == "json_schema":
        jsonschema.Draft202012Validator.check_schema(response_format["json_schema"]["schema"])
    user = body["messages"][-1]["content"]
    closing = user[-1]["text"]
    found = re.search(r"<instruction>\n(.*)\n</instruction>", closing, re.DOTALL)
    assert found, closing
    pictures = [part["image_url"]["url"] for part in user if part["type"] == "image_url"]
    return Asked(
        body=body,
        authorization=headers["Authorization"],
        instruction=found.group(1),
        turn=body["seed"] % TURNS_OF_SEEDS,
        attempt=body["seed"] // TURNS_OF_SEEDS,
        pictures=tuple(_picture(url) for url in pictures),
    )


def _picture(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64", head
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=["JPEG"])
    image.load()
    return image
