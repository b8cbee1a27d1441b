"""The messages of OpenAI's completions and chat, as vLLM, SGLang, llama-server and others have it.

Pure: what a server can do and a request go in, a JSON body comes out; an event's JSON goes in, a
`Piece` comes out. openai.py sends and receives them; openai_probe.py finds out what a server can.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from compllm.backend import GenerateRequest, Guide
from compllm.errors import BackendError, BackendRejected, BackendUnavailable
from compllm.types import FinishReason

GuideForm = Literal["structured_outputs", "guided_regex", "regex", ""]
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_MAX_STOPS = 4  # that OpenAI's own interface takes; the client cuts at all of them
_LONG_ERROR = 300  # characters of a server's text


@dataclass(frozen=True, slots=True)
class Family:
    """Fields beyond OpenAI's, by the server's kind. An empty name: the server has no such field."""

    name: str = "unknown"
    top_k: str = ""
    repetition_penalty: str = ""
    min_tokens: str = ""
    has_many_stops: bool = False
    # How a request names an adapter: as its model; as "base:adapter"; or in a field of its own,
    # with the folder that holds it on the server.
    adapters: Literal["model", "colon", "lora_request"] = "model"
    more: Mapping[str, Any] = field(default_factory=dict)  # sent with each request


# `owned_by` of /v1/models, in small letters -> what that server takes.
FAMILIES: Mapping[str, Family] = {
    "vllm": Family(
        "vllm", "top_k", "repetition_penalty", "min_tokens", True,
        more={"add_special_tokens": False},
    ),
    "sglang": Family("sglang", "top_k", "repetition_penalty", "min_tokens", True, "colon"),
    "llamacpp": Family(
        "llama-server", "top_k", "repeat_penalty", "", True, more={"cache_prompt": True}
    ),
    "tensorrt_llm": Family(
        "trtllm-serve", "top_k", "repetition_penalty", "min_tokens", True, "lora_request",
        {"add_special_tokens": False},
    ),
    "ovms": Family("OpenVINO Model Server", "top_k", "repetition_penalty", "", True),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server was found to do. max_batch_size, max_seq_len: None where it does not say."""

    family: Family = field(default_factory=Family)
    takes_ids: bool = False  # a prompt of token ids; else text
    guide: GuideForm = ""  # how a regular expression is sent; empty: it has no guides
    has_log_probs: bool = False
    max_batch_size: int | None = None
    max_seq_len: int | None = None  # tokens of a prompt and its response


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter of the catalogue at a server. folder: there, above the adapter's own."""

    id: int
    name: str
    folder: str = ""

    def fields(self, base: str, family: Family) -> dict[str, Any]:
        """What a request has in place of the base's name."""
        if family.adapters == "colon":
            return {"model": f"{base}:{self.name}"}
        if family.adapters == "model":
            return {"model": self.name}
        path = f"{self.folder.rstrip('/')}/{self.name}"
        asked = {"lora_name": self.name, "lora_int_id": self.id, "lora_path": path}
        return {"model": base, "lora_request": asked}


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event says. Counts are of the whole request, and come with its last event."""

    text: str = ""
    finish_reason: FinishReason | None = None
    log_probs: tuple[float, ...] = ()
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None


def body(
    model: Mapping[str, Any],
    prompt: str | Sequence[int],
    request: GenerateRequest,
    can: Capabilities,
) -> dict[str, Any]:
    """model: the fields that name it.

    Raises BackendRejected where the request asks for what the server does not have. A guide that
    the server does not have is left out: the plan's parser trusts no text.
    """
    named = {**can.family.more, **model}
    sampling = sampling_fields(request, can)
    whole = prompt if isinstance(prompt, str) else list(prompt)
    return named | {"prompt": whole} | sampling | guide_fields(request.guide, can.guide)


def sampling_fields(request: GenerateRequest, can: Capabilities) -> dict[str, Any]:
    """How to draw, and that the response comes as a stream. Raises BackendRejected."""
    sampling, family = request.sampling, can.family
    is_greedy = sampling.temperature == 0 or sampling.top_p == 0
    fields: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": 0.0 if is_greedy else sampling.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if not is_greedy:
        fields["top_p"] = sampling.top_p
        if sampling.seed is not None:
            fields["seed"] = sampling.seed
        if sampling.top_k:
            fields[_named(family, "top_k", sampling.top_k)] = sampling.top_k
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        fields[_named(family, "repetition_penalty", penalty)] = penalty
    if sampling.min_tokens:
        fields[_named(family, "min_tokens", sampling.min_tokens)] = sampling.min_tokens
    if sampling.stop:
        fields["stop"] = list(sampling.stop[: None if family.has_many_stops else _MAX_STOPS])
    if request.wants_log_probs and can.has_log_probs:
        fields["logprobs"] = 1
    return fields


def guide_fields(guide: Guide | None, form: GuideForm) -> dict[str, Any]:
    if guide is None or guide.type != "regex" or not form:
        return {}
    return {form: {"regex": guide.text} if form == "structured_outputs" else guide.text}


def read_event(data: str) -> Piece:
    """One event of the stream. Raises BackendUnavailable for an error in it, and BackendError for
    what is no event."""
    try:
        event = json.loads(data)
        if event.get("error"):
            raise BackendUnavailable(f"the server ended the response: {_message(event)}")
        return _piece(event)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise BackendError(f"the server sent an event of a wrong form: {data[:80]!r}") from error


def _piece(event: Mapping[str, Any]) -> Piece:
    usage = event.get("usage") or {}
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    choices = event.get("choices") or ()
    if not choices:
        return Piece(num_input_tokens=counts[0], num_output_tokens=counts[1])
    choice = choices[0]
    text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    if not isinstance(text, str):
        raise TypeError("text is no string")
    reason = _reason(choice.get("finish_reason"))
    return Piece(text, reason, _log_probs(choice.get("logprobs")), *counts)


def error_of(
    status: int, text: str, url: str, key_setting: str = "server.api_key_env"
) -> BackendError:
    """The error that an HTTP status other than 200 is for the path. key_setting: which setting
    names the server's key."""
    try:
        said = _message(json.loads(text))
    except ValueError:
        said = text.strip()[:_LONG_ERROR]
    answer = f"{url} answered {status}: {said or 'nothing'}"
    if status in (401, 403):
        return BackendRejected(
            f"{answer}. Set {key_setting} to the name of the environment variable that holds "
            "the server's key"
        )
    return BackendUnavailable(answer) if status in _AGAIN else BackendRejected(answer)


def _named(family: Family, field_name: str, value: float) -> str:
    name: str = getattr(family, field_name)
    if not name:
        raise BackendRejected(
            f"a server of the kind {family.name!r} takes no {field_name}: leave it at its neutral "
            f"value, not {value:g}"
        )
    return name


def _message(answer: Any) -> str:
    """OpenAI's error, that of older vLLM, or FastAPI's."""
    if not isinstance(answer, dict):
        return str(answer)[:_LONG_ERROR]
    error = answer.get("error", answer)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)[:_LONG_ERROR]


def _reason(reason: object) -> FinishReason | None:
    if reason is None or reason == "":
        return None
    return "length" if reason == "length" else "cancelled" if reason == "abort" else "stop"


def _log_probs(found: object) -> tuple[float, ...]:
    """vLLM's list, or llama-server's objects."""
    if not isinstance(found, dict):
        return ()
    values = found.get("token_logprobs") or [
        each.get("logprob") for each in found.get("content") or () if isinstance(each, dict)
    ]
    return tuple(float(value) for value in values if value is not None)
