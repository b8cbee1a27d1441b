"""Graphs of queries, the tokens of their requests, and when they arrive: what is simulated.

With the same seed, graphs, lengths and arrivals are those of `compllm replay`. The prompts are
those of `prompts.py`; only tokens that the engine's cache does not hold count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from compllm import _core
from compllm.backend import Prompt, Segment
from compllm.catalogue import Catalogue, load_catalogue
from compllm.errors import CompllmError
from compllm.lab.replay.graphs import ReplayGraph, node_depths
from compllm.lab.replay.workload import Overhead, TokenLengths, arrivals
from compllm.plan import format_line
from compllm.prompts import aggregator_prompt, generator_prompt, node_prompt
from compllm.types import ComposePolicy

Schedule = Literal["dataflow", "levels", "sequential"]
Encode = Callable[[Prompt], Sequence[Hashable]]  # a prompt's tokens, to be counted and compared
_Make = Callable[[str], Prompt]
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shape:
    """What is generated besides the nodes, and when nodes may start."""

    overhead: Overhead = "plan+compose"
    schedule: Schedule = "dataflow"  # with another one nodes start after the plan, as in the paper
    compose: ComposePolicy = "always"  # auto: the response of a single leaf is the answer
    answer_tokens: int = 64  # of an answer that is composed


@dataclass(frozen=True, slots=True)
class Load:
    """Queries in the order of their arrival."""

    arrivals_ms: Floats
    graph_of: Ints
    responses: Ints  # tokens of its nodes, then of its answer, query by query

    @property
    def num_queries(self) -> int:
        return len(self.arrivals_ms)


@dataclass(frozen=True, slots=True)
class Workload:
    """The graphs that a load is made of, as the simulator takes them."""

    specs: tuple[_core.GraphSpec, ...]
    responses: tuple[Ints, ...]  # of each graph
    seed: int
    is_streamed: bool = True

    def load(self, rate_qps: float, num_queries: int) -> Load:
        """A Poisson stream: the graphs in their order, then again and again in random orders.

        rate_qps: infinity brings all queries at once. Any two finite rates bring the same queries,
        with other distances between them.
        """
        num_graphs = len(self.specs)
        rng = np.random.default_rng(self.seed)
        rounds = [np.arange(num_graphs)]
        rounds += [rng.permutation(num_graphs) for _ in range((num_queries - 1) // num_graphs)]
        graph_of = np.concatenate(rounds)[:num_queries].astype(np.int32)
        at_ms = np.fromiter(islice(arrivals(1.0, self.seed), num_queries), float) * 1e3
        return Load(
            np.zeros(num_queries) if math.isinf(rate_qps) else at_ms / rate_qps,
            graph_of,
            np.concatenate([self.responses[graph] for graph in graph_of.tolist()]),
        )


def make_workload(
    graphs: Sequence[ReplayGraph],
    lengths: TokenLengths,
    shape: Shape,
    encode: Encode,
    *,
    tokens_per_block: int = 32,
    catalogue: Catalogue | None = None,
) -> Workload:
    """encode: see `base_encode`. tokens_per_block: of the engine's prefix cache; 0: it has none."""
    counter = RequestCounter(encode, tokens_per_block, catalogue or load_catalogue())
    specs = tuple(counter.spec(graph, shape) for graph in graphs)
    responses = tuple(
        np.array([*lengths.of(graph).values(), shape.answer_tokens], np.int32) for graph in graphs
    )
    return Workload(specs, responses, lengths.seed, shape.schedule == "dataflow")


def base_encode() -> tuple[Encode, str]:
    """The function that counts tokens, and its name: the base's tokenizer, or an estimate where no
    base is there."""
    from compllm import paths
    from compllm.backends.tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer.from_dir(paths.base_dir())
    except CompllmError:
        return quarters, "four characters a token"
    return tokenizer.encode, "the base's tokenizer"


def quarters(prompt: Prompt) -> list[str]:
    """One token for four characters: for English within a tenth of the base's tokenizer."""
    return [
        segment.text[start : start + 4]
        for segment in prompt
        for start in range(0, len(segment.text), 4)
    ]


class RequestCounter:
    """Counts the tokens in the prompts of a graph's requests."""

    def __init__(self, encode: Encode, tokens_per_block: int, catalogue: Catalogue) -> None:
        self._encode = encode
        self._block = tokens_per_block
        self._catalogue = catalogue
        makes: tuple[_Make, ...] = (self._plan, self._node, self._answer)
        self._cached = {make: self._shared(make) for make in makes}
        facts = node_prompt(catalogue.base, "a", [("", "")], catalogue.template)
        self._num_facts = len(encode(facts)) - len(encode(self._node("a")))

    def spec(self, graph: ReplayGraph, shape: Shape) -> _core.GraphSpec:
        nodes = graph.plan.sub_queries
        index = {node.id: number for number, node in enumerate(nodes)}
        parents = [[index[parent] for parent in node.parents] for node in nodes]
        inner = {parent for row in parents for parent in row}
        leaves = [node for node in range(len(nodes)) if node not in inner]
        has_plan = shape.overhead != "none"
        is_composed = has_plan and (
            shape.compose == "always" or (shape.compose == "auto" and len(leaves) > 1)
        )
        lines = [self._count(format_line(node) + "\n") for node in nodes]
        return _core.GraphSpec(
            gates=_gates(graph, parents, shape.schedule),
            quotes=parents,
            prompt_tokens=[
                self._fresh(self._node, node.text) + (self._num_facts if node.parents else 0)
                for node in nodes
            ],
            quoted_tokens=[self._count(f"- {node.text} \n") for node in nodes],
            leaves=leaves,
            line_ends=np.cumsum(lines).tolist() if has_plan else (),
            plan_prompt_tokens=self._fresh(self._plan, graph.question) if has_plan else 0,
            answer_prompt_tokens=self._fresh(self._answer, graph.question) if is_composed else 0,
        )

    def _plan(self, text: str) -> Prompt:
        catalogue = self._catalogue
        return generator_prompt(text, catalogue.template, is_few_shot=catalogue.generator is None)

    def _node(self, text: str) -> Prompt:
        return node_prompt(self._catalogue.base, text, (), self._catalogue.template)

    def _answer(self, text: str) -> Prompt:
        catalogue = self._catalogue
        return aggregator_prompt(
            text, (), catalogue.template, is_few_shot=catalogue.aggregator is None
        )

    def _count(self, text: str) -> int:
        return max(1, len(self._encode((Segment(text),))))

    def _fresh(self, make: _Make, text: str) -> int:
        """Tokens of a prompt that the first request of its kind did not leave in the cache."""
        return max(1, len(self._encode(make(text))) - self._cached[make])

    def _shared(self, make: _Make) -> int:
        """Tokens that every prompt of the kind begins with, as far as they fill blocks."""
        if self._block == 0:
            return 0
        pairs = zip(self._encode(make("what")), self._encode(make("9")), strict=False)
        shared = 0
        for one, other in pairs:
            if one != other:
                break
            shared += 1
        return shared // self._block * self._block


def _gates(
    graph: ReplayGraph, parents: Sequence[Sequence[int]], schedule: Schedule
) -> Sequence[Sequence[int]]:
    """For each node, the nodes whose end it waits for."""
    if schedule == "sequential":
        return [[node - 1] if node else [] for node in range(len(parents))]
    if schedule == "dataflow":
        return parents
    depths = list(node_depths(graph.plan).values())
    return [[other for other, above in enumerate(depths) if above == depth - 1] for depth in depths]
