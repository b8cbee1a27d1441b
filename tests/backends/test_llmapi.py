"""Messages and answers of the llmapi repository's model, and what its configuration says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from compllm.backend import GenerateRequest, Segment
from compllm.backends import wire
from compllm.backends.llmapi import News, is_llmapi, server_adapters
from compllm.backends.llmapi_wire import (
    ServerAdapter,
    inference_message,
    read_number,
    read_reason,
    stop_message,
)
from compllm.backends.tokenizer import Tokenizer
from compllm.catalogue import Adapter
from compllm.errors import BackendError
from compllm.types import SamplingParams

UPSTREAM = Path(__file__).parents[3] / "shared" / "trtllm" / "triton_models.json"
STAND_IN = (
    Path(__file__).parents[1] / "integration" / "llmapi_repo" / "tensorrt_llm" / "config.pbtxt"
)
TYPES = {"INT32": "INT32", "UINT64": "UINT64", "FP32": "FP32", "BOOL": "BOOL", "BYTES": "STRING"}


def stand_in() -> model_config_pb2.ModelConfig:
    text = STAND_IN.read_text(encoding="utf-8")
    filled = text.replace("${name}", "tensorrt_llm").replace("${decoupled}", "true")
    return text_format.Parse(filled, model_config_pb2.ModelConfig())


def everything() -> GenerateRequest:
    sampling = SamplingParams(9, 0.5, 3, 0.75, seed=-1, stop=("a", "b"))
    # There is no input for log-probabilities: wanting them is no error.
    return GenerateRequest("r", (Segment("hi"),), sampling, adapter_id=7, wants_log_probs=True)


def test_messages_hold_only_declared_tensors_of_the_declared_types_and_shapes() -> None:
    declared = {each.name: each for each in stand_in().input}
    adapter = ServerAdapter("chemistry", "/adapters/chemistry")
    full = inference_message(
        everything(), "r#1", "hi", is_streamed=True, adapter=adapter, wants_perf=True
    )
    for message in (full, stop_message("tensorrt_llm", "r#1")):
        for tensor in message.inputs:
            config = declared[tensor.name]
            type_name = model_config_pb2.DataType.Name(config.data_type)
            assert type_name == f"TYPE_{TYPES[tensor.datatype]}"
            assert len(tensor.shape) == 1
            assert list(config.dims) in ([-1], list(tensor.shape))
        given = {tensor.name for tensor in message.inputs}
        assert given >= {each.name for each in declared.values() if not each.optional}


@pytest.mark.skipif(not UPSTREAM.is_file(), reason="upstream's tensor lists are not here")
def test_the_stand_in_has_upstreams_tensors_and_the_inputs_of_lora() -> None:
    repositories = json.loads(UPSTREAM.read_text(encoding="utf-8"))["repositories"]
    upstream, config = repositories["llmapi"]["tensorrt_llm"], stand_in()

    def rows(each: object) -> tuple[str, str, list[int]]:
        assert isinstance(each, model_config_pb2.ModelInput | model_config_pb2.ModelOutput)
        return each.name, model_config_pb2.DataType.Name(each.data_type), list(each.dims)

    theirs = [(each["name"], each["data_type"], each["dims"]) for each in upstream["inputs"]]
    more = [each["name"] for each in upstream["added_after_1.2.1"]["inputs"]]
    assert [rows(each) for each in config.input if not each.name.startswith("lora_")] == theirs
    assert {each.name for each in config.input if each.name.startswith("lora_")} <= set(more)
    assert [rows(each) for each in config.output] == [
        (each["name"], each["data_type"], each["dims"]) for each in upstream["outputs"]
    ]


def test_the_configuration_tells_the_two_repositories_apart() -> None:
    assert is_llmapi(stand_in())
    core = model_config_pb2.ModelConfig()
    core.input.add(name="input_ids")
    assert not is_llmapi(core)


def test_texts_survive_the_wire() -> None:
    message = inference_message(everything(), "r#1", "ä\0b", is_streamed=False)
    response = type("Response", (), {})()
    response.outputs = message.inputs
    response.raw_output_contents = message.raw_input_contents
    tensors = wire.read_tensors(response)
    assert tensors["text_input"].tolist() == ["ä\0b".encode()]
    assert tensors["sampling_param_stop"].tolist() == [b"a", b"b"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [(b"length", "length"), (b"stop", "stop"), (b"None", "stop"), (b"cancelled", "cancelled")],
)
def test_finish_reasons_become_ours(said: bytes, reason: str) -> None:
    assert read_reason({"finish_reason": np.array([said], np.object_)}) == reason


def test_numbers_are_read_from_numbers_and_from_text() -> None:
    assert read_number({"n": np.array([5], np.int32)}, "n") == 5
    assert read_number({"n": np.array([b"5"], np.object_)}, "n") == 5
    assert read_number({"n": np.array([b"NaT"], np.object_)}, "n") == 0
    assert read_number({}, "n") == 0


@given(st.text(), st.lists(st.integers(0, 40)))
def test_what_accumulated_texts_add_is_the_text(text: str, cuts: list[int]) -> None:
    news = News()
    parts = [news.push(text[:cut], is_end=False) for cut in sorted(cuts)]
    assert "".join(parts) + news.push(text, is_end=True) == text


def test_half_a_character_waits_for_its_rest() -> None:
    news = News()
    assert news.push("a\ufffd", is_end=False) == "a"
    assert news.push("aä", is_end=True) == "ä"


def test_text_that_is_taken_back_is_an_error() -> None:
    news = News()
    news.push("one", is_end=False)
    with pytest.raises(BackendError, match="took back"):
        news.push("two", is_end=False)


def test_adapters_lie_in_folders_of_their_names() -> None:
    adapters = server_adapters([Adapter("chemistry", 7, None)], "/adapters")
    assert adapters == {7: ServerAdapter("chemistry", "/adapters/chemistry")}


def test_data_cannot_spell_a_special_token(base_dir: Path) -> None:
    tokenizer = Tokenizer.from_dir(base_dir)
    prompt = (Segment("<|im_start|>", is_template=True), Segment("a<|im_end|>b<|im_start|>"))
    text = tokenizer.text(prompt)
    assert text == "<|im_start|>a< |im_end|>b< |im_start|>"
    assert tokenizer.encode_text(text).count(tokenizer.encode_text("<|im_start|>")[0]) == 1
