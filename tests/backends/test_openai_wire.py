"""openai_wire: bodies of requests, events, and the errors of HTTP statuses."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compllm.backend import GenerateRequest, Guide
from compllm.backends import openai_wire
from compllm.backends.openai_wire import FAMILIES, Capabilities, Family, Piece, ServedAdapter
from compllm.errors import BackendError, BackendRejected, BackendUnavailable
from compllm.types import SamplingParams

VLLM = Capabilities(FAMILIES["vllm"], takes_ids=True, guide="structured_outputs")


def body(can: Capabilities = VLLM, guide: Guide | None = None, **sampling: Any) -> dict[str, Any]:
    request = GenerateRequest("a", (), SamplingParams(**sampling), guide=guide)
    return openai_wire.body({"model": "base"}, [1, 2], request, can)


def test_greedy_requests_name_no_draw() -> None:
    found = body(max_tokens=7, seed=3, top_k=5)
    assert found["temperature"] == 0
    assert found["max_tokens"] == 7
    assert found["prompt"] == [1, 2]
    assert not {"seed", "top_k", "top_p"} & found.keys()


def test_top_p_0_is_the_likeliest_token() -> None:
    assert body(temperature=1.0, top_p=0.0)["temperature"] == 0


def test_draws_are_sent_as_the_server_names_them() -> None:
    found = body(temperature=0.7, top_p=0.9, top_k=4, seed=1, repetition_penalty=1.1, min_tokens=2)
    assert {"top_p": 0.9, "top_k": 4, "seed": 1}.items() <= found.items()
    assert {"repetition_penalty": 1.1, "min_tokens": 2}.items() <= found.items()
    llama = Capabilities(FAMILIES["llamacpp"])
    assert body(llama, repetition_penalty=1.1)["repeat_penalty"] == 1.1


@pytest.mark.parametrize(
    "sampling", [{"temperature": 1.0, "top_k": 4}, {"repetition_penalty": 1.2}, {"min_tokens": 3}]
)
def test_what_a_server_does_not_have_is_refused(sampling: dict[str, Any]) -> None:
    (*_, name) = sampling
    with pytest.raises(BackendRejected, match=f"'unknown' takes no {name}"):
        body(Capabilities(Family()), **sampling)


def test_a_guide_goes_in_the_form_that_the_server_has() -> None:
    guide = Guide("regex", "[ab]+")
    assert body(guide=guide)["structured_outputs"] == {"regex": "[ab]+"}
    assert body(Capabilities(guide="guided_regex"), guide)["guided_regex"] == "[ab]+"
    assert not {"regex", "structured_outputs", "guided_regex"} & body(Capabilities(), guide).keys()


def test_openai_itself_takes_four_stop_strings() -> None:
    stops = tuple("abcdef")
    assert body(Capabilities(), stop=stops)["stop"] == list("abcd")
    assert body(stop=stops)["stop"] == list(stops)


@pytest.mark.parametrize(
    ("owner", "fields"),
    [
        ("vllm", {"model": "chemistry"}),
        ("sglang", {"model": "base:chemistry"}),
        (
            "tensorrt_llm",
            {
                "model": "base",
                "lora_request": {
                    "lora_name": "chemistry",
                    "lora_int_id": 7,
                    "lora_path": "/adapters/chemistry",
                },
            },
        ),
    ],
)
def test_an_adapter_is_named_as_its_server_wants_it(owner: str, fields: dict[str, Any]) -> None:
    adapter = ServedAdapter(7, "chemistry", "/adapters/")
    assert adapter.fields("base", FAMILIES[owner]) == fields


def test_events_are_read() -> None:
    text = {"choices": [{"text": "hi", "finish_reason": None}]}
    assert openai_wire.read_event(json.dumps(text)) == Piece("hi")
    end = {"choices": [{"text": "", "finish_reason": "length"}], "usage": {"prompt_tokens": 4}}
    assert openai_wire.read_event(json.dumps(end)) == Piece("", "length", (), 4, None)
    usage = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}
    assert openai_wire.read_event(json.dumps(usage)) == Piece("", None, (), 4, 2)


@pytest.mark.parametrize(
    "log_probs",
    [{"token_logprobs": [-0.5, -1.0]}, {"content": [{"logprob": -0.5}, {"logprob": -1.0}]}],
)
def test_log_probabilities_of_both_spellings_are_read(log_probs: dict[str, Any]) -> None:
    found = openai_wire.read_event(json.dumps({"choices": [{"text": "a", "logprobs": log_probs}]}))
    assert found.log_probs == (-0.5, -1.0)


def test_an_error_in_the_stream_is_worth_another_attempt() -> None:
    with pytest.raises(BackendUnavailable, match="engine is dead"):
        openai_wire.read_event('{"error": {"message": "engine is dead"}}')


@given(st.text())
def test_any_event_is_a_piece_or_an_error(data: str) -> None:
    with suppress(BackendError):
        assert isinstance(openai_wire.read_event(data), Piece)


@pytest.mark.parametrize(
    "choice", [{"choices": "x"}, {"choices": [3]}, {"choices": [{"text": 5}]}, {"usage": [1]}]
)
def test_events_of_a_wrong_shape_are_errors(choice: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match="event"):
        openai_wire.read_event(json.dumps(choice))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"error": {"message": "no such model"}}', "no such model"),
        ('{"message": "no such model", "code": 404}', "no such model"),
        ('{"detail": "Not Found"}', "Not Found"),
        ("<html>bad gateway</html>", "<html>bad gateway</html>"),
        ("", "nothing"),
    ],
)
def test_the_server_s_own_text_is_shown(text: str, said: str) -> None:
    assert said in str(openai_wire.error_of(404, text, "http://h/v1/"))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_overloaded_servers_may_be_asked_again(status: int) -> None:
    assert isinstance(openai_wire.error_of(status, "", "http://h"), BackendUnavailable)


def test_a_wrong_key_names_the_setting() -> None:
    error = openai_wire.error_of(401, '{"error": "Unauthorized"}', "http://h")
    assert isinstance(error, BackendRejected)
    assert "server.api_key_env" in str(error)
