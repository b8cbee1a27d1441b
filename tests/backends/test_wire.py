"""Every tensor of our messages is one that TensorRT-LLM's core model declares, and as it does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compllm.backend import GenerateRequest, Guide, Segment
from compllm.backends import wire
from compllm.backends.tokenizer import SpecialIds
from compllm.build_scripts.repository import upstream
from compllm.types import SamplingParams

WEIGHTS = np.zeros((3, 20), np.float16), np.zeros((3, 4), np.int32)


def everything() -> Any:
    """A message with all that a request of ours can ask for."""
    sampling = SamplingParams(9, 0.5, 3, 0.75, 1.1, seed=-1, stop=("a",), min_tokens=2)
    request = GenerateRequest(
        "r",
        (Segment("hi"),),
        sampling,
        adapter_id=7,
        guide=Guide("regex", "[0-9]"),
        wants_log_probs=True,
    )
    special = SpecialIds(2, 0, more_end_ids=(3, 4))
    return wire.inference_message(
        request, "r#1", [5, 6], special, is_streamed=True, weights=WEIGHTS
    )


def undeclared(message: Any) -> Iterator[str]:
    """What upstream's list does not have, or has otherwise."""
    declared = {tensor.name: tensor for tensor in upstream.core().inputs}
    for tensor in message.inputs:
        if (known := declared.get(tensor.name)) is None:
            yield f"{tensor.name} is not upstream's"
            continue
        kind = {"BYTES": "STRING"}.get(tensor.datatype, tensor.datatype)
        if known.data_type != f"TYPE_{kind}":
            yield f"{tensor.name} is {kind}, upstream has {known.data_type}"
        batch, *dims = tensor.shape
        fits = len(dims) == len(known.dims) and all(
            theirs in (-1, ours) for ours, theirs in zip(dims, known.dims, strict=True)
        )
        if batch != 1 or not fits:
            yield f"{tensor.name} is {list(tensor.shape)}, upstream has [1, {known.dims}]"


def test_messages_hold_only_upstreams_tensors_types_and_shapes() -> None:
    required = {each.name for each in upstream.core().inputs if not each.is_optional}
    for message in (everything(), wire.stop_message("tensorrt_llm", "r#1")):
        assert list(undeclared(message)) == []
        assert {tensor.name for tensor in message.inputs} >= required


def test_what_messages_have_in_common_is_a_copy_in_each() -> None:
    """It is made once for all requests: a fork's last child waited for its siblings' messages."""
    plain = GenerateRequest("r", (Segment("hi"),), SamplingParams(9))
    special = SpecialIds(2, 0)
    first = wire.inference_message(plain, "r#1", [5, 6], special, is_streamed=True)
    first.inputs.add(name="other")
    first.raw_input_contents[-1] = b"changed"
    second = wire.inference_message(plain, "r#2", [5, 6], special, is_streamed=True)
    third = wire.inference_message(plain, "r#2", [5, 6], special, is_streamed=True)
    assert second == third
    assert len(second.inputs) == len(second.raw_input_contents) == len(first.inputs) - 1
    assert b"changed" not in second.raw_input_contents


def inputs_of(sampling: SamplingParams) -> dict[str, Any]:
    request = GenerateRequest("r", (Segment("hi"),), sampling)
    message = wire.inference_message(request, "r#1", [5, 6], SpecialIds(2, 0), is_streamed=True)
    names = [tensor.name for tensor in message.inputs]
    return dict(zip(names, message.raw_input_contents, strict=True))


def test_each_request_without_a_seed_gets_another_one() -> None:
    """What requests have in common is made once: a seed is not among it."""
    seeds = [inputs_of(SamplingParams(temperature=1.0)).pop("seed") for _ in range(5)]
    assert len(set(seeds)) == 5
    assert inputs_of(SamplingParams(temperature=1.0, seed=0)).pop("seed") == bytes(8)
    assert "seed" not in inputs_of(SamplingParams())


def test_top_p_of_0_is_sent_as_the_least_above_it() -> None:
    """TensorRT-LLM takes 0 beside a top_k for 1: every token."""
    sampling = SamplingParams(temperature=1.0, top_k=5, top_p=0.0)
    (top_p,) = np.frombuffer(inputs_of(sampling)["runtime_top_p"], np.float32)
    assert 0 < top_p < 1e-5


def test_log_probs_are_asked_for_with_a_sampling_parameter_or_not_at_all() -> None:
    """TensorRT-LLM overlooks the wish where no sampling parameter is set."""
    plain = GenerateRequest("r", (Segment("hi"),))
    messages = [
        wire.inference_message(request, "r#1", [5], SpecialIds(2, 0), is_streamed=False)
        for request in (plain, replace(plain, wants_log_probs=True))
    ]
    without, wanted = ({each.name for each in message.inputs} for message in messages)
    assert wanted - without == {"return_log_probs"}
    assert "runtime_top_k" in wanted


@pytest.mark.parametrize(
    ("known", "num_before", "num_new", "expected"),
    [
        ([-1.0, -2.0, -3.0], 0, 3, (-1.0, -2.0, -3.0)),
        ([-1.0, -2.0, -3.0], 2, 1, (-3.0,)),  # a streamed response has those of earlier ones first
        ([-1.0, -2.0, -3.0], 0, 2, (-1.0, -2.0)),  # one more, of the end token
        ([-1.0], 0, 2, ()),
        ([], 0, 0, ()),
        (None, 0, 2, ()),
    ],
)
def test_log_probs_are_those_of_the_new_tokens_or_none(
    known: list[float] | None, num_before: int, num_new: int, expected: tuple[float, ...]
) -> None:
    tensors = {} if known is None else {"output_log_probs": np.array(known, np.float32)}
    assert wire.read_log_probs(tensors, num_before, num_new) == expected


@pytest.mark.parametrize(
    ("name", "values", "dtype"),
    [
        ("top_k", [[1]], np.int32),  # the name before 1.2
        ("runtime_top_p", [[1]], np.int32),
        ("lora_config", np.zeros((1, 3, 3)), np.int32),
        ("stop", [True], np.bool_),
    ],
)
def test_anything_invented_is_found(name: str, values: Any, dtype: type[np.generic]) -> None:
    message = wire.stop_message("tensorrt_llm", "r#1")
    del message.inputs[:]
    wire.add_array(message, name, values, dtype)
    assert len(list(undeclared(message))) == 1


def test_responses_are_read_by_names_that_upstream_has() -> None:
    class Asked(defaultdict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            return self[name]

    asked = Asked(lambda: np.ones(1, np.int64))
    wire.read_usage(asked)
    wire.read_log_probs(asked, 0, 1)
    wire.read_ids({name: asked[name] for name in ("output_ids", "sequence_length")})
    assert len(asked) > 6
    assert set(asked) <= {tensor.name for tensor in upstream.core().outputs}
