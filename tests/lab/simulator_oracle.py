"""The simulator once more, in plain Python: every step of every engine one by one, the waiting
requests in a list that is searched from end to end. Slow, and written from the description in
`csrc/simulator.hpp` alone; `test_simulator.py` compares the two."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import count
from typing import Any

STEP_END, ARRIVAL, HOST, BEGIN = range(4)  # what comes first at one time
WHOLE_PATH = 1e9


@dataclass(frozen=True)
class Machine:
    """Times of engine and host, and who may use it."""

    step_ms: tuple[float, ...]
    prefill_ms: float
    max_num_tokens: int
    context_ms: float
    mixed_ms: float
    to_engine_ms: float
    from_engine_ms: float
    handover_ms: float
    route_ms: float
    policy: str
    max_in_flight: int
    num_engines: int
    is_streamed: bool


@dataclass
class Request:
    query: Any
    node: int
    engine: int
    ready_ms: float
    number: int
    prompt: int
    marks: list[int]
    path: float
    work: float
    left: int = 0
    num_made: int = 0
    first_token_ms: float = 0.0


@dataclass
class Query:
    number: int
    arrival_ms: float
    graph: dict[str, Any]
    responses: list[int]
    nodes: set[int] = field(default_factory=set)  # in the graph, from 1
    started: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)
    num_lines: int = 0

    def gates(self, node: int) -> list[int]:
        return [gate + 1 for gate in self.graph["gates"][node - 1]]

    def path(self, node: int) -> float:
        below = [child for child in self.nodes if node in self.gates(child)]
        return 1.0 + max((self.path(child) for child in below), default=0.0)

    def ready(self) -> list[int]:
        fresh = sorted(self.nodes - self.started)
        return [node for node in fresh if set(self.gates(node)) <= self.done]


@dataclass
class Engine:
    inbox: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    chunks: dict[int, int] = field(default_factory=dict)  # by request number; None: no step runs
    is_stepping: bool = False
    is_begin_due: bool = False
    num_in_flight: int = 0
    waiting: list[Request] = field(default_factory=list)
    busy_ms: float = 0.0
    num_steps: int = 0


class Oracle:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.engines = [Engine() for _ in range(machine.num_engines)]
        self.events: list[Any] = []
        self.ties, self.numbers = count(), count()
        self.now = 0.0
        self.latency_ms: dict[int, float] = {}
        self.ttft_ms: dict[int, float] = {}
        self.wait_ms: dict[int, float] = {}
        self.order: list[tuple[int, int]] = []  # (query, node) as they ended

    def run(self, queries: list[tuple[float, dict[str, Any], list[int]]]) -> None:
        for number, (at_ms, graph, responses) in enumerate(queries):
            query = Query(number, at_ms, graph, responses)
            self.wait_ms[number] = 0.0
            self.due(at_ms, self.arrive, query, kind=ARRIVAL)
        while self.events:
            self.now, _, _, action, arguments = heapq.heappop(self.events)
            action(*arguments)

    def due(self, at_ms: float, action: Any, *arguments: Any, kind: int = HOST, tie: int = -1):
        tie = next(self.ties) if tie < 0 else tie
        heapq.heappush(self.events, (at_ms, kind, tie, action, arguments))

    # The path of a query.

    def arrive(self, query: Query) -> None:
        if query.graph["line_ends"]:
            self.enter(query, 0)
        else:
            query.nodes = set(range(1, len(query.graph["gates"]) + 1))
            self.enter_ready(query)

    def end_line(self, query: Query) -> None:
        query.num_lines += 1
        if self.machine.is_streamed:
            query.nodes.add(query.num_lines)
            self.move_up(query)
        elif query.num_lines == len(query.graph["gates"]):
            query.nodes = set(range(1, query.num_lines + 1))
        if self.machine.is_streamed:
            # Others may be ready and on their way from their parents to the queue.
            if set(query.gates(query.num_lines)) <= query.done:
                self.enter(query, query.num_lines)
        else:
            self.enter_ready(query)

    def move_up(self, query: Query) -> None:
        """Those that wait may have a longer path below them now."""
        if self.machine.policy not in ("oldest_query_first", "deepest_first"):
            return
        for engine in self.engines:
            for request in engine.waiting:
                if request.query is query and request.node > 0:
                    request.path = query.path(request.node)

    def enter_ready(self, query: Query) -> None:
        for node in query.ready():
            self.enter(query, node)

    def enter(self, query: Query, node: int) -> None:
        graph, responses = query.graph, query.responses
        if node == 0:
            prompt, marks, quotes = graph["plan_prompt"], graph["line_ends"], []
        elif node == -1:
            prompt, marks, quotes = graph["answer_prompt"], responses[-1:], graph["leaves"]
        else:
            prompt, marks = graph["prompt"][node - 1], [responses[node - 1]]
            quotes = graph["quotes"][node - 1]
            query.started.add(node)
        prompt += sum(graph["quoted"][quoted] + responses[quoted] for quoted in quotes)
        path = query.path(node) if node > 0 else WHOLE_PATH
        work = float(len(query.nodes - query.done)) if node > 0 else WHOLE_PATH
        loads = [engine.num_in_flight + len(engine.waiting) for engine in self.engines]
        chosen = loads.index(min(loads))
        number = next(self.numbers)
        request = Request(query, node, chosen, self.now, number, prompt, list(marks), path, work)
        engine = self.engines[chosen]
        if engine.num_in_flight == self.machine.max_in_flight:
            engine.waiting.append(request)
        else:
            engine.num_in_flight += 1
            self.admit(request)

    def admit(self, request: Request) -> None:
        number = request.query.number
        self.wait_ms[number] = max(self.wait_ms[number], self.now - request.ready_ms)
        self.due(self.now + self.machine.to_engine_ms, self.submit, request)

    def key(self, request: Request) -> tuple[float, ...]:
        number, node = request.query.number, request.node
        return {
            "oldest_query_first": (number, -request.path, node, request.number),
            "fifo": (request.number,),
            "deepest_first": (-request.path, number, node, request.number),
            "least_remaining_work": (request.work, number, -request.path, request.number),
        }[self.machine.policy]

    def end_request(self, request: Request) -> None:
        self.order.append((request.query.number, request.node))
        engine = self.engines[request.engine]
        if engine.waiting:
            engine.waiting.sort(key=self.key)
            self.admit(engine.waiting.pop(0))
        else:
            engine.num_in_flight -= 1
        query = request.query
        if request.node == -1:
            self.end_query(query, request.first_token_ms + self.machine.from_engine_ms)
        elif request.node > 0:
            before = query.ready()
            query.done.add(request.node)
            later = self.now + self.machine.handover_ms
            for child in query.ready():
                if child not in before:
                    self.due(later, self.enter, query, child)
            if len(query.done) == len(query.graph["gates"]):
                if query.graph["answer_prompt"]:
                    self.due(later, self.enter, query, -1)
                else:
                    self.end_query(query, self.now)

    def end_query(self, query: Query, first_token_ms: float) -> None:
        assert query.number not in self.latency_ms
        self.latency_ms[query.number] = self.now - query.arrival_ms
        self.ttft_ms[query.number] = first_token_ms - query.arrival_ms

    # Engines.

    def submit(self, request: Request) -> None:
        self.engines[request.engine].inbox.append(request)
        request.left = request.prompt
        self.begin_last(request.engine)

    def begin_last(self, number: int) -> None:
        engine = self.engines[number]
        if not engine.is_stepping and not engine.is_begin_due:
            engine.is_begin_due = True
            self.due(self.now, self.begin, number, kind=BEGIN, tie=number)

    def begin(self, number: int) -> None:
        machine, engine = self.machine, self.engines[number]
        engine.is_begin_due = False
        while engine.inbox and len(engine.running) < len(machine.step_ms) - 1:
            engine.running.append(engine.inbox.pop(0))
        if not engine.running:
            return
        engine.chunks = {each.number: 1 for each in engine.running if each.left == 1}
        num_decodes = len(engine.chunks)
        budget = machine.max_num_tokens - num_decodes
        num_prefill = 0
        for each in engine.running:
            if each.left > 1 and budget > 0:
                engine.chunks[each.number] = chunk = min(each.left, budget)
                budget -= chunk
                num_prefill += chunk
        started = [each for each in engine.running if each.num_made > 0]
        context = sum(each.prompt + each.num_made for each in started)
        step_ms = (
            machine.step_ms[num_decodes]
            + machine.prefill_ms * num_prefill
            + machine.context_ms * context
            + (machine.mixed_ms if num_decodes and num_prefill else 0.0)
        )
        engine.is_stepping = True
        engine.busy_ms += step_ms
        engine.num_steps += 1
        self.due(self.now + step_ms, self.end_step, number, kind=STEP_END, tie=number)

    def end_step(self, number: int) -> None:
        engine = self.engines[number]
        engine.is_stepping = False
        seen_ms = self.now + self.machine.from_engine_ms
        for request in tuple(engine.running):
            request.left -= engine.chunks.get(request.number, 0)
            if request.left > 0:
                continue
            request.left = 1
            request.num_made += 1
            if request.num_made == 1:
                request.first_token_ms = self.now
            if request.num_made not in request.marks:
                continue
            if request.num_made == request.marks[-1]:
                engine.running.remove(request)
                self.due(seen_ms, self.end_request, request)
            if request.node == 0:
                self.due(seen_ms + self.machine.route_ms, self.end_line, request.query)
        self.begin_last(number)
