"""What is read of an engine's configuration: how many requests it batches, how long they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

from compllm.backends.model_limits import BLOCK, CACHE_TOKENS, EMBEDDED, batch_size_of, seq_len_of
from compllm.embedded.executor import TOKENS_PER_BLOCK
from compllm.embedded.options import ExecutorOptions


def config_of(max_batch_size: int = 1, **parameters: str) -> object:
    config = model_config_pb2.ModelConfig(max_batch_size=max_batch_size)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def test_the_embedded_engine_batches_what_its_options_say_or_their_default() -> None:
    assert ExecutorOptions().max_batch_size == EMBEDDED
    assert batch_size_of(config_of(executor_options="{}")) == EMBEDDED
    assert batch_size_of(config_of(executor_options='{"max_batch_size": 4}')) == 4


@pytest.mark.parametrize("options", ["[]", "{", '{"max_batch_size": "many"}', '{"x": 1}'])
def test_odd_options_are_no_error(options: str) -> None:
    assert batch_size_of(config_of(executor_options=options)) in (None, EMBEDDED)


def test_an_engine_of_tensorrt_llm_on_this_machine_tells_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"build_config": {"max_batch_size": 16}}))
    assert batch_size_of(config_of(8, gpt_model_path=str(tmp_path))) == 16


def test_elsewhere_the_repository_tells_unless_it_says_one() -> None:
    assert batch_size_of(config_of(8, gpt_model_path="/not/here")) == 8
    assert batch_size_of(config_of(1, gpt_model_path="/not/here")) is None
    assert batch_size_of(config_of(0)) is None


def test_a_request_may_be_as_long_as_the_embedded_engine_and_its_cache_hold(tmp_path: Path) -> None:
    assert (TOKENS_PER_BLOCK, ExecutorOptions().kv_cache_tokens) == (BLOCK, CACHE_TOKENS)
    (tmp_path / "manifest.json").write_text(json.dumps({"limits": {"max_seq_len": 8192}}))

    def length(**parameters: str) -> int | None:
        return seq_len_of(config_of(gpt_model_path=str(tmp_path), **parameters))

    assert length(executor_options="{}") == 8192
    assert length(executor_options='{"kv_cache_tokens": 100}') == 96
    assert length(executor_options="", max_tokens_in_paged_kv_cache="33") == 32
    assert seq_len_of(config_of(executor_options="{}", gpt_model_path="/not/here")) is None


def test_a_request_may_be_as_long_as_an_engine_of_tensorrt_llm_was_built_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"build_config": {"max_seq_len": 4096}}))
    assert seq_len_of(config_of(gpt_model_path=str(tmp_path))) == 4096
    assert seq_len_of(config_of(gpt_model_path="/not/here")) is None
