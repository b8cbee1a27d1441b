"""The plan's grammar: what the generator writes, what a plan file holds. Pure; used by decompose
and the CLI.

One line a sub-query, parents before the text, so that a line can be dispatched the moment it ends:

    1 | What is the atomic number of iron?
    2 | How many chambers does the human heart have?
    3 <1,2> | What is #1 plus #2?

Ids are 1, 2, 3, ...; parents are smaller ids, each named once. `#k` inside a text is only text. A
plan is a model's or a stranger's output: nothing in it is trusted, every broken rule is a PlanError
with the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError as _FoundCycle
from graphlib import TopologicalSorter
from typing import Any

from compllm.backend import Guide
from compllm.errors import CycleError, PlanError, UnknownNodeError
from compllm.types import Plan, SubQuery

_LINE = re.compile(r"\s*([0-9]{1,9})[ \t]*(?:<([0-9, \t]*)>)?[ \t]*\|(.*)\Z", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\\x00-\\x08\\x0a-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
# The same within ASCII: xgrammar's classes that negate end there.
_GUIDE_CONTROL = r"\x00-\x08\n-\x1f\x7f"
_MAX_SHOWN = 60  # characters of a bad line that an error repeats


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """What a plan may be. They hold before anything is sent."""

    max_nodes: int = 64
    max_depth: int = 32  # nodes on the longest path
    max_line_chars: int = 1000
    max_plan_chars: int = 200_000  # of a whole plan file


class PlanParser:
    """Text deltas in, sub-queries out, each the moment its line ends.

    After a PlanError the parser is spent; the sub-queries yielded before it stay in `sub_queries`.
    """

    def __init__(self, limits: PlanLimits | None = None) -> None:
        self.is_cut = False  # after `finish`: a line more was begun than the limits allow
        self._limits = limits or PlanLimits()
        self._rest = ""
        self._depths: dict[int, int] = {}  # id -> nodes on the longest path that ends there
        self._sub_queries: list[SubQuery] = []

    @property
    def sub_queries(self) -> tuple[SubQuery, ...]:
        return tuple(self._sub_queries)

    def feed(self, delta: str) -> Iterator[SubQuery]:
        """Yield the sub-queries of the lines that end in `delta`. Must be iterated to its end."""
        *lines, self._rest = (self._rest + delta).split("\n")
        for line in lines:
            yield from self._take(line)
        # A line that never ends must not be collected for ever.
        self._check_length(self._rest)

    def finish(self) -> Iterator[SubQuery]:
        """Yield the last line's sub-query, if the text did not end with a newline.

        Raises PlanError when there was none at all.
        """
        line, self._rest = self._rest, ""
        self.is_cut = line == str(self._limits.max_nodes + 1)
        if not self.is_cut:
            yield from self._take(line)
        if not self._sub_queries:
            raise PlanError("the plan is empty: expected lines such as '1 | What is ...?'")

    def _take(self, line: str) -> Iterator[SubQuery]:
        if not line.strip(" \t\r"):
            return
        self._check_length(line)
        sub_query = _parse_line(line)
        _check_next(sub_query, self._depths, self._limits)
        self._sub_queries.append(sub_query)
        yield sub_query

    def _check_length(self, line: str) -> None:
        if len(line) > self._limits.max_line_chars:
            raise PlanError(
                f"a line of the plan has more than {self._limits.max_line_chars} characters: "
                f"{_shown(line)}"
            )


def parse_plan(text: str, limits: PlanLimits | None = None) -> Plan:
    """Read a whole plan: plan lines, or JSON in one of the shapes below.

    JSON lines of `{"id": 2, "text": "...", "parents": [1]}` (ids as in plan lines); one object or
    array of those under "lines" or "plan" (what `--json` prints); or a data-set record `{"steps":
    ["...", "..."], "parents": [[], [0]]}`, whose parents count from 0.
    """
    limits = limits or PlanLimits()
    if not isinstance(text, str):
        raise PlanError(f"the plan is a {type(text).__name__}, expected text (str)")
    if len(text) > limits.max_plan_chars:
        raise PlanError(
            f"the plan has {len(text)} characters, at most {limits.max_plan_chars} are allowed"
        )
    text = text.removeprefix("\ufeff")
    if text.lstrip()[:1] in ("{", "["):
        sub_queries = list(_from_json(text))
    else:
        lines = [line for line in text.split("\n") if line.strip(" \t\r")]
        _check_count(len(lines), limits)
        sub_queries = [_parse_line(line) for line in lines]
    return make_plan(sub_queries, limits)


def make_plan(sub_queries: Sequence[SubQuery], limits: PlanLimits | None = None) -> Plan:
    """Check sub-queries that were not read by PlanParser against every rule.

    Raises CycleError, UnknownNodeError or PlanError.
    """
    limits = limits or PlanLimits()
    _check_types(sub_queries)
    if not sub_queries:
        raise PlanError("the plan is empty: expected lines such as '1 | What is ...?'")
    _check_count(len(sub_queries), limits)
    _check_cycle(sub_queries)
    depths: dict[int, int] = {}
    for sub_query in sub_queries:
        _check_text(sub_query.text, format_line(sub_query), limits)
        _check_next(sub_query, depths, limits, known={other.id for other in sub_queries})
    return Plan(tuple(sub_queries))


def fallback_plan(query: str, reason: str) -> Plan:
    """The one-node plan: the query itself."""
    return Plan((SubQuery(1, query),), is_fallback=True, reason=reason)


def direct_plan(query: str) -> Plan:
    """The one-node plan of a question that is not to be planned."""
    return Plan((SubQuery(1, query),), is_direct=True)


def cut_warning(plan: Plan) -> str | None:
    """What is to be said of a plan that leaves out parts of its question."""
    if not plan.is_cut:
        return None
    limit = f"generator.max_nodes = {len(plan.sub_queries) + plan.num_copies}"
    return f"the question has more parts than {limit}; the rest was left out"


def format_line(sub_query: SubQuery) -> str:
    parents = f" <{','.join(map(str, sub_query.parents))}>" if sub_query.parents else ""
    return f"{sub_query.id}{parents} | {sub_query.text}"


def format_plan(sub_queries: Iterable[SubQuery]) -> str:
    """Plan lines, each ended by a newline. `parse_plan` reads them back to the same sub-queries,
    unless a text itself has several lines (only the one-node plan of such a query)."""
    return "".join(format_line(sub_query) + "\n" for sub_query in sub_queries)


def is_encodable(text: str) -> bool:
    """Whether the text can be written as UTF-8: JSON and argv can smuggle in halves of surrogate
    pairs."""
    return not _SURROGATE.search(text)


def plan_depth(sub_queries: Iterable[SubQuery]) -> int:
    """Nodes on the longest path of a valid plan; 0 for an empty one."""
    depths: dict[int, int] = {}
    for sub_query in sub_queries:
        depths[sub_query.id] = 1 + max((depths[parent] for parent in sub_query.parents), default=0)
    return max(depths.values(), default=0)


def plan_guide(
    max_nodes: int,
    *,
    max_text_chars: int = 160,
    is_question_only: bool = True,
    marks_cut: bool = False,
) -> Guide:
    """A regex that keeps a generator inside the grammar: at most `max_nodes` sub-queries, in order,
    with rising parents. It cannot write a plan that PlanParser refuses, except by depth, by a
    control character beyond ASCII, or by a text of white space beyond ASCII alone. Within a text
    `|`, `<`, `>` and `#` are characters like others.

    is_question_only: a text ends at its first question mark, which keeps a model that was only
    shown examples from rambling. A trained one ends its lines itself, and may write commands
    ("return the flights of #1") as human decompositions do.

    marks_cut: a generator that is not done after `max_nodes` lines writes the id of the next one,
    and nothing after it; PlanParser reads that as `is_cut`.
    """
    others, end = ("?", r"\?") if is_question_only else ("", "")
    least = 1 if is_question_only else 0
    char = f"[^{_GUIDE_CONTROL}{others}]"
    below = rf"\| [^\s{_GUIDE_CONTROL}{others}]{char}{{{least},{max_text_chars}}}{end}"
    # Without parents no `#k`: the model would ask about a response that it is not shown.
    char = f"([^{_GUIDE_CONTROL}{others}#]|#[^{_GUIDE_CONTROL}{others}#0-9])"
    alone = rf"\| [^\s{_GUIDE_CONTROL}{others}#]{char}{{{least},{max_text_chars}}}#?{end}"
    guide = rf"(\n{max_nodes + 1})?" if marks_cut else ""
    for node_id in range(max_nodes, 0, -1):
        line = f"{node_id} {alone}"
        if node_id > 1:
            line = f"{node_id} ({alone}|<({_rising(node_id - 1)})> {below})"
        guide = f"{line}{guide}" if node_id == 1 else rf"(\n{line}{guide})?"
    return Guide("regex", guide)


def _rising(largest: int) -> str:
    """A regex of every non-empty, strictly rising, comma-separated list of 1..largest."""
    options = []
    for first in range(1, largest + 1):
        rest = "".join(f"(,{later})?" for later in range(first + 1, largest + 1))
        options.append(f"{first}{rest}")
    return "|".join(options)


def _parse_line(line: str) -> SubQuery:
    found = _LINE.match(line.rstrip("\r"))
    if not found:
        raise PlanError(
            f"not a line of a plan: {_shown(line)}: expected 'id | text' or 'id <parents> | text'"
        )
    number, parent_list, text = found.groups()
    parents: tuple[int, ...] = ()
    if parent_list is not None:
        names = [name.strip() for name in parent_list.split(",")]
        if not all(re.fullmatch("[0-9]{1,9}", name) for name in names):
            raise PlanError(f"the parents must be ids, as in '<1,2>': {_shown(line)}")
        parents = tuple(map(int, names))
    text = text.strip()
    _check_text(text, line, None)
    return SubQuery(int(number), text, parents)


def _check_types(sub_queries: object) -> None:
    """Python does not hold a caller to them, and a wrong one would fail far from here."""
    if not isinstance(sub_queries, list | tuple):
        raise PlanError(f"the sub-queries are a {type(sub_queries).__name__}, expected a tuple")
    for each in sub_queries:
        if not isinstance(each, SubQuery):
            raise PlanError(f"a sub-query is a {type(each).__name__}, expected a SubQuery")
        parents = each.parents
        is_right = _is_id(each.id) and isinstance(each.text, str)
        if not (is_right and isinstance(parents, tuple) and all(map(_is_id, parents))):
            expected = "an id (int), a text (str) and parents (a tuple of ids)"
            raise PlanError(f"not a sub-query: {_shown(repr(each))}: expected {expected}")


def _check_text(text: str, line: str, limits: PlanLimits | None) -> None:
    if not text.strip():
        raise PlanError(f"a sub-query without text: {_shown(line)}")
    if _CONTROL.search(text):
        raise PlanError(
            f"a control character or half a surrogate pair in a sub-query: {_shown(line)}"
        )
    if limits and len(text) > limits.max_line_chars:
        raise PlanError(
            f"a line of the plan has more than {limits.max_line_chars} characters: {_shown(line)}"
        )


def _check_count(num_nodes: int, limits: PlanLimits) -> None:
    if num_nodes > limits.max_nodes:
        raise PlanError(
            f"the plan has {num_nodes} sub-queries, at most {limits.max_nodes} are allowed"
        )


def _check_next(
    sub_query: SubQuery,
    depths: dict[int, int],
    limits: PlanLimits,
    known: set[int] | None = None,
) -> None:
    """Check one sub-query against those before it, and note its depth."""
    line = _shown(format_line(sub_query))
    expected = len(depths) + 1
    if sub_query.id in depths:
        raise PlanError(f"id {sub_query.id} is used twice: {line}")
    if sub_query.id != expected:
        raise PlanError(f"ids rise by one from 1: expected {expected}, saw {sub_query.id}: {line}")
    if expected > limits.max_nodes:
        raise PlanError(f"the plan has more than {limits.max_nodes} sub-queries: {line}")
    if len(set(sub_query.parents)) < len(sub_query.parents):
        raise PlanError(f"a parent is named twice: {line}")
    for parent in sub_query.parents:
        if parent == sub_query.id:
            raise CycleError(f"sub-query {parent} depends on itself: {line}", nodes=(parent,))
        if parent in depths:
            continue
        if known is not None and parent in known:
            raise PlanError(f"parent {parent} comes after its child (a forward reference): {line}")
        raise UnknownNodeError(f"parent {parent} is not an earlier sub-query: {line}")
    depth = 1 + max((depths[parent] for parent in sub_query.parents), default=0)
    if depth > limits.max_depth:
        raise PlanError(f"the plan is deeper than {limits.max_depth} sub-queries: {line}")
    depths[sub_query.id] = depth


def _check_cycle(sub_queries: Sequence[SubQuery]) -> None:
    """A cycle is also a forward reference; say the more telling of the two."""
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for sub_query in sub_queries:
        sorter.add(sub_query.id, *(p for p in sub_query.parents if p != sub_query.id))
    try:
        sorter.prepare()
    except _FoundCycle as error:
        nodes = tuple(reversed(error.args[1]))
        path = " -> ".join(map(str, nodes))
        raise CycleError(f"the plan's dependencies form a cycle: {path}", nodes=nodes) from None


def _from_json(text: str) -> Iterator[SubQuery]:
    for value in _json_values(text):
        while isinstance(value, dict) and "steps" not in value:
            inner = value.get("lines", value.get("plan"))
            if inner is None:
                break
            value = inner
        if isinstance(value, dict) and "steps" in value:
            yield from _from_steps(value)
        elif isinstance(value, list):
            for item in value:
                yield _from_item(item)
        else:
            yield _from_item(value)


def _json_values(text: str) -> list[Any]:
    """One JSON document, or one on each line."""
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        pass
    values = []
    for line in text.split("\n"):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise PlanError(f"not JSON ({error}): {_shown(line)}") from None
    return values


def _from_steps(record: dict[str, Any]) -> Iterator[SubQuery]:
    steps = record["steps"]
    parents = record.get("parents", [[] for _ in steps] if isinstance(steps, list) else None)
    if not isinstance(steps, list) or not isinstance(parents, list) or len(steps) != len(parents):
        raise PlanError(f"'steps' and 'parents' must be lists of one length: {_shown(str(record))}")
    for index, (text, above) in enumerate(zip(steps, parents, strict=True), start=1):
        above = [p + 1 if _is_id(p) else p for p in above] if isinstance(above, list) else above
        yield _from_item({"id": index, "text": text, "parents": above})


def _from_item(item: Any) -> SubQuery:
    if isinstance(item, str):
        return _parse_line(item)
    shape = '{"id": 1, "text": "...", "parents": []}'
    if not isinstance(item, dict) or not _is_id(item.get("id")):
        raise PlanError(f"not a line of a plan: {_shown(str(item))}: expected {shape}")
    text, parents = item.get("text"), item.get("parents", [])
    if not isinstance(text, str) or not isinstance(parents, list) or not all(map(_is_id, parents)):
        raise PlanError(f"not a line of a plan: {_shown(str(item))}: expected {shape}")
    return SubQuery(item["id"], text.strip(), tuple(parents))


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**9


def _shown(line: str) -> str:
    """The line as an error may repeat it: short, printable."""
    short = line if len(line) <= _MAX_SHOWN else line[:_MAX_SHOWN] + "..."
    return repr(short)
