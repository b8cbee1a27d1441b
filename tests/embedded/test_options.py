"""The parameters of the Triton model `tensorrt_llm` as options of the engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compllm.embedded.options import ExecutorOptions, Parameters
from compllm.errors import ConfigError


def options_of(**parameters: str) -> ExecutorOptions:
    return ExecutorOptions.from_parameters(Parameters(parameters))


@pytest.mark.parametrize("empty", [{}, {"executor_options": "", "max_beam_width": " "}])
def test_empty_parameters_leave_the_defaults(empty: dict[str, str]) -> None:
    assert options_of(**empty) == ExecutorOptions()


def test_names_of_tensorrt_llm_set_the_engines_options() -> None:
    found = options_of(max_tokens_in_paged_kv_cache="4096", enable_kv_cache_reuse="false")
    assert found == ExecutorOptions(kv_cache_tokens=4096, is_prefix_reused=False)


def test_executor_options_count_before_the_names_of_tensorrt_llm() -> None:
    own = json.dumps({"kv_cache_tokens": 512, "max_adapters": 2, "niceness": 0})
    found = options_of(max_tokens_in_paged_kv_cache="4096", executor_options=own)
    assert found == ExecutorOptions(kv_cache_tokens=512, max_adapters=2, niceness=0)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"max_beam_width": "4"}, "max_beam_width must be 1: beam search is not supported"),
        ({"max_tokens_in_paged_kv_cache": "0"}, "'0': it takes a whole number above 0"),
        ({"max_tokens_in_paged_kv_cache": "1e5"}, "max_tokens_in_paged_kv_cache is '1e5'"),
        ({"enable_kv_cache_reuse": "maybe"}, "enable_kv_cache_reuse is 'maybe'"),
        ({"executor_options": "{"}, "executor_options is not JSON"),
        ({"executor_options": "[1]"}, "executor_options must be a JSON object"),
        ({"executor_options": '{"batch": 4}'}, "unknown options: batch; known: .*max_batch_size"),
    ],
)
def test_a_bad_parameter_is_named(parameters: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        options_of(**parameters)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch_size", 0),  # nothing would ever run
        ("max_num_tokens", 0),
        ("kv_cache_tokens", -32),
        ("kv_cache_tokens", 64.5),
        ("max_adapters", True),
        ("stream_interval_ms", float("nan")),
        ("num_threads", "2"),
    ],
)
def test_an_option_with_which_the_engine_would_not_run_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"option {name} is {value!r}: it takes a"):
        ExecutorOptions(**{name: value})


@pytest.mark.parametrize(
    ("value", "is_on"), [("true", True), ("1", True), ("False", False), ("0", False), (" ", False)]
)
def test_a_flag_is_true_or_false(value: str, is_on: Any) -> None:
    assert Parameters({"exclude_input_in_output": value}).flag("exclude_input_in_output") is is_on
