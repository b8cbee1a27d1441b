"""The clients of a soak run: those who ask and try again, those who leave, and hostile ones.

A question has one right answer: the one that the server gave when it was asked alone. A client
tries again, with a growing pause, where docs/TRITON.md says that the same request may be sent again
(UNAVAILABLE, DEADLINE_EXCEEDED, a lost connection), and where an answer is partial.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from compllm.backend import GenerateRequest, Segment
from compllm.backends import wire
from compllm.backends.channel import open_channel, stub_of
from compllm.backends.stream import error_from, error_from_text
from compllm.backends.tokenizer import Tokenizer
from compllm.catalogue import Catalogue
from compllm.errors import BackendUnavailable
from compllm.formats.manifest import Manifest
from compllm.server.triton_state import HOST, ServerInfo
from compllm.types import SamplingParams

CORE, PATH = "tensorrt_llm", "comp_llm"
Kind = Literal["streamed", "whole", "HTTP", "engine"]
KINDS: tuple[Kind, ...] = ("streamed", "whole", "HTTP")

_ENGINE_TOKENS = 24  # of a request straight to the engine
_SILENCE_S = 5.0  # beyond an attempt's deadline: then the client gives that attempt up
_PAUSE_S, _MAX_PAUSE_S = 0.25, 4.0  # between two attempts; it doubles
_MAY_REPEAT = ("UNAVAILABLE:", "DEADLINE_EXCEEDED:")  # how such an error of comp_llm begins
_HOSTILE_S = 60.0  # a hostile request that has no end by then hangs
_THREADS = 64


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and in which way. adapter: of a request to the engine; None: the base."""

    kind: Kind
    text: str
    adapter: str | None = None
    adapter_id: int | None = None

    def __str__(self) -> str:
        return f"{self.adapter or 'base'}: {self.text}" if self.kind == "engine" else self.text


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. steps: the plan's lines and the nodes' responses. fallback: why the query was its
    own plan, as plan_json says; empty: it was not. token_ids, log_probs: of the engine's own."""

    text: str = ""
    steps: tuple[tuple[str, str], ...] = ()
    fallback: str = ""
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()

    def is_same(self, other: Answer) -> bool:
        """Whether a user sees the same."""
        return (self.text, self.token_ids) == (other.text, other.token_ids)

    def gap(self, other: Answer) -> float | None:
        """How much likelier the engine found one token than the other, where two of its texts
        part (nats); None where that is not known."""
        for place, (one, two) in enumerate(zip(self.token_ids, other.token_ids, strict=False)):
            if one != two and place < min(len(self.log_probs), len(other.log_probs)):
                return abs(self.log_probs[place] - other.log_probs[place])
        return None

    def parting(self, other: Answer) -> str:
        """Where two answers part first: a line of the plan, a node's response, or the answer."""
        for number, (ours, theirs) in enumerate(zip(self.steps, other.steps, strict=False), 1):
            for what, one, two in zip(("line", "response"), ours, theirs, strict=True):
                if one != two:
                    return f"{what} {number}: {one!r} and {two!r}"
        if len(self.steps) != len(other.steps):
            return f"{len(self.steps)} and {len(other.steps)} lines"
        return f"answer: {self.text!r} and {other.text!r}"


@dataclass(slots=True)
class Outcome:
    """What became of one query; seconds from the start of its phase."""

    question: int  # of the pool
    due_s: float
    end_s: float = 0.0
    begin_s: float = 0.0  # of its last attempt
    answer: Answer | None = None  # None: lost
    retries: Counter[str] = field(default_factory=Counter)  # by reason
    error: str = ""

    @property
    def latency_s(self) -> float:
        return self.end_s - self.due_s


class Refused(Exception):
    """The server refused the request; the same again will not help."""


class MayRepeat(Exception):
    """The same request may be sent again; args: the reason, in a word or two."""


def make_pool(
    catalogue: Catalogue, manifest: Manifest, count: int, rng: random.Random
) -> list[Question]:
    """Example questions of all experts, alone and in pairs, and requests to the engine with each
    adapter in turn; a third of each."""
    by_expert = [[q for q in texts if "#" not in q] for texts in catalogue.examples]
    by_expert = [texts for texts in by_expert if texts]
    single = [text for texts in by_expert for text in texts]
    adapters: list[tuple[str | None, int | None]] = [(None, None)]
    adapters += [(entry.name, entry.task_id) for entry in manifest.adapters]
    pool = []
    for number in range(count):
        way, turn = KINDS[number // 3 % len(KINDS)], number % 3
        if turn == 0:
            pool.append(Question(way, rng.choice(single)))
        elif turn == 1:
            one, two = (rng.choice(texts) for texts in rng.sample(by_expert, 2))
            pool.append(Question(way, f"{one[:-1]}, and {two[0].lower()}{two[1:]}"))
        else:
            pool.append(Question("engine", rng.choice(single), *adapters[number % len(adapters)]))
    return pool


class Clients:
    """Asks one server, which may die and come back at the same ports."""

    def __init__(
        self, server: ServerInfo, tokenizer: Tokenizer, max_tokens: int, deadline_s: float
    ) -> None:
        self._http_port = server.http_port
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._deadline_s = deadline_s  # of one attempt
        self._channel = open_channel(server.grpc_url)
        self._stub = stub_of(self._channel)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="soak-http")
        self._number = 0

    async def aclose(self) -> None:
        await self._channel.close()
        self._threads.shutdown()

    async def ask(self, question: Question) -> Answer:
        """One attempt. Raises MayRepeat, Refused."""
        try:
            async with asyncio.timeout(self._deadline_s + _SILENCE_S):
                if question.kind == "engine":
                    return await self._ask_engine(question)
                if question.kind == "HTTP":
                    outputs = await self._ask_http(question)
                else:
                    outputs = await self._ask_path(question)
        except TimeoutError:
            raise MayRepeat("silence") from None
        except grpc.aio.AioRpcError as error:
            if isinstance(error_from(error), BackendUnavailable):
                raise MayRepeat("connection lost") from error
            raise Refused(str(error.details())) from error
        if outputs.get("finish_reason") == "error":
            raise MayRepeat("partial answer")
        if "stats_json" not in outputs:
            raise MayRepeat("stream ended early")
        nodes = json.loads(outputs["stats_json"])["nodes"]
        plan = json.loads(outputs["plan_json"])
        steps = zip(plan["lines"], (node["response"] for node in nodes), strict=True)
        return Answer(outputs["text_output"], tuple(steps), plan.get("fallback_reason", ""))

    async def ask_until_right(
        self, question: Question, outcome: Outcome, budget_s: float, start_s: float
    ) -> Outcome:
        """Attempts until there is a whole answer, or `budget_s` is over since it was due."""
        rng = random.Random(outcome.due_s)
        pause_s = _PAUSE_S
        while time.monotonic() - start_s < outcome.due_s + budget_s:
            outcome.begin_s = time.monotonic() - start_s
            try:
                outcome.answer = await self.ask(question)
                outcome.error = ""
            except MayRepeat as error:
                outcome.error = str(error)
                outcome.retries[outcome.error] += 1
            except Refused as error:
                outcome.error = f"refused: {error}"
            outcome.end_s = time.monotonic() - start_s
            if outcome.answer is not None or outcome.error.startswith("refused"):
                break
            await asyncio.sleep(pause_s * rng.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        return outcome

    async def leave(self, question: Question, after_s: float) -> None:
        """Begin a streamed request and go away in the middle of it."""
        message = self._path_message(question.text, is_streamed=True)
        call = self._stub.ModelStreamInfer(_one(message))
        try:
            async with asyncio.timeout(after_s):
                async for _ in call:
                    pass
        except (TimeoutError, grpc.aio.AioRpcError):
            call.cancel()

    async def send_hostile(self, message: Any) -> str:
        """What a hostile request got: refused, answered, away (no server) or silent (no end)."""
        call = self._stub.ModelStreamInfer(_one(message), timeout=_HOSTILE_S)
        ending = "silent"
        try:
            async for response in call:
                text = response.error_message
                if not text:
                    ending = "answered"
                elif self._may_repeat(text):
                    return "away"
                else:
                    return "refused"
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return "silent"
            return "away" if isinstance(error_from(error), BackendUnavailable) else "refused"
        return ending

    # Ways to ask

    def _id(self) -> str:
        self._number += 1
        return f"soak-{self._number}"

    def _path_message(self, text: str, *, is_streamed: bool) -> Any:
        message = service_pb2.ModelInferRequest(model_name=PATH, id=self._id())
        wire.add_texts(message, "text_input", [text], (1, 1))
        wire.add_array(message, "max_tokens", [[self._max_tokens]], np.int32)
        wire.add_array(message, "deadline_ms", [[int(1e3 * self._deadline_s)]], np.int32)
        wire.add_array(message, "stream", [[is_streamed]], np.bool_)
        return message

    async def _responses(self, message: Any) -> AsyncIterator[wire.Tensors]:
        call = self._stub.ModelStreamInfer(_one(message))
        try:
            async for response in call:
                if response.error_message:
                    self._raise(response.error_message)
                yield wire.read_tensors(response.infer_response)
        finally:
            call.cancel()

    async def _ask_path(self, question: Question) -> dict[str, str]:
        message = self._path_message(question.text, is_streamed=question.kind == "streamed")
        outputs = {"text_output": ""}
        async for tensors in self._responses(message):
            found = {name: array[0].decode() for name, array in tensors.items() if array.size}
            found["text_output"] = outputs["text_output"] + found.get("text_output", "")
            outputs |= found
        return outputs

    async def _ask_http(self, question: Question) -> dict[str, str]:
        body = json.dumps(
            {
                "text_input": question.text,
                "max_tokens": self._max_tokens,
                "deadline_ms": int(1e3 * self._deadline_s),
            }
        )
        loop = asyncio.get_running_loop()
        try:
            status, text = await loop.run_in_executor(self._threads, self._post, body)
        except (OSError, http.client.HTTPException) as error:
            raise MayRepeat("connection lost") from error
        if status != 200:
            self._raise(_error_of(text))
        outputs: dict[str, str] = json.loads(text)
        return outputs

    def _post(self, body: str) -> tuple[int, str]:
        timeout_s = self._deadline_s + _SILENCE_S
        connection = http.client.HTTPConnection(HOST, self._http_port, timeout=timeout_s)
        try:
            connection.request("POST", f"/v2/models/{PATH}/generate", body)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def engine_message(self, question: Question, *, is_streamed: bool = True) -> Any:
        """A greedy request to the engine, with log-probabilities."""
        prompt = (
            Segment("<|im_start|>user\n", is_template=True),
            Segment(question.text),
            Segment("<|im_end|>\n<|im_start|>assistant\n", is_template=True),
        )
        request = GenerateRequest(
            self._id(),
            prompt,
            SamplingParams(min(_ENGINE_TOKENS, self._max_tokens)),
            adapter_id=question.adapter_id,
            wants_log_probs=True,
        )
        ids = self._tokenizer.encode(prompt)
        special = self._tokenizer.special
        return wire.inference_message(request, request.id, ids, special, is_streamed=is_streamed)

    async def _ask_engine(self, question: Question) -> Answer:
        ids: list[int] = []
        log_probs: list[float] = []
        is_whole = False
        async for tensors in self._responses(self.engine_message(question)):
            new = wire.read_ids(tensors)
            log_probs += wire.read_log_probs(tensors, len(ids), len(new))
            ids += new
            is_whole |= "num_input_tokens" in tensors  # of the last response
        if not is_whole:
            raise MayRepeat("stream ended early")
        return Answer(token_ids=tuple(ids), log_probs=tuple(log_probs))

    def _may_repeat(self, text: str) -> bool:
        is_named = any(text.startswith(name) for name in _MAY_REPEAT)
        return is_named or isinstance(error_from_text(text), BackendUnavailable)

    def _raise(self, text: str) -> None:
        if not self._may_repeat(text):
            raise Refused(text)
        if "overloaded" in text or "queue is full" in text:
            raise MayRepeat("overloaded")
        raise MayRepeat("deadline" if text.startswith("DEADLINE") else "unavailable")


async def _one(message: Any) -> AsyncIterator[Any]:
    yield message


def _error_of(body: str) -> str:
    """The text of an HTTP error; of one without JSON the body."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body
