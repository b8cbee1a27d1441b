"""The query graph: the sub-queries of one query, what each waits for, which can start.

A step of the path, pure and synchronous: a Python wrapper of the C++ core. `execute.py` turns its
ids into awaits. The graph grows while its nodes run. networkx is imported only for an export.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from compllm import _core
from compllm.types import Bound, NodeStatus, Plan, SubQuery

if TYPE_CHECKING:
    import networkx as nx

# Bounds of an untrusted plan where the caller names none.
MAX_NODES = 64
MAX_DEPTH = 64


class QueryGraph:
    """A DAG of sub-queries with their state. For one thread at a time.

    All ids come in rising order. A broken rule of the graph (duplicate id or parent, too many
    nodes, too deep) raises PlanError, an unknown id UnknownNodeError, a cycle CycleError; the graph
    is then as before. A call out of order (starting a node that waits) raises
    RuntimeError.
    """

    def __init__(self, *, max_nodes: int = MAX_NODES, max_depth: int = MAX_DEPTH) -> None:
        self._core = _core.QueryGraph(max_nodes, max_depth)
        self._sub_queries: dict[int, SubQuery] = {}

    @classmethod
    def from_plan(
        cls, plan: Plan, *, max_nodes: int = MAX_NODES, max_depth: int = MAX_DEPTH
    ) -> QueryGraph:
        """The graph of a whole plan."""
        graph = cls(max_nodes=max_nodes, max_depth=max_depth)
        graph.add_all(plan.sub_queries)
        return graph

    # Growing.

    def add(self, sub_query: SubQuery, cost: float = 1.0) -> bool:
        """Add a node below parents that are there already; True when it can start at once.

        cost: the node's expected time, in a unit that is the same for all nodes.
        """
        is_ready = self._core.add_node(sub_query.id, sub_query.parents, cost)
        self._sub_queries[sub_query.id] = sub_query
        return is_ready

    def add_all(
        self, sub_queries: Iterable[SubQuery], costs: Mapping[int, float] | None = None
    ) -> None:
        """Add nodes in any order, all or none. Only this call can meet a cycle."""
        new = tuple(sub_queries)
        costs = costs or {}
        self._core.add_nodes(
            [sub_query.id for sub_query in new],
            [sub_query.parents for sub_query in new],
            [costs.get(sub_query.id, 1.0) for sub_query in new],
        )
        self._sub_queries.update((sub_query.id, sub_query) for sub_query in new)

    # Running.

    @property
    def ready(self) -> tuple[int, ...]:
        """Nodes whose parents are all done and that have not started."""
        return tuple(self._core.ready())

    @property
    def is_finished(self) -> bool:
        """Whether every node that was added is done."""
        return self._core.is_finished

    def start(self, node_id: int) -> None:
        """Record that a ready node was handed to an engine."""
        self._core.start(node_id)

    def done(self, node_id: int) -> tuple[int, ...]:
        """Record that a ready or running node ended, with or without a response. Returns the
        children that became ready by it."""
        return tuple(self._core.done(node_id))

    def status(self, node_id: int) -> NodeStatus:
        return self._core.state(node_id)

    def remaining_path(self, node_id: int) -> float:
        """The longest path of costs from the node to a leaf, its own cost included."""
        return self._core.remaining_path(node_id)

    @property
    def remaining_work(self) -> float:
        """The costs of all nodes that have not ended."""
        return self._core.remaining_work

    # Looking.

    def __len__(self) -> int:
        return len(self._sub_queries)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._sub_queries

    def __iter__(self) -> Iterator[SubQuery]:
        return (self._sub_queries[node_id] for node_id in sorted(self._sub_queries))

    def __getitem__(self, node_id: int) -> SubQuery:
        return self._sub_queries[node_id]

    @property
    def depth(self) -> int:
        """Nodes on the longest path; 0 when empty."""
        return self._core.depth

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Nodes by depth, to show them: nothing runs level by level."""
        return tuple(tuple(level) for level in self._core.levels())

    @property
    def leaves(self) -> tuple[int, ...]:
        """Nodes without children: the ones whose responses make the answer."""
        return tuple(self._core.leaves())

    def children(self, node_id: int) -> tuple[int, ...]:
        return tuple(self._core.children(node_id))

    def ancestors(self, node_id: int) -> tuple[int, ...]:
        """All nodes the node depends on, directly or not."""
        return tuple(self._core.ancestors(node_id))

    def bound(self, node_times: Mapping[int, tuple[float, float]]) -> Bound:
        """The speed-up that the graph allows, and the one that was reached.

        node_times: start and end of each node in seconds; nodes that never ran are left out.
        Without any time both are 1. Raises ValueError for a node that ends before it starts.
        """
        costs = {node_id: end - start for node_id, (start, end) in node_times.items()}
        allowed = self._core.bound(costs)
        if allowed.total_cost == 0.0:
            return Bound(ideal_speedup=1.0, reached_speedup=1.0)
        first = min(start for start, _ in node_times.values())
        last = max(end for _, end in node_times.values())
        return Bound(
            ideal_speedup=allowed.total_cost / allowed.longest_path,
            reached_speedup=allowed.total_cost / (last - first),
        )

    # Exporting.

    def to_networkx(self) -> nx.DiGraph[int]:
        """Nodes with `text` and `status`, edges from parent to child."""
        import networkx as nx

        graph: nx.DiGraph[int] = nx.DiGraph()
        for sub_query in self:
            graph.add_node(sub_query.id, text=sub_query.text, status=self.status(sub_query.id))
        graph.add_edges_from(self._edges())
        return graph

    def to_mermaid(self, experts: Mapping[int, str] | None = None) -> str:
        """The graph as a Mermaid flow chart. `experts`: names for the labels."""
        lines = ["flowchart TD"]
        for sub_query in self:
            label = "<br/>".join(_escape_mermaid(line) for line in _label(sub_query, experts))
            lines.append(f'    n{sub_query.id}["{label}"]')
        lines += [f"    n{parent} --> n{child}" for parent, child in self._edges()]
        return "\n".join(lines) + "\n"

    def to_dot(self, experts: Mapping[int, str] | None = None) -> str:
        """The graph as Graphviz text. `experts`: names for the labels."""
        lines = ["digraph plan {", "    node [shape=box];"]
        for sub_query in self:
            label = "\\n".join(_escape_dot(line) for line in _label(sub_query, experts))
            lines.append(f'    {sub_query.id} [label="{label}"];')
        lines += [f"    {parent} -> {child};" for parent, child in self._edges()]
        return "\n".join([*lines, "}"]) + "\n"

    def _edges(self) -> list[tuple[int, int]]:
        return [
            (parent, sub_query.id) for sub_query in self for parent in sorted(sub_query.parents)
        ]


def _label(sub_query: SubQuery, experts: Mapping[int, str] | None) -> list[str]:
    head = f"{sub_query.id} · {experts[sub_query.id]}" if experts else str(sub_query.id)
    return [head, " ".join(sub_query.text.split())]


def _escape_mermaid(text: str) -> str:
    # Sub-queries are a model's text: nothing in them may end the label or become markup.
    entities = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "`": "#96;"}
    return "".join(entities.get(char, char) for char in text)


def _escape_dot(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
