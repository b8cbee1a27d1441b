"""The tensors of TensorRT-LLM's `tensorrt_llm` model, and what they mean to the embedded engine.

Pure translation between arrays and `EngineRequest` / `EngineEvent`; `core_serving.py` moves what
comes out. Every input that upstream declares is declared here too: one that this engine cannot
honour is refused unless it holds its neutral value, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compllm.embedded.request import EngineEvent, EngineRequest, EngineSampling
from compllm.errors import RequestInvalid

Tensors = Mapping[str, NDArray[Any]]

# Inputs whose feature is not here, with the values that ask for nothing of it; None: no value does.
_NEUTRAL: dict[str, tuple[float, ...] | None] = {
    "encoder_input_features": None,
    "encoder_output_lengths": None,
    "num_return_sequences": (1,),
    "draft_input_ids": None,
    "decoder_input_ids": None,
    "decoder_input_lengths": None,
    "draft_logits": None,
    "draft_acceptance_threshold": None,
    "embedding_bias": (0,),
    "beam_width": (1,),
    "runtime_top_p_min": (0,),
    "runtime_top_p_decay": (0, 1),
    "runtime_top_p_reset_ids": (-1,),
    "len_penalty": (0, 1),  # acts on beams alone
    "early_stopping": (0, 1),  # likewise
    "beam_search_diversity_rate": (0,),
    "return_context_logits": (0,),
    "return_generation_logits": (0,),
    "prompt_embedding_table": None,
    "prompt_table_extra_ids": None,
    "prompt_vocab_size": None,
    "cross_attention_mask": None,
    "mrope_rotary_cos_sin": None,
    "mrope_position_deltas": None,
    "context_phase_params": None,
    "skip_cross_attn_blocks": (0,),
    "retention_token_range_starts": None,
    "retention_token_range_ends": None,
    "retention_token_range_priorities": None,
    "retention_token_range_durations_ms": None,
    "retention_decode_priority": None,
    "retention_decode_duration_ms": None,
    "lookahead_window_size": None,
    "lookahead_ngram_size": None,
    "lookahead_verification_set_size": None,
}

_HONOURED = (
    "input_ids",
    "input_lengths",
    "request_output_len",
    "end_id",
    "pad_id",  # only one sequence a request: nothing is ever padded
    "stop_words_list",
    "bad_words_list",
    "temperature",
    "runtime_top_k",
    "runtime_top_p",
    "repetition_penalty",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "return_log_probs",
    "return_perf_metrics",
    "return_num_input_tokens",
    "return_num_output_tokens",
    "exclude_input_in_output",
    "stop",
    "streaming",
    "lora_task_id",
    "lora_weights",
    "lora_config",
    "guided_decoding_guide_type",
    "guided_decoding_guide",
)

INPUTS = (*_HONOURED, *_NEUTRAL)

_MAX_INPUT_IDS = 2**20
_MAX_WORD_TOKENS = 1024  # of stop_words_list and of bad_words_list


@dataclass(frozen=True, slots=True)
class CoreRequest:
    """One request to the core model, understood."""

    engine: EngineRequest
    is_input_excluded: bool = False  # the prompt is no part of an unstreamed output
    wants_perf: bool = False
    wants_num_input: bool = False
    wants_num_output: bool = False
    lora_weights: NDArray[np.float16] | None = None  # [rows, width]
    lora_config: NDArray[np.int32] | None = None  # [rows, 4]


def is_stop(tensors: Tensors) -> bool:
    """Whether this cancels the request of its id, rather than being one of its own."""
    return bool(_scalar(tensors, "stop", False))


def parse(tensors: Tensors, *, is_input_excluded: bool = False) -> CoreRequest:
    """The request in these tensors, each with its batch dimension of 1.

    Raises RequestInvalid that names the tensor. The engine checks the ranges of sampling
    values.
    """
    for name, array in tensors.items():
        if array.ndim and array.shape[0] > 1:
            raise RequestInvalid(
                f"{name} has batch size {array.shape[0]}: send one request per sequence, "
                "they are batched in flight"
            )
    _refuse_unsupported(tensors)
    lora_weights, lora_config = _lora(tensors)
    return CoreRequest(
        engine=EngineRequest(
            input_ids=_input_ids(tensors),
            max_tokens=int(_required(tensors, "request_output_len")),
            end_id=int(_scalar(tensors, "end_id", -1)),
            sampling=_sampling(tensors),
            stop_words=_words(tensors, "stop_words_list"),
            bad_words=_words(tensors, "bad_words_list"),
            task_id=_optional_int(tensors, "lora_task_id"),
            guide_type=_text(tensors, "guided_decoding_guide_type"),
            guide=_text(tensors, "guided_decoding_guide"),
            is_streamed=bool(_scalar(tensors, "streaming", False)),
            wants_log_probs=bool(_scalar(tensors, "return_log_probs", False)),
        ),
        is_input_excluded=bool(_scalar(tensors, "exclude_input_in_output", is_input_excluded)),
        wants_perf=bool(_scalar(tensors, "return_perf_metrics", False)),
        wants_num_input=bool(_scalar(tensors, "return_num_input_tokens", False)),
        wants_num_output=bool(_scalar(tensors, "return_num_output_tokens", False)),
        lora_weights=lora_weights,
        lora_config=lora_config,
    )


def outputs(request: CoreRequest, event: EngineEvent) -> dict[str, Any]:
    """The tensors that answer `event`.

    Streamed responses hold new tokens alone; an unstreamed one begins with the prompt unless that
    is excluded. The number of output tokens is that of the response alone, as TensorRT-LLM counts
    it. Log-probabilities are those of all output tokens up to here, in both cases, as
    TensorRT-LLM sends them.
    """
    tokens = event.token_ids
    if not request.engine.is_streamed and not request.is_input_excluded:
        tokens = request.engine.input_ids + tokens
    arrays: dict[str, NDArray[Any]] = {
        "output_ids": np.array(tokens, np.int32).reshape(1, 1, -1),
        "sequence_length": np.array([[len(tokens)]], np.int32),
        "batch_index": np.zeros((1, 1), np.int32),
        "sequence_index": np.zeros((1, 1), np.int32),
    }
    if request.engine.wants_log_probs:
        log_probs = np.array(event.log_probs, np.float32)
        arrays["output_log_probs"] = log_probs.reshape(1, 1, -1)
        arrays["cum_log_probs"] = log_probs.sum(dtype=np.float32).reshape(1, 1)
    if event.is_final:
        arrays |= _final_outputs(request, event)
    return arrays


def _final_outputs(request: CoreRequest, event: EngineEvent) -> dict[str, NDArray[Any]]:
    values: dict[str, tuple[int, type[np.generic]]] = {}
    perf = event.perf
    if request.wants_perf and perf is not None:
        values |= {
            "kv_cache_alloc_new_blocks": (perf.kv_alloc_new_blocks, np.int32),
            "kv_cache_reused_blocks": (perf.kv_reused_blocks, np.int32),
            "kv_cache_alloc_total_blocks": (perf.kv_alloc_total_blocks, np.int32),
            "arrival_time_ns": (perf.arrival_ns, np.int64),
            "first_scheduled_time_ns": (perf.first_scheduled_ns, np.int64),
            "first_token_time_ns": (perf.first_token_ns, np.int64),
            "last_token_time_ns": (perf.last_token_ns, np.int64),
        }
    if request.wants_num_input:
        values["num_input_tokens"] = (len(request.engine.input_ids), np.int32)
    if request.wants_num_output:
        values["num_output_tokens"] = (len(event.token_ids), np.int32)
    return {name: np.array([[value]], dtype) for name, (value, dtype) in values.items()}


def _refuse_unsupported(tensors: Tensors) -> None:
    for name in tensors.keys() & _NEUTRAL.keys():
        neutral, array = _NEUTRAL[name], tensors[name]
        if array.size and (neutral is None or not np.isin(array, neutral).all()):
            allowed = (
                f" unless it is {' or '.join(f'{each:g}' for each in neutral)}" if neutral else ""
            )
            raise RequestInvalid(
                f"{name} is not supported by the embedded engine{allowed}: leave it out"
            )


def _input_ids(tensors: Tensors) -> tuple[int, ...]:
    length = int(_required(tensors, "input_lengths"))
    ids = tensors.get("input_ids")
    if ids is None:
        raise RequestInvalid("input_ids is missing: this engine takes token ids alone")
    if length > _MAX_INPUT_IDS:  # before anything is made of them
        raise RequestInvalid(f"input_lengths is {length}: at most {_MAX_INPUT_IDS} are taken")
    if not 1 <= length <= ids.size:
        raise RequestInvalid(
            f"input_lengths is {length}: it must be from 1 to the {ids.size} tokens of input_ids"
        )
    return tuple(ids.reshape(-1)[:length].tolist())


def _sampling(tensors: Tensors) -> EngineSampling:
    default = EngineSampling()
    # A request with top_p alone means nucleus sampling over all tokens, not the greedy default.
    top_k = 0 if "runtime_top_p" in tensors else default.top_k
    return EngineSampling(
        temperature=float(_scalar(tensors, "temperature", default.temperature)),
        top_k=int(_scalar(tensors, "runtime_top_k", top_k)),
        top_p=float(_scalar(tensors, "runtime_top_p", default.top_p)),
        repetition_penalty=float(
            _scalar(tensors, "repetition_penalty", default.repetition_penalty)
        ),
        presence_penalty=float(_scalar(tensors, "presence_penalty", default.presence_penalty)),
        frequency_penalty=float(_scalar(tensors, "frequency_penalty", default.frequency_penalty)),
        min_tokens=int(_scalar(tensors, "min_tokens", default.min_tokens)),
        seed=_optional_int(tensors, "seed"),
    )


def _words(tensors: Tensors, name: str) -> tuple[tuple[int, ...], ...]:
    """[2, n]: the tokens of all words in a row, and below them where each word ends, then -1."""
    array = tensors.get(name)
    if array is None or not array.size:
        return ()
    if array.size > 2 * _MAX_WORD_TOKENS:  # each step compares with all of them
        raise RequestInvalid(
            f"{name} has {array.size // 2} tokens: at most {_MAX_WORD_TOKENS} are taken"
        )
    tokens, ends = array.reshape(2, -1).tolist()
    words = []
    start = 0
    for end in ends:
        if end == -1:
            break
        if not start < end <= len(tokens):
            raise RequestInvalid(
                f"{name} has the offsets {ends}: they must rise from 1 to {len(tokens)} at most, "
                "and end with -1"
            )
        words.append(tuple(tokens[start:end]))
        start = end
    return tuple(words)


def _lora(tensors: Tensors) -> tuple[NDArray[np.float16] | None, NDArray[np.int32] | None]:
    weights, config = tensors.get("lora_weights"), tensors.get("lora_config")
    if (weights is None) != (config is None):
        raise RequestInvalid("lora_weights and lora_config go together: send both or none")
    if weights is None or config is None:
        return None, None
    if "lora_task_id" not in tensors:
        raise RequestInvalid("lora_weights were sent without lora_task_id: name the adapter")
    return weights.reshape(weights.shape[-2:]), config.reshape(config.shape[-2:])


def _scalar(tensors: Tensors, name: str, default: float | bool) -> Any:
    array = tensors.get(name)
    if array is None or not array.size:
        return default
    if array.size != 1:
        raise RequestInvalid(f"{name} has {array.size} values: it takes one")
    return array.reshape(-1)[0]


def _required(tensors: Tensors, name: str) -> Any:
    if name not in tensors:
        raise RequestInvalid(f"{name} is missing: every request needs it")
    return _scalar(tensors, name, 0)


def _optional_int(tensors: Tensors, name: str) -> int | None:
    return int(_scalar(tensors, name, 0)) if name in tensors else None


def _text(tensors: Tensors, name: str) -> str | None:
    value = _scalar(tensors, name, False) if name in tensors else None
    if not isinstance(value, bytes):
        return None if value is None else str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestInvalid(f"{name} is not UTF-8 text: {error}") from error
