"""The vocabulary of the path: what a query, a sub-query, an expert and an answer are.

Everything is frozen and holds tuples, so that concurrent nodes can share it. Imports nothing of
ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

NodeStatus = Literal["waiting", "ready", "running", "done", "failed", "skipped", "cancelled"]
FinishReason = Literal["stop", "length", "cancelled", "error"]
ComposePolicy = Literal["always", "auto", "never"]

# Where the plan and the answer stand among a query's nodes, whose ids rise from 1.
PLAN_NODE: Final = 0
ANSWER_NODE: Final = -1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. The defaults are greedy, as in TensorRT-LLM (top_k 1)."""

    max_tokens: int = 128  # new tokens at most
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 keeps every token
    top_p: float = 1.0  # in [0, 1]; 0 keeps the likeliest token alone
    repetition_penalty: float = 1.0  # 1 is off
    seed: int | None = None  # of the draws; None: another one for each request
    stop: tuple[str, ...] = ()  # strings that end the text; not part of it
    min_tokens: int = 0  # new tokens before which the text may not end


@dataclass(frozen=True, slots=True)
class Query:
    """One composite question of a user."""

    text: str
    id: str = ""  # unique among live queries; made by the pipeline when empty
    deadline_s: float | None = None  # seconds from the start of the query
    sampling: SamplingParams = field(default_factory=SamplingParams)  # of the final answer


@dataclass(frozen=True, slots=True)
class SubQuery:
    """One line of a plan."""

    id: int  # rises from 1
    text: str
    parents: tuple[int, ...] = ()  # ids smaller than its own


@dataclass(frozen=True, slots=True)
class Expert:
    """A domain expert of the catalogue: the base model with or without a LoRA adapter."""

    name: str
    domain: str  # one phrase for people and for routing
    system: str  # system text of its prompts
    model: str = "tensorrt_llm"  # Triton model that serves it
    adapter: str | None = None  # adapter name in the engine; None is the bare base
    adapter_id: int | None = None  # lora_task_id on the wire; None is the bare base
    spell: str = ""  # a pattern of words that it reads letter by letter (spelling.py)


@dataclass(frozen=True, slots=True)
class Route:
    """Which expert answers a sub-query, and how sure the router was."""

    expert: str  # expert name
    similarity: float  # cosine in [-1, 1] with the nearest expert, also when it was refused
    is_fallback: bool  # no expert was near enough: the base answers


@dataclass(frozen=True, slots=True)
class Usage:
    """What the engine reports of one finished request; times are seconds from its arrival."""

    num_input_tokens: int = 0
    num_output_tokens: int = 0
    kv_reused_blocks: int = 0
    kv_alloc_blocks: int = 0
    scheduled_s: float = 0.0  # arrival to first scheduled
    first_token_s: float = 0.0  # arrival to first token
    total_s: float = 0.0  # arrival to last token


@dataclass(frozen=True, slots=True)
class QueryUsage:
    """What one query used of the engines, over all its requests: the plan's, the sub-queries' and
    the answer's. A response that is shared counts for the query that asked first."""

    num_requests: int = 0  # attempts that failed too
    num_input_tokens: int = 0  # of requests that ran to their end: the engine reports it there
    num_output_tokens: int = 0
    plan: Usage | None = None  # of the request that wrote the plan; None: none ran to its end
    answer: Usage | None = None  # of the request that composed the answer; None: as above


@dataclass(frozen=True, slots=True)
class NodeResult:
    """How one node ended. A failure is a value: `error` says why, `response` is what there is."""

    id: int
    expert: str  # who answered in the end (the base after a fall-back)
    status: NodeStatus
    response: str = ""
    error: str | None = None
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)  # of a shared response: of the one request
    # Seconds from the start of the query.
    ready_s: float = 0.0  # last parent ended (or the line of the plan was complete)
    start_s: float = 0.0  # handed to the backend
    first_token_s: float = 0.0
    end_s: float = 0.0
    is_shared: bool = False  # the response to another's identical request, or out of the cache
    # Natural, one a token of the response in order, the end token left out; none where the engine
    # has none.
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a query went, in seconds from its start; stages overlap."""

    plan_s: float = 0.0  # the plan was complete
    route_s: float = 0.0  # summed time of embedding and routing
    execute_s: float = 0.0  # first node's start to last node's end
    compose_s: float = 0.0  # last node's end to the answer's last token
    first_token_s: float = 0.0  # first token of the answer
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Bound:
    """What the graph allows against what was reached, over the expert stage."""

    ideal_speedup: float  # sum of node times over the longest path of node times
    reached_speedup: float  # sum of node times over the time from first start to last end


@dataclass(frozen=True, slots=True)
class Plan:
    """A validated plan: ids rise from 1, parents are smaller ids."""

    sub_queries: tuple[SubQuery, ...]
    is_fallback: bool = False  # the generator's plan was unusable: one node, the query itself
    reason: str = ""  # why it fell back
    is_direct: bool = False  # there was no plan: the gate sent the query straight to one expert
    is_cut: bool = False  # the generator had more to write than generator.max_nodes allows
    num_copies: int = 0  # lines that the generator wrote again: they are left out
    is_drawn: bool = False  # likelier than the one that was written first, whose place it takes
    # Of the tokens that the generator wrote, as in NodeResult.
    log_probs: tuple[float, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a query: the text, and everything that led to it."""

    query: Query
    text: str
    plan: Plan
    routes: tuple[Route, ...]  # in the order of the plan
    nodes: tuple[NodeResult, ...]  # in the order of the plan
    timings: Timings
    bound: Bound
    is_partial: bool = False  # a node failed, or the deadline cut it short
    error: str | None = None
    finish_reason: FinishReason = "stop"  # of the text: 'error' where it is partial
    # Calibrated probability that what the text states is right (confidence.py); where the text is
    # "I do not know", that of the withheld answer. None where the catalogue has no calibration, or
    # the engine no log-probabilities.
    confidence: float | None = None
    is_low_confidence: bool = False  # below answer.min_confidence, or parts were not given
    usage: QueryUsage = field(default_factory=QueryUsage)


# What `CompLLM.stream` yields, in the order things happen. Times are seconds from the query's
# start.


@dataclass(frozen=True, slots=True)
class SubQueryPlanned:
    """A line of the plan is complete and routed."""

    sub_query: SubQuery
    route: Route


@dataclass(frozen=True, slots=True)
class PlanFinished:
    """The generator ended (or its plan was replaced by the one-node plan)."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A node went to the engine."""

    id: int
    expert: str
    at_s: float


@dataclass(frozen=True, slots=True)
class NodeFinished:
    """A node ended, well or badly."""

    result: NodeResult


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """New text of the final answer."""

    text: str


@dataclass(frozen=True, slots=True)
class AnswerFinished:
    """The last event of every query."""

    answer: Answer


Event = SubQueryPlanned | PlanFinished | NodeStarted | NodeFinished | AnswerDelta | AnswerFinished
