"""What an OpenAI-compatible server can do, found out by asking it: models, token ids, guides.

Servers do not refuse fields that they do not know: they leave them out of account without a word.
So each capability is asked for with a request whose answer shows whether it was used.
Used by openai.py when it connects, and by `doctor --url`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import httpx

from compllm.backend import Guide
from compllm.backends.openai_wire import (
    FAMILIES,
    Capabilities,
    Family,
    GuideForm,
    ServedAdapter,
    error_of,
    guide_fields,
)
from compllm.backends.tokenizer import Tokenizer
from compllm.errors import BackendUnavailable, ConfigError

_PAUSE_S = 0.25  # between two looks whether the server is there
_ODD = "zq7k"  # what no model says by itself
_TEXT = "The capital of France is"


@dataclass(frozen=True, slots=True)
class Models:
    """Of /v1/models. `bases` have no parent; adapters are models of their own, with one."""

    names: tuple[str, ...]
    bases: tuple[str, ...]
    owner: str
    max_seq_len: int | None = None  # of vLLM; others do not list it


async def models_at(
    client: httpx.AsyncClient,
    timeout_s: float,
    key_setting: str = "server.api_key_env",
    url_setting: str = "server.url",
) -> Models:
    """Waits until the server answers. The settings are those that an error names.

    Raises BackendUnavailable when time is up, and what `error_of` says of another answer than a
    list."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + timeout_s
    while True:
        try:
            response = await client.get("models")
        except httpx.TransportError as error:
            said = f"no answer from {client.base_url} ({_why(error)})"
            if loop.time() > end_s:
                raise BackendUnavailable(said) from error
        else:
            if response.status_code == 200:
                return _models(response, url_setting)
            refusal = error_of(
                response.status_code, response.text, str(client.base_url), key_setting
            )
            if not isinstance(refusal, BackendUnavailable) or loop.time() > end_s:
                raise refusal
        await asyncio.sleep(_PAUSE_S)


async def load_adapters(
    client: httpx.AsyncClient, adapters: Iterable[ServedAdapter], models: Models
) -> None:
    """Have the server load those that are no models of it, as vLLM does where that is allowed.

    Servers that name adapters otherwise show a missing one with its first request. Raises
    ConfigError with what to start the server with.
    """
    family = _family(models)
    for adapter in adapters:
        name = adapter.name
        if family.adapters == "lora_request" and not adapter.folder:
            raise ConfigError(
                f"{family.name} reads adapters itself: set server.adapters_dir to the folder there "
                f"that holds {name!r}"
            )
        if family.adapters != "model" or name in models.names:
            continue
        remedy = (
            f"start the server with it (vLLM: --enable-lora --lora-modules {name}=PATH), or set "
            "server.adapters_dir to the folder there that holds the adapters by name and allow "
            "loading (vLLM: VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)"
        )
        if not adapter.folder:
            raise ConfigError(
                f"{client.base_url} has no model named {name!r} (it has "
                f"{', '.join(models.names)}): {remedy}"
            )
        request = {"lora_name": name, "lora_path": f"{adapter.folder.rstrip('/')}/{name}"}
        response = await _posted(client, "load_lora_adapter", request)
        if response.status_code != 200:
            error = error_of(response.status_code, response.text, f"{client.base_url}")
            raise ConfigError(f"the adapter {name!r} cannot be loaded: {error}. Else {remedy}")


async def capabilities(
    client: httpx.AsyncClient, models: Models, base: str, tokenizer: Tokenizer
) -> Capabilities:
    """A few requests of at most eight tokens."""
    family = _family(models)
    ids = tokenizer.encode_text(_TEXT)
    fields = {**family.more, "model": base, "temperature": 0.0}
    whole = await _said(client, {**fields, "prompt": ids, "max_tokens": 1, "logprobs": 1})
    takes_ids = whole is not None and (whole.get("usage") or {}).get("prompt_tokens") == len(ids)
    prompt: Any = ids if takes_ids else _TEXT
    if not takes_ids:
        whole = await _said(client, {**fields, "prompt": prompt, "max_tokens": 1, "logprobs": 1})
    has_log_probs = whole is not None and bool(_choice(whole).get("logprobs"))
    guide: GuideForm = ""
    for form in filter(None, get_args(GuideForm)):
        more = guide_fields(Guide("regex", _ODD), form)
        found = await _said(client, {**fields, "prompt": prompt, "max_tokens": 8, **more})
        if found is not None and _choice(found).get("text") == _ODD:
            guide = form
            break
    slots, length = await _llama_limits(client) if family.name == "llama-server" else (None, None)
    return Capabilities(
        family, takes_ids, guide, has_log_probs, slots, models.max_seq_len or length
    )


def rows(can: Capabilities) -> Mapping[str, str]:
    """The capabilities for people."""
    return {
        "server": can.family.name,
        "prompt": "token ids" if can.takes_ids else "text: special tokens in data are broken up",
        "guided plans": can.guide or "none: the parser alone checks a plan",
        "log-probabilities": "yes" if can.has_log_probs else "none: answers have no confidence",
        "requests at once": str(can.max_batch_size or "not reported"),
        "longest sequence": str(can.max_seq_len or "not reported"),
    }


def _family(models: Models) -> Family:
    return FAMILIES.get(models.owner.lower(), Family())


def _models(response: httpx.Response, url_setting: str) -> Models:
    try:
        listed = response.json()["data"]
        names = tuple(str(each["id"]) for each in listed)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{response.url} is not OpenAI's list of models: is {url_setting} the address that "
            "ends before /v1?"
        ) from error
    bases = tuple(str(each["id"]) for each in listed if not each.get("parent"))
    first: Any = next((each for each in listed if not each.get("parent")), {})
    return Models(
        names, bases, str(first.get("owned_by") or ""), _positive(first.get("max_model_len"))
    )


async def _said(client: httpx.AsyncClient, fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """The whole answer; None where the server refuses the request."""
    response = await _posted(client, "completions", fields)
    try:
        answer = response.json() if response.status_code == 200 else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


async def _posted(
    client: httpx.AsyncClient, path: str, fields: Mapping[str, Any]
) -> httpx.Response:
    """Raises BackendUnavailable where no answer comes."""
    try:
        return await client.post(path, json=dict(fields))
    except httpx.TransportError as error:
        raise BackendUnavailable(f"no answer from {client.base_url} ({_why(error)})") from error


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices") or [{}]
    return choices[0] if isinstance(choices[0], dict) else {}


async def _llama_limits(client: httpx.AsyncClient) -> tuple[int | None, int | None]:
    """llama-server reports its slots and how many tokens each holds."""
    try:
        response = await client.get("../props")
        props = response.json() if response.status_code == 200 else {}
    except (ValueError, httpx.TransportError):
        return None, None
    settings = props.get("default_generation_settings") or {}
    return _positive(props.get("total_slots")), _positive(settings.get("n_ctx"))


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
