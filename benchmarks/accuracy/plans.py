"""Is a plan right? Its graph, its text, and its meaning; and what a plan that never looks scores.

Nodes are compared by their place, edges as (parent, child) places: a constant plan, the same for
every question, can be scored in the same way, and only what beats the best of them counts.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from compllm.types import Plan

Edges = frozenset[tuple[int, int]]  # (parent, child), ids from 1

MAX_CONSTANT_NODES = 4

# A possessor ends where one of these stands before it, and what is possessed where one follows.
_BORDERS = frozenset(
    re.findall(
        r"\w+",
        "what which who whose how many much is are was were do does did has have had can could "
        "will would and or than plus minus times twice half by to in on for from with as if when "
        "where between more less greater larger smaller bigger that it there not divided "
        "multiplied added sum product difference find give name compute calculate tell me",
    )
)
_AROUND = '.,;:!?"()'
_CONTRACTIONS = re.compile(r"\b(what|who|where|when|how|which|that|there|it)'s\b")


@dataclass(frozen=True, slots=True)
class Graph:
    """The shape of a plan without its texts."""

    num_nodes: int
    edges: Edges

    @classmethod
    def of(cls, plan: Plan) -> Graph:
        edges = {(parent, s.id) for s in plan.sub_queries for parent in s.parents}
        return cls(len(plan.sub_queries), frozenset(edges))

    def __str__(self) -> str:
        """As plan lines without texts: `1, 2 <1>`."""
        lines = []
        for node in range(1, self.num_nodes + 1):
            above = ",".join(str(p) for p, child in sorted(self.edges) if child == node)
            lines.append(f"{node} <{above}>" if above else str(node))
        return ", ".join(lines)


@dataclass(frozen=True, slots=True)
class GraphScore:
    """A graph against the gold one; counts, so that they can be pooled."""

    is_exact: bool
    num_common_nodes: int
    num_nodes: int
    num_gold_nodes: int
    num_common_edges: int
    num_edges: int
    num_gold_edges: int


def score_graph(graph: Graph, gold: Graph) -> GraphScore:
    return GraphScore(
        graph == gold,
        min(graph.num_nodes, gold.num_nodes),
        graph.num_nodes,
        gold.num_nodes,
        len(graph.edges & gold.edges),
        len(graph.edges),
        len(gold.edges),
    )


def num_common_texts(plan: Plan, gold: Plan) -> int:
    """Nodes whose meaning stands in the gold plan too, wherever; each gold node is taken once."""
    ours, theirs = (
        Counter(meaning(sub_query.text) for sub_query in each.sub_queries) for each in (plan, gold)
    )
    return (ours & theirs).total()


def is_same_text(plan: Plan, gold: Plan) -> bool:
    """Every line equal, character by character."""
    return plan.sub_queries == gold.sub_queries


def is_same_meaning(plan: Plan, gold: Plan) -> bool:
    """The same graph, and every line equal in `meaning`."""
    return Graph.of(plan) == Graph.of(gold) and all(
        meaning(ours.text) == meaning(theirs.text)
        for ours, theirs in zip(plan.sub_queries, gold.sub_queries, strict=True)
    )


def meaning(text: str) -> str:
    """A sub-query without what does not change it: case, articles, punctuation, and the order of a
    possessive: "the N of X" stands for "X's N" as well."""
    text = _CONTRACTIONS.sub(r"\1 is", text.lower().replace("\u2019", "'"))
    words = [bare for word in text.split() if (bare := word.strip(_AROUND))]
    words = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(_turned(words))


def _turned(words: list[str]) -> list[str]:
    """Every "X's N" as "N of X", the first one first."""
    for at, word in enumerate(words):
        owner = word.removesuffix("'s") if word.endswith("'s") else word.removesuffix("'")
        if owner == word or not owner:
            continue
        start = at
        while start > 0 and words[start - 1] not in _BORDERS and words[start - 1] != "of":
            start -= 1
        end = at + 1
        while end < len(words) and words[end] not in _BORDERS and not words[end].endswith("'s"):
            end += 1
        if end == at + 1:
            continue  # nothing is possessed
        turned = [*words[at + 1 : end], "of", *words[start:at], owner]
        return _turned([*words[:start], *turned, *words[end:]])
    return words


def constant_graphs(max_nodes: int = MAX_CONSTANT_NODES) -> Iterator[Graph]:
    """Every graph of up to `max_nodes` nodes: what a plan that never reads the question can be."""
    for num_nodes in range(1, max_nodes + 1):
        possible = tuple(itertools.combinations(range(1, num_nodes + 1), 2))
        for size in range(len(possible) + 1):
            for edges in itertools.combinations(possible, size):
                yield Graph(num_nodes, frozenset(edges))


def f1(num_common: float, num_ours: float, num_gold: float) -> float:
    """Pooled F1; where neither side has anything they agree."""
    total = num_ours + num_gold
    return 2 * num_common / total if total else 1.0


def node_f1(scores: Sequence[GraphScore]) -> float:
    """Over the nodes of all records together."""
    return f1(
        sum(s.num_common_nodes for s in scores),
        sum(s.num_nodes for s in scores),
        sum(s.num_gold_nodes for s in scores),
    )


def edge_f1(scores: Sequence[GraphScore]) -> float:
    """Over the edges of all records together."""
    return f1(
        sum(s.num_common_edges for s in scores),
        sum(s.num_edges for s in scores),
        sum(s.num_gold_edges for s in scores),
    )


def same_count(scores: Sequence[GraphScore]) -> float:
    """Share of records with the gold number of nodes."""
    return sum(s.num_nodes == s.num_gold_nodes for s in scores) / len(scores)


def same_graph(scores: Sequence[GraphScore]) -> float:
    return sum(s.is_exact for s in scores) / len(scores)


MEASURES: Mapping[str, Callable[[Sequence[GraphScore]], float]] = {
    "graph exact": same_graph,
    "node count": same_count,
    "node F1": node_f1,
    "edge F1": edge_f1,
}


def best_constants(golds: Sequence[Graph]) -> dict[str, tuple[float, Graph]]:
    """For each measure the highest value that one graph for all questions reaches, and the graph;
    of equal ones the smallest."""
    scored = [
        (constant, [score_graph(constant, gold) for gold in golds])
        for constant in constant_graphs()
    ]
    best: dict[str, tuple[float, Graph]] = {}
    for name, measure in MEASURES.items():
        values = [(measure(scores), constant) for constant, scores in scored]
        best[name] = max(values, key=lambda pair: pair[0])
    return best
