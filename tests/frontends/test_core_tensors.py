"""Tensors of TensorRT-LLM's core model, translated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compllm.embedded.request import EngineEvent, EnginePerf, EngineSampling
from compllm.errors import RequestInvalid
from compllm.frontends.triton.core_tensors import INPUTS, is_stop, outputs, parse


def _tensors(**more: Any) -> dict[str, NDArray[Any]]:
    plain: dict[str, Any] = {
        "input_ids": [[5, 6, 7]],
        "input_lengths": [3],
        "request_output_len": [8],
    }
    given = {name: np.asarray(value) for name, value in (plain | more).items()}
    return given


def test_plain_request_is_greedy_and_not_streamed() -> None:
    request = parse(_tensors())
    assert request.engine.input_ids == (5, 6, 7)
    assert request.engine.max_tokens == 8
    assert request.engine.end_id == -1
    assert request.engine.sampling == EngineSampling()
    assert request.engine.task_id is None
    assert not request.engine.is_streamed


def test_input_lengths_cuts_the_padding() -> None:
    assert parse(_tensors(input_lengths=[2])).engine.input_ids == (5, 6)


@pytest.mark.parametrize("length", [0, -1, 4])
def test_input_lengths_outside_input_ids_are_refused(length: int) -> None:
    with pytest.raises(RequestInvalid, match=f"input_lengths is {length}"):
        parse(_tensors(input_lengths=[length]))


@pytest.mark.parametrize("name", ["input_ids", "input_lengths", "request_output_len"])
def test_missing_input_is_named(name: str) -> None:
    tensors = _tensors()
    del tensors[name]
    with pytest.raises(RequestInvalid, match=f"{name} is missing"):
        parse(tensors)


def test_sampling_inputs_are_understood() -> None:
    sampling = parse(
        _tensors(
            temperature=[0.5],
            runtime_top_k=[3],
            runtime_top_p=[0.9],
            repetition_penalty=[1.5],
            presence_penalty=[0.25],
            frequency_penalty=[0.125],
            min_tokens=[2],
            seed=np.array([2**64 - 1], np.uint64),
        )
    ).engine.sampling
    assert sampling == EngineSampling(0.5, 3, 0.9, 1.5, 0.25, 0.125, 2, 2**64 - 1)


def test_a_seed_that_is_left_out_is_none() -> None:
    assert parse(_tensors(temperature=[1.0])).engine.sampling.seed is None
    assert parse(_tensors(seed=np.array([0], np.uint64))).engine.sampling.seed == 0


def test_top_p_alone_samples_from_all_tokens() -> None:
    assert parse(_tensors(runtime_top_p=[0.9])).engine.sampling.top_k == 0


def test_word_lists_are_split_at_their_offsets() -> None:
    request = parse(_tensors(stop_words_list=[[[1, 2, 3], [2, 3, -1]]]))
    assert request.engine.stop_words == ((1, 2), (3,))
    assert parse(_tensors(bad_words_list=[[[9], [1]]])).engine.bad_words == ((9,),)


@pytest.mark.parametrize("offsets", [[2, 1, -1], [4, -1, -1], [0, -1, -1]])
def test_broken_offsets_are_refused(offsets: list[int]) -> None:
    with pytest.raises(RequestInvalid, match="stop_words_list has the offsets"):
        parse(_tensors(stop_words_list=[[[1, 2, 3], offsets]]))


def test_guides_are_text() -> None:
    given = _tensors(
        guided_decoding_guide_type=np.array([[b"regex"]], object),
        guided_decoding_guide=np.array([["[äö]+".encode()]], object),
    )
    engine = parse(given).engine
    assert (engine.guide_type, engine.guide) == ("regex", "[äö]+")


def test_guide_that_is_no_text_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="not UTF-8"):
        parse(_tensors(guided_decoding_guide=np.array([[b"\xff"]], object)))


@pytest.mark.parametrize(
    ("name", "asking", "neutral"),
    [
        ("beam_width", 2, 1),
        ("num_return_sequences", 2, 1),
        ("embedding_bias", 0.5, 0.0),
        ("return_context_logits", True, False),
        ("beam_search_diversity_rate", 0.5, 0.0),
    ],
)
def test_unsupported_input_is_refused_unless_neutral(name: str, asking: Any, neutral: Any) -> None:
    parse(_tensors(**{name: [[neutral]]}))
    with pytest.raises(RequestInvalid, match=f"{name} is not supported"):
        parse(_tensors(**{name: [[asking]]}))


@pytest.mark.parametrize(
    "name", ["draft_input_ids", "retention_decode_priority", "mrope_rotary_cos_sin"]
)
def test_unsupported_input_without_neutral_value_is_refused(name: str) -> None:
    with pytest.raises(RequestInvalid, match=f"{name} is not supported"):
        parse(_tensors(**{name: [[0]]}))


def test_every_input_is_either_honoured_or_refused() -> None:
    assert len(set(INPUTS)) == len(INPUTS) == 62


def test_several_sequences_in_one_request_are_refused() -> None:
    with pytest.raises(RequestInvalid, match="batch size 2"):
        parse(_tensors(input_ids=[[1, 2, 3], [4, 5, 6]]))


def test_scalar_with_two_values_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="seed has 2 values"):
        parse(_tensors(seed=[[1, 2]]))


def test_weights_without_config_or_task_are_refused() -> None:
    weights = np.zeros((1, 1, 4), np.float16)
    with pytest.raises(RequestInvalid, match="go together"):
        parse(_tensors(lora_task_id=[7], lora_weights=weights))
    with pytest.raises(RequestInvalid, match="without lora_task_id"):
        parse(_tensors(lora_weights=weights, lora_config=np.zeros((1, 1, 4), np.int32)))


def test_stop_is_seen_before_anything_else_is_asked_for() -> None:
    assert is_stop({"stop": np.array([True])})
    assert not is_stop(_tensors(stop=[False]))


def test_unstreamed_output_begins_with_the_prompt() -> None:
    arrays = outputs(parse(_tensors()), EngineEvent((8, 9), is_final=True))
    assert arrays["output_ids"].tolist() == [[[5, 6, 7, 8, 9]]]
    assert arrays["sequence_length"].tolist() == [[5]]


def test_prompt_is_left_out_when_asked_or_configured() -> None:
    event = EngineEvent((8,), is_final=True)
    asked = outputs(parse(_tensors(exclude_input_in_output=[True])), event)
    configured = outputs(parse(_tensors(), is_input_excluded=True), event)
    assert asked["output_ids"].tolist() == configured["output_ids"].tolist() == [[[8]]]


def test_streamed_output_holds_new_tokens_alone() -> None:
    arrays = outputs(parse(_tensors(streaming=[True])), EngineEvent((8,)))
    assert arrays["output_ids"].tolist() == [[[8]]]
    assert set(arrays) == {"output_ids", "sequence_length", "batch_index", "sequence_index"}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_log_probs_come_with_every_response_when_asked_and_sum_up(is_streamed: bool) -> None:
    request = parse(_tensors(streaming=[is_streamed], return_log_probs=[True]))
    assert request.engine.wants_log_probs
    arrays = outputs(request, EngineEvent((8,), (-0.5, -0.25), is_final=not is_streamed))
    assert arrays["output_log_probs"].tolist() == [[[-0.5, -0.25]]]
    assert arrays["cum_log_probs"].tolist() == [[-0.75]]
    assert {arrays[name].dtype for name in ("output_log_probs", "cum_log_probs")} == {
        np.dtype(np.float32)
    }


def test_log_probs_of_no_token_are_an_empty_list() -> None:
    request = parse(_tensors(return_log_probs=[True]))
    arrays = outputs(request, EngineEvent(is_final=True))
    assert arrays["output_log_probs"].shape == (1, 1, 0)
    assert arrays["cum_log_probs"].tolist() == [[0.0]]


def test_output_tokens_are_counted_by_response_as_upstream_does() -> None:
    request = parse(_tensors(streaming=[True], return_num_output_tokens=[True]))
    arrays = outputs(request, EngineEvent((8, 9), is_final=True))
    assert arrays["num_output_tokens"].item() == 2


def test_performance_outputs_come_with_the_last_response_when_asked() -> None:
    request = parse(
        _tensors(
            return_perf_metrics=[True],
            return_num_input_tokens=[True],
            return_num_output_tokens=[True],
        )
    )
    perf = EnginePerf(1, 2, 3, 4, 5, 6, 7)
    arrays = outputs(request, EngineEvent((8,), is_final=True, perf=perf))
    assert {name: array.item() for name, array in arrays.items() if array.size == 1} == {
        "sequence_length": 4,
        "batch_index": 0,
        "sequence_index": 0,
        "arrival_time_ns": 1,
        "first_scheduled_time_ns": 2,
        "first_token_time_ns": 3,
        "last_token_time_ns": 4,
        "kv_cache_alloc_total_blocks": 5,
        "kv_cache_alloc_new_blocks": 6,
        "kv_cache_reused_blocks": 7,
        "num_input_tokens": 3,
        "num_output_tokens": 1,
    }


def test_lists_that_would_hold_up_every_step_are_refused() -> None:
    """Each step compares the output with all of them, on the engine's thread."""
    plain = {"input_ids": [[5]], "input_lengths": [1], "request_output_len": [1]}
    words = np.zeros((1, 2, 1025), np.int32)
    for name in ("stop_words_list", "bad_words_list"):
        tensors = {each: np.asarray(value) for each, value in plain.items()} | {name: words}
        with pytest.raises(RequestInvalid, match=f"{name} has 1025 tokens: at most 1024"):
            parse(tensors)


def test_a_prompt_of_a_million_tokens_is_refused_before_it_is_read() -> None:
    ids = np.zeros((1, 2**20 + 1), np.int32)
    tensors = {"input_ids": ids, "input_lengths": np.array([ids.size])}
    with pytest.raises(RequestInvalid, match="input_lengths is 1048577: at most 1048576"):
        parse(tensors | {"request_output_len": np.array([1])})
