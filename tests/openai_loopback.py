"""A small OpenAI-compatible server of this process: what it is asked, and what it should say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

Body = dict[str, Any]
BASE = "base"


def event(text: str = "", reason: str | None = None, **more: Any) -> Body:
    return {"choices": [{"text": text, "finish_reason": reason}], **more}


HELLO: Sequence[Body] = (
    event("Hel"),
    event("lo", "stop"),
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
)


def written(text: str) -> Sequence[Body]:
    """The events of a text, in pieces as a model writes them."""
    pieces = [text[start : start + 5] for start in range(0, len(text), 5)]
    return [*(event(each) for each in pieces), event("", "stop")]


def _as_chat(each: Body | str) -> Body | str:
    if isinstance(each, str) or not each["choices"]:
        return each
    (choice,) = each["choices"]
    delta = {"content": choice["text"] or None}
    return each | {"choices": [{"delta": delta, "finish_reason": choice["finish_reason"]}]}


class OpenAILoopback:
    """`events` are sent for each streamed request, `answer` makes the others' text."""

    def __init__(self, owner: str = "vllm") -> None:
        self.owner = owner
        self.models: list[str] = [BASE]
        self.asked: list[Body] = []  # bodies of the streamed requests
        self.headers: dict[str, str] = {}
        self.last_key = ""  # of the streamed requests
        self.events: Sequence[Body | str] = HELLO
        self.write: Callable[[Body], str] | None = None  # the text of a request, for `events`
        self.is_held = False  # the stream stays open after the events
        self.was_left = asyncio.Event()  # a stream was closed by its client
        self.refusals: list[tuple[int, str]] = []  # status and text, one a request, at first
        self.takes_ids = True
        self.answer: Callable[[Body], str] = lambda body: "x"
        self.loaded: list[Body] = []
        self.url = ""

    async def start(self) -> Callable[[], Any]:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._completions),
                web.post("/v1/load_lora_adapter", self._load),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return runner.cleanup

    async def _models(self, request: web.Request) -> web.Response:
        self.headers = dict(request.headers)
        if self.refusals:
            status, text = self.refusals.pop(0)
            return web.Response(status=status, text=text)
        listed = [
            {
                "id": name,
                "owned_by": self.owner,
                "parent": None if name == BASE else BASE,
                "max_model_len": 2048,
            }
            for name in self.models
        ]
        return web.json_response({"object": "list", "data": listed})

    async def _load(self, request: web.Request) -> web.Response:
        self.loaded.append(await request.json())
        self.models.append(self.loaded[-1]["lora_name"])
        return web.Response(text="Success")

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):
            return self._whole(body)
        self.asked.append(body)
        self.last_key = request.headers.get("Authorization", "")
        if self.refusals:
            status, text = self.refusals.pop(0)
            return web.Response(status=status, text=text)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        events = self.events if self.write is None else written(self.write(body))
        if "messages" in body:
            events = [_as_chat(each) for each in events]
        for each in events:
            data = each if isinstance(each, str) else json.dumps(each)
            await response.write(f"data: {data}\n\n".encode())
        if self.is_held:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.was_left.set()
                raise
        await response.write(b"data: [DONE]\n\n")
        return response

    def _whole(self, body: Body) -> web.Response:
        if isinstance(body["prompt"], list) and not self.takes_ids:
            return web.json_response({"error": {"message": "prompt must be text"}}, status=400)
        choice: Body = {"text": self.answer(body), "finish_reason": "length"}
        if body.get("logprobs"):
            choice["logprobs"] = {"token_logprobs": [-0.5]}
        return web.json_response(
            {"choices": [choice], "usage": {"prompt_tokens": len(body["prompt"])}}
        )
