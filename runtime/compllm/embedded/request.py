"""What goes into the executor and what comes out: the embedded twin of TensorRT-LLM's Request
and Response.

The Triton model translates tensors to `EngineRequest` and `EngineEvent` back to tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from compllm.embedded.slots import SlotStats
from compllm.errors import INTERNAL, EngineError, Situation, situation_of
from compllm.types import FinishReason


@dataclass(frozen=True, slots=True)
class EngineSampling:
    """Sampling as the tensors mean it: top_k 1 or temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 1  # 0 keeps every token
    top_p: float = 1.0  # 1 keeps every token, 0 the likeliest alone
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0  # end and stop are not allowed before
    seed: int | None = None  # None: another one for each request


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One generation in token ids."""

    input_ids: tuple[int, ...]
    max_tokens: int
    end_id: int = -1  # -1: none; the end token is never part of the output
    sampling: EngineSampling = field(default_factory=EngineSampling)
    stop_words: tuple[
        tuple[int, ...], ...
    ] = ()  # token sequences; a matched one is part of the output
    bad_words: tuple[tuple[int, ...], ...] = ()
    stop: tuple[str, ...] = ()  # strings; needs the engine's tokenizer
    task_id: int | None = None  # adapter; None is the base
    guide_type: str | None = None  # regex | json | json_schema | ebnf_grammar
    guide: str | None = None
    is_streamed: bool = False  # events with new tokens as ExecutorOptions have it, else one event
    wants_log_probs: bool = False


@dataclass(frozen=True, slots=True)
class EnginePerf:
    """Times of one request (time.monotonic_ns) and its KV block counts."""

    arrival_ns: int = 0
    first_scheduled_ns: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0
    kv_alloc_total_blocks: int = 0
    kv_alloc_new_blocks: int = 0
    kv_reused_blocks: int = 0


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """New tokens of a request, its end, or its error. The last event has `is_final`."""

    token_ids: tuple[int, ...] = ()
    # Where the request wants them: of all output tokens up to here, the end token is not one.
    log_probs: tuple[float, ...] = ()
    is_final: bool = False
    finish_reason: FinishReason | None = None
    error: str | None = None  # a full sentence; only on a final event
    situation: Situation = INTERNAL  # of the error: what its client sees
    perf: EnginePerf | None = None  # on the final event

    @staticmethod
    def refusal(error: EngineError) -> EngineEvent:
        """The only event of a request that is refused."""
        return EngineEvent(
            is_final=True, finish_reason="error", error=str(error), situation=situation_of(error)
        )


OnEvent = Callable[[EngineEvent], None]  # called on the engine's thread: must not block or raise


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What steps of one kind took. A sequence with one token to compute decodes, also where that
    is the last one of its prompt."""

    num_decodes: int  # sequences of the step that decode
    has_prefill: bool
    num_steps: int
    seconds: float  # from the end of the step before, or from when there was work again
    num_prefilled: int  # tokens


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the executor. Counters rise from the start of the process."""

    num_active: int = 0  # in the batch now
    num_waiting: int = 0
    num_steps: int = 0
    num_tokens_generated: int = 0
    num_mixed_steps: int = 0  # steps whose batch held two or more different adapters (base counts)
    max_adapters_in_step: int = 0
    batch_histogram: tuple[tuple[int, int], ...] = ()  # (requests in a step, steps)
    step_times: tuple[StepTimes, ...] = ()
    kv_blocks_max: int = 0
    kv_blocks_used: int = 0
    kv_blocks_reused: int = 0
    kv_tokens_per_block: int = 0
    adapters: SlotStats = field(default_factory=SlotStats)
    max_steps_to_cancel: int = 0  # most steps between a cancel and the end of its request
    num_failures: int = 0  # of the engine's thread; after each it starts anew
    failure: str | None = None  # why it is dead: it takes no request any more
