"""What the tests of replay share: a small graph, an LLM on the scripted backend, one run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from path_parts import CATALOGUE, settings

from compllm.backend import Chunk, GenerateRequest
from compllm.lab.engine_profile import EngineProfile
from compllm.lab.replay.drive import ReplaySettings, run_graph
from compllm.lab.replay.graphs import ReplayGraph
from compllm.lab.replay.runner import ReplayLLM
from compllm.plan import parse_plan
from compllm.testing import HashingEncoder, Reply, ScriptedBackend
from compllm.types import Answer, Plan, Usage

# 1 and 2 are independent, 3 waits for 1 alone, 4 for 2 and 3.
PLAN: Plan = parse_plan("1 | first?\n2 | second?\n3 <1> | third?\n4 <2,3> | fourth?\n")
GRAPH = ReplayGraph("g1", "What is the whole?", PLAN)
USAGE = Usage(40, 8, 0, 2, 0.0, 0.1, 0.2)
PROFILE = EngineProfile("test", ((0, 0.0), (1, 10.0), (2, 12.0), (8, 24.0)), 2.0)


def plan_lines() -> tuple[str, ...]:
    """What the generator writes of PLAN, piece by piece."""
    lines = "1 | first?\n2 | second?\n3 <1> | third?\n4 <2,3> | fourth?".splitlines(True)
    return tuple(lines)


def is_answer(request: GenerateRequest) -> bool:
    return request.id.endswith("-answer")


def is_node(node_id: int) -> object:
    return lambda request: request.id.partition("-")[2].startswith(f"{node_id}-")


def node_reply(node_id: int, gate: asyncio.Event | None = None, **more: object) -> Reply:
    reply = {"usage": USAGE, **more}
    return Reply(f"response {node_id}", match=is_node(node_id), gate=gate, **reply)  # type: ignore[arg-type]


def scripted(*nodes: Reply, plan: Reply | None = None) -> ScriptedBackend:
    """A backend that writes PLAN, answers its nodes and composes."""
    return ScriptedBackend(
        plan or Reply(plan_lines(), is_guided=True, usage=USAGE),
        *nodes,
        *map(node_reply, (1, 2, 3, 4)),
        Reply(("the ", "answer"), match=is_answer, usage=USAGE),
    )


def replay_llm(backend: ScriptedBackend, replayed: ReplaySettings) -> ReplayLLM:
    # Of a gate that is on nothing must be seen.
    config = settings(
        compose__policy=replayed.compose_policy, sharing__is_on=False, gate__mode="on"
    )
    return ReplayLLM(backend, HashingEncoder(), CATALOGUE, config)


async def answer_of(
    backend: ScriptedBackend, replayed: ReplaySettings, graph: ReplayGraph = GRAPH
) -> Answer:
    async with replay_llm(backend, replayed) as llm:
        _, answer = await run_graph(llm, graph, replayed, "q")
    return answer


def purposes(backend: ScriptedBackend) -> list[str]:
    """What came to the engine, in order: 'plan', node ids, 'answer'."""
    return [each.request.id.split("-")[1] for each in backend.requests]


class ClockedBackend:
    """Reports the times of an engine: a prefill takes 2 ms a token and 3 ms, a decoding step of n
    8 + 2n ms. It answers when no other request comes."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []
        self._num_running = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        self._num_running += 1
        for _ in range(20):  # turns of the loop: all that are sent together have come
            await asyncio.sleep(0)
        size = self._num_running
        for _ in range(20):
            await asyncio.sleep(0)
        self._num_running -= 1
        num_input = len(request.prompt[0].text.split())
        first_s = (2 * num_input + 3) / 1e3
        num_output = request.sampling.min_tokens
        total_s = first_s + (num_output - 1) * (8 + 2 * size) / 1e3
        usage = Usage(num_input, num_output, 0, 0, 0.0, first_s, total_s)
        yield Chunk("x", num_output, "length", usage)

    async def aclose(self) -> None: ...
